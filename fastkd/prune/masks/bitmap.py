"""Sets of sample_ids as packed bitmaps, one bit a sample (ceil(N / 8) bytes, see `packing`), with rank and select.

Union, intersection and difference are numpy's `|`, `&`
and `& ~` on the bytes, which run at the speed of memory already. Going between bitmaps and sample_ids is compiled (`bits`)
where there are many samples, and by numpy's boolean arrays where Numba's start would take longer.
"""

from dataclasses import dataclass

import numpy as np

from fastkd.prune import scale
from fastkd.prune.masks.packing import BLOCK_BYTES, ONES


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
        if self.num_samples < scale.COMPILED_FROM:
            flags = np.unpackbits(self.bits, count=self.num_samples, bitorder="little").view(bool)
            return np.flatnonzero(flags)
        from fastkd.prune.masks.bits import members

        found = np.empty(len(self), np.int64)  # by numpy, which asks for huge pages: a third of the time of numba's
        members(self.bits, found)
        return found

    def contains(self, sample_ids: np.ndarray) -> np.ndarray:
        """Which of the sample_ids are members: bool, of the same shape."""
        return ((self.bits[sample_ids >> 3] >> (sample_ids & 7).astype(np.uint8)) & 1).astype(bool)

    def rank(self, sample_ids: np.ndarray) -> np.ndarray:
        """Members below each of the sample_ids (0 … num_samples): int64, of the same length."""
        from fastkd.prune.masks.bits import rank

        return rank(self.bits, self.before, np.ascontiguousarray(sample_ids, np.int64))

    def select(self, ranks: np.ndarray) -> np.ndarray:
        """The members of ranks 0 … len-1, the inverse of `rank`: int64, of the same length."""
        from fastkd.prune.masks.bits import select

        return select(self.bits, self.before, np.ascontiguousarray(ranks, np.int64))


def pack_ids(sample_ids: np.ndarray, num_samples: int) -> Bitmap:
    """The set of some sample_ids (int64, each 0 … num_samples-1, in any order)."""
    if num_samples < scale.COMPILED_FROM:
        flags = np.zeros(num_samples, bool)
        flags[sample_ids] = True
        return bitmap_of(np.packbits(flags, bitorder="little"), num_samples)
    from fastkd.prune.masks.bits import set_bits

    bits = np.zeros(-(-num_samples // 8), np.uint8)
    set_bits(bits, np.ascontiguousarray(sample_ids, np.int64))
    return bitmap_of(bits, num_samples)


def bitmap_of(bits: np.ndarray, num_samples: int) -> Bitmap:
    """A bitmap from its bytes, for instance the `|` of those of two others; bits beyond `num_samples` are cleared."""
    if num_samples % 8:
        bits[-1] &= (1 << num_samples % 8) - 1
    return Bitmap(bits, num_samples, _directory(bits))


def has_repeats_or_outside(sample_ids: np.ndarray, num_samples: int) -> bool:
    """Whether some sample_id is not within 0 … num_samples-1 or is there twice; without sorting them."""
    if num_samples < scale.COMPILED_FROM:
        if not len(sample_ids):
            return False
        outside = sample_ids.min() < 0 or sample_ids.max() >= num_samples
        return bool(outside or len(pack_ids(sample_ids, num_samples)) < len(sample_ids))
    from fastkd.prune.masks.bits import first_bad

    return bool(first_bad(sample_ids, np.zeros(-(-num_samples // 8), np.uint8), num_samples) >= 0)


def _directory(bits: np.ndarray) -> np.ndarray:
    """Members before each block of the bytes, and in all: int64 (blocks + 1,)."""
    if 8 * len(bits) >= scale.COMPILED_FROM:
        from fastkd.prune.masks.bits import in_blocks

        counts = in_blocks(bits)
    else:
        counts = np.add.reduceat(ONES[bits], np.arange(0, len(bits), BLOCK_BYTES), dtype=np.int64)
    return np.append(0, np.cumsum(counts))
