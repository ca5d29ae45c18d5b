"""D2 pruning: a sparse graph of nearest neighbours, along which samples lend each other difficulty.

Maharana et al., "D2 Pruning: Message Passing for Balancing Diversity and Difficulty in Data Pruning" (ICLR 2024). Each
sample starts with its score plus its neighbours', weighted by exp(-γ_f·distance); the best is taken, and its neighbours
lose its value weighted by exp(-γ_r·distance), again and again.
"""

from typing import Any

import numpy as np

from fastkd.errors import OptionError
from fastkd.intrinsics import njit
from fastkd.prune.select.ccs import drop_hardest
from fastkd.prune.select.heap import order_all, rise, sink
from fastkd.prune.select.keys import CLASS_ORDER
from fastkd.prune.select.levels import class_members, class_quotas, in_turns
from fastkd.prune.select.neighbours import KNN, nearest_neighbours
from fastkd.splitmix import draws


def symmetric_edges(
    neighbours: np.ndarray, distances: np.ndarray, symmetric: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The graph in compressed rows: starts int64 (N + 1,), neighbours int64 (E,), distances float64 (E,).

    Args:
        neighbours: int64 (N, k), -1 where there is none; distances: float64 (N, k).
        symmetric: a sample is a neighbour of its neighbours, as in D2's code; else edges are as found.
    """
    num_samples, k = neighbours.shape
    source, target, length = np.repeat(np.arange(num_samples), k), neighbours.reshape(-1), distances.reshape(-1)
    known = target >= 0
    source, target, length = source[known], target[known], length[known]
    if symmetric:
        source, target = np.concatenate([source, target]), np.concatenate([target, source])
        length = np.concatenate([length, length])
    pair, first = np.unique(source * num_samples + target, return_index=True)
    starts = np.searchsorted(pair, np.arange(num_samples + 1) * num_samples)
    return starts, pair % max(num_samples, 1), length[first]


def pass_forward(
    scores: np.ndarray, graph: tuple[np.ndarray, np.ndarray, np.ndarray], gamma: float = 1.0, power: int = 1
) -> np.ndarray:
    """ρ_i = s_i + Σ exp(-γ_f·d_ij^power)·s_j over i's neighbours: float64 (N,)."""
    starts, target, length = graph
    lenders = np.repeat(np.arange(len(scores)), np.diff(starts))
    return scores + np.bincount(lenders, _damping(length, gamma, power) * scores[target], minlength=len(scores))


def _damping(length: np.ndarray, gamma: float, power: int) -> np.ndarray:
    """exp(-γ·d^power); 0 for an infinite γ, whatever the distance."""
    return np.zeros(len(length)) if np.isinf(gamma) else np.exp(-gamma * length**power)


def pick_in_turn(
    values: np.ndarray,
    graph: tuple[np.ndarray, np.ndarray, np.ndarray],
    num_kept: int,
    *,
    gamma: float,
    power: int = 1,
    ties: np.ndarray,
) -> np.ndarray:
    """Takes the best sample, lowers its neighbours by exp(-γ_r·d^power) of its value, and so on.

    Args:
        values: float64 (N,), ρ. gamma: γ_r, at least 0, infinity allowed. ties: uint64 (N,), lower first of equal ρ.

    Returns:
        int64 (num_kept,), in the order in which they are taken; the start of it is what fewer would be.
    """
    starts, target, length = graph
    return _pick(values.astype(np.float64), starts, target, _damping(length, gamma, power), num_kept, ties)


@njit(cache=True, nogil=True)
def _pick(
    rho: np.ndarray, starts: np.ndarray, target: np.ndarray, damping: np.ndarray, num_kept: int, ties: np.ndarray
) -> np.ndarray:
    """A heap that knows where each sample stands in it: a pick costs k·log N, not a search through all N."""
    num_heap, cost = len(rho), -rho  # the lowest on top
    heap, place = (
        np.arange(num_heap),
        np.empty(num_heap, np.int64),
    )  # sample at each place, place of each sample (-1: taken)
    order_all(heap, place, num_heap, cost, ties)
    out = np.empty(num_kept, np.int64)
    for n in range(num_kept):
        best = heap[0]
        out[n] = best
        place[best] = -1
        num_heap -= 1
        if num_heap:
            heap[0] = heap[num_heap]
            sink(heap, place, num_heap, 0, cost, ties)
        for e in range(starts[best], starts[best + 1]):
            j = target[e]
            if place[j] < 0 or damping[e] == 0:
                continue
            cost[j] -= damping[e] * cost[best]
            if cost[best] <= 0:
                sink(heap, place, num_heap, place[j], cost, ties)
            else:
                rise(heap, place, place[j], cost, ties)
    return out


def d2_orders(
    features: np.ndarray,
    scores: np.ndarray,
    members: list[np.ndarray],
    num_each: np.ndarray,
    *,
    k: int,
    gamma_forward: float = 1.0,
    gamma_reverse: float = 0.1,
    squared: bool = False,
    symmetric: bool = True,
    knn: str = "exact",
    seed: int = 0,
) -> list[np.ndarray]:
    """D2's order of each class (or of all samples as one), each with a graph of its own.

    Args:
        features: float32 (N, D). scores: float32 (N,), higher = harder, finite for all members.
        members: int64 sample_ids of each class, increasing. num_each: int64 (C,), how many to take of each.
        k: neighbours. gamma_forward, gamma_reverse: γ_f and γ_r of the distance, or of its square where `squared`
            (the paper's form; its code has the distance).
        symmetric: see `symmetric_edges`.

    Returns:
        For each class int64 sample_ids in the order in which they are taken.

    Raises:
        OptionError: options out of range; scores that are not finite.
        MissingDependencyError: as `nearest_neighbours`.
    """
    if knn not in KNN:
        raise OptionError(f"knn {knn!r}, expected one of {', '.join(KNN)}")
    if k < 0 or not gamma_forward >= 0 or not gamma_reverse >= 0:
        raise OptionError(f"k {k}, gammas {gamma_forward} and {gamma_reverse}: expected none below 0")
    if not all(np.isfinite(scores[ids]).all() for ids in members):
        raise OptionError("scores that are not finite cannot be passed along a graph; use another policy for them")
    power = 2 if squared else 1
    orders = []
    for ids, count in zip(members, num_each, strict=True):
        graph = symmetric_edges(*nearest_neighbours(features[ids], k, knn), symmetric)
        values = pass_forward(scores[ids].astype(np.float64), graph, gamma_forward, power)
        ties = draws(ids, seed, CLASS_ORDER)
        orders.append(ids[pick_in_turn(values, graph, int(count), gamma=gamma_reverse, power=power, ties=ties)])
    return orders


def select_d2(
    labels: np.ndarray,
    num_kept: int,
    *,
    features: np.ndarray,
    scores: np.ndarray,
    hardness: np.ndarray,
    share_dropped: float,
    balance: str = "equal",
    seed: int = 0,
    pool: np.ndarray | None = None,
    **how: Any,
) -> np.ndarray:
    """D2 within each class (or over all samples where balance is `none`), after the hardest are dropped.

    Args:
        hardness, share_dropped: as of `drop_hardest`. pool: as of `select_level`. how: the rest of `d2_orders`.

    Returns:
        int64 (num_kept,), sample_ids in priority order.
    """
    left = drop_hardest(hardness, share_dropped, num_kept, seed, pool)
    members = [left[part] for part in class_members(labels[left], balance)]
    quotas = class_quotas(np.array([len(ids) for ids in members]), num_kept, balance, seed)
    orders = d2_orders(features, scores, members, quotas, seed=seed, **how)
    return in_turns(orders, members, balance, seed)
