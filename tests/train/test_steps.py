"""The order of what a step does, how many operations it launches, and steps on resident data that are recorded."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.fake_gpu import NoWaits
from helpers.stores import NORM
from torch import nn

from fastkd.data.batch import Batch
from fastkd.data.views.draw import Views
from fastkd.dist import World
from fastkd.feed import resident
from fastkd.feed.loader import Loader
from fastkd.feed.resident import Resident
from fastkd.models.registry import create_model
from fastkd.train import loop
from fastkd.train.learner import Learner
from fastkd.train.loop import Run, one_step
from fastkd.train.metrics import Stopwatch
from fastkd.train.parts.average import Average
from fastkd.train.parts.captured import can_be_captured, captured
from fastkd.train.parts.optimizer import make_optimizer, set_learning_rate
from fastkd.train.parts.states import Checkpoints
from fastkd.train.recipe import Recipe


def made_run(dataset, *, model: str = "resnet8", size: int = 2, **flags) -> tuple[Run, Batch]:
    """A run on labels alone with the fused update, as on a GPU."""
    recipe = Recipe(model=model, alpha=0, batch_size=size, **flags)
    torch.manual_seed(0)
    learner = Learner(create_model(model, 10), precision=torch.bfloat16 if recipe.amp == "bf16" else None)
    learner.norm = NORM
    loader = Loader(dataset, Views("crop-flip", 32, 3), mask=np.arange(4), batch_size=size, num_workers=1)
    made = Run(
        recipe=recipe,
        learner=learner,
        wrapped=learner.train(),
        optimizer=make_optimizer(recipe, learner.parameters(), fused=True),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        average=Average(learner.model, recipe.ema) if recipe.ema else None,
        loader=loader,
        live=None,
        world=World(),
        watch=Stopwatch("cpu"),
        checkpoints=Checkpoints(Path(), {}, {}),
        recording=None,
        rows=[],
        num_written=0,
        accuracy={},
        lines=None,
        table=None,
    )
    return made, next(loader.epoch(0))


@pytest.mark.parametrize(
    ("flags", "most"), [({}, 319), ({"amp": "bf16"}, 392), ({"ema": 0.999}, 320)], ids=["plain", "bf16", "ema"]
)
def test_a_step_of_resnet32_launches_no_more_than_it_did(dataset, flags, most):
    """Operations that reach a kernel, forward, backward and update, in the second step; who needs more, says so here."""
    made, batch = made_run(dataset, model="resnet32", **flags)
    one_step(made, batch, 0, 1.0)
    with NoWaits() as mode:
        one_step(made, batch, 1, 1.0)
    assert sum(mode.launched.values()) <= most, mode.launched


def test_gradients_are_gone_before_the_forward_pass_needs_memory(dataset):
    made, batch = made_run(dataset)
    seen = []
    made.learner.model.register_forward_pre_hook(
        lambda module, inputs: seen.append(sum(p.grad is not None for p in module.parameters()))
    )
    for step in range(2):
        one_step(made, batch, step, 1.0)
    assert seen == [0, 0]


def test_what_ranks_tell_one_another_is_part_of_the_update_and_no_waiting_for_data(dataset, monkeypatch):
    made, _ = made_run(dataset)
    marks, made.noted_s = [], math.inf
    monkeypatch.setattr(made.watch, "did", marks.append)
    over_ranks = loop.over_ranks
    monkeypatch.setattr(loop, "over_ranks", lambda *args: marks.append("ranks") or over_ranks(*args))
    loop.train_epoch(made, 0, 0)
    assert marks == ["data_wait", "forward", "backward", "update", "ranks", "update"] * 2


def resident_epochs(dataset, record=None, log=lambda line: None) -> tuple[list[list[float]], dict[str, torch.Tensor]]:
    """Three epochs of five batches of 8 and one of 4, at falling rates; as they are, or recorded. Rows and weights."""
    made, _ = made_run(dataset, size=8, ema=0.9)
    made.optimizer = make_optimizer(made.recipe, made.learner.parameters(), fused=True, lr=torch.tensor(0.0))
    views = Views("crop-flip", 32, 3)
    loader = Resident(Loader(dataset, views, mask=np.arange(44), batch_size=8, shuffle=True, num_workers=1))
    step = partial(one_step, made, number=0, share=1.0)
    step = step if record is None else captured(step, 8, record, log)
    rows = []
    for epoch in range(3):
        set_learning_rate(made.optimizer, 0.05 / (epoch + 1))
        rows += [step(batch) for batch in loader.epoch(epoch)]
    return torch.stack(rows).tolist(), made.learner.state_dict() | made.average.state_dict()


def test_a_recorded_step_trains_on_each_batch_once_as_the_step_itself_does(dataset):
    """The recording is played by running its function again, as a graph would run its kernels, on the memory that it knows."""
    plays, recordings = [], []

    def record(work):
        recordings.append(work)
        return lambda: plays.append(1) or work()

    plain, recorded = resident_epochs(dataset), resident_epochs(dataset, record)
    assert recorded[0] == plain[0]
    assert all(torch.equal(value, plain[1][name]) for name, value in recorded[1].items())
    assert (len(recordings), len(plays)) == (1, 15 - 3)


def test_a_step_that_cannot_be_recorded_goes_on_as_it_is_and_says_so(dataset):
    def record(work):
        raise RuntimeError("operation not permitted when stream is capturing")

    told = []
    assert resident_epochs(dataset, record, told.append)[0] == resident_epochs(dataset)[0]
    assert len(told) == 1
    assert "operation not permitted" in told[0]


def test_only_steps_that_are_all_the_same_and_on_the_device_are_recorded():
    def found(*, is_resident: bool = True, size: int = 1, **recipe) -> bool:
        return can_be_captured(Recipe(model="resnet8", **recipe), World(size=size), is_resident=is_resident)

    assert found()
    assert found(amp="bf16", ema=0.9, kd="dkd")
    assert not found(is_resident=False)
    assert not found(size=2)
    assert not any(found(**one) for one in ({"amp": "fp16"}, {"resize_from": 16}, {"kd": "vid"}, {"kd": "crd"}))


def test_a_graph_holds_adamw_and_nothing_that_changes_by_the_step():
    def found(**recipe: Any) -> bool:
        return can_be_captured(Recipe(model="resnet8", **recipe), World(), is_resident=True)

    assert found(opt="adamw", clip_grad=1.0, accumulate=2, warmup_epochs=1, schedule="cosine", layer_decay=0.9)
    moving = (
        {"opt": "timm:lamb"},
        {"ema": 0.9, "ema_warmup": True},
        {"alpha_course": ((0.0, 1.0),)},
        {"tau_course": ((0.0, 2.0),)},
    )
    assert not any(found(**one) for one in moving)
    weight = nn.Parameter(torch.ones(1))
    made = make_optimizer(Recipe(model="resnet8", opt="adamw"), [weight], fused=False, lr=torch.tensor(0.1))
    assert made.param_groups[0]["capturable"] is True


def test_an_epoch_of_small_images_is_cut_at_once_to_the_loaders_bytes(dataset, monkeypatch):
    loader = Loader(dataset, Views("crop-flip", 32, 3), mask=np.arange(44), batch_size=8, shuffle=True, num_workers=1)
    made, cuts = Resident(loader), []
    cut = made._cut
    monkeypatch.setattr(made, "_cut", lambda rows, seed: cuts.append(len(rows)) or cut(rows, seed))
    for most, expected in ((2**26, [44]), (20 * 3 * 32 * 32, [16, 16, 12])):
        monkeypatch.setattr(resident, "_CUT_BYTES", most)
        cuts.clear()
        for own, its in zip(made.epoch(1), loader.epoch(1), strict=True):
            assert torch.equal(own.images, its.images)
            assert own.images.is_contiguous(memory_format=torch.channels_last)
        assert cuts == expected
