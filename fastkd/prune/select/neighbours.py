"""The nearest neighbours of each sample among features: exact, or by faiss."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from fastkd.dist import even_split
from fastkd.errors import MissingDependencyError
from fastkd.intrinsics import njit

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
