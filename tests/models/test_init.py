from pathlib import Path

import pytest
import torch
from helpers.commands import Outcome, fastkd
from helpers.stores import save_teacher

from fastkd.models.checkpoint import load_model
from fastkd.models.init import load_init
from fastkd.models.norm import PRESETS
from fastkd.models.registry import create_model
from fastkd.train.run_folder import read_json

HEAD = {"fc.weight", "fc.bias"}
STILL = 1e-25  # what a run at a rate of 1e-30 adds to weights of 0; to others it adds nothing


@pytest.fixture(scope="module")
def seven(tmp_path_factory) -> Path:
    """A checkpoint of 7 classes; the data has 10."""
    return save_teacher(tmp_path_factory.mktemp("init") / "seven.safetensors", num_classes=7, seed=3)


@pytest.fixture(scope="module")
def ten(tmp_path_factory) -> Path:
    return save_teacher(tmp_path_factory.mktemp("init") / "ten.safetensors", num_classes=10, seed=4)


@pytest.fixture
def learn(raw_beton, raw_mask, tmp_path):
    """Trains for one epoch at a rate that changes no weight, so that the weights are those of the start; or another."""

    def learn(*options: object, out: str = "run") -> Outcome:
        common = ("--alpha", 0, "--model", "resnet8", "--epochs", 1, "--lr", 1e-30, "--num-workers", 1)
        return fastkd(
            "train", raw_beton, "--mask", raw_mask, *common, "--device", "cpu", "--out", tmp_path / out, *options
        )

    return learn


def parameters(path: Path) -> dict[str, torch.Tensor]:
    return {key: value.detach() for key, value in load_model(path)[0].named_parameters()}


def fresh(seed: int) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return {key: value.detach() for key, value in create_model("resnet8", 10).named_parameters()}


def one_line(outcome: Outcome) -> str:
    assert outcome.code == 1, outcome.err
    assert outcome.err.strip().count("\n") == 0
    return outcome.err


def test_a_student_starts_from_the_weights_of_a_checkpoint(learn, ten, tmp_path):
    outcome = learn("--init", ten)
    assert outcome.code == 0, outcome.err
    assert str(ten) in outcome.err
    start, end = parameters(ten), parameters(tmp_path / "run" / "model.safetensors")
    torch.testing.assert_close(end, start, rtol=0, atol=STILL)


def test_another_number_of_classes_is_refused_before_anything_is_written(learn, seven, tmp_path):
    message = one_line(learn("--init", seven))
    assert f"--init {seven}: 7 classes, the data has 10" in message
    assert "--reset-head" in message
    assert not (tmp_path / "run").exists()


def test_a_reset_head_comes_from_the_seed_and_the_rest_from_the_checkpoint(learn, seven, tmp_path):
    assert learn("--init", seven, "--reset-head", "--seed", 5).code == 0
    start, end = parameters(seven), parameters(tmp_path / "run" / "model.safetensors")
    expected = {key: value if key in HEAD else start[key] for key, value in fresh(5).items()}
    torch.testing.assert_close(end, expected, rtol=0, atol=STILL)


def test_a_head_of_the_same_number_of_classes_is_reset_too(ten):
    found = load_init(ten, "resnet8", 10, reset_head=True)
    assert set(create_model("resnet8", 10).state_dict()) - set(found.state) == HEAD
    assert found.fingerprint == load_init(ten, "resnet8", 10).fingerprint


def test_a_run_goes_on_from_the_same_start_alone(learn, seven, ten, tmp_path):
    run, command = tmp_path / "run", ("--init", seven, "--reset-head", "--lr", 0.05)
    assert learn(*command).code == 0
    saved = (run / "model.safetensors").read_bytes()
    assert read_json(run / "run.json")["inputs"]["init"] == load_init(seven, "resnet8", 7).fingerprint
    for options in (("--init", ten, "--reset-head"), ("--init", ten), ()):
        refused = learn(*options, "--lr", 0.05)
        assert refused.code == 1
        assert "differs in inputs.init " in refused.err.splitlines()[-1]
    for name in ("result.json", "model.safetensors"):
        (run / name).unlink()
    resumed = learn(*command)
    assert resumed.code == 0
    assert "going on after epoch 1" in resumed.err
    assert (run / "model.safetensors").read_bytes() == saved


def test_weights_of_another_network_are_one_line(learn, tmp_path):
    other = save_teacher(tmp_path / "o.safetensors", name="resnet14")
    assert "holds a resnet14, the student is a resnet8" in one_line(learn("--init", other))
    padded = tmp_path / "a.pt"
    torch.save(create_model("resnet8", 10, shortcut="A").state_dict(), padded)
    assert "option A" in one_line(learn("--init", padded))
    torch.save(create_model("wrn_40_2", 10).state_dict(), padded)
    assert "the keys look like wrn_40_2" in one_line(learn("--init", padded))
    assert "no such file" in one_line(learn("--init", tmp_path / "none.pt"))


def test_reset_head_needs_a_start(learn):
    assert "--reset-head does nothing without --init" in one_line(learn("--reset-head"))


def test_inputs_are_normalised_as_the_checkpoint_says_unless_told_otherwise(learn, ten, tmp_path):
    foreign = tmp_path / "foreign.pt"
    torch.save(load_model(ten)[0].state_dict(), foreign)
    cases = [
        ("as there", ("--init", ten), [0.5, 0.5, 0.5], "inputs normalised as the checkpoint says"),
        (
            "given",
            ("--init", ten, "--norm", "none"),
            [0, 0, 0],
            "normalised by --norm none, not as the checkpoint says",
        ),
        ("foreign", ("--init", foreign), list(PRESETS["cifar"][0]), "by --norm cifar: the checkpoint does not say"),
    ]
    for out, options, mean, words in cases:
        outcome = learn(*options, out=out)
        assert outcome.code == 0, outcome.err
        assert words in next(line for line in outcome.err.splitlines() if "starts from" in line)
        assert read_json(tmp_path / out / "run.json")["params"]["norm"]["mean"] == mean
        assert load_model(tmp_path / out / "model.safetensors")[1]["norm"]["mean"] == mean
