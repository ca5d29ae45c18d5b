"""Scores and masks looked at: their histogram, the classes they keep, how far two of them agree."""

from typing import Any

import numpy as np

from fastkd.data.beton.dataset import Dataset
from fastkd.errors import MismatchError
from fastkd.prune.masks.mask import Mask, class_counts, combine_ids
from fastkd.prune.scores.score_file import Scores
from fastkd.prune.select.levels import select_level

_BINS = 20


def summary(values: np.ndarray) -> dict[str, Any]:
    """Counts, extremes, mean and histogram of scores: float32 (N,); NaN and infinities are counted apart."""
    finite = values[np.isfinite(values)].astype(np.float64)
    found: dict[str, Any] = {
        "undefined": int(np.isnan(values).sum()),
        "infinite": int(np.isinf(values).sum()),
        "distinct": len(np.unique(finite)),
    }
    if len(finite):
        counts, edges = np.histogram(finite, bins=_BINS)
        found |= {"min": float(finite.min()), "mean": float(finite.mean()), "max": float(finite.max())}
        found["histogram"] = {"counts": counts.tolist(), "edges": edges.tolist()}
    return found


def format_histogram(name: str, found: dict[str, Any]) -> str:
    """A histogram in lines of text, a bar a bin."""
    if "histogram" not in found:
        return f"{name}: no score is defined"
    counts, edges = found["histogram"]["counts"], found["histogram"]["edges"]
    longest = max(counts)
    lines = [
        f"{name}: {found['undefined']:,} undefined, {found['infinite']:,} infinite, {found['distinct']:,} distinct"
    ]
    for count, low in zip(counts, edges, strict=False):
        lines.append(f"{low:>12.5g}  {'█' * round(40 * count / longest):40} {count:,}")
    return "\n".join(lines)


def kept_of_classes(mask: Mask, dataset: Dataset) -> dict[str, dict[str, Any]]:
    """Class name → kept and all of its samples; where the mask has weights, `weight_percent`, its part of their sum."""
    mask.require_beton(dataset.fingerprint, dataset.beton.path)
    labels, num_classes = dataset.beton.labels, dataset.num_classes
    kept = class_counts(labels, mask.sample_ids, num_classes)
    total = class_counts(labels, slice(None), num_classes)
    names = zip(dataset.class_names, kept, total, strict=True)
    found: dict[str, dict[str, Any]] = {name: {"kept": int(few), "all": int(every)} for name, few, every in names}
    if mask.weights is not None:
        sums = np.bincount(labels[mask.sample_ids], mask.weights, minlength=num_classes)
        for name, percent in zip(dataset.class_names, 100 * sums / sums.sum(), strict=True):
            found[name]["weight_percent"] = float(percent)
    return found


def compare_masks(one: Mask, other: Mask) -> dict[str, Any]:
    """How far two masks of one beton agree: `jaccard` = shared / kept by either.

    Raises:
        MismatchError: masks of two betons.
    """
    if one.header.inputs.get("beton") != other.header.inputs.get("beton"):
        raise MismatchError(f"{other.path}: a mask of another beton than {one.path}")
    shared = len(combine_ids("intersection", one.sample_ids, other.sample_ids, one.num_samples))
    either = len(one.sample_ids) + len(other.sample_ids) - shared
    return {"shared": shared, "jaccard": shared / either}


def compare_scores(one: Scores, other: Scores, name: str | None) -> dict[str, dict[str, Any]]:
    """How far the scores that two files share agree, over the samples that both define.

    Args:
        name: of the scores; None for all that both files have, or, where each has one, those two.

    Returns:
        Name → num_samples, spearman (rank correlation, -1 … 1; None where one is constant), jaccard_10_percent (of the
        hardest tenths).

    Raises:
        MismatchError: scores of two betons, or no scores to compare.
    """
    if one.header.inputs.get("beton") != other.header.inputs.get("beton"):
        raise MismatchError(f"{other.path}: scores of another beton than {one.path}")
    pairs = {key: (key, key) for key in one.values if key in other.values and name in (None, key)}
    if not pairs and name is None and len(one.values) == len(other.values) == 1:
        a, b = next(iter(one.values)), next(iter(other.values))
        pairs = {f"{a} against {b}": (a, b)}
    if not pairs:
        raise MismatchError(
            f"{other.path}: holds {', '.join(other.values)}, {one.path} {', '.join(one.values)}: nothing to compare"
        )
    return {key: _agreement(one.values[a], other.values[b]) for key, (a, b) in pairs.items()}


def _agreement(one: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    both = ~(np.isnan(one) | np.isnan(other))
    a, b = one[both], other[both]
    if not len(a):
        return {"num_samples": 0, "spearman": None, "jaccard_10_percent": None}
    tenth = max(1, round(0.1 * len(a)))
    all_one = np.zeros(len(a), np.int64)
    hardest = [select_level(all_one, tenth, scores=values, balance="none") for values in (a, b)]
    shared = len(np.intersect1d(hardest[0], hardest[1]))
    return {
        "num_samples": len(a),
        "spearman": spearman(a, b),
        "jaccard_10_percent": shared / (2 * tenth - shared),
    }


def spearman(one: np.ndarray, other: np.ndarray) -> float | None:
    """Spearman's rank correlation, equal values sharing their mean rank; None where one of them is constant."""
    ranks = [_mean_ranks(values) for values in (one, other)]
    a, b = (rank - rank.mean() for rank in ranks)
    scale = float(np.sqrt(np.square(a).sum() * np.square(b).sum()))
    return float((a * b).sum() / scale) if scale > 0 else None


def _mean_ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]
