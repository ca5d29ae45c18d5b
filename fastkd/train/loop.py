"""The step loop of a training run: an epoch's steps, its lines, and the states from which it can go on."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from fastkd import agree
from fastkd.data.batch import Batch
from fastkd.data.order import num_in_batch
from fastkd.dist import World
from fastkd.distil.methods import METHODS
from fastkd.errors import CorruptError
from fastkd.feed.loader import Loader
from fastkd.feed.resident import Resident
from fastkd.models.norm import Norm
from fastkd.scoring.recording import TrainingRecord
from fastkd.stopping import StopFlag
from fastkd.train.learner import LiveTeacher
from fastkd.train.logs import Tracker, scalars_of
from fastkd.train.metrics import CsvLines, JsonLines, Stopwatch
from fastkd.train.objective import objective
from fastkd.train.recipe import Recipe, learning_rate
from fastkd.train.run_folder import Checkpoints
from fastkd.train.sharing import over_ranks

_NOTE_INTERVAL_S = 5.0  # to read a loss is to wait for the GPU


@dataclass(kw_only=True, slots=True, eq=False)
class Run:
    """A run on its way. rows: loss, CE, KD and R of the epoch's steps so far that no line of metrics.jsonl has yet."""

    recipe: Recipe
    learner: nn.Module
    network: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: AveragedModel | None
    loader: Loader | Resident
    norm: Norm
    live: LiveTeacher | None
    world: World
    watch: Stopwatch
    checkpoints: Checkpoints
    checkpoint_every: int | None
    recording: TrainingRecord | None
    rows: list[list[float]]
    accuracy: dict[str, Any]
    lines: JsonLines | None
    table: CsvLines | None
    stop: StopFlag = field(default_factory=StopFlag)
    track: Tracker | None = None
    note: Callable[[str], None] = lambda text: None
    progress: Callable[[int, int], None] = lambda done, total: None
    noted_s: float = float("-inf")


def train_epoch(run: Run, epoch: int, first: int) -> None:
    """One pass over the kept samples, from step `first` on; `run.rows` gets loss, CE, KD and R of every step."""
    run.learner.train()
    steps = len(run.loader)
    pending: list[Tensor] = []  # rows that are still on the device

    def collect() -> None:
        run.rows += torch.stack(pending)[:, :4].tolist() if pending else []
        pending.clear()
        _require_finite(run.rows, epoch)

    def checkpoint(step: int) -> None:
        collect()
        if run.world.is_main and run.recording is None:
            _save(run, epoch, step)

    run.watch.start()
    for step, batch in enumerate(run.loader.epoch(epoch, start_batch=first), first):
        run.watch.did("data_wait")
        num_global = num_in_batch(len(run.loader.ids), step, global_batch=run.loader.global_batch)
        share = len(batch) * run.world.size / num_global  # so that each sample counts the same in the mean of the ranks
        row = one_step(run, batch, epoch * steps + step, share)
        pending.append(over_ranks(row * share, run.stop, run.world))
        run.watch.num_images += num_global
        if run.world.is_main and time.monotonic() - run.noted_s >= _NOTE_INTERVAL_S:
            run.noted_s = time.monotonic()
            loss = float(torch.stack(pending[-20:])[:, 0].mean())
            if run.world.size == 1 and not math.isfinite(loss):
                collect()  # of several ranks all see it where they all look, at the next checkpoint
            _note(run, epoch, loss)
        run.progress(epoch * steps + step + 1, run.recipe.epochs * steps)
        # Ranks agree on stopping by what they exchanged a step ago, so that no GPU is waited for.
        asked = run.stop.asked if run.world.size == 1 else len(pending) > 1 and bool(pending[-2][4] > 0)
        if asked:
            checkpoint(step + 1)
            agree.share(run.world, lambda: None)  # none leaves before rank 0 has saved: torchrun ends all when one does
            raise run.stop.error(f"after epoch {epoch}, step {step + 1}")
        if run.checkpoint_every and (step + 1) % run.checkpoint_every == 0 and step + 1 < steps:
            checkpoint(step + 1)
    collect()
    if run.recording is not None:
        run.recording.end_epoch()
    run.watch.stop()


