"""How many samples each class gives, and in which order the classes take turns.

Every way of sharing is an order in which the classes take turns, so that a smaller mask is a prefix of a larger one:
`equal` goes in rounds, one sample of every class that still has one (water-filling); `proportional` gives the sample of
rank r of a class of n the place (2r + 1) / n (Webster's method: to within one sample, round(f·n) of every class).
"""

import heapq

import numpy as np
from numba import njit, uint64

from fastkd.hashing import draw

BALANCES = ("equal", "proportional", "none")
ROUND_ORDER = 2
"""Number of the draw that orders the classes of a round."""

SEEDED = np.zeros(0, np.int64)
"""Turns drawn anew in each round."""


@njit(cache=True, nogil=True, inline="always")
def _turn(group: int, rank: int, num_groups: int, seed: int, turns: np.ndarray) -> int:
    """Which groups come first among those with the same place."""
    return draw(rank * num_groups + group, seed, ROUND_ORDER) if len(turns) == 0 else uint64(turns[group])


@njit(cache=True, nogil=True, inline="always")
def _place(rank: int, size: int, proportional: bool) -> float:
    return (2.0 * rank + 1.0) / size if proportional else float(rank)


@njit(cache=True, nogil=True)
def interleave(
    by_group: np.ndarray,
    quotas: np.ndarray,
    sizes: np.ndarray,
    proportional: bool,
    seed: int,
    turns: np.ndarray,
) -> np.ndarray:
    """Merges the groups' own orders into one in which the groups take turns.

    Args:
        by_group: (sum of quotas,), quotas[0] samples of group 0, then quotas[1] of group 1, ….
        quotas, sizes: int64 (G,), samples given and samples in all of each group.
        proportional: places by rank and size; else rounds.
        turns: int64 (G,), the order of the groups within a round; SEEDED for one drawn anew each round.

    Returns:
        The same samples, in the order of their turns.
    """
    num_groups, num_heap = len(quotas), 0
    place, turn = np.empty(num_groups, np.float64), np.empty(num_groups, np.uint64)
    heap, at, rank = np.empty(num_groups, np.int64), np.empty(num_groups, np.int64), np.zeros(num_groups, np.int64)
    start = 0
    for g in range(num_groups):
        at[g] = start
        start += quotas[g]
        if quotas[g] > 0:
            place[g], turn[g] = _place(0, sizes[g], proportional), _turn(g, 0, num_groups, seed, turns)
            heap[num_heap] = g
            num_heap += 1
    for i in range(num_heap // 2 - 1, -1, -1):
        _sift(heap, num_heap, i, place, turn)
    out = np.empty_like(by_group)
    for k in range(len(by_group)):
        g = heap[0]
        out[k] = by_group[at[g]]
        at[g] += 1
        rank[g] += 1
        if rank[g] == quotas[g]:
            num_heap -= 1
            heap[0] = heap[num_heap]
        else:
            place[g], turn[g] = _place(rank[g], sizes[g], proportional), _turn(g, rank[g], num_groups, seed, turns)
        _sift(heap, num_heap, 0, place, turn)
    return out


@njit(cache=True, nogil=True)
def _sift(heap: np.ndarray, num_heap: int, i: int, place: np.ndarray, turn: np.ndarray) -> None:
    """Lets the group at i sink to its place in the heap."""
    while True:
        child = 2 * i + 1
        if child >= num_heap:
            return
        if child + 1 < num_heap and _before(heap[child + 1], heap[child], place, turn):
            child += 1
        if _before(heap[i], heap[child], place, turn):
            return
        heap[i], heap[child] = heap[child], heap[i]
        i = child


@njit(cache=True, nogil=True, inline="always")
def _before(a: int, b: int, place: np.ndarray, turn: np.ndarray) -> bool:
    if place[a] != place[b]:
        return place[a] < place[b]
    return turn[a] < turn[b] if turn[a] != turn[b] else a < b


def equal_quotas(sizes: np.ndarray, num_kept: int, seed: int, turns: np.ndarray = SEEDED) -> np.ndarray:
    """What the first `num_kept` turns in rounds take of each group: int64 (G,). Groups that are too small give all."""
    ordered = np.sort(sizes)
    full = np.cumsum(ordered)  # samples in groups of that size or less
    low, high = 0, int(ordered[-1])
    while low < high:  # the last round that every group finishes
        level = (low + high + 1) // 2
        smaller = int(np.searchsorted(ordered, level))
        taken = (int(full[smaller - 1]) if smaller else 0) + level * (len(sizes) - smaller)
        low, high = (level, high) if taken <= num_kept else (low, level - 1)
    quotas = np.minimum(sizes, low)
    rest = np.flatnonzero(sizes > low)
    order = sorted(rest.tolist(), key=lambda g: (int(_turn(g, low, len(sizes), seed, turns)), g))
    quotas[order[: num_kept - int(quotas.sum())]] += 1
    return quotas


def proportional_quotas(sizes: np.ndarray, num_kept: int, seed: int) -> np.ndarray:
    """What the first `num_kept` turns by Webster's places take of each group: int64 (G,)."""
    num_groups, total = len(sizes), int(sizes.sum())
    quotas = np.minimum(sizes, (2 * num_kept * sizes + total) // (2 * total))

    def place(g: int, rank: int) -> tuple[float, int, int]:
        return _place(rank, int(sizes[g]), True), int(_turn(g, rank, num_groups, seed, SEEDED)), g

    # Rounding gives the quotas of a nearby number of samples; the few turns up to `num_kept` are taken one by one.
    difference = num_kept - int(quotas.sum())
    if difference > 0:
        coming = [place(g, int(quotas[g])) for g in range(num_groups) if quotas[g] < sizes[g]]
        heapq.heapify(coming)
        for _ in range(difference):
            g = heapq.heappop(coming)[-1]
            quotas[g] += 1
            if quotas[g] < sizes[g]:
                heapq.heappush(coming, place(g, int(quotas[g])))
    elif difference < 0:
        gone = [_negated(place(g, int(quotas[g]) - 1)) for g in range(num_groups) if quotas[g] > 0]
        heapq.heapify(gone)
        for _ in range(-difference):
            g = -heapq.heappop(gone)[-1]
            quotas[g] -= 1
            if quotas[g] > 0:
                heapq.heappush(gone, _negated(place(g, int(quotas[g]) - 1)))
    return quotas


def _negated(place: tuple[float, int, int]) -> tuple[float, int, int]:
    return -place[0], -place[1], -place[2]


def water_fill(sizes: np.ndarray, num_kept: int) -> np.ndarray:
    """Equal shares of strata, those that are too small giving all they have; the largest take what is left over.

    Zheng et al., "Coverage-centric Coreset Selection" (ICLR 2023), algorithm 1: visited by ascending size, each stratum
    gives min(size, rest // strata left).

    Args:
        sizes: int64 (S,), samples of each stratum. num_kept: at most their sum.

    Returns:
        int64 (S,), with the sum num_kept.
    """
    return equal_quotas(sizes, num_kept, 0, stratum_turns(sizes))


def stratum_turns(sizes: np.ndarray) -> np.ndarray:
    """The turns of strata within a round that make the prefixes of `interleave` those of `water_fill`: largest first."""
    visited = np.lexsort((np.arange(len(sizes)), sizes))
    turns = np.empty(len(sizes), np.int64)
    turns[visited[::-1]] = np.arange(len(sizes))
    return turns
