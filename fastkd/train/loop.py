"""The step loop of a training run: an epoch's steps, its lines, and the states from which it can go on."""

import itertools
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from fastkd import agree
from fastkd.data.batch import Batch
from fastkd.data.order import num_in_batch
from fastkd.dist import World
from fastkd.distil.methods import METHODS
from fastkd.errors import CorruptError
from fastkd.feed.loader import Loader
from fastkd.feed.resident import Resident
from fastkd.scoring.recording import TrainingRecord
from fastkd.stopping import StopFlag
from fastkd.teacher.network import LiveTeacher
from fastkd.train.learner import Learner
from fastkd.train.logs import Tracker, scalars_of
from fastkd.train.metrics import CsvLines, JsonLines, Stopwatch
from fastkd.train.objective import objective
from fastkd.train.parts.average import Average
from fastkd.train.parts.microbatches import num_parts, parts_of
from fastkd.train.parts.optimizer import set_learning_rate
from fastkd.train.parts.schedule import Rates
from fastkd.train.parts.states import Checkpoints
from fastkd.train.recipe import Recipe
from fastkd.train.recipes.lines import along
from fastkd.train.run_folder import place_in_words
from fastkd.train.sharing import Vote, over_ranks, seed_dropout, share_buffers, unsent

_NOTE_INTERVAL_S = 5.0  # to read a loss is to wait for the GPU


@dataclass(kw_only=True, slots=True, eq=False)
class Run:
    """A run on its way. wrapped: the learner as several ranks train it. rows: loss, CE, KD and R of the epoch's steps so far;
    metrics.jsonl has lines of the first `num_written` of them. objective: as it is, or compiled. captured: `one_step` as one
    graph, in a single process where every step is the same."""

    recipe: Recipe
    learner: Learner
    wrapped: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: Average | None
    loader: Loader | Resident
    live: LiveTeacher | None
    world: World
    watch: Stopwatch
    checkpoints: Checkpoints
    recording: TrainingRecord | None
    rows: list[list[float]]
    num_written: int
    accuracy: dict[str, Any]
    lines: JsonLines | None
    table: CsvLines | None
    objective: Callable[..., tuple[Tensor, Tensor, Tensor]] = objective
    captured: Callable[[Batch], Tensor] | None = None
    checkpoint_every: int | None = None
    checkpoint_epochs: int = 1
    stop: StopFlag = field(default_factory=StopFlag)
    track: Tracker | None = None
    progress: Callable[[int, int], None] = lambda done, total: None
    note: Callable[[str], None] = lambda text: None
    ended: Callable[[int, int, str], None] = lambda done, total, text: None
    noted_s: float = float("-inf")
    rates: Rates = field(init=False)

    def __post_init__(self) -> None:
        self.rates = Rates(self.recipe, len(self.loader))

    @property
    def num_steps(self) -> int:
        """Of the whole run."""
        return self.recipe.steps or self.recipe.epochs * len(self.loader)


