"""What a run measures: hits, rates, and the lines of metrics.jsonl."""

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastkd.data.loader import Batch
from fastkd.dist import World
from fastkd.errors import OptionError
from fastkd.train.norm import Norm


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
    totals = torch.zeros(3, dtype=torch.int64)
    with torch.inference_mode():
        for batch in batches:
            if not len(batch):
                continue
            logits = model(norm(batch.images))
            if int(batch.labels.max()) >= logits.shape[1]:
                raise OptionError(
                    f"label {int(batch.labels.max())} in the data, the network has {logits.shape[1]} outputs"
                )
            totals[:2] += top_hits(logits, batch.labels).cpu()
            totals[2] += len(batch)
    if world.size > 1:
        device = next(model.parameters()).device
        totals = totals.to(device)
        dist.all_reduce(totals)
    top1, top5, count = (int(x) for x in totals)
    return {"top1": 100 * top1 / count, "top5": 100 * top5 / count, "num_samples": count}


class Stopwatch:
    """Where an epoch's time goes: waiting for data, and all of it."""

    def __init__(self) -> None:
        self.wait_s = self.total_s = 0.0
        self.num_images = 0
        self._start = self._mark = time.perf_counter()

    def start(self) -> None:
        """Begins an epoch."""
        self._start = self._mark = time.perf_counter()

    def got_batch(self, num_images: int) -> None:
        """A batch arrived: what passed since the last step ended was waiting."""
        self.wait_s += time.perf_counter() - self._mark
        self.num_images += num_images

    def did_step(self) -> None:
        """The step on the batch ended."""
        self._mark = time.perf_counter()

    def stop(self) -> None:
        """Ends an epoch."""
        self.total_s += time.perf_counter() - self._start

    def rates(self) -> dict[str, float]:
        """images_per_s and data_wait_percent of all epochs so far."""
        seconds = max(self.total_s, 1e-9)
        return {"images_per_s": self.num_images / seconds, "data_wait_percent": 100 * self.wait_s / seconds}


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
        self._file.writelines(json.dumps(record) + "\n" for record in records)
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
