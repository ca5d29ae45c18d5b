"""How a set of sample_ids lies in bytes: bit i of the set is bit i mod 8 of byte i div 8."""

import numpy as np

BLOCK_BYTES = 512
"""One count of the directory a block: 8 B for 512, 1.6 %."""

ONES = np.array([bin(byte).count("1") for byte in range(256)], np.uint8)
"""Bits that are set in a byte."""