def train_epoch(run: Run, epoch: int, first: int) -> None:
    """One pass over the kept samples, from step `first` on; `run.rows` gets loss, CE, KD and R of every step."""
    run.wrapped.train()
    steps = len(run.loader)
    end = min(steps, run.num_steps - epoch * steps)  # of the last epoch of a run of so many steps
    rate = None
    pending: list[Tensor] = []  # rows that are still on the device
    vote = Vote(run.stop, run.world)

    def take() -> None:
        run.rows += torch.stack(pending)[:, :4].tolist() if pending else []
        pending.clear()

    def collect() -> None:
        take()
        _require_finite(run, epoch)

    def checkpoint(step: int) -> None:
        collect()
        if run.world.is_main and run.recording is None:
            _save(run, epoch, step)

    run.watch.start()
    batches = run.loader.epoch(epoch, start_batch=first)
    if end < steps:
        batches = itertools.islice(batches, end - first)
    for step, batch in enumerate(batches, first):
        run.watch.did("data_wait")
        if (new := run.rates(epoch * steps + step)) != rate:
            rate = new
            set_learning_rate(run.optimizer, rate)
        num_global = num_in_batch(len(run.loader.ids), step, global_batch=run.loader.global_batch)
        share = len(batch) * run.world.size / num_global  # so that each sample counts the same in the mean of the ranks
        seed_dropout(run.recipe.seed, epoch * steps + step, run.world)
        if run.captured is not None:
            row = run.captured(batch)
        else:
            num = num_parts(run.recipe, num_global, run.world.size)
            row = one_step(run, batch, epoch * steps + step, share, num)
        row = over_ranks(row * share, run.stop, run.world)
        pending.append(row)
        run.watch.num_images += num_global
        if run.world.is_main and time.monotonic() - run.noted_s >= _NOTE_INTERVAL_S:
            run.noted_s = time.monotonic()
            take()
            if run.world.size == 1:  # of several ranks all see it where they all look, at the next checkpoint
                _require_finite(run, epoch)
            if all(math.isfinite(value) for row in run.rows[run.num_written :] for value in row):
                _write_steps(run, epoch)
            last = f", last top-1 {run.accuracy['top1']:.2f} %" if run.accuracy else ""
            run.note(_in_words(epoch, run.rows[-20:]) + last)
        run.progress(epoch * steps + step + 1, run.num_steps)
        if vote.hear(row):
            checkpoint(step + 1)
            run.checkpoints.finish()
            agree.share(run.world, lambda: None)  # none leaves before rank 0 has saved: torchrun ends all when one does
            raise run.stop.error(place_in_words(epoch, step + 1))
        if run.checkpoint_every and (step + 1) % run.checkpoint_every == 0 and step + 1 < end:
            checkpoint(step + 1)
        run.watch.did("update")  # what ranks exchange and what is written is no waiting for data
    collect()
    share_buffers(run.learner.buffers(), run.world)
    if run.recording is not None:
        run.recording.end_epoch()
    run.watch.stop()


def one_step(run: Run, batch: Batch, number: int, share: float, num: int = 1) -> Tensor:
    """Forward, backward, update; returns loss, CE, KD and R of this rank's samples: float32 (4,), on the device.

    Args:
        number: of the step, from 0. share: of this rank's mean in that of all. num: parts that the batch is taken in, one after
            the other, each with its share of the mean.
    """
    recipe = _at(run.recipe, number / run.num_steps)
    rows, shares = [], []
    for i, (part, of_batch) in enumerate(parts_of(batch, num)):
        teacher_BC: Tensor | None = part.logits
        teacher_layers: list[Tensor] = [] if part.embeddings is None else [part.embeddings]
        if run.live is not None:
            teacher_BC, teacher_layers = run.live(part.images)
            run.watch.did("teacher")
        if i == 0:
            run.optimizer.zero_grad(set_to_none=True)  # before the forward pass, which may have their memory
        with nullcontext() if i == num - 1 else unsent(run.wrapped):
            student_BC, method, parts = run.wrapped(part.images, part, teacher_layers, number)
            if run.recording is not None:
                run.recording.observe(student_BC, part)
            loss, ce, kd = run.objective(
                recipe,
                student_BC,
                teacher_BC,
                part.labels,
                method,
                part.weights,
                partner_labels=part.partner_labels,
                lam=part.lam,
            )
            run.watch.did("forward")
            run.scaler.scale((loss + parts) * (share * of_batch)).backward()
        run.watch.did("backward")
        row = torch.stack([loss, ce, kd, method]).detach()
        rows.append(row if len(part) else torch.zeros_like(row))  # means over no samples are NaN; their gradients are 0
        shares.append(of_batch)
    if recipe.clip_grad is not None:
        run.scaler.unscale_(run.optimizer)
        nn.utils.clip_grad_norm_(run.learner.parameters(), recipe.clip_grad)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    if run.average is not None:
        run.average.update(run.learner.model)
    run.watch.did("update")
    if num == 1:
        return rows[0]
    return torch.stack([row * of_batch for row, of_batch in zip(rows, shares, strict=True)]).sum(0)


