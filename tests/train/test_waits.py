"""What a step asks of a GPU: nothing. Without a GPU, by fake tensors of one: an operation that would wait raises."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from helpers.fake_gpu import GPU, Event, NoWaits, Waited, fake_gpu, moved, without_backward
from helpers.stores import NORM, save_teacher
from torch import Tensor

from fastkd.data.batch import Batch
from fastkd.data.beton.dataset import Dataset
from fastkd.data.views.draw import Views
from fastkd.data.views.mix import Mix
from fastkd.dist import World, sum_over_ranks
from fastkd.distil.methods import NAMES
from fastkd.feed.loader import Loader
from fastkd.feed.resident import Resident
from fastkd.models.registry import create_model
from fastkd.models.sync_norm import synchronise_norms
from fastkd.models.taps import Taps
from fastkd.prune.scores.recorder import RECORDABLE
from fastkd.scoring.recording import Record, TrainingRecord
from fastkd.stopping import StopFlag
from fastkd.teacher.network import load_teacher
from fastkd.train.learner import make_learner
from fastkd.train.loop import Run, one_step
from fastkd.train.metrics import Stopwatch, evaluate
from fastkd.train.parts.average import Average
from fastkd.train.parts.optimizer import make_optimizer
from fastkd.train.parts.states import Checkpoints
from fastkd.train.recipe import Recipe
from fastkd.train.sharing import Vote, over_ranks, seed_dropout, share_buffers

ALONE, OF_TWO = World(), World(rank=1, local_rank=1, size=2)
EACH_KD = [{"kd": kd, "alpha": 0.5, "beta": 1.0} for kd in NAMES]
FLAGS: list[dict[str, Any]] = [
    *EACH_KD,
    {},
    {"ema": 0.9},
    {"amp": "bf16"},
    {"amp": "fp16"},
    {"sync_bn": True},
    {"sync_bn": True, "kd": "vid", "alpha": 0.5},
    {"resize_from": 16},
    {"label_smoothing": 0.1},
    {"record": True},
    {"mix": "cutmix"},
    {"mix": "mixup", "kd": "kd", "alpha": 0.5},
    {"weights": True},
    {"model": "mobilenet_v2", "drop_last": True},
    {"opt": "adamw", "clip_grad": 1.0},
    {"nesterov": True, "ema": 0.9, "ema_warmup": True},
    {"kd": "kd", "alpha": 0.5, "alpha_course": ((0.0, 0.5), (1.0, 0.1)), "tau_course": ((0.0, 4.0), (1.0, 1.0))},
]


def named(flags: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in flags.items()) or "plain"


@pytest.fixture(scope="module")
def teacher_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_teacher(tmp_path_factory.mktemp("waits") / "t.safetensors")


def start(dataset: Dataset, teacher_path: Path, world: World, flags: dict[str, Any]) -> tuple[Run, list[Batch]]:
    """A run as `train` starts it, on the CPU, and two batches of it."""
    flags = dict(flags)
    record, mix, weights = (flags.pop(name, None) for name in ("record", "mix", "weights"))
    recipe = Recipe(**{"model": "resnet8", "alpha": 0.0, "batch_size": 4} | flags)
    views = Views("crop-flip", 32, 3, mix=Mix(mix, 1.0) if mix else None)
    loader = Loader(
        dataset, views, mask=np.arange(0, 600, 7), batch_size=4, shuffle=True, num_workers=1, drop_last=recipe.drop_last
    )
    torch.manual_seed(0)
    learner, live = make_learner(recipe, loader, load_teacher(str(teacher_path)) if recipe.distils else None, world)
    if recipe.sync_bn and world.size > 1:
        learner.model = synchronise_norms(create_model(recipe.model, 10), "cuda")
        learner.taps = Taps(learner.model, learner.taps.names, "") if learner.taps is not None else None
    learner.norm = replace(NORM, size=recipe.resize_from)
    batches = [batch for batch, _ in zip(loader.epoch(0), range(2), strict=False)]
    if weights:
        batches = [replace(batch, weights=torch.ones(4)) for batch in batches]
    run = Run(
        recipe=recipe,
        learner=learner,
        wrapped=learner.train(),
        optimizer=make_optimizer(recipe, learner.parameters(), fused=recipe.opt == "adamw"),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        average=Average(learner.model, recipe.ema) if recipe.ema else None,
        loader=loader,
        live=live if recipe.distils else None,
        world=world,
        watch=Stopwatch("cpu"),
        checkpoints=Checkpoints(Path(), {}, {}),
        recording=TrainingRecord(Record(methods=RECORDABLE), 600, world, torch.device("cpu")) if record else None,
        rows=[],
        num_written=0,
        accuracy={},
        lines=None,
        table=None,
    )
    return run, batches


def onto_the_gpu(run: Run, batches: list[Batch]) -> list[Batch]:
    """Moves a run there; the optimiser has the new parameters."""
    moved(run.learner)
    run.optimizer = make_optimizer(run.recipe, run.learner.parameters(), fused=run.recipe.opt == "adamw")
    run.watch = Stopwatch(GPU)
    if run.average is not None:
        moved(run.average.module)
    if run.live is not None:
        moved(run.live.teacher.model)
        run.live.teacher = replace(run.live.teacher, device=GPU)
    return [batch.to(GPU) for batch in batches]


@contextlib.contextmanager
def strict_collectives(device_type: str) -> Iterator[Counter[str]]:
    """Two ranks' collectives, of which this one alone is there: they refuse a tensor of another device than their backend's."""
    seen: Counter[str] = Counter()

    def of(name: str) -> Callable[..., None]:
        def collective(tensor: Tensor, *_: Any, **__: Any) -> None:
            assert tensor.device.type == device_type, f"{name} of a tensor on {tensor.device}"
            seen[name] += 1

        return collective

    with (
        patch("torch.distributed.all_reduce", of("all_reduce")),
        patch("torch.distributed.broadcast", of("broadcast")),
        patch("torch.distributed.all_gather", lambda ranks, own: of("all_gather")(own)),
        patch("torch.distributed.get_world_size", lambda: 2),
    ):
        yield seen


@pytest.mark.parametrize("flags", FLAGS, ids=named)
def test_no_part_of_a_step_waits_for_the_gpu_and_no_collective_sees_a_tensor_of_the_cpu(dataset, teacher_path, flags):
    """Forward passes of student and teacher, loss, update, average, record, the ranks' row, their vote, their buffers; the
    backward pass is below."""
    world = ALONE if flags.get("kd") == "crd" else OF_TWO
    run, batches = start(dataset, teacher_path, world, flags)
    vote = Vote(StopFlag(), world)
    with strict_collectives("cuda") as seen, fake_gpu() as mode:
        for step, batch in enumerate(onto_the_gpu(run, batches)):
            with without_backward(run.learner.parameters):
                row = one_step(run, batch, step, 0.5)
            assert row.device == GPU
            vote.hear(over_ranks(row, run.stop, world))
            seed_dropout(0, step, world)
        share_buffers(run.learner.buffers(), world)
        if run.average is not None:
            run.average.take_statistics(run.learner.model)
    assert mode.launched["convolution"] > 0
    assert world is ALONE or seen["all_reduce"] >= 2
    assert world is ALONE or seen["broadcast"] == len(list(run.learner.buffers()))


@pytest.mark.parametrize("flags", [flags for flags in FLAGS if not flags.get("record")], ids=named)
def test_no_part_of_a_backward_pass_needs_to_know_a_number(dataset, teacher_path, flags):
    """The whole step on the CPU, where nothing waits: the operations that would, elsewhere, raise."""
    run, batches = start(dataset, teacher_path, ALONE, {**flags, "sync_bn": False})
    pin = patch.object(torch.Tensor, "pin_memory", lambda tensor: tensor)
    with pin, NoWaits() as mode:
        for step, batch in enumerate(batches):
            one_step(run, batch, step, 1.0)
    assert mode.launched["convolution_backward"] > 0


@pytest.mark.parametrize("precision", [None, torch.bfloat16], ids=["fp32", "bf16"])
def test_an_evaluation_asks_once_after_its_last_batch(dataset, teacher_path, precision):
    run, batches = start(dataset, teacher_path, ALONE, {"ema": 0.9})
    handed_out = []
    with fake_gpu():
        there = onto_the_gpu(run, batches)
        with run.average.worn_by(run.learner.model), pytest.raises(Waited, match="cuda:0 to cpu"):
            evaluate(
                run.learner.model,
                NORM,
                (handed_out.append(batch) or batch for batch in there),
                ALONE,
                precision=precision,
            )
    assert len(handed_out) == len(batches)


class OnGpu:
    """As much of a row on a GPU as its numbers' way from there takes."""

    is_cuda, device = True, GPU

    def __init__(self, row: Tensor) -> None:
        self.row = row

    def __getitem__(self, place: slice) -> "OnGpu":
        return OnGpu(self.row[place])

    def to(self, device: str, *, non_blocking: bool) -> Tensor:
        assert non_blocking
        return self.row


