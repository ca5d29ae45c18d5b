"""From scores to the samples that are kept."""
