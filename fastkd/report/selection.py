"""Scores and masks looked at: their histogram, the classes they keep, how far two of them agree, and pictures of samples."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from fastkd.artefact import atomic_path
from fastkd.data.views import Views
from fastkd.dist import World
from fastkd.errors import MismatchError, OptionError
from fastkd.feed import Dataset, Loader
from fastkd.prune.mask import Mask, class_counts, combine_ids
from fastkd.prune.score_file import Scores
from fastkd.prune.select import select_level

_BINS = 20
_MARGIN = 4  # pixels between pictures
_SMALLEST_TILE = 64  # pixels; smaller images are enlarged to it


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


def gallery_rows(scores: np.ndarray, count: int) -> dict[str, np.ndarray]:
    """The `count` hardest, middle and easiest of the samples whose score is defined: sample_ids, in that order."""
    defined = ~np.isnan(scores)
    if not defined.any():
        raise OptionError("no sample has a score: there is nothing to show")
    count, one_class = min(count, int(np.count_nonzero(defined))), np.zeros(len(scores), np.int64)
    levels = {"highest": "hard", "middle": "moderate", "lowest": "easy"}
    return {
        title: select_level(one_class, count, scores=scores, level=level, balance="none", pool=defined)
        for title, level in levels.items()
    }


def write_gallery(path: str | Path, dataset: Dataset, rows: dict[str, np.ndarray], values: np.ndarray | None) -> None:
    """A contact sheet as PNG: for each entry its title and its samples, with class names and scores under them.

    Args:
        rows: title → int64 sample_ids. values: float32 (N,), the scores to write below, or None.
    """
    if Path(path).suffix.lower() != ".png":
        raise OptionError(f"--gallery {path}: expected a name that ends in .png")
    beton = dataset.beton
    size = int(min(128, max(beton.heights[0], beton.widths[0])))
    ids = np.unique(np.concatenate(list(rows.values())))
    loader = Loader(dataset, Views("center", size), mask=ids, batch_size=64, num_workers=1, world=World())
    pixels: dict[int, np.ndarray] = {}
    for batch in loader.epoch(0):
        for sample_id, image in zip(batch.sample_ids.tolist(), batch.images.permute(0, 2, 3, 1).numpy(), strict=True):
            pixels[sample_id] = image.copy()
    tile, line, columns = max(size, _SMALLEST_TILE), 12, 10
    blocks = {title: -(-len(own) // columns) for title, own in rows.items()}
    high = tile + 2 * line + _MARGIN
    height = sum(2 * line + count * high for count in blocks.values())
    sheet = Image.new("RGB", (columns * (tile + _MARGIN) + _MARGIN, height + _MARGIN), "white")
    draw, top = ImageDraw.Draw(sheet), 0
    for title, own in rows.items():
        draw.text((_MARGIN, top + line // 2), title, fill="black")
        top += 2 * line
        for k, sample_id in enumerate(own.tolist()):
            left, at = _MARGIN + k % columns * (tile + _MARGIN), top + k // columns * high
            picture = Image.fromarray(pixels[sample_id]).resize((tile, tile), Image.Resampling.NEAREST)
            sheet.paste(picture, (left, at))
            draw.text((left, at + tile), dataset.class_names[beton.labels[sample_id]][: tile // 6], fill="black")
            if values is not None:
                draw.text((left, at + tile + line), f"{values[sample_id]:.4g}", fill="dimgray")
        top += blocks[title] * high
    with atomic_path(path) as partial:
        sheet.save(partial, "PNG")