def one_step(run: Run, batch: Batch, number: int, share: float) -> Tensor:
    """Forward, backward, update; returns loss, CE, KD and R of this rank's samples: float32 (4,), on the device."""
    teacher_BC: Tensor | None = batch.logits
    teacher_layers: list[Tensor] = [] if batch.embeddings is None else [batch.embeddings]
    if run.live is not None:
        teacher_BC, teacher_layers = run.live(batch.images)
        run.watch.did("teacher")
    student_BC, method, parts = run.learner(run.norm(batch.images), batch, teacher_layers, number)
    if run.recording is not None:
        run.recording.observe(student_BC, batch)
    loss, ce, kd = objective(
        run.recipe,
        student_BC,
        teacher_BC,
        batch.labels,
        method,
        batch.weights,
        partner_labels=batch.partner_labels,
        lam=batch.lam,
    )
    run.watch.did("forward")
    run.optimizer.zero_grad(set_to_none=True)
    run.scaler.scale((loss + parts) * share).backward()
    run.watch.did("backward")
    run.scaler.step(run.optimizer)
    run.scaler.update()
    if run.average is not None:
        run.average.update_parameters(run.network)
    run.watch.did("update")
    row = torch.stack([loss, ce, kd, method]).detach()
    return row if len(batch) else torch.zeros_like(row)  # means over no samples are NaN; their gradients are 0


def _note(run: Run, epoch: int, loss: float) -> None:
    top1 = f", top-1 {run.accuracy['top1']:.2f} %" if "top1" in run.accuracy else ""
    run.note(f"epoch {epoch + 1}, loss {loss:.4g}{top1}")


def _require_finite(rows: list[list[float]], epoch: int) -> None:
    table = torch.tensor(rows)
    if not torch.isfinite(table).all():
        step = int((~torch.isfinite(table).all(dim=1)).nonzero()[0])
        raise CorruptError(f"the loss of epoch {epoch}, step {step} is {rows[step][0]}: training diverged; lower --lr")


def _save(run: Run, epoch: int, step: int) -> None:
    """Writes the state in which `step` steps of the epoch are done."""
    assert run.lines is not None
    assert run.table is not None
    run.checkpoints.save(
        {
            "epoch": epoch,
            "step": step,
            "rows": run.rows,
            "jsonl": run.lines.place(),
            "csv": run.table.place(),
            "accuracy": run.accuracy,
            **({"record": run.recording.state_dict()} if run.recording is not None else {}),
        }
    )


def end_epoch(run: Run, epoch: int, measured: dict[str, Any]) -> None:
    """Writes the epoch's lines (one a step, then one for the epoch) and the state after it."""
    rows, run.rows = run.rows, []
    if run.lines is None or run.table is None:
        return
    lr = learning_rate(run.recipe, epoch)
    names = ["loss", "ce", "kd", *([run.recipe.kd] if run.recipe.kd in METHODS else [])]
    steps = [
        {
            "kind": "step",
            "epoch": epoch,
            "step": epoch * len(run.loader) + i,
            "lr": lr,
            **dict(zip(names, row, strict=False)),
        }
        for i, row in enumerate(rows)
    ]
    val = {f"val_{name}": measured[name] for name in ("top1", "top5") if name in measured}
    mean = sum(row[0] for row in rows) / len(rows)
    whole = {"kind": "epoch", "epoch": epoch, "lr": lr, "loss": mean, **val, **run.watch.rates()}
    _note(run, epoch, mean)
    run.lines.write([*steps, whole])
    run.table.write([whole])
    if run.track is not None:
        for line in [*steps, whole]:
            run.track(*scalars_of(line, len(run.loader)))
    _save(run, epoch + 1, 0)
