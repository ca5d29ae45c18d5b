"""How many samples each class gives, and in which order the classes take turns.

Every way of sharing is an order in which the classes take turns, so that a smaller mask is a prefix of a larger one:
`equal` goes in rounds, one sample of every class that still has one (water-filling); `proportional` gives the sample of
rank r of a class of n the place (2r + 1) / n (Webster's method: to within one sample, round(f·n) of every class).
"""

import heapq

import numpy as np

from fastkd.prune import scale
from fastkd.splitmix import draws

BALANCES = ("equal", "proportional", "none")
ROUND_ORDER = 2
"""Number of the draw that orders the classes of a round."""

SEEDED = np.zeros(0, np.int64)
"""Turns drawn anew in each round."""


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
    if len(by_group) >= scale.COMPILED_FROM:
        from fastkd.prune.select.heap import interleave_by_heap

        return interleave_by_heap(by_group, quotas, sizes, proportional, seed, turns)
    group = np.repeat(np.arange(len(quotas)), quotas)
    rank = np.arange(len(by_group)) - np.repeat(np.cumsum(quotas) - quotas, quotas)
    order = np.argsort(_turns(group, rank, len(quotas), seed, turns), kind="stable")
    place = _places(rank, sizes[group], proportional)
    return by_group[order[np.argsort(place[order], kind="stable")]]


def _turns(group: np.ndarray, rank: np.ndarray, num_groups: int, seed: int, turns: np.ndarray) -> np.ndarray:
    """Which groups come first among those with the same place: integers, of the same length."""
    return draws(rank * num_groups + group, seed, ROUND_ORDER) if len(turns) == 0 else turns[group]


def _places(rank: np.ndarray, size: np.ndarray, proportional: bool) -> np.ndarray:
    """When the sample of that rank of a group of that size has its turn."""
    return (2.0 * rank + 1.0) / size if proportional else rank


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
    order = rest[np.argsort(_turns(rest, np.full_like(rest, low), len(sizes), seed, turns), kind="stable")]
    quotas[order[: num_kept - int(quotas.sum())]] += 1
    return quotas


def proportional_quotas(sizes: np.ndarray, num_kept: int, seed: int) -> np.ndarray:
    """What the first `num_kept` turns by Webster's places take of each group: int64 (G,)."""
    num_groups, total = len(sizes), max(int(sizes.sum()), 1)
    quotas = np.minimum(sizes, (2 * num_kept * sizes + total) // (2 * total))

    def place(g: int, rank: int) -> tuple[float, int, int]:
        turn = _turns(np.array([g]), np.array([rank]), num_groups, seed, SEEDED)
        return (2.0 * rank + 1.0) / int(sizes[g]), int(turn[0]), g

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
