"""A binary heap of numbered items, compiled: the item of the lowest (value, tie) on top, and every item's place known."""

import numpy as np

from fastkd.intrinsics import njit


@njit(nogil=True, inline="always")
def _before(a: int, b: int, value: np.ndarray, tie: np.ndarray) -> bool:
    if value[a] != value[b]:
        return value[a] < value[b]
    return tie[a] < tie[b] if tie[a] != tie[b] else a < b


@njit(cache=True, nogil=True)
def sink(heap: np.ndarray, place: np.ndarray, num_heap: int, at: int, value: np.ndarray, tie: np.ndarray) -> None:
    """Lets the item at a place of the heap sink to where it belongs.

    Args:
        heap: int64, items; the first num_heap count. place: int64, of each item in the heap. at: 0 … num_heap-1.
        value: float64, of each item. tie: uint64, of each item.
    """
    moving = heap[at]
    while True:
        child = 2 * at + 1
        if child >= num_heap:
            break
        if child + 1 < num_heap and _before(heap[child + 1], heap[child], value, tie):
            child += 1
        if not _before(heap[child], moving, value, tie):
            break
        heap[at] = heap[child]
        place[heap[at]] = at
        at = child
    heap[at] = moving
    place[moving] = at


@njit(cache=True, nogil=True)
def rise(heap: np.ndarray, place: np.ndarray, at: int, value: np.ndarray, tie: np.ndarray) -> None:
    """Lets the item at a place of the heap rise to where it belongs; the arguments are those of `sink`."""
    moving = heap[at]
    while at > 0 and _before(moving, heap[(at - 1) // 2], value, tie):
        heap[at] = heap[(at - 1) // 2]
        place[heap[at]] = at
        at = (at - 1) // 2
    heap[at] = moving
    place[moving] = at


@njit(cache=True, nogil=True)
def order_all(heap: np.ndarray, place: np.ndarray, num_heap: int, value: np.ndarray, tie: np.ndarray) -> None:
    """Makes a heap of items in any order."""
    for at in range(num_heap):
        place[heap[at]] = at
    for at in range(num_heap // 2 - 1, -1, -1):
        sink(heap, place, num_heap, at, value, tie)
