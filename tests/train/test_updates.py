"""Updates: optimisers, rates, clipping and accumulation are torch's own, and those of one process on ranks and after a stop."""

from pathlib import Path
from typing import Any

import helpers.networks  # noqa: F401  (makes tiny_vit and tiny_convnext known)
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.ranks import start_ranks, wait_for
from helpers.runs import interrupt_after, records, run, step_losses, weights
from helpers.stores import NORM
from torch import nn
from torch.optim import lr_scheduler as schedulers

from fastkd.data.beton.dataset import Dataset, open_dataset
from fastkd.data.views.draw import Views
from fastkd.dist import World
from fastkd.errors import MissingDependencyError, OptionError
from fastkd.feed.loader import Loader
from fastkd.models.checkpoint import load_model, read_checkpoint
from fastkd.models.registry import create_model
from fastkd.scoring.recording import Record
from fastkd.train.checks import verify_run
from fastkd.train.parts.average import Average, in_time
from fastkd.train.parts.captured import can_be_captured
from fastkd.train.parts.groups import parameter_groups
from fastkd.train.parts.microbatches import num_parts
from fastkd.train.parts.optimizer import make_optimizer, set_learning_rate
from fastkd.train.parts.schedule import Rates
from fastkd.train.recipe import Recipe, choose_recipe
from fastkd.train.student import train


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


def trained(out: Path, recipe: Recipe, loader: Loader, **options: Any) -> dict[str, torch.Tensor]:
    train(recipe, loader, out, norm=NORM, inputs={}, params={}, **options)
    return load_model(out / "model.safetensors")[0].state_dict()


def loader_of(dataset: Dataset, num_ids: int, batch_size: int, world: World | None = None, **options: Any) -> Loader:
    options = {"shuffle": True, "num_workers": 1, "world": world or World()} | options
    return Loader(dataset, Views("crop-flip", 32, 3), mask=np.arange(num_ids), batch_size=batch_size, **options)


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


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"opt": "adamw", "lr": 0.001, "eps": 1e-4},
        {"alpha": 0.5},
    ],  # a small eps would make steps of rounding where gradients are 0
    ids=["sgd", "adamw", "kd"],
)
def test_four_batches_of_16_are_one_of_64(dataset, teacher_store, mask, tmp_path, more):
    """180 samples: the last batch of an epoch has 52, in four parts of 13. A network without batch statistics."""
    options = {"model": "tiny_vit", "epochs": 2, "alpha": 0, "lr": 0.01} | more
    logits = teacher_store if options["alpha"] else None
    loader = Loader(
        dataset,
        Views("crop-flip", 32, 3),
        mask=mask.sample_ids[:180],
        logits=logits,
        batch_size=64,
        shuffle=True,
        num_workers=1,
    )
    whole = trained(tmp_path / "whole", Recipe(batch_size=64, **options), loader)
    parts = trained(tmp_path / "parts", Recipe(batch_size=16, accumulate=4, **options), loader)
    np.testing.assert_allclose(step_losses(tmp_path / "parts"), step_losses(tmp_path / "whole"), rtol=0, atol=1e-6)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("num_samples", "num_ranks", "expected"),
    [(64, 1, 4), (52, 1, 4), (20, 1, 2), (3, 1, 1), (64, 2, 2), (64, 8, 1), (33, 2, 2)],
)
def test_parts_have_at_most_a_batch_of_samples_on_any_number_of_ranks(num_samples, num_ranks, expected):
    assert num_parts(Recipe(model="resnet8", batch_size=16, accumulate=4), num_samples, num_ranks) == expected
    assert num_parts(Recipe(model="resnet8", batch_size=16), num_samples, num_ranks) == 1


def test_two_ranks_with_adamw_warm_up_and_parts_are_one_process(raw_beton, tmp_path):
    """20 steps, every fifth of a batch that is not full."""
    recipe = {
        "model": "tiny_vit",
        "epochs": 4,
        "alpha": 0,
        "opt": "adamw",
        "lr": 1e-3,
        "warmup_epochs": 1,
        "clip_grad": 1.0,
    }
    recipe |= {"weight_decay": 0.05, "schedule": "cosine", "no_decay": ("norm", "bias"), "accumulate": 2}

    def as_rank(world: World, name: str, batch_size: int) -> None:
        loader = loader_of(open_dataset(raw_beton), 140, 2 * batch_size, world)
        train(
            Recipe(batch_size=batch_size, **recipe),
            loader,
            tmp_path / name,
            norm=NORM,
            inputs={},
            params={},
            world=world,
        )

    as_rank(World(), "one", 16)
    assert wait_for(start_ranks(2, tmp_path / "meet", lambda world: as_rank(world, "two", 8))) == [0, 0]
    assert len(step_losses(tmp_path / "one")) == 20
    np.testing.assert_allclose(step_losses(tmp_path / "two"), step_losses(tmp_path / "one"), rtol=0, atol=1e-4)


