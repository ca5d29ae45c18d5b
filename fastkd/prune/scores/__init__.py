"""How hard each sample is."""
