"""Going between bitmaps and sample_ids, compiled: what `bitmap` does with many samples, and rank and select."""

import numpy as np
from numba import uint8

from fastkd.intrinsics import njit
from fastkd.prune.masks.packing import BLOCK_BYTES, ONES


@njit(cache=True, nogil=True)
def set_bits(bits: np.ndarray, sample_ids: np.ndarray) -> None:
    """Adds the sample_ids (int64) to the set."""
    for i in sample_ids:
        bits[i >> 3] |= uint8(1 << (i & 7))


@njit(cache=True, nogil=True)
def first_bad(sample_ids: np.ndarray, bits: np.ndarray, num_samples: int) -> int:
    """Position of the first sample_id that is not below `num_samples` or in the set before it, -1 for none; adds them to the set."""
    for k in range(len(sample_ids)):
        i = sample_ids[k]
        if i < 0 or i >= num_samples or bits[i >> 3] >> (i & 7) & 1:
            return k
        bits[i >> 3] |= uint8(1 << (i & 7))
    return -1


@njit(cache=True, nogil=True)
def in_blocks(bits: np.ndarray) -> np.ndarray:
    """Members in each block of the bytes."""
    counts = np.zeros(-(-len(bits) // BLOCK_BYTES), np.int64)
    for block in range(len(counts)):
        for byte in bits[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]:
            counts[block] += ONES[byte]
    return counts


@njit(cache=True, nogil=True)
def members(bits: np.ndarray, out: np.ndarray) -> None:
    """Writes the members, increasing."""
    k = 0
    for at in range(len(bits)):
        byte = np.int64(bits[at])
        while byte:
            out[k] = at * 8 + ONES[(byte & -byte) - 1]  # the place of the lowest bit set
            k += 1
            byte &= byte - 1


@njit(cache=True, nogil=True)
def rank(bits: np.ndarray, before: np.ndarray, sample_ids: np.ndarray) -> np.ndarray:
    """Members below each sample_id; `before`: those before each block."""
    out = np.empty(len(sample_ids), np.int64)
    for k in range(len(sample_ids)):
        at = sample_ids[k] >> 3
        block = at // BLOCK_BYTES
        count = before[block]
        for byte in bits[block * BLOCK_BYTES : at]:
            count += ONES[byte]
        if at < len(bits):
            count += ONES[bits[at] & uint8((1 << (sample_ids[k] & 7)) - 1)]
        out[k] = count
    return out


@njit(cache=True, nogil=True)
def select(bits: np.ndarray, before: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """The members of the ranks."""
    out = np.empty(len(ranks), np.int64)
    for k in range(len(ranks)):
        block = np.searchsorted(before, ranks[k], side="right") - 1
        left, at = ranks[k] - before[block], block * BLOCK_BYTES
        while left >= ONES[bits[at]]:
            left -= ONES[bits[at]]
            at += 1
        byte = np.int64(bits[at])
        for _ in range(left):
            byte &= byte - 1
        out[k] = at * 8 + ONES[(byte & -byte) - 1]
    return out
