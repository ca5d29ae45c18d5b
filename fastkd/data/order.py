"""In which order an epoch visits the kept samples, and how that order is cut into batches and ranks.

Everything here is a pure function of (ids, seed, epoch, batch size, world): nothing is remembered between epochs, so that
any batch of any epoch can be named without going through the ones before it.
"""

import numpy as np
from numba import njit

from fastkd.dist import even_split
from fastkd.hashing import draw_below

_ORDER = 3  # keeps the order's key apart from that of the views


@njit(cache=True, nogil=True)
def _shuffle(ids: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Fisher-Yates with counter-based draws."""
    out = ids.copy()
    for i in range(len(out) - 1):
        j = i + draw_below(seed, epoch * 8 + _ORDER, i, len(out) - i)
        out[i], out[j] = out[j], out[i]
    return out


def epoch_order(ids: np.ndarray, *, epoch: int, shuffle: bool, seed: int) -> np.ndarray:
    """The sample_ids in the order in which an epoch visits them.

    Args:
        ids: int64 (n,), the kept sample_ids.
        epoch: 0, 1, … seed: 0 … 2^63-1; each (seed, epoch) has a permutation of its own.

    Returns:
        int64 (n,): a uniform permutation of `ids`, or `ids` itself where `shuffle` is off.
    """
    return _shuffle(np.ascontiguousarray(ids, np.int64), seed, epoch) if shuffle else ids


def num_batches(num_ids: int, *, batch_size: int, drop_last: bool, size: int = 1) -> int:
    """Batches an epoch, the same number on every rank."""
    step = batch_size * size
    return num_ids // step if drop_last else -(-num_ids // step)


def batch_ids(order: np.ndarray, batch: int, *, batch_size: int, rank: int = 0, size: int = 1) -> np.ndarray:
    """Rank `rank`'s part of one batch.

    The order is cut into global batches of `batch_size * size` samples, each of them into `size` contiguous parts. The
    last one may be shorter: it is split evenly, so that ranks differ by at most one sample there (and one may be empty).
    Every sample of the order is in exactly one part; nothing is padded or repeated.
    """
    step = batch_size * size
    part = order[batch * step : (batch + 1) * step]
    start, end = even_split(len(part), rank, size)
    return part[start:end]