RESUMED: list[dict[str, Any]] = [
    {"opt": "adamw", "warmup_epochs": 1, "no_decay": ("norm",), "layer_decay": 0.8, "clip_grad": 1.0},
    {"opt": "adamw", "model": "tiny_vit", "amp": "fp16", "clip_grad": 1.0, "schedule": "cyclic", "lr": 0.001},
    {"accumulate": 3, "batch_size": 16, "ema": 0.9, "ema_warmup": True, "nesterov": True},
    {"dropout": 0.2, "model": "tiny_vit", "steps": 7, "schedule": "linear"},
]


@pytest.mark.parametrize("recipe", RESUMED, ids=["adamw", "fp16", "accumulate", "steps"])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(dataset, mask, tmp_path, recipe):
    recipe = {"alpha": 0, "epochs": 2, "batch_size": 48} | recipe
    loader = loader_of(dataset, 200, 48)
    for name in ("whole", "stopped"):
        options: dict[str, Any] = {"checkpoint_every": 1} if name == "stopped" else {}
        if options:
            with pytest.raises(KeyboardInterrupt):
                trained(
                    tmp_path / name,
                    Recipe(**{"model": "resnet8"} | recipe),
                    loader,
                    progress=interrupt_after(6),
                    **options,
                )
        trained(tmp_path / name, Recipe(**{"model": "resnet8"} | recipe), loader, **options)
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")
    assert records(tmp_path / "stopped") == records(tmp_path / "whole")


def test_a_run_of_steps_ends_with_them_and_keeps_the_weights_of_epochs(dataset, mask, tmp_path):
    told: list[tuple[int, int]] = []
    options = {"keep_every": 1, "progress": lambda done, total: told.append((done, total))}
    result = run(tmp_path / "run", dataset, mask, alpha=0, steps=7, options=options)
    assert result["epochs"] == 2
    assert len(records(tmp_path / "run", "step")) == 7
    assert told[-1] == (7, 7)
    kept = [tmp_path / "run" / f"epoch-0000{n}.safetensors" for n in (1, 2)]
    first, second = (read_checkpoint(path).state_dict for path in kept)
    last = read_checkpoint(tmp_path / "run" / "model.safetensors").state_dict
    assert all(torch.equal(second[name], value) for name, value in last.items())
    assert not torch.equal(first["fc.weight"], last["fc.weight"])
    assert verify_run(tmp_path / "run") == []
    kept[0].unlink()
    assert "epoch-00001.safetensors: missing" in verify_run(tmp_path / "run")[0]


def test_what_is_recorded_by_epochs_refuses_a_cut_one(dataset, mask, tmp_path):
    options = {"record": Record(methods=("el2n",))}
    with pytest.raises(OptionError, match=r"--record scores by whole epochs, of 5 steps, and --steps 7 cuts the last"):
        run(tmp_path / "run", dataset, mask, alpha=0, steps=7, options=options)


def test_a_loader_of_single_batches_has_nothing_to_accumulate(dataset, mask, tmp_path):
    with pytest.raises(
        OptionError, match="batches of 16 samples are no 4 of 16 to accumulate: give the loader a batch_size of 64"
    ):
        run(tmp_path / "run", dataset, mask, alpha=0, batch_size=16, accumulate=4)


def test_alpha_and_tau_follow_their_lines(dataset, mask, teacher_store, tmp_path):
    course = {
        "alpha": 1.0,
        "alpha_course": ((0.0, 1.0), (0.5, 0.2)),
        "tau": 8.0,
        "tau_course": ((0.0, 8.0), (1.0, 2.0)),
    }
    run(tmp_path / "run", dataset, mask, logits=teacher_store, **course)
    lines = records(tmp_path / "run", "step")
    assert len(lines) == 10
    for step, line in enumerate(lines):
        alpha = max(0.2, 1 - 0.8 * step / 5)
        assert line["loss"] == pytest.approx((1 - alpha) * line["ce"] + alpha * line["kd"], rel=1e-5)
    run(tmp_path / "plain", dataset, mask, logits=teacher_store, epochs=1, alpha=1.0, tau=8.0)
    assert records(tmp_path / "plain", "step")[0]["kd"] == lines[0]["kd"]


