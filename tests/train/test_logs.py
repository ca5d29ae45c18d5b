"""Numbers of a run in TensorBoard and Weights & Biases."""

import importlib.util

import pytest
from helpers.commands import fastkd
from helpers.runs import records

from fastkd.errors import OptionError
from fastkd.train.logs import parse_trackers, scalars_of


def needs(package: str):
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


def lacks(package: str):
    return pytest.mark.skipif(importlib.util.find_spec(package) is not None, reason=f"{package} is installed")


def train(beton, out, log: str, epochs: int = 2):
    options = ["--alpha", 0, "--model", "resnet8", "--epochs", epochs, "--batch-size", 200, "--device", "cpu"]
    return fastkd("train", beton, *options, "--val", beton, "--out", out, "--log", log)


@needs("tensorboard")
def test_tensorboard_shows_what_metrics_jsonl_holds(raw_beton, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    outcome = train(raw_beton, tmp_path / "run", "tensorboard")
    assert outcome.code == 0, outcome.err
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    shown = {event.step: event.value for event in events.Scalars("train/loss")}
    assert shown == pytest.approx({line["step"]: line["loss"] for line in records(tmp_path / "run", "step")}, rel=1e-6)
    top1 = [(event.step, event.value) for event in events.Scalars("val/top1")]
    found = [line["val_top1"] for line in records(tmp_path / "run", "epoch")]
    assert top1 == [(2, pytest.approx(found[0], rel=1e-6)), (5, pytest.approx(found[1], rel=1e-6))]


@needs("wandb")
def test_wandb_keeps_a_run_without_a_network(raw_beton, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    outcome = train(raw_beton, tmp_path / "run", "wandb", epochs=1)
    assert outcome.code == 0, outcome.err
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))


@lacks("tensorboard")
def test_a_missing_tensorboard_is_told_in_a_line(raw_beton, tmp_path):
    outcome = train(raw_beton, tmp_path / "run", "tensorboard")
    assert outcome.code == 1
    assert outcome.err.splitlines()[-1].endswith("tensorboard is not installed: pip install 'fastkd[tensorboard]'")


@lacks("wandb")
def test_a_missing_wandb_is_told_in_a_line(raw_beton, tmp_path):
    outcome = train(raw_beton, tmp_path / "run", "wandb")
    assert outcome.code == 1
    assert outcome.err.splitlines()[-1].endswith("wandb is not installed: pip install 'fastkd[wandb]'")


@pytest.mark.parametrize("text", ["mlflow", "tensorboard,mlflow", "", ","])
def test_an_unknown_tracker_is_named(text):
    with pytest.raises(OptionError, match="expected tensorboard or wandb"):
        parse_trackers(text)


def test_trackers_are_taken_once_each():
    assert parse_trackers("wandb, tensorboard,wandb") == ("wandb", "tensorboard")


def test_an_epochs_numbers_stand_at_its_last_step():
    line = {"kind": "epoch", "epoch": 1, "lr": 0.1, "loss": 2.0, "val_top1": 50.0, "images_per_s": 9.0}
    scalars, step = scalars_of(line | {"data_wait_percent": 1.0, "step_percent": {}}, 10)
    assert step == 19
    assert scalars == {"val/top1": 50.0, "epoch/loss": 2.0, "speed/images_per_s": 9.0, "speed/data_wait_percent": 1.0}
    step_line = {"kind": "step", "epoch": 1, "step": 12, "lr": 0.1, "loss": 2.0, "ce": 1.0, "kd": 1.0}
    assert scalars_of(step_line, 10) == ({"train/lr": 0.1, "train/loss": 2.0, "train/ce": 1.0, "train/kd": 1.0}, 12)
