"""Which samples are kept."""
