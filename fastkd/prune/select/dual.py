"""DUAL's Beta sampling: which of the hard samples are too hard depends on how many are kept."""

import math

import numpy as np

from fastkd.errors import OptionError
from fastkd.hashing import draw_unit
from fastkd.intrinsics import njit
from fastkd.prune.select.levels import select_level

_GUMBEL = 4  # number of the draw
_EDGE = 1e-6  # a Beta density is infinite at 0 or 1 where a or b is below 1


def beta_parameters(anchor: float, fraction: float, exponent: float, total: float = 15.0) -> tuple[float, float]:
    """a and b of the Beta distribution over the mean probability of the label.

    Cho et al. (ICML 2025): b = 15·(1 - anchor)·(1 - r^c_D) and a = 15 - b, with r = 1 - fraction; their code has
    a = 16 - b.

    Args:
        anchor: mean probability of the samples of highest score, 0 … 1.
        fraction: kept part of the samples, above 0 and up to 1. exponent: c_D. total: a + b.
    """
    b = 15.0 * (1.0 - anchor) * (1.0 - (1.0 - fraction) ** exponent)
    return total - b, b


def beta_weights(
    scores: np.ndarray,
    target_prob_mean: np.ndarray,
    fraction: float,
    exponent: float,
    total: float = 15.0,
    pool: np.ndarray | None = None,
) -> np.ndarray:
    """Beta density at a sample's mean probability times its score: float64 (N,), what `draw_weighted` draws by.

    The anchor is the mean probability of the ten samples of highest score. Outside the pool (bool (N,), None for all)
    weights are 0.
    """
    num_top = min(10, len(scores) if pool is None else int(np.count_nonzero(pool)))
    top = select_level(np.zeros(len(scores), np.int64), num_top, scores=scores, balance="none", pool=pool)
    anchor = float(target_prob_mean[top].astype(np.float64).mean())
    a, b = beta_parameters(anchor, fraction, exponent, total)
    mu = np.clip(target_prob_mean.astype(np.float64), _EDGE, 1 - _EDGE)
    log_density = (a - 1) * np.log(mu) + (b - 1) * np.log1p(-mu)
    log_density += math.lgamma(a + b) - math.lgamma(max(a, _EDGE)) - math.lgamma(max(b, _EDGE))
    weights = np.exp(log_density) * scores.astype(np.float64)
    return weights if pool is None else np.where(pool, weights, 0.0)


def draw_weighted(
    weights: np.ndarray,
    labels: np.ndarray,
    num_kept: int,
    *,
    balance: str = "none",
    seed: int = 0,
    pool: np.ndarray | None = None,
) -> np.ndarray:
    """Draws samples without replacement, each next one by its weight among those left (Gumbel top-k).

    Args:
        weights: (N,), finite, at least 0; samples of weight 0 are never drawn.
        labels: int64 (N,). num_kept: at most the number of positive weights. pool: as of `select_level`.

    Returns:
        int64 (num_kept,), sample_ids in the order in which they are drawn; a shorter draw is a prefix of it.

    Raises:
        OptionError: weights that are negative or not finite, or too few positive ones.
    """
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise OptionError("weights to draw by must be finite and at least 0")
    num_positive = int(np.count_nonzero(weights))
    if num_kept > num_positive:
        raise OptionError(
            f"{num_kept} samples to draw, but only {num_positive} of {len(weights)} have a weight above 0"
        )
    keys = _gumbel_keys(weights.astype(np.float64), seed).astype(np.float32)
    chosen = select_level(labels, num_kept, scores=keys, balance=balance, seed=seed, pool=pool)
    if num_kept and (weights[chosen] == 0).any():
        raise OptionError(f"a class has fewer samples of a weight above 0 than --balance {balance} takes of it")
    return chosen


def select_dual(
    labels: np.ndarray,
    num_kept: int,
    *,
    scores: np.ndarray,
    target_prob_mean: np.ndarray,
    exponent: float,
    beta_total: float = 15.0,
    balance: str = "none",
    seed: int = 0,
    pool: np.ndarray | None = None,
) -> np.ndarray:
    """Draws by `beta_weights` for the kept fraction; int64 (num_kept,), sample_ids in the order in which they are drawn.

    Raises:
        OptionError: options out of range, or as `draw_weighted`.
    """
    if not exponent > 0:
        raise OptionError(f"--exponent {exponent}: expected a number above 0")
    if not 15 <= beta_total < 1000:
        raise OptionError(f"--beta-total {beta_total}: expected 15 (the paper's) or 16 (its code's)")
    weights = beta_weights(scores, target_prob_mean, num_kept / len(labels), exponent, beta_total, pool)
    return draw_weighted(weights, labels, num_kept, balance=balance, seed=seed, pool=pool)


@njit(cache=True)
def _gumbel_keys(weights: np.ndarray, seed: int) -> np.ndarray:
    out = np.full(len(weights), -np.inf)
    for i in range(len(weights)):
        if weights[i] > 0:
            unit = draw_unit(i, seed, _GUMBEL) + 2.0**-54  # above 0
            out[i] = np.log(weights[i]) - np.log(-np.log(unit))
    return out