def test_norms_and_biases_are_spared_the_decay():
    network = create_model("tiny_vit", 10)
    names = {id(parameter): name for name, parameter in network.named_parameters()}

    def spared(*kinds: str) -> set[str]:
        groups = parameter_groups(Recipe(model="tiny_vit", no_decay=kinds), network, network)
        assert sum(len(group["params"]) for group in groups) == len(names)
        return {names[id(p)] for group in groups if not group["weight_decay"] for p in group["params"]}

    layer = "encoder.layers.encoder_layer_0"
    assert {f"{layer}.ln_1.weight", f"{layer}.ln_1.bias", "class_token"} <= spared("norm")
    assert f"{layer}.mlp.0.bias" not in spared("norm")
    assert {f"{layer}.mlp.0.bias", f"{layer}.ln_1.bias", f"{layer}.self_attention.in_proj_bias"} <= spared("bias")
    assert f"{layer}.ln_1.weight" not in spared("bias")
    both = spared("norm", "bias")
    assert all(network.get_parameter(name).ndim > 1 for name in names.values() if name not in both)
    assert "encoder.pos_embedding" not in both


@pytest.mark.parametrize(
    ("model", "first", "middle", "last"),
    [
        ("resnet8", "conv1.weight", "layer2.0.conv1.weight", "fc.weight"),
        ("tiny_vit", "class_token", "encoder.layers.encoder_layer_0.ln_1.weight", "heads.head.weight"),
        ("tiny_convnext", "features.0.0.weight", "features.1.0.block.0.weight", "classifier.2.weight"),
    ],
)
def test_each_layer_learns_at_a_share_of_the_rate_of_the_next(model, first, middle, last):
    network = create_model(model, 10)
    recipe = Recipe(model=model, layer_decay=0.5)
    optimizer = make_optimizer(recipe, parameter_groups(recipe, network, network), fused=False)
    set_learning_rate(optimizer, 0.2)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    found = [rates[id(network.get_parameter(name))] for name in (first, middle, last)]
    assert found[0] < found[1] < found[2] == 0.2
    assert min(rates.values()) == found[0]
    assert all(float(np.log2(0.2 / rate)).is_integer() for rate in rates.values())


def test_drops_are_handed_to_networks_that_take_them_and_refused_by_others():
    vit = create_model("tiny_vit", 10, dropout=0.3)
    assert {module.p for module in vit.modules() if isinstance(module, nn.Dropout)} == {0.3}
    convnext = create_model("tiny_convnext", 10, drop_path=0.4)
    assert max(module.p for module in convnext.modules() if hasattr(module, "mode")) == 0.4
    for model, drops in (
        ("resnet8", {"dropout": 0.1}),
        ("resnet18", {"drop_path": 0.1}),
        ("tiny_vit", {"drop_path": 0.1}),
    ):
        option = next(iter(drops)).replace("_", "-")
        with pytest.raises(OptionError, match=f"^{model}: .*--{option} 0.1.*leave it out .*or use another --model"):
            choose_recipe("crop-flip", 10, model=model, **drops)


def test_the_decay_of_an_average_warms_up():
    network = nn.Linear(1, 1, bias=False)
    plain, warm = Average(network, 0.9), Average(network, 0.9, warmup=True)
    expected = 0.0
    for step in range(40):
        with torch.no_grad():
            network.weight.fill_(step)
        for average in (plain, warm):
            average.update(network)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = float(step) if step == 0 else decay * expected + (1 - decay) * step
    assert float(warm.module.weight.detach()) == pytest.approx(expected, rel=1e-5)
    assert float(warm.module.weight.detach()) > float(plain.module.weight.detach())


