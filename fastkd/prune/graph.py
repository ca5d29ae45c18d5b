"""D2 pruning: a sparse graph of nearest neighbours, along which samples lend each other difficulty.

Maharana et al., "D2 Pruning: Message Passing for Balancing Diversity and Difficulty in Data Pruning" (ICLR 2024). Each
sample starts with its score plus its neighbours', weighted by exp(-γ_f·distance); the best is taken, and its neighbours
lose its value weighted by exp(-γ_r·distance), again and again.
"""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numba import njit

from fastkd.dist import even_split
from fastkd.errors import MissingDependencyError, OptionError
from fastkd.hashing import draws
from fastkd.prune.ranking import CLASS_ORDER

KNN = ("exact", "faiss")
_SPARE = 8  # candidates beyond k, so that float32 distances do not decide between near ties
_QUERY_ROWS = 512
_POINT_ROWS = 4096


def nearest_neighbours(features: np.ndarray, k: int, method: str = "exact") -> tuple[np.ndarray, np.ndarray]:
    """The k nearest others of each sample.

    Args:
        features: float32 (N, D), finite.
        k: at least 0; at most N - 1 are found.
        method: `exact`, by matrix products and compiled selection; `faiss`: its inverted lists, approximate where
            there are more than 20,000 samples.

    Returns:
        Neighbours int64 (N, k'), nearest first, of equal distances the lower row first; distances float64 (N, k').

    Raises:
        MissingDependencyError: faiss is asked for and missing.
    """
    num_wanted = min(k, len(features) - 1)
    if num_wanted <= 0:
        return np.empty((len(features), 0), np.int64), np.empty((len(features), 0))
    features = np.ascontiguousarray(features, np.float32)
    num_candidates = min(num_wanted + _SPARE, len(features) - 1)
    find = {"exact": _exact_candidates, "faiss": _faiss_candidates}[method]
    return _refine(features, find(features, num_candidates), num_wanted)


def _exact_candidates(features: np.ndarray, k: int) -> np.ndarray:
    """Rows of the k nearest others by squared distances in float32, in no order: int64 (N, k)."""
    num_samples = len(features)
    centred = features - features.mean(axis=0, dtype=np.float64).astype(np.float32)  # less cancellation
    squares = np.einsum("nd,nd->n", centred, centred)
    # One product gives ‖b‖² - 2·a·b; ‖a‖² is the same for all neighbours of a.
    queries = np.column_stack([centred, np.ones_like(squares)])
    points = np.column_stack([-2 * centred, squares]).T.copy()
    best = np.full((num_samples, k), np.inf, np.float32)
    rows = np.full((num_samples, k), -1, np.int64)
    num_threads = len(os.sched_getaffinity(0))

    def merge(distances: np.ndarray, start: int, first: int) -> None:
        own = slice(start, start + len(distances))
        _keep_nearest(distances, first, start, best[own], rows[own])

    # The products use all cores as they are; only what is done with them is spread over threads here.
    with ThreadPoolExecutor(num_threads) as pool:
        for start in range(0, num_samples, _QUERY_ROWS):
            for first in range(0, num_samples, _POINT_ROWS):
                distances = queries[start : start + _QUERY_ROWS] @ points[:, first : first + _POINT_ROWS]
                parts = [slice(*even_split(len(distances), part, num_threads)) for part in range(num_threads)]
                for job in [pool.submit(merge, distances[part], start + part.start, first) for part in parts]:
                    job.result()
    return rows


@njit(cache=True, nogil=True)
def _keep_nearest(distances: np.ndarray, first: int, start: int, best: np.ndarray, rows: np.ndarray) -> None:
    """Merges a block of distances into each query's k nearest, `best` being a max-heap with its rows."""
    for q in range(distances.shape[0]):
        worst = best[q, 0]
        for begin in range(0, distances.shape[1], 64):
            end = min(begin + 64, distances.shape[1])
            hits = 0
            for p in range(begin, end):  # eight at a time: nearly all of them are too far
                hits += distances[q, p] < worst
            if hits == 0:
                continue
            for p in range(begin, end):
                if distances[q, p] < worst and first + p != start + q:
                    _replace_farthest(best[q], rows[q], distances[q, p], first + p)
                    worst = best[q, 0]


@njit(cache=True, nogil=True)
def _replace_farthest(best: np.ndarray, rows: np.ndarray, distance: float, row: int) -> None:
    """Puts a nearer one in place of the farthest, at the top of the heap."""
    at = 0
    while True:
        child = 2 * at + 1
        if child >= len(best):
            break
        if child + 1 < len(best) and best[child + 1] > best[child]:
            child += 1
        if best[child] <= distance:
            break
        best[at], rows[at] = best[child], rows[child]
        at = child
    best[at], rows[at] = distance, row


