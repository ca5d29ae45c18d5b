"""Which samples are kept: masks in priority order."""
