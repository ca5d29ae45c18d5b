"""A suite: where something is said, what can be said, its cells, all of it."""