def test_an_average_that_is_too_slow_for_a_run_is_said(dataset, mask, tmp_path):
    told: list[str] = []
    run(tmp_path / "run", dataset, mask, alpha=0, ema=0.99, epochs=1, options={"log": told.append})
    assert any(line.startswith("train: --ema 0.99 averages over some 100 steps") for line in told)
    assert in_time(0.9, 30, warmup=False)
    assert in_time(0.9999, 10, warmup=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"opt": "adam"}, "--opt adam: expected sgd, adamw or timm:NAME"),
        ({"opt": "adamw", "nesterov": True}, "--nesterov does nothing with --opt adamw"),
        ({"nesterov": True, "momentum": 0.0}, "--nesterov does nothing with --momentum 0"),
        ({"opt": "adamw", "momentum": 0.9}, "--momentum does nothing with --opt adamw"),
        ({"betas": (0.9, 0.99)}, "--betas does nothing with --opt sgd"),
        ({"eps": 1e-6}, "--eps does nothing with --opt sgd"),
        ({"opt": "adamw", "betas": (0.9,)}, "--betas 0.9: expected two numbers"),
        ({"opt": "adamw", "betas": (0.9, 1.0)}, "--betas 0.9,1.0: expected two numbers"),
        ({"schedule": "cosine", "milestones": (1.0,)}, "--milestones does nothing with --schedule cosine"),
        ({"schedule": "cosine", "gamma": 0.5}, "--gamma does nothing with --schedule cosine"),
        ({"min_lr": 0.01}, "--min-lr does nothing with --schedule step"),
        ({"schedule": "linear", "min_lr": 1.0}, "--min-lr 1.0: is above --lr"),
        ({"milestones": (3.0, 2.0)}, "--milestones 3.0,2.0: expected epochs above 0 in increasing order"),
        ({"warmup_epochs": 5.0, "epochs": 5}, "--warmup-epochs 5: is all of 5 epochs, expected fewer"),
        ({"ema_warmup": True}, "--ema-warmup does nothing without --ema"),
        ({"no_decay": ("norms",)}, "--no-decay norms: expected norm or bias or norm,bias"),
        ({"clip_grad": 0.0}, "--clip-grad 0.0: expected above 0"),
        ({"accumulate": 0}, "--accumulate 0: expected 1"),
        ({"steps": 0}, "--steps 0: expected 1"),
        ({"layer_decay": 1.5}, "--layer-decay 1.5: expected above 0, up to 1"),
        ({"tau_course": ((0.0, 0.0),)}, "--tau 0:0: expected temperatures of 0.01 … 100"),
    ],
)
def test_what_does_nothing_or_is_out_of_range_names_the_option(options, words):
    with pytest.raises(OptionError, match=words):
        choose_recipe("crop-flip", 10, model="resnet8", **options)


def test_adamw_has_rates_of_its_own():
    recipe = choose_recipe("crop-flip", 10, model="resnet8", opt="adamw")
    assert (recipe.lr, recipe.weight_decay, recipe.schedule) == (1e-3, 0.05, "cosine")
    assert "momentum" not in recipe.describe()


def test_a_recipe_of_before_is_described_as_before():
    known = {*RECIPE_OF_BEFORE}
    assert Recipe(model="resnet8").describe().keys() >= known
    more = Recipe(model="resnet8").describe().keys() - known
    assert more == set()
    assert Recipe(model="resnet8", milestones=(3.0,)).describe()["milestones"] == [3.0]
    assert Recipe(model="resnet8", alpha_course=((0.0, 1.0),)).describe()["alpha_course"] == [[0.0, 1.0]]


RECIPE_OF_BEFORE = (
    *("model", "epochs", "batch_size", "lr", "momentum", "weight_decay", "schedule", "kd", "alpha", "beta", "tau"),
    *("tau_squared", "layers", "teacher_layers", "label_smoothing", "mask_weights", "sync_bn", "amp", "ema"),
    *("resize_from", "drop_last", "order", "seed"),
)


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


def test_a_compiled_loss_has_one_alpha(dataset, mask, tmp_path):
    with pytest.raises(OptionError, match="--compile compiles the loss with one alpha and tau"):
        run(tmp_path / "run", dataset, mask, alpha=0, tau_course=((0.0, 2.0),), options={"compiled": True})


def test_timms_optimisers_need_timm(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(MissingDependencyError, match=r"--opt timm:lamb: needs timm.*pip install 'fastkd\[timm\]'"):
        choose_recipe("crop-flip", 10, model="resnet8", opt="timm:lamb", lr=0.1)


def test_timms_optimisers_train_and_go_on(dataset, tmp_path):
    pytest.importorskip("timm")
    with pytest.raises(OptionError, match="--opt timm:lambs: timm has none of that name; did you mean lamb"):
        choose_recipe("crop-flip", 10, model="resnet8", opt="timm:lambs", lr=0.1)
    recipe = choose_recipe("crop-flip", 10, model="resnet8", opt="timm:lamb", lr=0.01, epochs=2, batch_size=48, alpha=0)
    loader = loader_of(dataset, 200, 48)
    trained(tmp_path / "whole", recipe, loader)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "stopped", recipe, loader, progress=interrupt_after(7), checkpoint_every=1)
    trained(tmp_path / "stopped", recipe, loader)
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")
