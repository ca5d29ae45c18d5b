"""What makes training faster or smoother: precision, averages, growing inputs."""

import json
from pathlib import Path

import pytest
import torch
from helpers.commands import assert_one_clear_line, fastkd
from helpers.runs import interrupt_after, records
from helpers.stores import NORM

from fastkd.data.beton.dataset import open_dataset
from fastkd.data.views.draw import Views
from fastkd.errors import OptionError
from fastkd.feed.loader import Loader
from fastkd.models.checkpoint import load_model
from fastkd.models.registry import create_model
from fastkd.prune.masks.mask import Mask
from fastkd.train.recipe import Recipe, input_size
from fastkd.train.run_folder import read_run
from fastkd.train.student import train


@pytest.fixture(scope="module")
def loader(raw_beton, raw_mask) -> Loader:
    views = Views("crop-flip", 32, 3)
    return Loader(open_dataset(raw_beton), views, mask=Mask.load(raw_mask), batch_size=50, shuffle=True, num_workers=1)


def run(out: Path, loader: Loader, *, options: dict | None = None, **recipe) -> list[dict]:
    """Two epochs of four steps on labels alone; returns the steps' lines."""
    recipe = Recipe(**{"model": "resnet8", "epochs": 2, "batch_size": 50, "alpha": 0} | recipe)
    train(recipe, loader, out, norm=NORM, inputs={}, params={}, **options or {})
    return records(out, "step")


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_model(out / "model.safetensors")[0].state_dict()


def test_bf16_starts_near_the_loss_of_float32_and_saves_float32(loader, tmp_path):
    plain, half = run(tmp_path / "a", loader), run(tmp_path / "b", loader, amp="bf16")
    assert half[0]["loss"] != plain[0]["loss"]
    assert half[0]["loss"] == pytest.approx(plain[0]["loss"], rel=0.02)
    assert {value.dtype for value in weights(tmp_path / "b").values()} == {torch.float32, torch.int64}


@pytest.mark.parametrize("recipe", [{"ema": 0.9}, {"amp": "bf16"}, {"resize_from": 16}], ids=lambda r: next(iter(r)))
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(loader, tmp_path, recipe):
    run(tmp_path / "whole", loader, **recipe)
    stopped = {"progress": interrupt_after(6), "checkpoint_every": 1}
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", loader, options=stopped, **recipe)
    run(tmp_path / "stopped", loader, **recipe)
    saved = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "stopped")]
    assert saved[0] == saved[1]


def test_the_average_follows_the_weights_and_has_the_networks_statistics(loader, tmp_path):
    """With a decay of 0 it would be the last weights; of 0.5 over two steps it is their mean."""
    for name, recipe in (("plain", {}), ("average", {"ema": 0.5})):
        run(tmp_path / name, loader, epochs=1, **recipe)
    plain, average = weights(tmp_path / "plain"), weights(tmp_path / "average")
    for key in plain:
        if "running" in key or "num_batches" in key:
            assert torch.equal(average[key], plain[key])
    assert not torch.equal(average["fc.weight"], plain["fc.weight"])
    start = _initial()["fc.weight"]
    assert (average["fc.weight"] - plain["fc.weight"]).norm() < (start - plain["fc.weight"]).norm()


def _initial() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return create_model("resnet8", 10).state_dict()


def test_the_input_grows_to_the_views_size():
    recipe = Recipe(model="resnet18", epochs=10, resize_from=128)
    sizes = [input_size(recipe, epoch, 224) for epoch in range(10)]
    assert sizes[0] == 128
    assert sizes == sorted(sizes)
    assert sizes[8:] == [224, 224]
    assert all(size == 128 or size % 28 == 0 for size in sizes)
    assert input_size(Recipe(model="resnet18"), 0, 224) is None


