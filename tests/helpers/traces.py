"""Scores of a whole trace of logits, by plain numpy."""

import numpy as np

from fastkd.prune.scores.formulas import dual_scores


def reference(trace_TNC: np.ndarray, labels: np.ndarray, window: int, el2n_epochs: int) -> dict[str, np.ndarray]:
    """The same scores by plain numpy from the whole trace."""
    e = np.exp(trace_TNC.astype(np.float64) - trace_TNC.max(axis=2, keepdims=True))
    p = e / e.sum(axis=2, keepdims=True)
    rows = np.arange(len(labels))
    own = p[:, rows, labels]
    others = p.copy()
    others[:, rows, labels] = -1
    onehot = np.eye(trace_TNC.shape[2])[labels]
    hits = trace_TNC.argmax(axis=2) == labels
    events = (hits[:-1] & ~hits[1:]).sum(axis=0)
    return {
        "forgetting": np.where(hits.any(axis=0), events, len(trace_TNC)),
        "el2n": np.linalg.norm(p - onehot, axis=2)[:el2n_epochs].mean(axis=0),
        "aum": -(own - others.max(axis=2)).sum(axis=0),
        "dual": dual_scores(own, window),
        "target_prob_mean": own.mean(axis=0),
    }
