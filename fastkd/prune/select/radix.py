"""The best samples of each group without sorting all of them, compiled: what `ranking` does with many samples.

The keys are never stored: each pass recomputes them. The pass over the first eleven bits counts, group by group, how
many samples have each value; the value in which a group's quota ends is looked at more closely until the samples in
question are few, and those alone are kept and sorted. 100 M samples cost five passes at most in place of a sort of
100 M, and the memory is that of the samples chosen.
"""

import numpy as np
from numba import uint64

from fastkd.hashing import draw
from fastkd.intrinsics import njit
from fastkd.prune.select.keys import CLASS_ORDER, score_key

_DIGITS = ((53, 11), (42, 11), (32, 10), (21, 11), (10, 11), (0, 10))  # (shift, bits); none crosses the two halves
_NO_SCORES = np.zeros(0, np.uint32)
_score_key = njit(nogil=True, inline="always")(score_key)


def best_by_counting(
    groups: np.ndarray, quotas: np.ndarray, sizes: np.ndarray, scores: np.ndarray | None, ascending: bool, seed: int
) -> np.ndarray:
    """`ranking.best_of_groups` in the time of a few passes."""
    score_bits = _NO_SCORES if scores is None else scores.view(np.uint32)
    num_chosen = int(quotas.sum())
    open_groups = quotas > 0
    prefix, shift, room = _thresholds(groups, score_bits, ascending, seed, quotas, sizes)
    starts = np.r_[0, np.cumsum(room)]
    ids, keys = np.empty(starts[-1], np.int64), np.empty(starts[-1], np.uint64)
    _collect(groups, score_bits, ascending, seed, open_groups, prefix, shift, starts[:-1].copy(), ids, keys)
    _sort_groups(keys, ids, starts, seed)
    if starts[-1] == num_chosen:
        return ids
    del keys
    return np.concatenate([ids[start : start + quota] for start, quota in zip(starts, quotas, strict=False)])


