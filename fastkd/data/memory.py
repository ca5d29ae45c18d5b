"""Where batches lie: a block of memory each, lent by a pool and given back when nobody holds the batch any more.

Fresh memory costs a page fault every 4 KiB, together a sixth of what a batch of raw 32-pixel images takes. So blocks are
used again, but only after the last array and the last tensor on one of them are gone: a batch that is held never changes.
"""

import math
from collections import deque
from collections.abc import Mapping

import numpy as np
import torch

_ALIGN = 64
_TORCH_TYPES = {np.dtype("u1"): torch.uint8, np.dtype("i8"): torch.int64, np.dtype("f4"): torch.float32}


class _Lease:
    """A block on loan: what numpy makes of it keeps it alive, and its end gives the block back."""

    __slots__ = ("__array_interface__", "_block", "_pool")

    def __init__(self, pool: deque[np.ndarray], num_bytes: int) -> None:
        try:
            block = pool.popleft()
        except IndexError:
            block = None
        if block is None or len(block) < num_bytes:
            del block  # before there is another one
            block = np.empty(num_bytes, np.uint8)
        self._pool, self._block = pool, block
        self.__array_interface__ = block.__array_interface__

    def __del__(self) -> None:
        self._pool.append(self._block)


class BatchMemory:
    """Memory for batches of one layout.

    Args:
        layout: name → shape of one sample and dtype.
        num_kept: blocks that wait for their next use at the most; what is given back beyond them is freed.
        is_pinned: page-locked memory, from which copies to a GPU need not wait. torch keeps and reuses it itself, since it
            alone knows when a copy has ended.
    """

    def __init__(
        self, layout: Mapping[str, tuple[tuple[int, ...], np.dtype]], *, num_kept: int, is_pinned: bool
    ) -> None:
        self.layout, self.is_pinned = dict(layout), is_pinned
        self._pool: deque[np.ndarray] = deque(maxlen=num_kept)
        self._places: dict[int, tuple[list[tuple[str, tuple[int, ...], np.dtype, int]], int]] = {}

    def arrays(self, num_samples: int) -> dict[str, np.ndarray]:
        """Uninitialised arrays for a batch of `num_samples`, by name; nobody else has their memory while they live."""
        if self.is_pinned:
            return {
                name: torch.empty((num_samples, *shape), dtype=_TORCH_TYPES[dtype], pin_memory=True).numpy()
                for name, (shape, dtype) in self.layout.items()
            }
        if num_samples not in self._places:
            self._places[num_samples] = self._place(num_samples)
        places, num_bytes = self._places[num_samples]
        block = np.asarray(_Lease(self._pool, num_bytes))
        return {name: np.ndarray(shape, dtype, block, start) for name, shape, dtype, start in places}

    def block_bytes(self, num_samples: int) -> int:
        """Bytes of memory that the arrays for a batch of `num_samples` take; torch rounds pinned ones up to powers of two."""
        places, num_bytes = self._place(num_samples)
        if not self.is_pinned:
            return num_bytes
        sizes = (math.prod(shape) * dtype.itemsize for _, shape, dtype, _ in places)
        return sum(1 << max(0, size - 1).bit_length() for size in sizes)

    def _place(self, num_samples: int) -> tuple[list[tuple[str, tuple[int, ...], np.dtype, int]], int]:
        """Name, shape, dtype and first byte of each array in the block of a batch, and the bytes of that block."""
        places, end = [], 0
        for name, (shape, dtype) in self.layout.items():
            places.append((name, (num_samples, *shape), dtype, end))
            end += -(-num_samples * math.prod(shape) * dtype.itemsize // _ALIGN) * _ALIGN
        return places, end
