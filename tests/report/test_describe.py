"""What a file is and whether it is whole, for every kind."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from helpers.runs import make_run
from helpers.stores import IDS, make_store, random_logits, save_teacher
from helpers.synthetic import encoded, write_files

from fastkd.artefact import write_artefact
from fastkd.data.beton.build import WriteOptions, build_beton
from fastkd.data.sources.open import open_source
from fastkd.errors import FastKDError, FormatError, NotFoundError
from fastkd.models.registry import create_model
from fastkd.report.describe import describe, kind_of, verify
from fastkd.store.tables import read_tables


@pytest.fixture
def files(tmp_path, raw_beton, raw_mask) -> dict[str, Path]:
    """One of each kind."""
    return {
        "beton": raw_beton,
        "mask": raw_mask,
        "logit-store": make_store(tmp_path / "l.h5", random_logits(3, len(IDS), 10)),
        "checkpoint": save_teacher(tmp_path / "t.safetensors", val_top1=71.5),
        "run": make_run(tmp_path / "run"),
    }


def test_every_kind_is_told_from_its_content(files):
    assert {kind: kind_of(path) for kind, path in files.items()} == {kind: kind for kind in files}


def test_every_description_has_the_common_keys(files):
    for kind, path in files.items():
        found = describe(path)
        assert (found["kind"], found["path"]) == (kind, str(path))
        assert len(found["fingerprint"]) == 32
        assert isinstance(found["inputs"], dict)
        assert isinstance(found["params"], dict)
        assert isinstance(found["format_version"], int)
        json.dumps(found)


def test_descriptions_say_what_matters_of_each_kind(files):
    expected = {
        "beton": {"num_samples": 600, "num_classes": 10, "num_raw": 600, "max_height": 32, "manifest": True},
        "mask": {"num_kept": 200, "num_samples": 600, "fraction": 1 / 3},
        "logit-store": {"num_seeds": 3, "num_rows": 37, "num_classes": 10, "codec": "fp16", "done_percent": 100},
        "checkpoint": {"model": "resnet8", "num_classes": 10, "val_top1": 71.5, "format": "fastkd"},
        "run": {"finished": True, "val_top1": 60.0, "epochs": 2},
    }
    for kind, path in files.items():
        found = describe(path)
        assert {key: found[key] for key in expected[kind]} == expected[kind]
    parameters = sum(p.numel() for p in create_model("resnet8", 10).state_dict().values())
    assert describe(files["checkpoint"])["num_parameters"] == parameters


def test_an_unfinished_store_says_how_far_it_is(tmp_path):
    path = make_store(tmp_path / "l.h5", random_logits(3, len(IDS), 10), blocks=slice(2))
    assert describe(path)["done_percent"] == 40


def test_an_unfinished_run_says_so(tmp_path):
    (make_run(tmp_path / "run") / "result.json").unlink()
    assert describe(tmp_path / "run")["finished"] is False


def test_weights_of_others_are_checkpoints(tmp_path):
    torch.save(create_model("resnet8", 10).state_dict(), tmp_path / "a.pth")
    assert describe(tmp_path / "a.pth")["format"] == "torch"


@pytest.mark.parametrize("num_samples", [34, 123, 128, 379])
@pytest.mark.parametrize("name", ["x.beton", "x.ffcv"])
def test_a_beton_of_any_number_of_samples_is_a_beton(tmp_path, num_samples, name):
    """Its header holds the number at the byte where other formats hold a brace, 123."""
    pixels = np.random.default_rng(0).integers(0, 256, (num_samples, 4, 4, 3), dtype=np.uint8)
    folder = write_files(tmp_path / "images", {f"a/{i:03}.png": encoded(x, "PNG") for i, x in enumerate(pixels)})
    build_beton(open_source(folder), tmp_path / name, WriteOptions(mode="raw"))
    assert kind_of(tmp_path / name) == "beton"
    assert describe(tmp_path / name)["num_samples"] == num_samples
    assert verify(tmp_path / name) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *[("empty", b""), ("text", b"hello\n"), ("zeros", bytes(5000)), ("noise.beton", bytes(range(1, 250)) * 9)],
        *[
            ("x.beton", b""),
            ("x.h5", b"\x89HDF\r\n\x1a\n" + bytes(100)),
            ("zip", b"PK\x03\x04 no"),
            ("json", b'{"a": 1}'),
        ],
    ],
)
def test_what_is_none_of_these_is_named_in_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FormatError, match=f"{name}: ") as error:
        describe(tmp_path / name)
    assert "\n" not in str(error.value)
    assert verify(tmp_path / name) == [str(error.value)]


def test_folders_missing_files_and_foreign_hdf5_are_named(tmp_path):
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["x"] = np.arange(3)
    write_artefact(tmp_path / "new.h5", kind="recipe", format_version=1, inputs={}, params={}, arrays={})
    with pytest.raises(NotFoundError, match="nothing: no such file"):
        describe(tmp_path / "nothing")
    for name, words in (
        ("", "a folder without run.json"),
        ("foreign.h5", "without fastkd's header"),
        ("new.h5", "'recipe'"),
    ):
        with pytest.raises(FormatError, match=words):
            describe(tmp_path / name)


@pytest.mark.parametrize("name", ["run.json", "result.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", "[1]", "3"])
def test_a_damaged_run_cannot_be_described(tmp_path, name, content):
    (make_run(tmp_path / "run") / name).write_text(content)
    with pytest.raises(FastKDError, match="run") as error:
        describe(tmp_path / "run")
    assert "\n" not in str(error.value)


def test_whole_files_have_no_problems(files):
    assert {kind: verify(path) for kind, path in files.items()} == {kind: [] for kind in files}


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)


def test_a_damaged_store_is_found(files):
    path = files["logit-store"]
    flip(path, read_tables(path).logits_offset + 5)
    (problem,) = verify(path)
    assert problem == f"{path}: aug_seed 0: 1 of 37 rows do not match their checksum"


def test_an_unfinished_store_is_not_whole(tmp_path):
    (problem,) = verify(make_store(tmp_path / "l.h5", random_logits(3, len(IDS), 10), blocks=slice(2)))
    assert "9 of 15 blocks are not filled yet" in problem


def test_a_damaged_checkpoint_is_found(files):
    flip(files["checkpoint"], -100)
    (problem,) = verify(files["checkpoint"])
    assert problem.startswith(f"{files['checkpoint']}: ")


@pytest.mark.parametrize("name", ["model.safetensors", "resume.pt"])
def test_a_damaged_file_of_a_run_is_found(files, name):
    flip(files["run"] / name, -100)
    (problem,) = verify(files["run"])
    assert str(files["run"] / name) in problem


def test_a_run_whose_description_was_changed_is_found(files):
    path = files["run"] / "run.json"
    path.write_text(path.read_text().replace("0.05", "0.06"))
    (problem,) = verify(files["run"])
    assert str(files["run"]) in problem
