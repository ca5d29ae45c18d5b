"""Coverage-centric selection, and the dropping of the hardest that D2 shares."""

import math

import numpy as np

from fastkd.errors import OptionError
from fastkd.prune.select.balance import interleave, stratum_turns, water_fill
from fastkd.prune.select.keys import Turns
from fastkd.prune.select.levels import best_of_pool, check_scores, class_quotas, groups_of
from fastkd.prune.select.ranking import best_of_groups, group_sizes


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
    check_scores(labels, hardness, pool)
    check_scores(labels, scores, pool)
    left = drop_hardest(hardness, share_dropped, num_kept, seed, pool)
    if np.isinf(scores[left]).any():
        raise OptionError("infinite scores cannot be cut into strata of equal width; use another policy for them")
    groups, sizes = groups_of(labels[left], balance)
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
        interleave(part, Turns(own, held, False, seed, stratum_turns(held)))
        for part, own, held in zip(np.split(by_stratum, ends[:-1]), quotas, in_strata, strict=True)
    ]
    if len(orders) == 1:
        return orders[0]
    return interleave(np.concatenate(orders), Turns(shares, sizes, balance == "proportional", seed))


def drop_hardest(
    hardness: np.ndarray, share: float, num_kept: int, seed: int, pool: np.ndarray | None = None
) -> np.ndarray:
    """All samples (of the pool) but the floor(share·N) of highest hardness: int64, increasing.

    Raises:
        OptionError: a share that is not 0 <= share < 1, or fewer samples left than are to be kept.
    """
    if not 0 <= share < 1:
        raise OptionError(f"--drop-hardest {share}: expected 0 <= β < 1")
    everything, sizes = groups_of(np.zeros(len(hardness), np.int64), "none", pool)
    num_all = int(sizes[0])
    num_left = num_all - math.floor(share * num_all)
    if num_kept > num_left:
        raise OptionError(
            f"{num_kept} samples to keep, but --drop-hardest {share} leaves {num_left} of {num_all}; lower it or keep less"
        )
    if num_left == num_all:
        return np.arange(num_all) if pool is None else np.flatnonzero(pool)
    left = best_of_pool(everything, np.array([num_left]), sizes, scores=hardness, ascending=True, seed=seed)
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
