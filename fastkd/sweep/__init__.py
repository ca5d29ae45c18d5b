"""Suites of runs: read, planned and run, each output once."""
