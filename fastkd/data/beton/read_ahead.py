"""Reading ahead: the operating system is told which bytes the next batches need, and reads those and no others.

A beton is mapped, and its pages come from the page cache. Where they are not there yet, a touch would stop a worker and
read what lies around, which at f = 0.1 is mostly of samples that nobody asks for. So a cold file is asked for by the range
of each sample, some batches ahead. On a warm one the asking would cost more than it brings: a look at some samples tells.
"""

import mmap
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from fastkd.data.beton.read import Beton

_LOOKS = 256  # samples at which is looked; 0.3 ms
_WARM = 0.99  # share of them in the page cache from which on a file counts as warm
_PIECE = 2**17  # bytes asked for at a time: of a longer piece the system may read the beginning only


def is_cold(beton: Beton, ids: np.ndarray) -> bool:
    """Whether some of these samples would have to be read from disk; looks at 256 of them."""
    if not len(ids):
        return False
    some = ids[np.linspace(0, len(ids) - 1, _LOOKS).astype(np.int64)]
    byte, file = [bytearray(1)], beton.file.fileno()
    try:
        return sum(_is_cached(file, byte, int(start)) for start in beton.ptrs[some]) < _WARM * _LOOKS
    except OSError:  # the file system cannot tell
        return True


def _is_cached(file: int, byte: list[bytearray], start: int) -> bool:
    try:
        return os.preadv(file, byte, start, os.RWF_NOWAIT) == 1
    except BlockingIOError:
        return False


def ask_for(beton: Beton, ids: np.ndarray) -> None:
    """Has the encoded bytes of these samples read into the page cache, without waiting for them."""
    starts = beton.ptrs[ids]
    for start, end in zip(starts.tolist(), (starts + beton.sizes[ids]).tolist(), strict=True):
        for piece in range(start // mmap.PAGESIZE * mmap.PAGESIZE, end, _PIECE):
            beton.mapping.madvise(mmap.MADV_WILLNEED, piece, min(_PIECE, end - piece))


def reading_ahead(
    beton: Beton,
    jobs: Iterable[tuple[np.ndarray, int]],
    num_ahead: int,
    needed: Callable[[np.ndarray, int], np.ndarray] = lambda ids, aug_seed: ids,
) -> Iterator[tuple[np.ndarray, int]]:
    """The same jobs, each asked for `num_ahead` jobs before it comes; needed: the samples whose bytes a job takes."""
    waiting: deque[tuple[np.ndarray, int]] = deque()
    for ids, aug_seed in jobs:
        ask_for(beton, needed(ids, aug_seed))
        waiting.append((ids, aug_seed))
        if len(waiting) > num_ahead:
            yield waiting.popleft()
    yield from waiting
