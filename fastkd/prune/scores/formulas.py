"""Scores of samples: what a network's logits say of each, and the formulas over epochs, runs and networks."""

from collections.abc import Iterable
from typing import Literal

import numpy as np

from fastkd.errors import OptionError
from fastkd.intrinsics import njit

NEVER_LEARNED = ("total", "infinite", "zero")
NeverLearned = Literal["total", "infinite", "zero"]

DEEPCORE_BATCH = 256
"""Samples of a batch where DeepCore selects, its `--selection_batch`'s default."""

STATISTICS = ("el2n", "margin", "entropy", "probability", "correct")


@njit(cache=True, nogil=True)
def row_statistics(logits_BC: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """What one pass over each row of logits tells, p being its softmax and y its label.

    Args:
        logits_BC: float32 (B, C). labels: int64 (B,), each 0 … C-1.

    Returns:
        float64 (B, 5): EL2N ‖p - onehot(y)‖₂ in 0 … √2 (Paul et al., 2021); margin p_y - max of the others in -1 … 1
        (AUM's on probabilities, Pleiss et al., 2020); entropy in nats, 0 … ln C; p_y; 1 where the largest logit is y's
        (of equal ones the first counts), else 0.
    """
    out = np.empty((len(labels), 5))
    for b in range(len(labels)):
        label_statistics(logits_BC[b], labels[b], out[b])
    return out


@njit(cache=True, nogil=True)
def label_statistics(z: np.ndarray, y: int, out: np.ndarray) -> None:
    """One row of `row_statistics`: logits float32 (C,), its label; out float64 (5,), written."""
    best = 0
    for j in range(len(z)):
        if z[j] > z[best]:
            best = j
    top = np.float64(z[best])
    others, squares, weighted, largest = 0.0, 0.0, 0.0, 0.0  # of the classes that are not y
    own = np.exp(z[y] - top)
    for j in range(len(z)):
        if j != y:
            e = np.exp(z[j] - top)
            others += e
            squares += e * e
            weighted += e * (z[j] - top)
            largest = max(largest, e)
    total = own + others
    out[0] = np.sqrt(squares + others * others) / total  # 1 - p_y is the sum of the others, without cancellation
    out[1] = (own - largest) / total
    out[2] = np.log(total) - (weighted + own * (z[y] - top)) / total
    out[3] = own / total
    out[4] = best == y


def dual_scores(probabilities_TN: np.ndarray, window: int = 10) -> np.ndarray:
    """DUAL scores of a trace: the mean over all windows of std·(1 - mean).

    Cho et al., "Lightweight Dataset Pruning without Full Training via Example Difficulty and Prediction Uncertainty"
    (ICML 2025); their code has ten times that.

    Args:
        probabilities_TN: (T, N), of the label at each presentation. window: J, 2 … T.

    Returns:
        float64 (N,).
    """
    num_windows = len(probabilities_TN) - window + 1
    total = np.zeros(probabilities_TN.shape[1])
    for start in range(num_windows):
        part = probabilities_TN[start : start + window]
        total += part.std(axis=0, ddof=1) * (1 - part.mean(axis=0))
    return total / num_windows


def forgetting_scores(
    events: np.ndarray, learned: np.ndarray, presented: np.ndarray, never_learned: NeverLearned = "total"
) -> np.ndarray:
    """Forgetting events (Toneva et al., 2019), with a policy for samples that were never classified correctly.

    Args:
        events: integers (N,), times that a sample went from correct to incorrect. learned: bool (N,). presented:
            integers (N,), presentations.
        never_learned: `total`: they count as presented (Toneva et al.); `infinite` (Paul et al.'s code); `zero`: as the
            easiest (DeepCore, CCS, D2 and DUAL).

    Returns:
        float64 (N,); the sum over several runs is the score of them all.

    Raises:
        OptionError: an unknown policy.
    """
    if never_learned not in NEVER_LEARNED:
        raise OptionError(f"never-learned policy {never_learned!r}, expected one of {', '.join(NEVER_LEARNED)}")
    instead = {"total": presented.astype(np.float64), "infinite": np.full(len(events), np.inf)}
    return np.where(learned, events, instead.get(never_learned, np.zeros(len(events))))


def last_layer_grand(el2n: np.ndarray, feature_norms: np.ndarray, bias: bool = True) -> np.ndarray:
    """Norm of the cross-entropy's gradient in the last layer's parameters: ‖p - y‖·√(‖h‖² + 1); without bias ‖h‖.

    Paul et al., "Deep Learning on a Data Diet" (NeurIPS 2021), for a linear last layer z = W·h + b.
    """
    return el2n * np.sqrt(np.square(feature_norms) + float(bias))


def deepcore_grand(grand: np.ndarray, batch_size: int) -> np.ndarray:
    """GraNd as DeepCore has it: each gradient divided by the size of its batch, the last one shorter (samples in order).

    Args:
        grand: (N,), in the order of sample_ids. batch_size: DeepCore's, see DEEPCORE_BATCH.

    Returns:
        (N,).
    """
    first_of_last = len(grand) // batch_size * batch_size
    sizes = np.full(len(grand), batch_size)
    sizes[first_of_last:] = max(len(grand) - first_of_last, 1)
    return grand / sizes


def memorization_scores(trials: Iterable[tuple[np.ndarray, np.ndarray]], min_count: int = 1) -> np.ndarray:
    """How much likelier a sample is classified correctly by networks that were trained on it.

    Feldman & Zhang, "What Neural Networks Memorize and Why" (NeurIPS 2020).

    Args:
        trials: for each network bool (N,), whether it was trained on each sample, and bool (N,), whether it is correct.
        min_count: networks that there must be with and without a sample.

    Returns:
        float64 (N,), -1 … 1; NaN where there are fewer.
    """
    counts: list[list] = [[0, 0], [0, 0]]  # [with the sample or without][networks, correct ones]
    for member, correct in trials:
        for side, of_side in zip(counts, (member.astype(bool), ~member.astype(bool)), strict=True):
            side[0] = side[0] + of_side.astype(np.int32)
            side[1] = side[1] + (correct.astype(bool) & of_side)
    (inside, inside_correct), (outside, outside_correct) = counts
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.divide(inside_correct, inside) - np.divide(outside_correct, outside)
    return np.where(np.minimum(inside, outside) >= max(min_count, 1), found, np.nan)
