"""Inputs that are replaced or deleted under a command: it goes on with what it opened, to the same bytes."""

import os
import shutil
from pathlib import Path

import pytest
from helpers.commands import fastkd_forked
from helpers.moments import at_call
from helpers.stores import save_teacher

CPU = ("--device", "cpu", "--num-workers", 1)
INPUTS = ("x.beton", "x.beton.json", "m.h5", "l.h5", "t.safetensors")
COMMANDS: dict[str, tuple[str, str, tuple[object, ...]]] = {
    "train": (
        "train_epoch",
        "model.safetensors",
        ("train", "x.beton", "--mask", "m.h5", "--logits", "l.h5", "--model", "resnet8", "--epochs", 2, *CPU),
    ),
    "cache-logits": (
        "take_over",
        "",
        ("cache-logits", "x.beton", "--mask", "m.h5", "--teacher", "t.safetensors", "--num-seeds", 2, *CPU),
    ),
    "cache-logits --reuse": (
        "take_over",
        "",
        (
            *("cache-logits", "x.beton", "--mask", "m.h5", "--teacher", "t.safetensors", "--num-seeds", 4, *CPU),
            *("--reuse", "l.h5"),
        ),
    ),
    "score": ("score_networks", "", ("score", "x.beton", "--method", "el2n", "--model", "t.safetensors", *CPU)),
    "merge": ("_write_merged", "", ("merge", "l.h5", "l.h5")),
    "build-beton": ("add", "", ("build-beton", "x.beton", "--mask", "m.h5")),
}
"""When it happens, which file is compared, and the command without --out."""


@pytest.fixture
def folder(raw_beton, raw_mask, teacher_store, teacher_file, tmp_path, monkeypatch) -> Path:
    for name, path in zip(INPUTS, (raw_beton, f"{raw_beton}.json", raw_mask, teacher_store, teacher_file), strict=True):
        shutil.copy(path, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def replace_all() -> None:
    for name in INPUTS:
        Path("new").write_bytes(b"something else")
        os.replace("new", name)


def delete_all() -> None:
    for name in INPUTS:
        os.unlink(name)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_goes_on_with_the_files_that_it_opened(folder, name):
    moment, compared, command = COMMANDS[name]
    kept = {path: Path(path).read_bytes() for path in INPUTS}
    made = []
    for number, happen in enumerate((lambda: None, replace_all, delete_all)):
        outcome = fastkd_forked(*command, "--out", f"out-{number}", first=at_call(moment, happen))()
        assert outcome.code == 0, outcome.err
        found = {Path(path).read_bytes() if Path(path).exists() else None for path in INPUTS}
        assert found == [set(kept.values()), {b"something else"}, {None}][number]
        made.append(Path(f"out-{number}", compared).read_bytes())
        for path, content in kept.items():
            Path(path).write_bytes(content)
    assert made[1] == made[0]
    assert made[2] == made[0]


def test_a_network_that_is_replaced_before_its_turn_is_refused(folder):
    other = save_teacher(folder / "other.safetensors", seed=5)
    shutil.copy("t.safetensors", "second.safetensors")
    options = ["--method", "el2n", "--model", "t.safetensors", "--model", "second.safetensors", *CPU, "--out", "s.h5"]
    swap = at_call("score_networks", lambda: os.replace(other, "second.safetensors"))
    outcome = fastkd_forked("score", "x.beton", *options, first=swap)()
    assert outcome.code == 1
    assert "--model second.safetensors: was replaced while it was being used" in outcome.err
    assert not Path("s.h5").exists()