def _thresholds(
    groups: np.ndarray, score_bits: np.ndarray, ascending: bool, seed: int, quotas: np.ndarray, sizes: np.ndarray
) -> tuple[np.ndarray, int, np.ndarray]:
    """Where each group's quota ends: a prefix of the keys, how far keys are shifted to compare, samples up to there."""
    prefix, shift, room = np.zeros(len(quotas), np.uint64), 64, np.where(quotas > 0, sizes, 0)
    taken = np.zeros(len(quotas), np.int64)
    enough = int(quotas.sum()) + max(int(quotas.sum()) // 8, 4096)
    for shift_next, bits in _DIGITS:
        if room.sum() <= enough:
            break
        shift = shift_next
        counts = np.zeros((len(quotas), 1 << bits), np.int32 if len(groups) < 2**31 else np.int64)
        _count_digit(groups, score_bits, ascending, seed, quotas > 0, prefix, shift, bits, counts)
        upto = taken[:, None] + np.cumsum(counts, axis=1, dtype=np.int64)
        digit = np.argmax(upto >= quotas[:, None], axis=1)
        rows = np.arange(len(quotas))
        taken = np.where(quotas > 0, upto[rows, digit] - counts[rows, digit], 0)
        room = np.where(quotas > 0, upto[rows, digit], 0)
        prefix = (prefix << np.uint64(bits)) | digit.astype(np.uint64)
    return prefix, shift, room


@njit(cache=True, nogil=True, inline="always")
def _key(score_bits: np.ndarray, i: int, seed: int, ascending: bool) -> int:
    """The key of sample i; smaller comes first."""
    tie = draw(i, seed, CLASS_ORDER)
    if len(score_bits) == 0:
        return tie
    return (uint64(_score_key(score_bits[i], ascending)) << uint64(32)) | (tie >> uint64(32))


@njit(cache=True, nogil=True)
def _count_digit(
    groups: np.ndarray,
    score_bits: np.ndarray,
    ascending: bool,
    seed: int,
    open_groups: np.ndarray,
    prefix: np.ndarray,
    shift: int,
    bits: int,
    counts: np.ndarray,
) -> None:
    """Adds to counts[g, v] the samples of group g whose key starts with prefix[g] and goes on with the digit v."""
    top, mask = uint64(shift + bits), uint64((1 << bits) - 1)
    first, of_score = shift + bits == 64, shift >= 32 and len(score_bits) > 0
    for i in range(len(groups)):
        g = groups[i]
        if not open_groups[g]:
            continue
        if of_score:
            key = uint64(_score_key(score_bits[i], ascending)) << uint64(32)
        else:
            if not first and len(score_bits) > 0:  # most samples fall out before their hash is needed
                high = uint64(_score_key(score_bits[i], ascending))
                if high != prefix[g] >> uint64(32 - shift - bits):
                    continue
            key = _key(score_bits, i, seed, ascending)
        if first or key >> top == prefix[g]:
            counts[g, (key >> uint64(shift)) & mask] += 1


@njit(cache=True, nogil=True)
def _collect(
    groups: np.ndarray,
    score_bits: np.ndarray,
    ascending: bool,
    seed: int,
    open_groups: np.ndarray,
    prefix: np.ndarray,
    shift: int,
    ends: np.ndarray,
    ids: np.ndarray,
    keys: np.ndarray,
) -> None:
    """Writes the samples of each group whose key starts with at most prefix[g], group after group; moves `ends` on."""
    of_score = shift >= 32 and len(score_bits) > 0
    for i in range(len(groups)):
        g = groups[i]
        if not open_groups[g]:
            continue
        if shift < 64:
            if of_score:
                start = uint64(_score_key(score_bits[i], ascending)) >> uint64(shift - 32)
                if start > prefix[g]:
                    continue
                key = _key(score_bits, i, seed, ascending)
            else:
                key = _key(score_bits, i, seed, ascending)
                if key >> uint64(shift) > prefix[g]:
                    continue
        else:
            key = _key(score_bits, i, seed, ascending)
        ids[ends[g]] = i
        keys[ends[g]] = key
        ends[g] += 1


@njit(cache=True, nogil=True)
def _sort_group(keys: np.ndarray, ids: np.ndarray, spare_keys: np.ndarray, spare_ids: np.ndarray, seed: int) -> None:
    """Sorts one group by key, in place: radix sort by 11 bits; the rare equal keys by the rest of the hash."""
    n = len(keys)
    if n < 2:
        return
    low, high = keys[0], keys[0]
    for i in range(n):
        low, high = min(low, keys[i]), max(high, keys[i])
    differs = low ^ high
    counts = np.empty(2048, np.int64)
    here, there, here_ids, there_ids = keys, spare_keys[:n], ids, spare_ids[:n]
    swapped = False
    for shift in range(0, 64, 11):
        if differs >> uint64(shift) == 0:
            break  # all keys are equal from here on
        counts[:] = 0
        for i in range(n):
            counts[(here[i] >> uint64(shift)) & uint64(2047)] += 1
        total = 0
        for v in range(2048):
            total, counts[v] = total + counts[v], total
        for i in range(n):
            v = (here[i] >> uint64(shift)) & uint64(2047)
            there[counts[v]] = here[i]
            there_ids[counts[v]] = here_ids[i]
            counts[v] += 1
        here, there, here_ids, there_ids = there, here, there_ids, here_ids
        swapped = not swapped
    if swapped:
        keys[:] = here
        ids[:] = here_ids
    for i in range(1, n):  # insertion sort: runs of equal keys are of two samples, seldom of three
        at, sample_id = i, ids[i]
        while (
            at > 0
            and keys[at - 1] == keys[i]
            and draw(ids[at - 1], seed, CLASS_ORDER) > draw(sample_id, seed, CLASS_ORDER)
        ):
            ids[at] = ids[at - 1]
            at -= 1
        ids[at] = sample_id


@njit(cache=True, nogil=True)
def _sort_groups(keys: np.ndarray, ids: np.ndarray, starts: np.ndarray, seed: int) -> None:
    widest = np.diff(starts).max()
    spare_keys, spare_ids = np.empty(widest, np.uint64), np.empty(widest, np.int64)
    for g in range(len(starts) - 1):
        part = slice(starts[g], starts[g + 1])
        _sort_group(keys[part], ids[part], spare_keys, spare_ids, seed)
