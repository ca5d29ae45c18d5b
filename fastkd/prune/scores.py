"""What a network's logits say of each sample, and what accumulates over the epochs of a training run.

An epoch's observations are kept by sample_id, so that neither the order of batches nor the number of ranks matters; at
its end they are merged over ranks and folded into the sums. The state is a few numbers a sample, and a window of ten
probabilities for DUAL. Arithmetic is float64 throughout; probabilities are kept as float32.
"""

from collections.abc import Iterable
from typing import Literal

import numpy as np
from numba import njit

from fastkd.errors import OptionError

RECORDABLE = ("forgetting", "el2n", "aum", "dual")
NEVER_LEARNED = ("total", "infinite", "zero")
NeverLearned = Literal["total", "infinite", "zero"]

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
        _statistics(logits_BC[b], labels[b], out[b])
    return out


@njit(cache=True, nogil=True)
def _statistics(z: np.ndarray, y: int, out: np.ndarray) -> None:
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


class Recorder:
    """Accumulates training dynamics of the samples of a beton.

    Args:
        methods: some of RECORDABLE.
        num_samples: N of the full beton.
        window: J, the epochs of a window of DUAL; the paper's 10.
        el2n_epochs: EL2N is the mean over the first so many presentations of a sample; the CCS recipe's 10.

    Raises:
        OptionError: unknown methods, or numbers out of range.
    """

    def __init__(self, methods: Iterable[str], num_samples: int, *, window: int = 10, el2n_epochs: int = 10) -> None:
        self.methods = tuple(method for method in RECORDABLE if method in set(methods))
        unknown = sorted(set(methods) - set(RECORDABLE))
        if unknown or not self.methods:
            raise OptionError(f"--record {','.join(unknown) or 'nothing'}: expected some of {','.join(RECORDABLE)}")
        if window < 2:
            raise OptionError(f"a window of {window} epochs has no standard deviation, expected at least 2")
        if el2n_epochs < 1:
            raise OptionError(f"EL2N over {el2n_epochs} epochs, expected at least 1")
        self.window, self.el2n_epochs = window, el2n_epochs
        self.seen = np.zeros(num_samples, np.uint8)
        self.observed = np.zeros((num_samples, 4), np.float32)
        kinds = {
            "presented": (np.int32, ()),
            "correct": (np.uint8, ()),  # bit 0: at the last presentation; bit 1: at some presentation
            "forgotten": (np.int32, ()),
            "el2n": (np.float64, ()),
            "margin": (np.float64, ()),
            "probability": (np.float64, ()),
            "spread": (np.float64, ()),
            "recent": (np.float32, (window,)),
        }
        used = {
            "forgetting": ("correct", "forgotten"),
            "el2n": ("el2n",),
            "aum": ("margin",),
            "dual": ("probability", "spread", "recent"),
        }
        wanted = {"presented"}.union(*(used[method] for method in self.methods))
        self.state = {
            name: np.zeros((num_samples if name in wanted else 0, *shape), dtype)
            for name, (dtype, shape) in kinds.items()
        }

    def observe(self, logits_BC: np.ndarray, labels: np.ndarray, sample_ids: np.ndarray) -> None:
        """Takes a batch's training logits, float32 (B, C), before the step on it; a sample once an epoch."""
        _observe(logits_BC, labels, sample_ids, self.seen, self.observed)

    def end_epoch(self) -> None:
        """Folds the epoch's observations, those of all ranks where there are several, into the state."""
        s = self.state
        _fold(
            self.seen,
            self.observed,
            s["presented"],
            s["correct"],
            s["forgotten"],
            s["el2n"],
            s["margin"],
            s["probability"],
            s["spread"],
            s["recent"],
            self.el2n_epochs,
        )
        self.seen[:] = 0
        self.observed[:] = 0

    def scores(self, never_learned: NeverLearned = "total") -> dict[str, np.ndarray]:
        """What was recorded so far: float32 (N,) a method, higher = harder; NaN for samples that were never seen.

        forgetting: events; never-learned samples by policy. el2n: mean. aum: -(sum of margins). dual: mean over windows
        of std·(1 - mean), 0 before the first full window; and `target_prob_mean`, the mean probability of the label.
        """
        s, found = self.state, {}
        presented = s["presented"]
        with np.errstate(invalid="ignore", divide="ignore"):
            if "forgetting" in self.methods:
                learned = s["correct"] > 1
                found["forgetting"] = forgetting_scores(s["forgotten"], learned, presented, never_learned)
            if "el2n" in self.methods:
                found["el2n"] = s["el2n"] / np.minimum(presented, self.el2n_epochs)
            if "aum" in self.methods:
                found["aum"] = -s["margin"]
            if "dual" in self.methods:
                found["dual"] = s["spread"] / np.maximum(presented - self.window + 1, 1)
                found["target_prob_mean"] = s["probability"] / presented
        return {name: np.where(presented > 0, values, np.nan).astype(np.float32) for name, values in found.items()}


@njit(cache=True, nogil=True)
def _observe(
    logits_BC: np.ndarray, labels: np.ndarray, sample_ids: np.ndarray, seen: np.ndarray, observed: np.ndarray
) -> None:
    out = np.empty(5)
    for b in range(len(labels)):
        _statistics(logits_BC[b], labels[b], out)
        i = sample_ids[b]
        seen[i] = 1
        observed[i, 0], observed[i, 1], observed[i, 2], observed[i, 3] = out[0], out[1], out[3], out[4]


@njit(cache=True, nogil=True)
def _fold(
    seen: np.ndarray,
    observed: np.ndarray,
    presented: np.ndarray,
    correct: np.ndarray,
    forgotten: np.ndarray,
    el2n: np.ndarray,
    margin: np.ndarray,
    probability: np.ndarray,
    spread: np.ndarray,
    recent: np.ndarray,
    el2n_epochs: int,
) -> None:
    window = recent.shape[1]
    for i in range(len(seen)):
        if not seen[i]:
            continue
        if len(forgotten):
            now = observed[i, 3] > 0
            forgotten[i] += correct[i] & 1 and not now
            correct[i] = (correct[i] & 2) | (3 if now else 0)
        if len(el2n) and presented[i] < el2n_epochs:
            el2n[i] += observed[i, 0]
        if len(margin):
            margin[i] += observed[i, 1]
        if len(recent):
            probability[i] += observed[i, 2]
            recent[i, presented[i] % window] = observed[i, 2]
            if presented[i] + 1 >= window:
                spread[i] += _spread(recent[i])
        presented[i] += 1


@njit(cache=True, nogil=True)
def _spread(probabilities: np.ndarray) -> float:
    """std·(1 - mean) of a window, the standard deviation with n - 1."""
    mean = 0.0
    for p in probabilities:
        mean += p
    mean /= len(probabilities)
    squares = 0.0
    for p in probabilities:
        squares += (p - mean) ** 2
    return np.sqrt(squares / (len(probabilities) - 1)) * (1 - mean)


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
        grand: (N,), in the order of sample_ids. batch_size: DeepCore's, 256 with its selection's default.

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
