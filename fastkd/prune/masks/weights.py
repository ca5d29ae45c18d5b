"""Weights of kept samples in the loss: made from the classes, taken from others, and carried from mask to mask."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastkd.errors import FormatError

BY_CLASS = ("inverse-class", "inverse-rate")


def class_weights(kind: str, labels: np.ndarray, sample_ids: np.ndarray) -> np.ndarray:
    """Weights that a sample has by its class, of mean 1 over the kept samples.

    Args:
        kind: `inverse-class`: 1/n_c, with n_c the kept samples of class c, so that every class weighs the same;
            `inverse-rate`: 1/p_c, with p_c the kept part of class c, so that every class weighs what it does in all
            samples, as in importance sampling.
        labels: int64 (N,). sample_ids: int64 (num_kept,).

    Returns:
        float32 (num_kept,), positive.
    """
    own = labels[sample_ids]
    kept = np.maximum(np.bincount(own, minlength=int(labels.max()) + 1), 1)
    wanted = np.ones(len(kept)) if kind == "inverse-class" else np.bincount(labels, minlength=len(kept))
    weights = (wanted / kept)[own]
    return (weights / weights.mean()).astype(np.float32)


def require_weights(weights: np.ndarray, sample_ids: np.ndarray, path: str | Path) -> None:
    """Refuses what cannot be weights of these samples.

    Args:
        weights: float32, to be (num_kept,), each above 0 and finite. path: whose they are, for the message.

    Raises:
        FormatError: says of which sample.
    """
    if weights.shape != sample_ids.shape:
        raise FormatError(f"{path}: {len(weights)} weights for {len(sample_ids)} samples, expected one of each")
    bad = np.flatnonzero(~((weights > 0) & (weights < np.inf)))
    if len(bad):
        raise FormatError(
            f"{path}: {len(bad)} of {len(weights)} weights are not positive numbers: sample {int(sample_ids[bad[0]])} has "
            f"{weights[bad[0]]}"
        )


def carried_weights(
    sample_ids: np.ndarray, masks: Sequence[tuple[np.ndarray, np.ndarray | None]], num_samples: int
) -> np.ndarray | None:
    """The weights that samples have in the first of some masks that keeps them.

    Args:
        sample_ids: int64 (num_kept,), each kept by one of the masks.
        masks: sample_ids and weights of each; where one has no weights, its samples weigh 1.

    Returns:
        float32 (num_kept,); None where no mask has weights.
    """
    if all(weights is None for _, weights in masks):
        return None
    of_all = np.ones(num_samples, np.float32)
    for ids, weights in reversed(masks):
        of_all[ids] = 1 if weights is None else weights
    return of_all[sample_ids]


def describe_weights(weights: np.ndarray) -> dict[str, Any]:
    """Smallest, mean and largest weight."""
    return {
        "min": float(weights.min()),
        "mean": float(weights.mean(dtype=np.float64)),
        "max": float(weights.max()),
    }
