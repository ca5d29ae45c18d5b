"""Which samples are kept: masks, the scores that they go by, and the ways to choose."""
