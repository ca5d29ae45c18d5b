"""Moderate: how far samples lie from the centre of their class."""

import numpy as np

from fastkd.prune.select.levels import class_members


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
