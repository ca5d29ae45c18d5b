"""In which order an epoch visits the kept samples, and how that order is cut into batches and ranks.

Everything here is a pure function of (ids, seed, epoch, global batch, rank): nothing is remembered between epochs, so that
any batch of any epoch can be named without going through the ones before it.
"""

import numpy as np
from numba import uint64

from fastkd.arguments import as_ids
from fastkd.dist import even_split
from fastkd.errors import OptionError
from fastkd.hashing import draw, draw_below
from fastkd.intrinsics import njit

ORDERS = ("shuffle", "pages")
PAGES_BATCHES = 16
"""Global batches that a group of `pages` order holds at least: so many are mixed, and lie in memory at a time."""

# Keep the keys of the draws apart from those of the views.
_ORDER, _BUCKET, _PAGE = 3, 4, 5
_BUCKET_IDS = 2**16  # ids that are shuffled in one piece: 512 KiB, which a core's own cache holds


@njit(cache=True, nogil=True)
def _shuffle_part(out: np.ndarray, start: int, end: int, seed: int, key: int) -> None:
    """Fisher-Yates with counter-based draws on out[start:end]; the draws are numbered by place."""
    for i in range(start, end - 1):
        j = i + draw_below(seed, key, i, end - i)
        out[i], out[j] = out[j], out[i]


@njit(cache=True, nogil=True)
def _shuffle(ids: np.ndarray, seed: int, epoch: int, bits: int) -> np.ndarray:
    """A uniform permutation: each id goes to one of 2**bits buckets by a draw, and every bucket is shuffled by itself.

    As uniform as Fisher-Yates (Rao, "Generation of random permutation of given number of elements using random sampling
    numbers", Sankhya A 23, 1961; Sandelius, 1962), but it misses the cache once an id at most, not at every swap.
    """
    key = epoch * 8
    if bits == 0:
        out = ids.copy()
        _shuffle_part(out, 0, len(out), seed, key + _ORDER)
        return out
    shift = uint64(64 - bits)
    ends = np.zeros(2**bits + 1, np.int64)
    for i in range(len(ids)):
        ends[np.int64(draw(seed, key + _BUCKET, i) >> shift) + 1] += 1
    for bucket in range(2**bits):
        ends[bucket + 1] += ends[bucket]
    out = np.empty_like(ids)
    for i in range(len(ids)):  # moves the start of each bucket to its end
        bucket = int(draw(seed, key + _BUCKET, i) >> shift)
        out[ends[bucket]] = ids[i]
        ends[bucket] += 1
    start = 0
    for bucket in range(2**bits):
        _shuffle_part(out, start, ends[bucket], seed, key + _ORDER)
        start = ends[bucket]
    return out


def epoch_order(
    ids: np.ndarray, *, epoch: int, shuffle: bool, seed: int, pages: np.ndarray | None = None, group: int = 1
) -> np.ndarray:
    """The sample_ids in the order in which an epoch visits them.

    Args:
        ids: int64 (n,), the kept sample_ids.
        epoch: 0, 1, … seed: 0 … 2^63-1; each (seed, epoch) has a permutation of its own.
        pages: integers (n,), the page of the file in which each id lies, for an order that reads few pages at a time.
        group: with `pages`, the samples that are mixed at least, 1 …; the order then depends on it, too.

    Returns:
        int64 (n,): a uniform permutation of `ids`; with `pages` one that takes whole pages in random order, and shuffles
        the samples of as many of them as hold `group` samples; `ids` themselves where `shuffle` is off.
    """
    if not shuffle:
        return ids
    ids = np.ascontiguousarray(ids, np.int64)
    if pages is None:
        bits = max(0, (len(ids) - 1).bit_length() - _BUCKET_IDS.bit_length() + 1)
        return _shuffle(ids, seed, epoch, bits)
    counts = _count(pages, int(pages.max()) + 1)
    turns = epoch_order(np.flatnonzero(counts), epoch=epoch, shuffle=True, seed=seed)
    return _shuffle_pages(ids, pages, counts, turns, group, seed, epoch * 8 + _PAGE)


@njit(cache=True, nogil=True)
def _count(pages: np.ndarray, num_pages: int) -> np.ndarray:
    """Ids in each page; numpy.bincount would copy the pages as int64."""
    counts = np.zeros(num_pages, np.int64)
    for page in pages:
        counts[page] += 1
    return counts


@njit(cache=True, nogil=True)
def _shuffle_pages(
    ids: np.ndarray, pages: np.ndarray, counts: np.ndarray, turns: np.ndarray, group: int, seed: int, key: int
) -> np.ndarray:
    """The ids page by page in the order `turns`, each run of whole pages with at least `group` ids shuffled.

    What is left at the end of the pages and would be less than a group belongs to the last one.
    """
    out, ends = np.empty_like(ids), np.empty(len(counts), np.int64)
    end = 0
    for page in turns:
        ends[page] = end
        end += counts[page]
    for i in range(len(ids)):  # moves the start of each page to its end
        out[ends[pages[i]]] = ids[i]
        ends[pages[i]] += 1
    start = 0
    for page in turns:
        if ends[page] - start >= group and len(out) - ends[page] >= group:
            _shuffle_part(out, start, ends[page], seed, key)
            start = int(ends[page])
    _shuffle_part(out, start, len(out), seed, key)
    return out


def check_ids(ids: np.ndarray, num_samples: int) -> np.ndarray:
    """sample_ids as a contiguous int64 array, checked.

    Raises:
        OptionError: not a one-dimensional integer array, empty, out of 0 … num_samples-1, or with repeats.
    """
    ids = as_ids(ids)
    if not len(ids):
        raise OptionError("no ids: at least one sample is needed")
    if ids.min() < 0 or ids.max() >= num_samples:
        raise OptionError(f"ids run from {ids.min()} to {ids.max()}, the beton has sample_ids 0 … {num_samples - 1}")
    seen = np.zeros(num_samples, bool)
    seen[ids] = True
    if np.count_nonzero(seen) != len(ids):
        raise OptionError(f"{len(ids)} ids, {np.count_nonzero(seen)} of them distinct: each sample can be kept once")
    return ids


def check_order(order: str) -> None:
    """Raises OptionError for an order that is not known."""
    if order not in ORDERS:
        raise OptionError(f"order is {order!r}, expected one of {', '.join(ORDERS)}")


def num_batches(num_ids: int, *, global_batch: int, drop_last: bool) -> int:
    """Batches an epoch, the same number on every rank and for any number of ranks."""
    return num_ids // global_batch if drop_last else -(-num_ids // global_batch)


def num_in_batch(num_ids: int, batch: int, *, global_batch: int) -> int:
    """Samples of one batch over all ranks: `global_batch`, or what is left for the last one."""
    return min(global_batch, num_ids - batch * global_batch)


def batch_ids(order: np.ndarray, batch: int, *, global_batch: int, rank: int = 0, size: int = 1) -> np.ndarray:
    """Rank `rank`'s part of one batch.

    The order is cut into batches of `global_batch` samples, the last of which may be shorter, and each of them into `size`
    contiguous parts whose lengths differ by at most one (with more ranks than samples, some are empty). A batch is the
    same samples for any number of ranks. Every sample of the order is in exactly one part; nothing is padded or repeated.
    """
    part = order[batch * global_batch : (batch + 1) * global_batch]
    start, end = even_split(len(part), rank, size)
    return part[start:end]
