"""What a run measures: hits, rates, and the lines of metrics.jsonl."""

import hashlib
import json
import os
import time
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastkd.data.batch import Batch
from fastkd.dist import World, sum_over_ranks
from fastkd.errors import CorruptError, OptionError
from fastkd.models.norm import Norm
from fastkd.train.parts.forward import forward, forward_mirrored
from fastkd.writing import atomic_path, naming, reading

EVAL_BATCH = 250
"""Samples a step where nothing is trained, unless told otherwise."""


def top_hits(logits_BC: Tensor, labels: Tensor) -> Tensor:
    """How many labels are the largest logit, and among the five largest: int64 (2,). Of equal logits, lower ids win."""
    k = min(5, logits_BC.shape[1])
    hits = logits_BC.sort(dim=1, descending=True, stable=True).indices[:, :k] == labels[:, None]
    return torch.stack([hits[:, 0].sum(), hits.sum()])


def evaluate(
    model: nn.Module,
    norm: Norm,
    batches: Iterable[Batch],
    world: World,
    *,
    precision: torch.dtype | None = None,
    network: Callable[..., Tensor] | None = None,
    mirrored: bool = False,
) -> dict[str, Any]:
    """Accuracy over all batches of all ranks; every sample counts once. A GPU is asked once, after the last batch.

    Args:
        precision, network: as `forward` takes them.
        mirrored: whether a sample's logits are the mean of those of its view and of the view mirrored left to right.

    Returns:
        top1, top5 in percent, num_samples.

    Raises:
        OptionError: a label that the network has no output for.
        CorruptError: outputs that are no numbers.
    """
    model.eval()
    num_samples, found, num_outputs = 0, [], 0
    with torch.inference_mode():
        for batch in batches:
            if not len(batch):
                continue
            logits_BC = (forward_mirrored if mirrored else forward)(model, batch.images, norm, precision, network)
            found.append(torch.cat([top_hits(logits_BC, batch.labels), _worst(logits_BC, batch)]))
            num_samples, num_outputs = num_samples + len(batch), logits_BC.shape[1]
    rows = torch.stack(found).cpu().numpy() if found else np.zeros((0, 4), np.int64)
    for _, _, largest_label, sample_id in rows.tolist():
        if sample_id >= 0:
            raise _no_numbers(sample_id)
        if largest_label >= num_outputs:
            raise OptionError(f"label {largest_label} in the data, the network has {num_outputs} outputs")
    totals = np.array([*rows[:, :2].sum(0), num_samples], np.int64)
    sum_over_ranks(totals, world)
    top1, top5, count = totals.tolist()
    return {"top1": 100 * top1 / count, "top5": 100 * top5 / count, "num_samples": count}


def _worst(logits_BC: Tensor, batch: Batch) -> Tensor:
    """The largest label of a batch, and the id of its first sample whose logits are not all finite, or -1: int64 (2,)."""
    bad = ~torch.isfinite(logits_BC).all(dim=1)
    place = torch.arange(len(batch), device=bad.device)
    first = torch.where(bad, place, len(batch)).min(dim=0, keepdim=True).values
    sample_id = torch.where(bad.any(), batch.sample_ids.gather(0, first.clamp(max=len(batch) - 1)), -1)
    return torch.cat([batch.labels.max(dim=0, keepdim=True).values, sample_id])


def require_numbers(logits_BC: Tensor, sample_ids: Tensor) -> None:
    """Refuses outputs of a network that are NaN or infinite, of which a largest one says nothing.

    Raises:
        CorruptError: names the first such sample.
    """
    good = torch.isfinite(logits_BC).all(dim=1)
    if not good.all():
        raise _no_numbers(int(sample_ids[int((~good).nonzero()[0])]))


def _no_numbers(sample_id: int) -> CorruptError:
    return CorruptError(
        f"the network's outputs of sample {sample_id} are no finite numbers: check its weights and the normalisation of its inputs"
    )


class Stopwatch:
    """Where an epoch's time goes: waiting for data, and each part of the step.

    On a GPU the marks are events of its stream, so that waiting for data is time in which the GPU has nothing to do.
    """

    PARTS = ("data_wait", "teacher", "forward", "backward", "update")

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.seconds = dict.fromkeys(self.PARTS, 0.0)
        self.total_s = 0.0
        self.num_images = 0
        self._device = torch.device(device)
        self._on_gpu = self._device.type == "cuda"
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
            if torch.cuda.is_current_stream_capturing():  # a step that is recorded is timed as a whole
                return
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self._device))
            self._events.append((part, event))
            return
        now = time.perf_counter()
        self.seconds[part] += now - self._mark
        self._mark = now

    def stop(self) -> None:
        """Ends an epoch."""
        if self._on_gpu:
            torch.cuda.synchronize(self._device)
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


