"""Training dynamics recorded in the training loop: what `fastkd train --record` adds to a run."""

from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastkd.data.batch import Batch
from fastkd.dist import World, sum_over_ranks
from fastkd.errors import FormatError, OptionError
from fastkd.prune.scores.formulas import NEVER_LEARNED, NeverLearned
from fastkd.prune.scores.recorder import RECORDABLE, Recorder
from fastkd.prune.scores.score_file import Scores, save_scores

_IN_FLIGHT = 2  # batches whose logits may still be on their way from a GPU


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """What is recorded, and how."""

    methods: tuple[str, ...]
    """Some of RECORDABLE."""
    never_learned: NeverLearned = "total"
    """What forgetting says of samples that were never classified correctly: see `forgetting_scores`."""
    window: int = 10
    """Epochs of a window of DUAL, J."""
    el2n_epochs: int = 10
    """EL2N is the mean over the first so many presentations of a sample."""

    def __post_init__(self) -> None:
        if self.never_learned not in NEVER_LEARNED:
            raise OptionError(f"--never-learned {self.never_learned}: expected one of {', '.join(NEVER_LEARNED)}")
        Recorder(self.methods, 0, window=self.window, el2n_epochs=self.el2n_epochs)  # refuses what it cannot do

    def describe(self) -> dict[str, Any]:
        """As JSON, for the run's identity."""
        return asdict(self) | {"methods": list(self.methods)}


def parse_record(text: str, **options: Any) -> Record:
    """`forgetting,el2n,aum,dual`, or some of them, with the options that are not None.

    Raises:
        OptionError: unknown methods, or options out of range.
    """
    names = [part.strip() for part in text.split(",") if part.strip()]
    unknown = sorted(set(names) - set(RECORDABLE))
    if unknown or not names:
        raise OptionError(f"--record {text}: expected some of {','.join(RECORDABLE)}")
    methods = tuple(method for method in RECORDABLE if method in names)
    return Record(methods=methods, **{name: value for name, value in options.items() if value is not None})


class TrainingRecord:
    """A `Recorder` fed by the training loop: from any device, over all ranks, through stops and resumes."""

    def __init__(self, record: Record, num_samples: int, world: World, device: torch.device) -> None:
        self.record, self.world, self.device = record, world, device
        self.recorder = Recorder(record.methods, num_samples, window=record.window, el2n_epochs=record.el2n_epochs)
        self._coming: deque[tuple[torch.cuda.Event, Tensor, Tensor, Tensor]] = deque()

    def observe(self, logits_BC: Tensor, batch: Batch) -> None:
        """Takes the logits that the loss is computed from. On a GPU they are read two steps later, so nobody waits."""
        logits_BC = logits_BC.detach().float()
        if logits_BC.device.type != "cuda":
            self.recorder.observe(logits_BC.numpy(), batch.labels.numpy(), batch.sample_ids.numpy())
            return
        copies = [tensor.to("cpu", non_blocking=True) for tensor in (logits_BC, batch.labels, batch.sample_ids)]
        arrived = torch.cuda.Event()
        arrived.record(torch.cuda.current_stream(self.device))
        self._coming.append((arrived, copies[0], copies[1], copies[2]))
        self._take(_IN_FLIGHT)

    def _take(self, leave: int) -> None:
        while len(self._coming) > leave:
            arrived, logits, labels, ids = self._coming.popleft()
            arrived.synchronize()
            self.recorder.observe(logits.numpy(), labels.numpy(), ids.numpy())

    def end_epoch(self) -> None:
        """Merges the epoch over ranks and folds it in; every rank then has the same state."""
        self._take(0)
        for array in (self.recorder.seen, self.recorder.observed):
            sum_over_ranks(array, self.world)
        self.recorder.end_epoch()

    def state_dict(self) -> dict[str, Tensor]:
        """The state after whole epochs, as tensors on the CPU that share its memory."""
        return {name: torch.from_numpy(values) for name, values in self.recorder.state.items()}

    def load_state_dict(self, state: dict[str, Tensor], path: Path) -> None:
        """Goes on from a saved state.

        Raises:
            FormatError: the state of another recorder.
        """
        own = self.recorder.state
        fits = isinstance(state, dict) and {
            name: (tuple(value.shape), value.numpy().dtype) for name, value in state.items()
        } == {name: (value.shape, value.dtype) for name, value in own.items()}
        if not fits:
            raise FormatError(f"{path}: does not hold what this run records; remove the folder and start anew")
        for name, values in own.items():
            np.copyto(values, state[name].numpy())

    def save(self, path: Path, *, inputs: dict[str, str], epochs: int, class_names: Sequence[str]) -> Scores:
        """Writes the scores of the run. class_names: of the training data."""
        found = self.recorder.scores(self.record.never_learned)
        extras = {name: found.pop(name) for name in ("target_prob_mean",) if name in found}
        policies: dict[str, dict[str, Any]] = {
            "forgetting": {"never_learned": self.record.never_learned},
            "el2n": {"epochs_averaged": min(self.record.el2n_epochs, epochs)},
            "aum": {"on": "probabilities"},
            "dual": {"window": self.record.window},
        }
        described = {
            name: {"direction": _DIRECTIONS[name], "policies": policies[name] | {"epochs": epochs, "mode": "training"}}
            for name in found
        }
        rest = {role: digest for role, digest in inputs.items() if role not in ("beton", "val")}
        params = {"source": "training"}
        return save_scores(
            path,
            found,
            described,
            beton_fingerprint=inputs["beton"],
            inputs=rest,
            params=params,
            extras=extras,
            class_names=class_names,
            force=True,  # a kill while a run ended may have left those of another end of it
        )


_DIRECTIONS = {
    "forgetting": "high = hard: times that a sample went from correct to incorrect",
    "el2n": "high = hard: mean norm of the error in the probabilities, 0 … √2",
    "aum": "high = hard: -(sum over epochs of p_y - largest other probability)",
    "dual": "high = hard and uncertain: mean over windows of std·(1 - mean) of p_y",
}