def _at(recipe: Recipe, fraction: float) -> Recipe:
    """The recipe with the alpha and tau of a fraction of training, 0 … 1."""
    if not (recipe.alpha_course or recipe.tau_course):
        return recipe
    alpha = along(recipe.alpha_course, fraction) if recipe.alpha_course else recipe.alpha
    tau = along(recipe.tau_course, fraction) if recipe.tau_course else recipe.tau
    return replace(recipe, alpha=alpha, tau=tau)


def _in_words(epoch: int, rows: list[list[float]]) -> str:
    """Epoch and mean loss of some steps; people count from 1."""
    return f"epoch {epoch + 1}, loss {sum(row[0] for row in rows) / len(rows):.4g}"


def _require_finite(run: Run, epoch: int) -> None:
    for step, row in enumerate(run.rows, 1):
        if not all(map(math.isfinite, row)):
            found, way_out = f"is {row[0]}", "lower --lr"
            if run.scaler.is_enabled():
                found += f" with --amp fp16, its gradient scaler at {run.scaler.get_scale():g}"
                way_out += ", or use --amp bf16"
            raise CorruptError(f"the loss of epoch {epoch + 1}, step {step} {found}: training diverged; {way_out}")


def _save(run: Run, epoch: int, step: int) -> None:
    """Writes the state in which `step` steps of the epoch are done."""
    assert run.lines is not None
    assert run.table is not None
    if run.average is not None:
        run.average.take_statistics(run.learner.model)
    run.checkpoints.save(
        {
            "epoch": epoch,
            "step": step,
            "rows": run.rows,
            "num_written": run.num_written,
            "jsonl": run.lines.place(),
            "csv": run.table.place(),
            "accuracy": run.accuracy,
            **({"record": run.recording.state_dict()} if run.recording is not None else {}),
        }
    )


def _step_lines(run: Run, epoch: int, start: int = 0) -> list[dict[str, Any]]:
    """The lines of the epoch's steps so far, from one on."""
    names = ["loss", "ce", "kd", *([run.recipe.kd] if run.recipe.kd in METHODS else [])]
    head = {"kind": "step", "epoch": epoch}
    first = epoch * len(run.loader)
    return [
        {**head, "step": first + i, "lr": run.rates(first + i), **dict(zip(names, row, strict=False))}
        for i, row in enumerate(run.rows[start:], start)
    ]


def _write_steps(run: Run, epoch: int) -> None:
    """Writes the lines of those steps that have none yet. A run that goes on from a state cuts off what came after it."""
    assert run.lines is not None
    run.lines.write(_step_lines(run, epoch, run.num_written))
    run.num_written = len(run.rows)


def end_epoch(run: Run, epoch: int, measured: dict[str, Any]) -> None:
    """Writes the epoch's lines (those of its last steps, then one for the epoch) and the state after it."""
    steps, rows = _step_lines(run, epoch), run.rows
    told = _in_words(epoch, rows) + (f", top-1 {measured['top1']:.2f} %" if measured else "")
    run.note(told)
    run.ended(min((epoch + 1) * len(run.loader), run.num_steps), run.num_steps, told)
    if run.lines is None or run.table is None:
        run.rows = []
        return
    val = {f"val_{name}": measured[name] for name in ("top1", "top5") if name in measured}
    mean = sum(row[0] for row in rows) / len(rows)
    lr = steps[-1]["lr"]
    whole = {"kind": "epoch", "epoch": epoch, "lr": lr, "loss": mean, **val, **run.watch.rates()}
    _write_steps(run, epoch)
    run.lines.write([whole])
    run.table.write([whole])
    run.rows, run.num_written = [], 0
    if run.track is not None:
        for line in [*steps, whole]:
            run.track(*scalars_of(line, len(run.loader)))
    if (epoch + 1) % run.checkpoint_epochs == 0 or epoch + 1 == run.recipe.epochs:
        _save(run, epoch + 1, 0)
