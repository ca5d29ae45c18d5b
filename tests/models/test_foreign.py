"""Checkpoints of others, in the forms that training loops leave them in."""

import argparse
import collections
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from fastkd.errors import FormatError, ModelError, UnfinishedError
from fastkd.models.checkpoint import load_model, read_checkpoint
from fastkd.models.foreign import EMA_KEYS, STATE_KEYS
from fastkd.models.registry import create_model, weights_fingerprint

BESIDE = {
    "epoch": 3,
    "metric": np.float64(93.2),
    "best": np.float32(1),
    "count": np.int64(7),
    "flag": np.bool_(True),
    "name": np.str_("x"),
    "rng": np.random.RandomState(0).get_state(),
    "matrix": np.zeros((2, 2)),
    "dtype": np.dtype("f8"),
    "args": argparse.Namespace(lr=0.1),
    "schedule": collections.OrderedDict(milestones=collections.Counter([150])),
    "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]},
}


@pytest.fixture
def state(model) -> dict[str, Tensor]:
    return dict(model.state_dict())


@pytest.fixture
def average() -> dict[str, Tensor]:
    torch.manual_seed(9)
    return dict(create_model("resnet8", 10).state_dict())


def saved_as(content: object, path: Path, as_zip: bool = True) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=as_zip)
    return path


def loads(path: Path, state: dict[str, Tensor], **options) -> list[str]:
    """What is said while a file is loaded that gives these weights."""
    lines: list[str] = []
    own = load_model(path, "resnet8", 10, log=lines.append, **options)[0].state_dict()
    assert all(torch.equal(own[key], value) for key, value in state.items())
    return lines


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize("as_zip", [True, False])
@pytest.mark.parametrize("name", BESIDE)
def test_what_lies_beside_the_weights_is_left_out(state, tmp_path, name, as_zip):
    for content in ({"state_dict": state, name: BESIDE[name]}, state | {name: BESIDE[name]}):
        assert loads(saved_as(content, tmp_path / "a.pt", as_zip), state) == []


def test_numpy_has_no_part_in_reading_what_says_it_is_numpys(state, tmp_path, monkeypatch):
    path = saved_as({"model": state, "metric": np.float64(1), "matrix": np.zeros(2)}, tmp_path / "a.pt")
    for name in ("scalar", "_reconstruct"):
        monkeypatch.setattr(np._core.multiarray, name, lambda *args: pytest.fail("numpy rebuilt something"))
    loads(path, state)


@pytest.mark.parametrize("key", EMA_KEYS)
@pytest.mark.parametrize("plain", STATE_KEYS)
def test_of_weights_and_their_average_the_weights_are_taken_unless_told_otherwise(state, average, tmp_path, plain, key):
    path = saved_as({key: prefixed("module.", average) | {"n_averaged": torch.tensor(5)}, plain: state}, tmp_path / "a")
    assert loads(path, state) == [
        f"{path}: takes the weights under {plain}, not those under {key}; --ema-weights takes those"
    ]
    assert loads(path, average, ema_weights=True) == [f"{path}: takes the weights under {key}, not those under {plain}"]


def test_an_average_alone_is_taken_and_said_to_be_one(average, tmp_path):
    path = saved_as({"ema": average, "epoch": 3}, tmp_path / "a")
    assert loads(path, average) == [f"{path}: takes the weights under ema, as there are no others"]
    assert loads(path, average, ema_weights=True) == []


def test_plain_weights_beside_an_average_are_weights_as_well(state, average, tmp_path):
    path = saved_as(state | {"model_ema": average}, tmp_path / "a")
    assert "takes the weights under the top level, not those under model_ema" in loads(path, state)[0]
    loads(path, average, ema_weights=True)


def test_an_average_that_is_not_there_is_refused(model, state, saved, tmp_path):
    with pytest.raises(FormatError, match="holds no averaged weights, only those under model"):
        read_checkpoint(saved_as({"model": state}, tmp_path / "a"), ema_weights=True)
    safetensors.torch.save_file(state, tmp_path / "b")
    for path in (saved, tmp_path / "b"):
        with pytest.raises(FormatError, match="holds one set of weights: leave --ema-weights out"):
            read_checkpoint(path, ema_weights=True)


@pytest.mark.parametrize(("keys", "options"), [(STATE_KEYS, {}), (EMA_KEYS, {"ema_weights": True})])
def test_several_sets_of_weights_are_refused_by_their_names(state, tmp_path, keys, options):
    path = saved_as(dict.fromkeys(keys[:2], state), tmp_path / "a")
    with pytest.raises(FormatError, match=f"holds weights under {keys[0]} and {keys[1]} and does not say which"):
        read_checkpoint(path, **options)


@pytest.mark.parametrize(
    "prefix", ["model.", "net.", "backbone.", "encoder.", "module.", "model._orig_mod.", "module.model.net.", "x.y.z."]
)
@pytest.mark.parametrize("name", ["resnet8", "wrn_40_2", "cifar_resnet18", "resnet18", "mobilenet_v2", "vit_b_32"])
def test_what_all_keys_start_with_is_taken_off_whatever_it_is(tmp_path, name, prefix):
    model = create_model(name, 10)
    safetensors.torch.save_file(prefixed(prefix, dict(model.state_dict())), tmp_path / "a")
    assert weights_fingerprint(load_model(tmp_path / "a", name)[0]) == weights_fingerprint(model)


def test_counters_of_profilers_and_averages_are_left_out(state, tmp_path):
    counters = {"total_ops": torch.zeros(1), "layer1.0.total_params": torch.zeros(1), "n_averaged": torch.tensor(2)}
    loads(saved_as(state | counters, tmp_path / "a"), state)
    loads(saved_as(prefixed("model.", state | counters), tmp_path / "a"), state)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda state: prefixed("model.", state) | {"criterion.weight": torch.zeros(3)},
            "'model' (56), 'criterion' (1)",
        ),
        (
            lambda state: prefixed("encoder.", {k: v for k, v in state.items() if "fc" not in k}),
            "all keys start with 'encoder.'",
        ),
        (
            lambda state: prefixed("encoder.", {k: v for k, v in state.items() if "fc" not in k}),
            "fc.weight is missing, expected shape (classes, 64)",
        ),
        (
            lambda state: prefixed("model.", dict(create_model("resnet14", 10).state_dict())),
            "the keys look like resnet14",
        ),
        (lambda state: {f"a.b.{i}": value for i, value in enumerate(state.values())}, "all keys start with 'a.b.'"),
    ],
)
def test_a_refusal_names_its_cause(state, tmp_path, change, words):
    path = saved_as({"state_dict": change(state)}, tmp_path / "a")
    with pytest.raises(ModelError) as error:
        load_model(path, "resnet8")
    assert words in str(error.value)


def test_the_folder_of_a_run_stands_for_its_weights(trained, tmp_path):
    assert read_checkpoint(trained).path == trained / "model.safetensors"
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UnfinishedError, match=r"a run without model\.safetensors"):
        read_checkpoint(tmp_path)
