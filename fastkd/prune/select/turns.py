"""Groups that take turns, compiled: what `balance` does with many samples."""

import numpy as np
from numba import uint64

from fastkd.hashing import draw
from fastkd.intrinsics import njit
from fastkd.prune.select.heap import order_all, sink
from fastkd.prune.select.keys import ROUND_ORDER, Turns, turn_place

_place = njit(nogil=True, inline="always")(turn_place)


@njit(cache=True, nogil=True)
def interleave_by_heap(by_group: np.ndarray, turns: Turns) -> np.ndarray:
    """`balance.interleave`: a heap of the groups by their next turns."""
    quotas = turns.quotas
    num_groups, num_heap = len(quotas), 0
    place, turn = np.empty(num_groups, np.float64), np.empty(num_groups, np.uint64)
    heap, at, rank = np.empty(num_groups, np.int64), np.empty(num_groups, np.int64), np.zeros(num_groups, np.int64)
    where = np.empty(num_groups, np.int64)
    start = 0
    for g in range(num_groups):
        at[g] = start
        start += quotas[g]
        if quotas[g] > 0:
            place[g], turn[g] = _place(0, turns.sizes[g], turns.proportional), _turn(g, 0, turns)
            heap[num_heap] = g
            num_heap += 1
    order_all(heap, where, num_heap, place, turn)
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
            place[g], turn[g] = _place(rank[g], turns.sizes[g], turns.proportional), _turn(g, rank[g], turns)
        if num_heap > 0:
            sink(heap, where, num_heap, 0, place, turn)
    return out


@njit(cache=True, nogil=True, inline="always")
def _turn(group: int, rank: int, turns: Turns) -> int:
    """Which groups come first among those with the same place."""
    if len(turns.order) == 0:
        return draw(rank * len(turns.quotas) + group, turns.seed, ROUND_ORDER)
    return uint64(turns.order[group])
