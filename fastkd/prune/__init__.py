"""Which samples are kept: masks in priority order."""

COMPILED_FROM = 2**21
"""Samples from which on compiled code is worth Numba's start, the better part of a second; below it, numpy is done before."""
