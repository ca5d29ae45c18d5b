"""What accumulates over the epochs of a training run.

An epoch's observations are kept by sample_id, so that neither the order of batches nor the number of ranks matters; at
its end they are merged over ranks and folded into the sums. The state is a few numbers a sample, and a window of ten
probabilities for DUAL. Arithmetic is float64 throughout; probabilities are kept as float32.
"""

from collections.abc import Iterable

import numpy as np

from fastkd.errors import OptionError
from fastkd.intrinsics import njit
from fastkd.prune.scores.formulas import NeverLearned, forgetting_scores, label_statistics

RECORDABLE = ("forgetting", "el2n", "aum", "dual")


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
        label_statistics(logits_BC[b], labels[b], out)
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
