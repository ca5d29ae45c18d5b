"""What a run measures: hits, rates, and the lines of metrics.jsonl."""

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastkd.data.batch import Batch
from fastkd.dist import World, sum_over_ranks
from fastkd.errors import OptionError
from fastkd.models.norm import Norm

EVAL_BATCH = 250
"""Samples a step where nothing is trained, unless told otherwise."""


def top_hits(logits_BC: Tensor, labels: Tensor) -> Tensor:
    """How many labels are the largest logit, and among the five largest: int64 (2,). Of equal logits, lower ids win."""
    k = min(5, logits_BC.shape[1])
    hits = logits_BC.sort(dim=1, descending=True, stable=True).indices[:, :k] == labels[:, None]
    return torch.stack([hits[:, 0].sum(), hits.sum()])


def evaluate(model: nn.Module, norm: Norm, batches: Iterable[Batch], world: World) -> dict[str, Any]:
    """Accuracy over all batches of all ranks; every sample counts once.

    Returns:
        top1, top5 in percent, num_samples.

    Raises:
        OptionError: a label that the network has no output for.
    """
    model.eval()
    totals = np.zeros(3, np.int64)  # top-1 hits, top-5 hits, samples
    with torch.inference_mode():
        for batch in batches:
            if not len(batch):
                continue
            logits = model(norm(batch.images))
            if int(batch.labels.max()) >= logits.shape[1]:
                raise OptionError(
                    f"label {int(batch.labels.max())} in the data, the network has {logits.shape[1]} outputs"
                )
            totals[:2] += top_hits(logits, batch.labels).cpu().numpy()
            totals[2] += len(batch)
    sum_over_ranks(totals, world, str(next(model.parameters()).device))
    top1, top5, count = totals.tolist()
    return {"top1": 100 * top1 / count, "top5": 100 * top5 / count, "num_samples": count}


class Stopwatch:
    """Where an epoch's time goes: waiting for data, and each part of the step.

    On a GPU the marks are events of its stream, so that waiting for data is time in which the GPU has nothing to do.
    """

    PARTS = ("data_wait", "teacher", "forward", "backward", "update")

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.seconds = dict.fromkeys(self.PARTS, 0.0)
        self.total_s = 0.0
        self.num_images = 0
        self._on_gpu = torch.device(device).type == "cuda"
        self._start = self._mark = time.perf_counter()
        self._events: list[tuple[str, torch.cuda.Event]] = []

    def start(self) -> None:
        """Begins an epoch."""
        self._start = self._mark = time.perf_counter()
        self._events = []
        if self._on_gpu:
            self.did("")

    def did(self, part: str) -> None:
        """A part of the step ended: what passed since the last mark was it."""
        if self._on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._events.append((part, event))
            return
        now = time.perf_counter()
        self.seconds[part] += now - self._mark
        self._mark = now

    def stop(self) -> None:
        """Ends an epoch."""
        if self._on_gpu:
            torch.cuda.synchronize()
            for (_, before), (part, after) in zip(self._events, self._events[1:], strict=False):
                self.seconds[part] += before.elapsed_time(after) / 1000
        self.total_s += time.perf_counter() - self._start

    def rates(self) -> dict[str, Any]:
        """images_per_s, data_wait_percent and step_percent (by part), of all epochs so far."""
        total_s = max(self.total_s, 1e-9)
        percent = {part: 100 * seconds / total_s for part, seconds in self.seconds.items()}
        return {
            "images_per_s": self.num_images / total_s,
            "data_wait_percent": percent.pop("data_wait"),
            "step_percent": percent,
        }


CSV_COLUMNS = ("epoch", "lr", "loss", "val_top1", "val_top5", "images_per_s", "data_wait_percent")


class JsonLines:
    """A file of JSON lines that a resumed run continues at the byte where its checkpoint stands."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        path.touch()
        os.truncate(path, size_bytes)
        self._file = path.open("a", encoding="utf-8")

    def write(self, records: Iterable[dict[str, Any]]) -> int:
        """Appends records durably.

        Returns:
            The file's size in bytes afterwards.
        """
        self._file.writelines(self._line(record) + "\n" for record in records)
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def _line(self, record: dict[str, Any]) -> str:
        return json.dumps(record)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class CsvLines(JsonLines):
    """The same for a table of the epochs, with a first line of CSV_COLUMNS."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        super().__init__(path, size_bytes)
        if size_bytes == 0:
            self._file.write(",".join(CSV_COLUMNS) + "\n")

    def _line(self, record: dict[str, Any]) -> str:
        return ",".join(str(record.get(column, "")) for column in CSV_COLUMNS)
