"""Options of updates: steps, lines of alpha and tau, drops and timm's optimisers; what does nothing is refused."""

import helpers.networks  # noqa: F401  (makes tiny_vit and tiny_convnext known)
import pytest
import torch
from helpers.runs import interrupt_after, records, run, weights
from helpers.updates import loader_of, trained
from torch import nn

from fastkd.errors import MissingDependencyError, OptionError
from fastkd.models.checkpoint import read_checkpoint
from fastkd.models.registry import create_model
from fastkd.scoring.recording import Record
from fastkd.train.checks import verify_run
from fastkd.train.recipe import Recipe, choose_recipe


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
