"""From scores to the samples that are kept, in priority order.

Everything here takes and returns arrays. Scores are "higher = keep first": hard before easy. Equal scores are in the
order of a seeded hash of their sample_ids, which is also the random order: masks of equal scores are random masks.
Where samples are left out of the choice (`pool`), the others keep their sample_ids and with them their hashes.
"""

import math
from typing import Any

import numpy as np

from fastkd.errors import OptionError
from fastkd.prune.select.balance import (
    BALANCES,
    SEEDED,
    equal_quotas,
    interleave,
    proportional_quotas,
    stratum_turns,
    water_fill,
)
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
        _check_scores(labels, scores, pool)
    if level not in LEVELS:
        raise OptionError(f"level {level!r}, expected one of {', '.join(LEVELS)}")
    groups, sizes = _groups(labels, balance, pool)
    quotas = class_quotas(sizes, num_kept, balance, seed)
    ascending = level == "easy"
    if level == "moderate" and scores is not None:
        whole = _best(groups, sizes, sizes, scores=scores, seed=seed)
        starts = np.cumsum(sizes) - sizes
        middles = [
            whole[start + _middle_out(int(size))[:quota]]
            for start, size, quota in zip(starts, sizes, quotas, strict=True)
        ]
        by_group = np.concatenate(middles)
    else:
        by_group = _best(groups, quotas, sizes, scores=scores, ascending=ascending, seed=seed)
    if len(sizes) == 1:
        return by_group
    return interleave(by_group, quotas, sizes, balance == "proportional", seed, SEEDED)


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
    return interleave(np.concatenate(orders), quotas, sizes, balance == "proportional", seed, SEEDED)


def class_members(labels: np.ndarray, balance: str) -> list[np.ndarray]:
    """The sample_ids of each class, increasing; one list of all where `balance` is `none`."""
    groups, sizes = _groups(labels, balance)
    order = np.argsort(groups, kind="stable") if len(sizes) > 1 else np.arange(len(groups))
    return np.split(order, np.cumsum(sizes)[:-1])


def class_centre_distances(features: np.ndarray, labels: np.ndarray, centre: str = "mean") -> np.ndarray:
    """Distance of each sample's features from its class's centre; Moderate keeps the middle of them.

    Xia et al., "Moderate Coreset" (ICLR 2023): the centre is the mean; their code takes the median of each dimension.

    Args:
        features: float32 (N, D). labels: int64 (N,). centre: `mean` or `median`.

    Returns:
        float32 (N,), Euclidean distances.
    """
    out = np.zeros(len(features), np.float64)
    for members in class_members(labels, "equal"):
        if len(members):
            own = features[members].astype(np.float64)
            middle = own.mean(axis=0) if centre == "mean" else np.median(own, axis=0)
            out[members] = np.sqrt(np.square(own - middle).sum(axis=1))
    return out.astype(np.float32)


