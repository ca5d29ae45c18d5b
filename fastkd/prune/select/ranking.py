"""Selecting and sorting the best samples of each group.

A sample's key is 64 bits: its score's rank (32) and a seeded hash of its sample_id (the upper 32 of it; where those are
equal, too, all 64 count). Samples of equal scores are thus in the order of their hashes, the same on every platform;
without scores the hash is all there is, which is the random order.

Few samples are sorted by numpy. For many, `radix` does the same compiled and without sorting all of them; Numba takes
longer to start than all of ImageNet to sort.
"""

import numpy as np

from fastkd.prune import scale
from fastkd.prune.select.keys import CLASS_ORDER, score_key
from fastkd.splitmix import draws

_COUNTED_AT_ONCE = 2**22


def best_of_groups(
    groups: np.ndarray,
    quotas: np.ndarray,
    *,
    scores: np.ndarray | None = None,
    ascending: bool = False,
    seed: int = 0,
    sizes: np.ndarray | None = None,
) -> np.ndarray:
    """The best samples of every group, each group sorted, the first group first.

    Args:
        groups: integers (N,), the group of each sample, 0 … G-1.
        quotas: int64 (G,), how many to take of each; at most its size.
        scores: float32 (N,), without NaN; None for the random order of the seed.
        ascending: whether low scores are the best.
        seed: 0 … 2^63-1, of the order of equal scores.
        sizes: int64 (G,), samples of each group, where the caller knows them.

    Returns:
        int64 (sum of quotas,), sample_ids: quotas[0] of group 0, best first, then those of group 1, ….
    """
    quotas = np.ascontiguousarray(quotas, np.int64)
    sizes = group_sizes(groups, len(quotas)) if sizes is None else sizes
    assert (quotas <= sizes).all()
    if scores is not None:
        scores = np.ascontiguousarray(scores, np.float32)
    if len(groups) < scale.COMPILED_FROM:
        return _best_by_sorting(groups, quotas, sizes, scores, ascending, seed)
    from fastkd.prune.select.radix import best_by_counting

    return best_by_counting(groups, quotas, sizes, scores, ascending, seed)


def group_sizes(groups: np.ndarray, num_groups: int) -> np.ndarray:
    """Samples of each group: int64 (num_groups,)."""
    sizes = np.zeros(num_groups, np.int64)
    for start in range(0, len(groups), _COUNTED_AT_ONCE):  # bincount makes int64 of other integers
        sizes += np.bincount(groups[start : start + _COUNTED_AT_ONCE], minlength=num_groups)
    return sizes


def _best_by_sorting(
    groups: np.ndarray, quotas: np.ndarray, sizes: np.ndarray, scores: np.ndarray | None, ascending: bool, seed: int
) -> np.ndarray:
    ids = np.flatnonzero((quotas > 0)[groups])
    ties = draws(ids, seed, CLASS_ORDER)  # of which no two are equal
    if scores is None:
        order = np.argsort(ties)
    else:
        high = score_key(scores[ids].view(np.uint32), ascending).astype(np.uint64)
        keys = high << np.uint64(32) | ties >> np.uint64(32)
        order = np.argsort(keys)
        same = np.diff(keys[order]) == 0
        runs = np.flatnonzero(np.append(same, False) | np.append(False, same))
        order[runs] = order[runs][np.lexsort((ties[order[runs]], keys[order[runs]]))]
    ids = ids[order]
    if len(quotas) > 1:
        ids = ids[np.argsort(groups[ids].astype(np.min_scalar_type(len(quotas))), kind="stable")]
    sizes = np.where(quotas > 0, sizes, 0)
    rank = np.arange(len(ids)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return ids[rank < np.repeat(quotas, sizes)]