def test_the_input_begins_to_grow_and_ends_where_it_is_said():
    recipe = Recipe(model="resnet18", epochs=12, resize_from=96, resize_start=3, resize_end=7)
    sizes = [input_size(recipe, epoch, 192) for epoch in range(12)]
    assert sizes == [96, 96, 96, 96, 120, 144, 168, 192, 192, 192, 192, 192]
    assert not {"resize_start", "resize_end"} & Recipe(model="resnet18", resize_from=96).describe().keys()


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ({"resize_start": 1.0}, "do nothing without --resize-from"),
        ({"resize_end": 1.0}, "do nothing without --resize-from"),
        ({"resize_from": 16, "resize_start": -1.0}, "--resize-start -1.0: expected 0"),
        ({"resize_from": 16, "resize_start": 1.0, "resize_end": 1.0}, "grows from epoch 1 to 1 of 2: expected"),
        ({"resize_from": 16, "resize_end": 3.0}, "grows from epoch 0 to 3 of 2: expected"),
    ],
)
def test_an_input_that_would_not_grow_within_the_run_is_refused(loader, tmp_path, recipe, words):
    with pytest.raises(OptionError, match=words):
        run(tmp_path / "run", loader, **recipe)
    assert not (tmp_path / "run").exists()


def test_accuracy_is_measured_at_a_size_of_its_own(raw_beton, tmp_path):
    flags = (
        "--alpha",
        0,
        "--model",
        "resnet8",
        "--epochs",
        1,
        "--batch-size",
        300,
        "--val",
        raw_beton,
        "--device",
        "cpu",
    )
    for name, size in (("own", ()), ("other", ("--val-size", 40))):
        assert fastkd("train", raw_beton, *flags, *size, "--out", tmp_path / name).code == 0
    own, other = (read_run(tmp_path / name)["params"] for name in ("own", "other"))
    assert other.pop("val_size") == 40
    assert {name: value for name, value in other.items() if name != "val_views_version"} == own
    told = json.loads((tmp_path / "other" / "result.json").read_text())
    common = ("evaluate", raw_beton, "--model", tmp_path / "other", "--device", "cpu", "--json")
    for size in ((), ("--size", 40)):  # it is measured as the run was, where nobody says otherwise
        found = fastkd(*common, *size).result
        assert (found["top1"], found["size"], found["tta"]) == (told["val_top1"], 40, None)
    assert fastkd("evaluate", raw_beton, "--model", tmp_path / "own", "--device", "cpu", "--json").result["size"] == 32
    assert fastkd(*common, "--size", 40, "--tta", "flip").result["tta"] == "flip"
    refusal = fastkd("train", raw_beton, *flags[:-4], "--device", "cpu", "--val-size", 40, "--out", tmp_path / "none")
    assert_one_clear_line(refusal, "--val-size does nothing without --val")
    tall = fastkd("train", raw_beton, *flags, "--val-size", 4, "--model", "cifar_vgg8", "--out", tmp_path / "none")
    assert_one_clear_line(tall, "cifar_vgg8: does not run on images of 4 pixels")


def test_small_inputs_come_first(loader, tmp_path):
    grown, plain = run(tmp_path / "a", loader, resize_from=16), run(tmp_path / "b", loader)
    assert grown[0]["loss"] != plain[0]["loss"]


@pytest.mark.parametrize(
    ("option", "value"), [("amp", "fp8"), ("ema", 1.0), ("ema", -0.1), ("resize_from", 4), ("ema", float("nan"))]
)
def test_values_out_of_range_name_the_option(option, value):
    with pytest.raises(OptionError, match=f"^--{option.replace('_', '-')} {value}: expected"):
        Recipe(model="resnet8", **{option: value})


def test_the_parts_of_the_step_make_up_its_time(loader, tmp_path):
    run(tmp_path, loader)
    result = json.loads((tmp_path / "result.json").read_text())
    parts = result["step_percent"]
    assert set(parts) == {"teacher", "forward", "backward", "update"}
    assert parts["teacher"] == 0
    assert min(parts["forward"], parts["backward"]) > 0
    assert sum(parts.values()) + result["data_wait_percent"] <= 100.001