def select_ccs(
    labels: np.ndarray,
    num_kept: int,
    *,
    scores: np.ndarray,
    hardness: np.ndarray,
    share_dropped: float,
    num_strata: int = 50,
    balance: str = "none",
    seed: int = 0,
    pool: np.ndarray | None = None,
) -> np.ndarray:
    """Coverage-centric selection: without the hardest, equal numbers from strata of equal width over the scores.

    Zheng et al., "Coverage-centric Coreset Selection for High Pruning Rates" (ICLR 2023), algorithm 1.

    Args:
        scores: float32 (N,), finite, what the strata are cut over.
        hardness: float32 (N,), higher = harder (the paper: -AUM); its floor(share_dropped·N) highest are never kept.
        share_dropped: β, 0 <= β < 1.
        balance: `none` as in the paper; else strata of each class.
        pool: as of `select_level`; N is what it holds.

    Raises:
        OptionError: more samples asked for than β leaves; NaN or infinite scores; options out of range.
    """
    if num_strata < 1:
        raise OptionError(f"{num_strata} strata, expected at least 1")
    _check_scores(labels, hardness, pool)
    _check_scores(labels, scores, pool)
    left = drop_hardest(hardness, share_dropped, num_kept, seed, pool)
    if np.isinf(scores[left]).any():
        raise OptionError("infinite scores cannot be cut into strata of equal width; use another policy for them")
    groups, sizes = _groups(labels[left], balance)
    strata = groups * num_strata + equal_width_bins(scores[left], groups, len(sizes), num_strata)
    in_strata = group_sizes(strata, len(sizes) * num_strata).reshape(len(sizes), num_strata)
    shares = class_quotas(sizes, num_kept, balance, seed)
    quotas = np.array([water_fill(row, int(share)) for row, share in zip(in_strata, shares, strict=True)])
    # best_of_groups hashes positions; ties and draws have to follow sample_ids, so the strata are spread over all N
    spread = np.full(len(labels), quotas.size, np.int64)
    spread[left] = strata
    by_stratum = best_of_groups(spread, np.r_[quotas.reshape(-1), 0], seed=seed)
    ends = np.cumsum(quotas.sum(axis=1))
    orders = [
        interleave(part, own, held, False, seed, stratum_turns(held))
        for part, own, held in zip(np.split(by_stratum, ends[:-1]), quotas, in_strata, strict=True)
    ]
    if len(orders) == 1:
        return orders[0]
    return interleave(np.concatenate(orders), shares, sizes, balance == "proportional", seed, SEEDED)


def drop_hardest(
    hardness: np.ndarray, share: float, num_kept: int, seed: int, pool: np.ndarray | None = None
) -> np.ndarray:
    """All samples (of the pool) but the floor(share·N) of highest hardness: int64, increasing.

    Raises:
        OptionError: a share that is not 0 <= share < 1, or fewer samples left than are to be kept.
    """
    if not 0 <= share < 1:
        raise OptionError(f"--drop-hardest {share}: expected 0 <= β < 1")
    everything, sizes = _groups(np.zeros(len(hardness), np.int64), "none", pool)
    num_all = int(sizes[0])
    num_left = num_all - math.floor(share * num_all)
    if num_kept > num_left:
        raise OptionError(
            f"{num_kept} samples to keep, but --drop-hardest {share} leaves {num_left} of {num_all}; lower it or keep less"
        )
    if num_left == num_all:
        return np.arange(num_all) if pool is None else np.flatnonzero(pool)
    left = _best(everything, np.array([num_left]), sizes, scores=hardness, ascending=True, seed=seed)
    left.sort()
    return left


def equal_width_bins(scores: np.ndarray, groups: np.ndarray, num_groups: int, num_bins: int) -> np.ndarray:
    """The bin of each score among `num_bins` of equal width between its group's lowest and highest: int64 (n,).

    The highest score is in the last bin; where all scores of a group are equal, all are in the first.
    """
    values = scores.astype(np.float64)
    low, high = np.full(num_groups, np.inf), np.full(num_groups, -np.inf)
    np.minimum.at(low, groups, values)
    np.maximum.at(high, groups, values)
    width = np.where(high > low, high - low, 1.0)[groups]
    return np.minimum(np.floor((values - low[groups]) / width * num_bins), num_bins - 1).astype(np.int64)


def _middle_out(n: int) -> np.ndarray:
    """0 … n-1 from the middle outwards, the lower of two equally far ones first: int64 (n,)."""
    out = np.empty(n, np.int64)
    low, high = out[n % 2 :: 2], out[1 - n % 2 :: 2]
    low[:] = np.arange(len(low))[::-1]
    high[:] = np.arange(n - len(high), n)
    return out


def _groups(labels: np.ndarray, balance: str, pool: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """What is chosen from: the classes, or all samples as one group; and the sizes of the groups.

    Samples outside the pool are of one more group, which `_best` takes none of.
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


def _best(groups: np.ndarray, quotas: np.ndarray, sizes: np.ndarray, **how: Any) -> np.ndarray:
    """`best_of_groups`, which also goes by positions, so that samples outside the pool stay where they are."""
    return best_of_groups(groups, np.append(quotas, 0), sizes=np.append(sizes, 0), **how)


def _check_scores(labels: np.ndarray, scores: np.ndarray, pool: np.ndarray | None) -> None:
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
