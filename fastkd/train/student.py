"""Training a network on the kept samples: with stored logits, with a live teacher, or with labels alone."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastkd.data.order import ORDERS
from fastkd.dist import World
from fastkd.errors import CorruptError, OptionError
from fastkd.feed import Loader
from fastkd.models.registry import canonical_name, create_model
from fastkd.train.checkpoint import save_resume, save_weights
from fastkd.train.losses import kd_loss, mixed_loss
from fastkd.train.metrics import JsonLines, Stopwatch, evaluate
from fastkd.train.norm import Norm
from fastkd.train.recording import Record, TrainingRecord
from fastkd.train.run_folder import claim_folder, read_json, resume, write_json
from fastkd.train.teacher import Teacher


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How a student is trained. The defaults are the paper's for CIFAR and SVHN (appendix A)."""

    model: str
    """A name that the registry knows."""
    epochs: int = 240
    """Passes over the kept samples."""
    batch_size: int = 64
    """Samples a step on each rank."""
    lr: float = 0.05
    """Initial learning rate of SGD."""
    momentum: float = 0.9
    """Momentum of SGD, without Nesterov."""
    weight_decay: float = 5e-4
    """Weight decay, on all parameters."""
    schedule: str = "step"
    """`step`: a tenth at 150/240, 180/240 and 210/240 of the epochs; `cosine`: half a cosine down to 0, each epoch."""
    alpha: float = 0.5
    """Weight of distillation, 0 … 1 (paper, Eq. 2); 0 trains on labels alone."""
    tau: float = 4.0
    """Temperature of distillation."""
    tau_squared: bool = True
    """Whether the distillation term is multiplied by τ²."""
    drop_last: bool = False
    """Leave out the last batch of an epoch where it is not full."""
    order: str = "shuffle"
    """How an epoch is shuffled: `shuffle`, uniformly, or `pages`, page by page of the beton."""
    seed: int = 0
    """Of the initial weights and of the order."""

    def __post_init__(self) -> None:
        rules = (
            ("epochs", self.epochs >= 1, "at least 1"),
            ("batch-size", self.batch_size >= 1, "at least 1"),
            ("lr", 0 < self.lr < math.inf, "above 0"),
            ("momentum", 0 <= self.momentum < 1, "0 <= momentum < 1"),
            ("weight-decay", 0 <= self.weight_decay < math.inf, "at least 0"),
            ("schedule", self.schedule in ("step", "cosine"), "step or cosine"),
            ("alpha", 0 <= self.alpha <= 1, "0 … 1"),
            ("tau", 0 < self.tau < math.inf, "above 0"),
            ("order", self.order in ORDERS, " or ".join(ORDERS)),
            ("seed", 0 <= self.seed < 2**63, "0 … 2^63-1"),
        )
        for name, holds, expected in rules:
            if not holds:
                raise OptionError(f"--{name} {getattr(self, name.replace('-', '_'))}: expected {expected}")


RECIPES: dict[str, dict[str, Any]] = {
    "crop-flip": {},
    "center": {},
    "rrc": {"batch_size": 128, "lr": 0.1, "schedule": "cosine"},
}
"""What differs from Recipe's defaults for each kind of views; `rrc`: the paper's ImageNet recipe (appendix A.2)."""


def choose_recipe(view_kind: str, num_classes: int, **options: Any) -> Recipe:
    """The recipe that suits the views, with the options that are not None over it.

    Raises:
        OptionError: a value out of range.
        ModelError, MissingDependencyError: a network that cannot be made.
    """
    given = {name: value for name, value in options.items() if value is not None}
    recipe = Recipe(**(RECIPES[view_kind] | given | {"model": canonical_name(given["model"])}))
    create_model(recipe.model, num_classes)  # an unknown name is told before any file is read through
    return recipe


def learning_rate(recipe: Recipe, epoch: int) -> float:
    """The learning rate of epoch 0 … epochs-1; the milestones move with the number of epochs."""
    if recipe.schedule == "cosine":
        return recipe.lr * 0.5 * (1 + math.cos(math.pi * epoch / recipe.epochs))
    passed = sum(epoch >= round(recipe.epochs * share / 240) for share in (150, 180, 210))
    return recipe.lr * 0.1**passed


