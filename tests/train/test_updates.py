"""Updates: optimisers, rates and clipping are torch's own, those of a plain loop."""

from typing import Any

import helpers.networks  # noqa: F401  (makes tiny_vit and tiny_convnext known)
import pytest
import torch
import torch.nn.functional as F
from helpers.runs import records
from helpers.stores import NORM
from helpers.updates import loader_of, trained
from torch import nn
from torch.optim import lr_scheduler as schedulers

from fastkd.data.views.draw import Views
from fastkd.feed.loader import Loader
from fastkd.models.registry import create_model
from fastkd.train.parts.schedule import Rates
from fastkd.train.recipe import Recipe


def plain_loop(recipe: Recipe, loader: Loader, optimizer_of, scheduler_of, *, by_step: bool) -> dict[str, torch.Tensor]:
    """Weights after all epochs of a loop of torch's own parts: the paper's loss, or labels alone."""
    torch.manual_seed(recipe.seed)
    network = create_model(recipe.model, 10).to(memory_format=torch.channels_last)
    optimizer = optimizer_of(network)
    scheduler = scheduler_of(optimizer)
    for epoch in range(recipe.epochs):
        for batch in loader.epoch(epoch):
            optimizer.zero_grad()
            student = network(NORM(batch.images))
            loss = F.cross_entropy(student, batch.labels, reduction="none").mean()
            if recipe.alpha:
                logs = [F.log_softmax(logits / recipe.tau, dim=1) for logits in (student, batch.logits)]
                kd = F.kl_div(*logs, reduction="none", log_target=True).sum(1).mean() * recipe.tau**2
                loss = (1 - recipe.alpha) * loss + recipe.alpha * kd
            loss.backward()
            if recipe.clip_grad is not None:
                nn.utils.clip_grad_norm_(network.parameters(), recipe.clip_grad)
            optimizer.step()
            if by_step:
                scheduler.step()
        if not by_step:
            scheduler.step()
    return network.state_dict()


def test_the_default_recipe_ends_with_the_bits_of_a_plain_loop(dataset, mask, teacher_store, tmp_path):
    recipe = Recipe(model="resnet8", epochs=3, batch_size=48)
    loader = Loader(
        dataset, Views("crop-flip", 32, 3), mask=mask, logits=teacher_store, batch_size=48, shuffle=True, num_workers=1
    )
    expected = plain_loop(
        recipe,
        loader,
        lambda network: torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4),
        lambda optimizer: schedulers.LambdaLR(optimizer, lambda epoch: [1, 1, 0.1**2, 0][epoch]),
        by_step=False,
    )
    found = trained(tmp_path / "run", recipe, loader)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def warmed(optimizer, main, steps: int = 10):
    return schedulers.SequentialLR(
        optimizer, [schedulers.LinearLR(optimizer, start_factor=0.01, total_iters=steps), main], milestones=[steps]
    )


PLAIN: dict[str, tuple[dict[str, Any], Any]] = {
    "cosine": (
        {"schedule": "cosine", "min_lr": 0.001, "warmup_epochs": 1},
        lambda o: warmed(o, schedulers.CosineAnnealingLR(o, 40, eta_min=0.001)),
    ),
    "step": (
        {"schedule": "step", "milestones": (2.0, 4.0), "gamma": 0.3, "warmup_epochs": 1},
        lambda o: warmed(o, schedulers.MultiStepLR(o, [10, 30], gamma=0.3)),
    ),
    "linear": (
        {"schedule": "linear", "warmup_epochs": 1},
        lambda o: warmed(o, schedulers.LinearLR(o, 1.0, 0.0, total_iters=40)),
    ),
    "constant": ({"schedule": "constant", "warmup_epochs": 1}, lambda o: warmed(o, schedulers.ConstantLR(o, 1.0))),
    "cyclic": (
        {"schedule": "cyclic", "warmup_epochs": 1, "min_lr": 0.001},
        lambda o: schedulers.CyclicLR(o, 0.001, 0.05, 10, 40, cycle_momentum=False),
    ),
}
OPTIMISERS: dict[str, tuple[dict[str, Any], Any]] = {
    "sgd": ({"nesterov": True}, lambda n: torch.optim.SGD(n.parameters(), 0.05, 0.9, 0, 5e-4, nesterov=True)),
    "adamw": (
        {"opt": "adamw", "betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": 0.05},
        lambda n: torch.optim.AdamW(n.parameters(), 0.05, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.05),
    ),
}


@pytest.mark.parametrize("name", PLAIN)
def test_rates_are_those_of_torchs_schedulers(name):
    options, scheduler_of = PLAIN[name]
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.05)
    scheduler, rates, expected = scheduler_of(optimizer), Rates(Recipe(model="resnet8", epochs=5, **options), 10), []
    for _ in range(50):
        expected.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert [rates(step) for step in range(50)] == pytest.approx(expected, rel=0, abs=1e-12)


@pytest.mark.parametrize(("schedule", "opt"), [("cosine", "adamw"), ("step", "sgd"), ("cyclic", "sgd")])
def test_clip_warm_up_and_schedule_are_a_plain_loops_over_50_steps(dataset, tmp_path, schedule, opt):
    options, scheduler_of = PLAIN[schedule]
    more, optimizer_of = OPTIMISERS[opt]
    recipe = Recipe(model="tiny_vit", epochs=5, batch_size=8, alpha=0, clip_grad=0.5, **options, **more)
    loader = loader_of(dataset, 80, 8)
    expected = plain_loop(recipe, loader, optimizer_of, scheduler_of, by_step=True)
    found = trained(tmp_path / "run", recipe, loader)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-7)
    lines = [line["lr"] for line in records(tmp_path / "run", "step")]
    assert lines == pytest.approx([Rates(recipe, 10)(step) for step in range(50)])


def test_a_new_rate_comes_with_each_epoch_unless_steps_are_asked_for():
    by_epoch, by_step = (
        Rates(Recipe(model="resnet8", epochs=4, schedule="cosine", per_step=p), 5) for p in (False, True)
    )
    assert len({by_epoch(step) for step in range(20)}) == 4
    assert len({by_step(step) for step in range(20)}) == 20


def test_the_rates_of_a_run_of_steps_reach_its_end():
    rates = Rates(Recipe(model="resnet8", steps=7, epochs=2, schedule="linear", lr=0.7), 5)
    assert [rates(step) for step in range(8)] == pytest.approx([0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0])