@pytest.mark.parametrize(("made", "lag"), [(lambda row: row, 1), (OnGpu, 2)], ids=["cpu", "gpu"])
def test_all_ranks_hear_of_a_stop_after_the_same_step_and_wait_for_no_step_of_late(made, lag, monkeypatch):
    """Which step that is does not depend on when its numbers arrive."""
    vote = Vote(StopFlag(), OF_TWO)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: None)
    heard = [vote.hear(made(torch.tensor([0.0, 0, 0, 0, float(step == 3)]))) for step in range(8)]
    assert heard == [step == 3 + lag for step in range(8)]


def test_resident_batches_are_cut_without_a_question(dataset):
    loader = Loader(
        dataset, Views("crop-flip", 32, 3, mix=Mix("cutmix", 1.0)), mask=np.arange(64), batch_size=8, num_workers=1
    )
    resident = Resident(loader)
    with fake_gpu() as mode:
        for name, value in vars(resident).items():
            if isinstance(value, Tensor):
                setattr(resident, name, value.to(GPU, non_blocking=True))
        resident._mixes = tuple(table.to(GPU, non_blocking=True) for table in resident._mixes)
        resident.device = GPU
        batches = resident.epoch(0)
        with mode.allowed():  # which rows an epoch takes is sent once
            next(batches)
        rest = list(batches)
    assert len(rest) == 7
    assert mode.launched["index"] > 0
    assert all(batch.images.device == GPU for batch in rest)


def test_the_sums_of_ranks_lie_where_their_group_wants_them():
    with strict_collectives("cpu") as seen:
        sum_over_ranks(np.zeros(3), OF_TWO)
    assert seen["all_reduce"] == 1
