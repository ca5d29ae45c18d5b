"""Groups that take turns, compiled: what `balance` does with many samples."""

import numpy as np
from numba import njit, uint64

from fastkd.hashing import draw
from fastkd.prune.select.balance import ROUND_ORDER


@njit(cache=True, nogil=True)
def interleave_by_heap(
    by_group: np.ndarray,
    quotas: np.ndarray,
    sizes: np.ndarray,
    proportional: bool,
    seed: int,
    turns: np.ndarray,
) -> np.ndarray:
    """`balance.interleave`: a heap of the groups by their next turns."""
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


@njit(cache=True, nogil=True, inline="always")
def _turn(group: int, rank: int, num_groups: int, seed: int, turns: np.ndarray) -> int:
    """Which groups come first among those with the same place."""
    return draw(rank * num_groups + group, seed, ROUND_ORDER) if len(turns) == 0 else uint64(turns[group])


@njit(cache=True, nogil=True, inline="always")
def _place(rank: int, size: int, proportional: bool) -> float:
    return (2.0 * rank + 1.0) / size if proportional else float(rank)


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
