"""From how many samples on masks are made by compiled code."""

COMPILED_FROM = 2**21
"""Samples from which on it is worth Numba's start, the better part of a second; below it, numpy is done before."""
