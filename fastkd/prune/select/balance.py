"""How many samples each class gives, and in which order the classes take turns.

Every way of sharing is an order in which the classes take turns, so that a smaller mask is a prefix of a larger one:
`equal` goes in rounds, one sample of every class that still has one (water-filling); `proportional` gives the sample of
rank r of a class of n the place (2r + 1) / n (Webster's method: to within one sample, round(f·n) of every class).
"""

import heapq

import numpy as np

from fastkd.prune import scale
from fastkd.prune.select.keys import ROUND_ORDER, SEEDED, Turns, turn_place
from fastkd.splitmix import draws

BALANCES = ("equal", "proportional", "none")


def interleave(by_group: np.ndarray, turns: Turns) -> np.ndarray:
    """Merges the groups' own orders into one in which the groups take turns.

    Args:
        by_group: (sum of quotas,), quotas[0] samples of group 0, then quotas[1] of group 1, ….

    Returns:
        The same samples, in the order of their turns.
    """
    if len(by_group) >= scale.COMPILED_FROM:
        from fastkd.prune.select.turns import interleave_by_heap

        return interleave_by_heap(by_group, turns)
    quotas = turns.quotas
    group = np.repeat(np.arange(len(quotas)), quotas)
    rank = np.arange(len(by_group)) - np.repeat(np.cumsum(quotas) - quotas, quotas)
    order = np.argsort(_in_round(group, rank, len(quotas), turns.seed, turns.order), kind="stable")
    place = turn_place(rank, turns.sizes[group], turns.proportional)
    return by_group[order[np.argsort(place[order], kind="stable")]]


def _in_round(group: np.ndarray, rank: np.ndarray, num_groups: int, seed: int, order: np.ndarray) -> np.ndarray:
    """Which groups come first among those with the same place: integers, of the same length."""
    return draws(rank * num_groups + group, seed, ROUND_ORDER) if len(order) == 0 else order[group]


def equal_quotas(sizes: np.ndarray, num_kept: int, seed: int, order: np.ndarray = SEEDED) -> np.ndarray:
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
    coming = rest[np.argsort(_in_round(rest, np.full_like(rest, low), len(sizes), seed, order), kind="stable")]
    quotas[coming[: num_kept - int(quotas.sum())]] += 1
    return quotas


def proportional_quotas(sizes: np.ndarray, num_kept: int, seed: int) -> np.ndarray:
    """What the first `num_kept` turns by Webster's places take of each group: int64 (G,)."""
    num_groups, total = len(sizes), max(int(sizes.sum()), 1)
    quotas = np.minimum(sizes, (2 * num_kept * sizes + total) // (2 * total))

    def place(g: int, rank: int) -> tuple[float, int, int]:
        turn = _in_round(np.array([g]), np.array([rank]), num_groups, seed, SEEDED)
        return turn_place(rank, int(sizes[g]), True), int(turn[0]), g

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