Place = dict[str, Any]
"""size_bytes and blake2b of a file so far (None where a state of before has none), and copy: its content, as a list of what
zlib made of the parts; None for more than MOST_COPIED_BYTES of them."""

MOST_COPIED_BYTES = 4 << 20
"""Of lines, compressed, that each state keeps a copy of: some 100,000 steps."""

CSV_COLUMNS = ("epoch", "lr", "loss", "val_top1", "val_top5", "images_per_s", "data_wait_percent")


class JsonLines:
    """A file of JSON lines that a resumed run continues at the byte where its state stands.

    Args:
        place: where that is, of `place`, or its size_bytes alone; None for a new file.
        log: told where the file is written anew from the state.

    Raises:
        CorruptError: what the file held then is lost or changed, and the state has no copy of it.
    """

    def __init__(
        self, path: Path, place: Place | int | None = None, log: Callable[[str], None] = lambda line: None
    ) -> None:
        before, is_there = lines_before(path, place)
        if not is_there:
            with atomic_path(path) as partial:
                partial.write_bytes(before)
            if before:
                log(f"{path}: lost or changed since the last state; written anew from the copy in it")
        os.truncate(path, len(before))
        self._file = path.open("ab")
        self._digest = _blake2b()
        self._copy: list[bytes] | None = []
        self._keep(before)

    def write(self, records: Iterable[dict[str, Any]]) -> None:
        """Appends records durably."""
        self._append("".join(self._line(record) + "\n" for record in records))

    def _append(self, text: str) -> None:
        data = text.encode()
        with naming(self._file.name):
            self._file.write(data)
            self._file.flush()
            os.fsync(self._file.fileno())
        self._keep(data)

    def place(self) -> Place:
        """Where the file stands, for a state to go on from."""
        copy = None if self._copy is None else list(self._copy)
        return {"size_bytes": self._file.tell(), "blake2b": self.checksum, "copy": copy}

    @property
    def checksum(self) -> str:
        """BLAKE2b-128 of all that was written: 32 hexadecimal digits."""
        return self._digest.hexdigest()

    def _keep(self, text: bytes) -> None:
        self._digest.update(text)
        if text and self._copy is not None:
            self._copy.append(zlib.compress(text))
            if sum(map(len, self._copy)) > MOST_COPIED_BYTES:
                self._copy = None

    def _line(self, record: dict[str, Any]) -> str:
        return json.dumps(record, allow_nan=False)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class CsvLines(JsonLines):
    """The same for a table of the epochs, with a first line of CSV_COLUMNS."""

    def __init__(
        self, path: Path, place: Place | int | None = None, log: Callable[[str], None] = lambda line: None
    ) -> None:
        super().__init__(path, place, log)
        if self._file.tell() == 0:
            self._append(",".join(CSV_COLUMNS) + "\n")

    def _line(self, record: dict[str, Any]) -> str:
        return ",".join(str(record.get(column, "")) for column in CSV_COLUMNS)


def lines_before(path: Path, place: Place | int | None) -> tuple[bytes, bool]:
    """What a file of lines held when a state was written: of the file, or of the state where the file is lost or changed.

    Args:
        place: as JsonLines'.

    Returns:
        The bytes, and whether the file begins with them.

    Raises:
        CorruptError: neither has them.
    """
    if place is None:
        return b"", path.exists()
    if isinstance(place, int):  # of a state of version 1
        place = {"size_bytes": place}
    size, checksum, copy = place["size_bytes"], place.get("blake2b"), place.get("copy")
    with reading(path):
        found = path.read_bytes()[:size] if path.exists() else b""
    if path.exists() and len(found) == size and checksum in (None, _blake2b(found).hexdigest()):
        return found, True
    if size == 0:
        return b"", False
    if copy is None:
        told = (
            f"{len(found):,} bytes, the last state has seen {size:,}"
            if len(found) < size
            else "other lines than the last state has seen"
        )
        raise CorruptError(
            f"{path}: {told}, and no state has a copy of these: put the file back, or remove {path.parent} and train anew"
        )
    return b"".join(map(zlib.decompress, copy)), False


def last_rates(path: Path) -> dict[str, Any]:
    """images_per_s, data_wait_percent and step_percent that the last line of metrics.jsonl has: of a run that is gone on with
    after its last epoch, and has trained nothing since.

    Raises:
        CorruptError: it has none.
    """
    try:
        with reading(path):
            last = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
        return {name: last[name] for name in ("images_per_s", "data_wait_percent", "step_percent")}
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise CorruptError(
            f"{path}: its last line has no rates ({error}), expected that of the last epoch; remove {path.parent} and train anew"
        ) from None


def _blake2b(data: bytes = b"") -> Any:
    return hashlib.blake2b(data, digest_size=16)