def _faiss_candidates(features: np.ndarray, k: int) -> np.ndarray:
    try:
        import faiss
    except ImportError:
        raise MissingDependencyError("--knn faiss: faiss is not installed: pip install 'fastkd[faiss]'") from None
    num_samples, dim = features.shape
    index = faiss.IndexFlatL2(dim)
    if num_samples > 20_000:
        num_lists = int(4 * num_samples**0.5)
        index = faiss.IndexIVFFlat(index, dim, num_lists)
        index.cp.seed = 0
        index.train(features[:: max(1, num_samples // (64 * num_lists))])
        index.nprobe = max(8, num_lists // 32)
    index.add(features)
    found = index.search(features, k + 1)[1]
    others = np.full((num_samples, k), -1, np.int64)
    for i, row in enumerate(found):
        row = row[row != i][:k]
        others[i, : len(row)] = row
    return others


@njit(cache=True, nogil=True)
def _refine(features: np.ndarray, candidates: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of the candidates (-1: none) by distances in float64."""
    num_samples, width = candidates.shape
    neighbours, distances = np.full((num_samples, k), -1, np.int64), np.full((num_samples, k), np.inf)
    exact = np.empty(width)
    for i in range(num_samples):
        for c in range(width):
            total = np.inf if candidates[i, c] < 0 else 0.0
            if candidates[i, c] >= 0:
                for d in range(features.shape[1]):
                    total += (np.float64(features[i, d]) - np.float64(features[candidates[i, c], d])) ** 2
            exact[c] = np.sqrt(total)
        for place in range(k):
            nearest = -1
            for c in range(width):
                if exact[c] == np.inf:
                    continue
                if (
                    nearest < 0
                    or exact[c] < exact[nearest]
                    or (exact[c] == exact[nearest] and candidates[i, c] < candidates[i, nearest])
                ):
                    nearest = c
            if nearest < 0:
                break
            neighbours[i, place], distances[i, place] = candidates[i, nearest], exact[nearest]
            exact[nearest] = np.inf
    return neighbours, distances


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
    num_heap = len(rho)
    heap, place = np.arange(num_heap), np.arange(num_heap)  # sample at each place, place of each sample (-1: taken)
    for i in range(num_heap // 2 - 1, -1, -1):
        _sink(heap, place, num_heap, i, rho, ties)
    out = np.empty(num_kept, np.int64)
    for n in range(num_kept):
        best = heap[0]
        out[n] = best
        place[best] = -1
        num_heap -= 1
        if num_heap:
            heap[0] = heap[num_heap]
            place[heap[0]] = 0
            _sink(heap, place, num_heap, 0, rho, ties)
        for e in range(starts[best], starts[best + 1]):
            j = target[e]
            if place[j] < 0 or damping[e] == 0:
                continue
            rho[j] -= damping[e] * rho[best]
            if rho[best] >= 0:
                _sink(heap, place, num_heap, place[j], rho, ties)
            else:
                _rise(heap, place, place[j], rho, ties)
    return out


@njit(cache=True, nogil=True, inline="always")
def _before(a: int, b: int, rho: np.ndarray, ties: np.ndarray) -> bool:
    return rho[a] > rho[b] or (rho[a] == rho[b] and ties[a] < ties[b])


@njit(cache=True, nogil=True)
def _sink(heap: np.ndarray, place: np.ndarray, num_heap: int, at: int, rho: np.ndarray, ties: np.ndarray) -> None:
    moving = heap[at]
    while True:
        child = 2 * at + 1
        if child >= num_heap:
            break
        if child + 1 < num_heap and _before(heap[child + 1], heap[child], rho, ties):
            child += 1
        if not _before(heap[child], moving, rho, ties):
            break
        heap[at] = heap[child]
        place[heap[at]] = at
        at = child
    heap[at] = moving
    place[moving] = at


@njit(cache=True, nogil=True)
def _rise(heap: np.ndarray, place: np.ndarray, at: int, rho: np.ndarray, ties: np.ndarray) -> None:
    moving = heap[at]
    while at > 0 and _before(moving, heap[(at - 1) // 2], rho, ties):
        heap[at] = heap[(at - 1) // 2]
        place[heap[at]] = at
        at = (at - 1) // 2
    heap[at] = moving
    place[moving] = at


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
        features: float32 (N, D). scores: float32 (N,), finite, higher = harder.
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
    if not np.isfinite(scores).all():
        raise OptionError("scores that are not finite cannot be passed along a graph; use another policy for them")
    power = 2 if squared else 1
    orders = []
    for ids, count in zip(members, num_each, strict=True):
        graph = symmetric_edges(*nearest_neighbours(features[ids], k, knn), symmetric)
        values = pass_forward(scores[ids].astype(np.float64), graph, gamma_forward, power)
        ties = draws(ids, seed, CLASS_ORDER)
        orders.append(ids[pick_in_turn(values, graph, int(count), gamma=gamma_reverse, power=power, ties=ties)])
    return orders
