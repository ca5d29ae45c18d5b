"""From scores to the samples that are kept, in priority order.

Everything here takes and returns arrays. Scores are "higher = keep first": hard before easy. Equal scores are in the
order of a seeded hash of their sample_ids, which is also the random order: masks of equal scores are random masks.
Where samples are left out of the choice (`pool`), the others keep their sample_ids and with them their hashes.
"""

from typing import Any

import numpy as np

from fastkd.errors import OptionError
from fastkd.prune.select.balance import (
    BALANCES,
    equal_quotas,
    interleave,
    proportional_quotas,
)
from fastkd.prune.select.keys import Turns
from fastkd.prune.select.ranking import best_of_groups, group_sizes

LEVELS = ("hard", "moderate", "easy")


def select_level(
    labels: np.ndarray,
    num_kept: int,
    *,
    scores: np.ndarray | None = None,
    level: str = "hard",
    balance: str = "equal",
    seed: int = 0,
    pool: np.ndarray | None = None,
) -> np.ndarray:
    """The highest (`hard`), lowest (`easy`) or middle (`moderate`) scores: of each class, or of all where `none`.

    The prefixes of a selection are the smaller selections of the same scores, level, balance and seed. `moderate` goes
    from the middle rank outwards, to both sides in turn: of 10 samples 4 are those of ranks 3 … 6.

    Args:
        labels: integers (N,), the class of each sample.
        num_kept: 0 … N, or the samples of the pool.
        scores: float32 (N,), infinities allowed, NaN outside the pool alone; None for a random selection.
        balance: `equal` counts of all classes, to within one, classes that are too small giving all they have;
            `proportional` to the classes' sizes, to within one sample; `none`: as the scores fall.
        pool: bool (N,), the samples that are chosen from, as if the classes had no others; None for all.

    Returns:
        int64 (num_kept,), sample_ids in priority order.

    Raises:
        OptionError: NaN among the scores; an unknown level or balance.
    """
    if scores is not None:
        check_scores(labels, scores, pool)
    if level not in LEVELS:
        raise OptionError(f"level {level!r}, expected one of {', '.join(LEVELS)}")
    groups, sizes = groups_of(labels, balance, pool)
    quotas = class_quotas(sizes, num_kept, balance, seed)
    ascending = level == "easy"
    if level == "moderate" and scores is not None:
        whole = best_of_pool(groups, sizes, sizes, scores=scores, seed=seed)
        starts = np.cumsum(sizes) - sizes
        middles = [
            whole[start + _middle_out(int(size))[:quota]]
            for start, size, quota in zip(starts, sizes, quotas, strict=True)
        ]
        by_group = np.concatenate(middles)
    else:
        by_group = best_of_pool(groups, quotas, sizes, scores=scores, ascending=ascending, seed=seed)
    if len(sizes) == 1:
        return by_group
    return interleave(by_group, Turns(quotas, sizes, balance == "proportional", seed))


def class_quotas(sizes: np.ndarray, num_kept: int, balance: str, seed: int) -> np.ndarray:
    """How many samples each class gives: int64 (C,), with the sum num_kept.

    Args:
        sizes: int64 (C,), samples of each class; one entry for all where `balance` is `none`.
    """
    if not 0 <= num_kept <= sizes.sum():
        raise OptionError(f"{num_kept} samples cannot be kept of {sizes.sum()}")
    if balance == "proportional":
        return proportional_quotas(sizes, num_kept, seed)
    return equal_quotas(sizes, num_kept, seed)


def in_turns(orders: list[np.ndarray], members: list[np.ndarray], balance: str, seed: int) -> np.ndarray:
    """Merges an order for each class into one.

    Args:
        orders: for each class int64 sample_ids, best first: as many as `class_quotas` gives. members: all of the class.
    """
    sizes = np.array([len(ids) for ids in members], np.int64)
    quotas = np.array([len(order) for order in orders], np.int64)
    return interleave(np.concatenate(orders), Turns(quotas, sizes, balance == "proportional", seed))


def class_members(labels: np.ndarray, balance: str) -> list[np.ndarray]:
    """The sample_ids of each class, increasing; one list of all where `balance` is `none`."""
    groups, sizes = groups_of(labels, balance)
    order = np.argsort(groups, kind="stable") if len(sizes) > 1 else np.arange(len(groups))
    return np.split(order, np.cumsum(sizes)[:-1])


def _middle_out(n: int) -> np.ndarray:
    """0 … n-1 from the middle outwards, the lower of two equally far ones first: int64 (n,)."""
    out = np.empty(n, np.int64)
    low, high = out[n % 2 :: 2], out[1 - n % 2 :: 2]
    low[:] = np.arange(len(low))[::-1]
    high[:] = np.arange(n - len(high), n)
    return out


def groups_of(labels: np.ndarray, balance: str, pool: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """What is chosen from: the classes, or all samples as one group; and the sizes of the groups.

    Samples outside the pool are of one more group, which `best_of_pool` takes none of.
    """
    if balance not in BALANCES:
        raise OptionError(f"balance {balance!r}, expected one of {', '.join(BALANCES)}")
    if balance == "none":
        groups, num_groups = np.zeros(len(labels), np.int8), 1
    else:
        groups, num_groups = labels, int(labels.max()) + 1 if len(labels) else 1
    if pool is not None:
        groups = np.where(pool, groups, groups.dtype.type(num_groups))
    return groups, group_sizes(groups, num_groups + 1)[:num_groups]


def best_of_pool(groups: np.ndarray, quotas: np.ndarray, sizes: np.ndarray, **how: Any) -> np.ndarray:
    """`best_of_groups`, which also goes by positions, so that samples outside the pool stay where they are."""
    return best_of_groups(groups, np.append(quotas, 0), sizes=np.append(sizes, 0), **how)


def check_scores(labels: np.ndarray, scores: np.ndarray, pool: np.ndarray | None) -> None:
    if scores.shape != labels.shape:
        raise OptionError(f"scores of shape {scores.shape}, expected one for each of {len(labels)} samples")
    values = scores if pool is None else np.where(pool, scores, np.float32(0))
    bad = first_nan(values)
    if bad >= 0:
        raise OptionError(f"{int(np.isnan(values).sum())} scores are NaN, that of sample {bad} the first of them")


def first_nan(values: np.ndarray) -> int:
    """Where the first NaN is; -1 where there is none."""
    found = np.isnan(values)
    first = int(found.argmax()) if len(found) else 0
    return first if len(found) and found[first] else -1
