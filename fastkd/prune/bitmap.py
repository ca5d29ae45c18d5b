"""Sets of sample_ids as packed bitmaps, one bit a sample, with rank and select.

Bit i of the set is bit i mod 8 of byte i div 8; ceil(N / 8) bytes. Union, intersection and difference are numpy's `|`, `&`
and `& ~` on the bytes, which run at the speed of memory already; what numpy is slow at, going between bitmaps and
sample_ids, is compiled.
"""

from dataclasses import dataclass

import numpy as np
from numba import njit, uint8

_BLOCK_BYTES = 512
"""One count of the directory a block: 8 B for 512, 1.6 %."""

_ONES = np.array([bin(byte).count("1") for byte in range(256)], np.uint8)


@dataclass(frozen=True, slots=True, eq=False)
class Bitmap:
    """A set of sample_ids below `num_samples`.

    bits: uint8 (ceil(num_samples / 8),). before: int64 (blocks + 1,), members before each block of 512 bytes.
    """

    bits: np.ndarray
    num_samples: int
    before: np.ndarray

    def __len__(self) -> int:
        """Members."""
        return int(self.before[-1])

    def ids(self) -> np.ndarray:
        """All members, increasing: int64 (len,)."""
        found = np.empty(len(self), np.int64)  # by numpy, which asks for huge pages: a third of the time of numba's
        _members(self.bits, found)
        return found

    def contains(self, sample_ids: np.ndarray) -> np.ndarray:
        """Which of the sample_ids are members: bool, of the same shape."""
        return ((self.bits[sample_ids >> 3] >> (sample_ids & 7).astype(np.uint8)) & 1).astype(bool)

    def rank(self, sample_ids: np.ndarray) -> np.ndarray:
        """Members below each of the sample_ids (0 … num_samples): int64, of the same length."""
        return _rank(self.bits, self.before, np.ascontiguousarray(sample_ids, np.int64))

    def select(self, ranks: np.ndarray) -> np.ndarray:
        """The members of ranks 0 … len-1, the inverse of `rank`: int64, of the same length."""
        return _select(self.bits, self.before, np.ascontiguousarray(ranks, np.int64))


def pack_ids(sample_ids: np.ndarray, num_samples: int) -> Bitmap:
    """The set of some sample_ids (int64, each 0 … num_samples-1, in any order)."""
    bits = np.zeros(-(-num_samples // 8), np.uint8)
    _set_bits(bits, np.ascontiguousarray(sample_ids, np.int64))
    return bitmap_of(bits, num_samples)


def bitmap_of(bits: np.ndarray, num_samples: int) -> Bitmap:
    """A bitmap from its bytes, for instance the `|` of those of two others; bits beyond `num_samples` are cleared."""
    if num_samples % 8:
        bits[-1] &= (1 << num_samples % 8) - 1
    return Bitmap(bits, num_samples, _directory(bits))


def has_repeats_or_outside(sample_ids: np.ndarray, num_samples: int) -> bool:
    """Whether some sample_id is not within 0 … num_samples-1 or is there twice; without sorting them."""
    return _first_bad(sample_ids, np.zeros(-(-num_samples // 8), np.uint8), num_samples) >= 0


@njit(cache=True, nogil=True)
def _set_bits(bits: np.ndarray, sample_ids: np.ndarray) -> None:
    for i in sample_ids:
        bits[i >> 3] |= uint8(1 << (i & 7))


@njit(cache=True, nogil=True)
def _first_bad(sample_ids: np.ndarray, bits: np.ndarray, num_samples: int) -> int:
    for k in range(len(sample_ids)):
        i = sample_ids[k]
        if i < 0 or i >= num_samples or bits[i >> 3] >> (i & 7) & 1:
            return k
        bits[i >> 3] |= uint8(1 << (i & 7))
    return -1


@njit(cache=True, nogil=True)
def _directory(bits: np.ndarray) -> np.ndarray:
    num_blocks = -(-len(bits) // _BLOCK_BYTES)
    before = np.zeros(num_blocks + 1, np.int64)
    for block in range(num_blocks):
        count = 0
        for byte in bits[block * _BLOCK_BYTES : (block + 1) * _BLOCK_BYTES]:
            count += _ONES[byte]
        before[block + 1] = before[block] + count
    return before


@njit(cache=True, nogil=True)
def _members(bits: np.ndarray, out: np.ndarray) -> None:
    k = 0
    for at in range(len(bits)):
        byte = np.int64(bits[at])
        while byte:
            out[k] = at * 8 + _ONES[(byte & -byte) - 1]  # the place of the lowest bit set
            k += 1
            byte &= byte - 1


@njit(cache=True, nogil=True)
def _rank(bits: np.ndarray, before: np.ndarray, sample_ids: np.ndarray) -> np.ndarray:
    out = np.empty(len(sample_ids), np.int64)
    for k in range(len(sample_ids)):
        at = sample_ids[k] >> 3
        block = at // _BLOCK_BYTES
        count = before[block]
        for byte in bits[block * _BLOCK_BYTES : at]:
            count += _ONES[byte]
        if at < len(bits):
            count += _ONES[bits[at] & uint8((1 << (sample_ids[k] & 7)) - 1)]
        out[k] = count
    return out


@njit(cache=True, nogil=True)
def _select(bits: np.ndarray, before: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    out = np.empty(len(ranks), np.int64)
    for k in range(len(ranks)):
        block = np.searchsorted(before, ranks[k], side="right") - 1
        left, at = ranks[k] - before[block], block * _BLOCK_BYTES
        while left >= _ONES[bits[at]]:
            left -= _ONES[bits[at]]
            at += 1
        byte = np.int64(bits[at])
        for _ in range(left):
            byte &= byte - 1
        out[k] = at * 8 + _ONES[(byte & -byte) - 1]
    return out