def train(
    recipe: Recipe,
    loader: Loader,
    out: str | Path,
    *,
    norm: Norm,
    teacher: Teacher | None = None,
    val: Loader | None = None,
    val_every: int = 1,
    record: Record | None = None,
    inputs: dict[str, str],
    params: dict[str, Any],
    world: World = World(),  # noqa: B008  (frozen)
    progress: Callable[[int, int], None] = lambda done, total: None,
    log: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Trains, or goes on from the last epoch that the folder holds, or gives the result of a finished run.

    On the CPU a run that was stopped at any moment and resumed ends with the same bits as one that was not.

    Args:
        loader: batches with logits where the store is the teacher.
        out: the run's folder: `run.json` (what it is), `metrics.jsonl`, `resume.pt`, `model.safetensors`, `result.json`.
        teacher: runs live on the same views, where there is no store.
        val: batches to measure accuracy on after every `val_every` epochs and after the last.
        record: training dynamics to accumulate by the way; at the end they are `scores.h5`.
        inputs, params: what the run was made from, for `run.json`; another value there is another run.
        progress: called with steps done and in all.

    Returns:
        epochs, val_top1, val_top5 (None without `val`), images_per_s, data_wait_percent, fingerprint (of the weights).

    Raises:
        OptionError: fewer samples than a batch; alpha without a teacher or a store.
        MismatchError: the folder holds another run; says in what it differs.
    """
    out = Path(out)
    if len(loader.ids) < recipe.batch_size * world.size:
        raise OptionError(
            f"{len(loader.ids)} samples are fewer than one batch of {recipe.batch_size} × {world.size} ranks; lower --batch-size"
        )
    if recipe.alpha > 0 and loader.column is None and teacher is None:
        raise OptionError(f"--alpha {recipe.alpha} needs --logits or --teacher; --alpha 0 trains on labels alone")
    identity = {
        "inputs": inputs,
        "params": params | {"recipe": asdict(recipe), "norm": norm.describe(), "ranks": world.size},
    }
    if record is not None:
        identity["params"]["record"] = record.describe()
    claim_folder(out, identity, world)
    finished = read_json(out / "result.json")
    if finished is not None:
        log(f"{out}: this run is finished; its result follows")
        return finished

    torch.manual_seed(recipe.seed)
    model = (
        create_model(recipe.model, loader.dataset.num_classes).to(loader.device).to(memory_format=torch.channels_last)
    )
    optimizer = torch.optim.SGD(
        model.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    state = resume(out / "resume.pt", model, optimizer, log)
    recording = None
    if record is not None:
        recording = TrainingRecord(record, loader.dataset.beton.num_samples, world, loader.device)
        if state["epoch"]:
            recording.load_state_dict(state.get("record", {}), out / "resume.pt")
    learner = DistributedDataParallel(model) if world.size > 1 else model
    lines = JsonLines(out / "metrics.jsonl", state["metrics_bytes"]) if world.is_main else None
    watch = Stopwatch()
    accuracy: dict[str, Any] = state["accuracy"]
    for epoch in range(state["epoch"], recipe.epochs):
        lr = learning_rate(recipe, epoch)
        for group in optimizer.param_groups:
            group["lr"] = lr
        losses = _train_epoch(
            recipe, learner, optimizer, loader, epoch, norm, teacher, watch, world, progress, recording
        )
        if world.size > 1:  # each rank has batch statistics of its own: the network that is saved is rank 0's
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)
        measured = {}
        if val is not None and ((epoch + 1) % val_every == 0 or epoch + 1 == recipe.epochs):
            accuracy = measured = evaluate(model, norm, val.epoch(0), world)
        if lines is not None:
            records = _epoch_records(epoch, len(loader), lr, losses.tolist(), measured, watch)
            state = {
                "epoch": epoch + 1,
                "metrics_bytes": lines.write(records),
                "accuracy": accuracy,
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "generator": torch.get_rng_state(),
            }
            if recording is not None:
                state["record"] = recording.state_dict()
            save_resume(out / "resume.pt", state)
    result = {
        "epochs": recipe.epochs,
        "val_top1": accuracy.get("top1"),
        "val_top5": accuracy.get("top5"),
        **watch.rates(),
    }
    if lines is not None:
        lines.close()
        meta = {
            "model": recipe.model,
            "num_classes": loader.dataset.num_classes,
            "class_names": loader.dataset.class_names,
        }
        meta |= {"norm": norm.describe(), "size": loader.views.size, "val_top1": result["val_top1"], **identity}
        result["fingerprint"] = save_weights(out / "model.safetensors", model, meta)
        if recording is not None:
            saved = recording.save(out / "scores.h5", inputs=inputs, epochs=recipe.epochs)
            result["scores_fingerprint"] = saved.header.fingerprint
        write_json(out / "result.json", result)
    return result


def _train_epoch(
    recipe: Recipe,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: Loader,
    epoch: int,
    norm: Norm,
    teacher: Teacher | None,
    watch: Stopwatch,
    world: World,
    progress: Callable[[int, int], None],
    recording: TrainingRecord | None,
) -> Tensor:
    """One pass over the kept samples; returns loss, CE and KD of every step: float32 (steps, 3), KD 0 where alpha is."""
    model.train()
    losses = []
    watch.start()
    for step, batch in enumerate(loader.epoch(epoch)):
        watch.got_batch(len(batch))
        share = _tail_share(len(loader.ids), step, len(batch), recipe.batch_size, world)
        if share is None:
            break
        student_BC = model(norm(batch.images))
        if recording is not None:
            recording.observe(student_BC, batch)
        ce = F.cross_entropy(student_BC.float(), batch.labels)
        kd = torch.zeros_like(ce)
        if recipe.alpha > 0:
            teacher_BC = teacher(batch.images) if teacher is not None else batch.logits
            assert teacher_BC is not None
            kd = kd_loss(student_BC, teacher_BC, tau=recipe.tau, scale_tau_squared=recipe.tau_squared)
        loss = mixed_loss(ce, kd, recipe.alpha)
        optimizer.zero_grad(set_to_none=True)
        (loss * share).backward()
        optimizer.step()
        losses.append(torch.stack([loss.detach(), ce.detach(), kd.detach()]))
        watch.did_step()
        progress(epoch * len(loader) + step + 1, recipe.epochs * len(loader))
    rows = torch.stack(losses).cpu()
    if recording is not None:
        recording.end_epoch()
    watch.stop()
    if not torch.isfinite(rows).all():
        step = int((~torch.isfinite(rows).all(dim=1)).nonzero()[0])
        raise CorruptError(
            f"the loss of epoch {epoch}, step {step} is {rows[step, 0].item()}: training diverged; lower --lr"
        )
    return rows


def _tail_share(num_ids: int, step: int, num_here: int, batch_size: int, world: World) -> float | None:
    """What this rank's mean loss counts in the mean of ranks, so that every sample of the global batch counts the same.

    None where some rank has no sample of it: such a tail, of fewer samples than ranks, is left out of training.
    """
    if world.size == 1:
        return 1.0
    num_global = min(batch_size * world.size, num_ids - step * batch_size * world.size)
    return None if num_global < world.size else num_here * world.size / num_global


def _epoch_records(
    epoch: int, steps: int, lr: float, losses: list[list[float]], accuracy: dict[str, Any], watch: Stopwatch
) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl for one epoch: one a step, then one for the epoch."""
    records: list[dict[str, Any]] = [
        {"kind": "step", "epoch": epoch, "step": epoch * steps + i, "lr": lr, "loss": loss, "ce": ce, "kd": kd}
        for i, (loss, ce, kd) in enumerate(losses)
    ]
    mean = sum(row[0] for row in losses) / len(losses)
    val = {f"val_{name}": accuracy[name] for name in ("top1", "top5") if name in accuracy}
    return [*records, {"kind": "epoch", "epoch": epoch, "lr": lr, "loss": mean, **val, **watch.rates()}]
