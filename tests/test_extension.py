"""One more of a kind, added by the door-plates alone: patches that are applied to a copy of the package and run.

The plates (README.md of `prune`, `store` and `distil`) say which places to touch. If a patch no longer applies or no longer
does its work, the plate that it follows is to be read again, and both mended.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import TESTS
from helpers.runs import step_losses

import fastkd

MOST_FILES, MOST_LINES = 2, 40
PATCHES = sorted((TESTS / "extension").glob("*.patch"))
CPU = ("--device", "cpu", "--num-workers", "1")


@pytest.fixture
def extended(tmp_path):
    """A function that applies a patch to a copy of the package and returns one that runs commands and code of the copy."""

    def extend(name: str):
        shutil.copytree(Path(fastkd.__file__).parent, tmp_path / "fastkd")
        patch = TESTS / "extension" / f"{name}.patch"
        subprocess.run(["git", "apply", "--whitespace=nowarn", patch], cwd=tmp_path, check=True)

        def run(*arguments: object) -> str:
            command = [sys.executable, *map(str, arguments)]
            env = os.environ | {"PYTHONPATH": str(tmp_path)}
            done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            return done.stdout

        assert Path(run("-c", "import fastkd; print(fastkd.__file__)").strip()).is_relative_to(tmp_path)
        return run

    return extend


@pytest.mark.parametrize("patch", PATCHES, ids=lambda path: path.stem)
def test_one_more_takes_few_files_and_lines(patch):
    lines = patch.read_text(encoding="utf-8").splitlines()
    assert sum(line.startswith("+++ ") for line in lines) <= MOST_FILES
    assert sum(line.startswith("+") and not line.startswith("+++ ") for line in lines) <= MOST_LINES


def test_there_is_one_of_each_kind():
    assert [path.stem for path in PATCHES] == ["codec", "loss", "pruning-method"]


def test_one_more_pruning_method_is_there_for_the_command_and_its_help(extended, raw_beton, tmp_path):
    run = extended("pruning-method")
    write = (
        "import numpy as np; from fastkd.prune.scores.score_file import save_scores; "
        "from fastkd.data.beton.dataset import open_dataset; "
        f"save_scores('s.h5', {{'el2n': np.arange(600)}}, {{'el2n': {{}}}}, beton_fingerprint=open_dataset({str(raw_beton)!r}).fingerprint)"
    )
    run("-c", write)
    prune = (
        "-m",
        "fastkd",
        "prune",
        raw_beton,
        "--keep",
        6,
        "--method",
        "strided",
        "--scores",
        "s.h5",
        "--out",
        "m.h5",
    )
    run(*prune)
    assert fastkd.Mask.load(tmp_path / "m.h5").sample_ids.tolist() == [599, 499, 399, 299, 199, 99]
    assert "strided" in run("-m", "fastkd", "prune", "--help")


def test_one_more_loss_trains_from_a_store(extended, raw_beton, raw_mask, teacher_store, tmp_path):
    run = extended("loss")
    train = ("-m", "fastkd", "train", raw_beton, "--mask", raw_mask, "--logits", teacher_store, "--model", "resnet8")
    options = ("--kd", "mse", "--alpha", 1, "--epochs", 1, "--out", "run", *CPU, "--json")
    assert json.loads(run(*train, *options))["epochs"] == 1
    logits = fastkd.LogitStore(teacher_store)
    scale = np.square(logits.read(logits.sample_ids, 0)).mean()
    assert 0 < step_losses(tmp_path / "run")[0] < 100 * scale
    with pytest.raises(AssertionError, match="expected one of mse, kd, dkd, dist"):
        run(*train, "--kd", "nothing", "--out", "other", *CPU)


def test_one_more_codec_fills_a_store_that_is_read_and_verified(
    extended, raw_beton, raw_mask, teacher_file, teacher_store, tmp_path
):
    run = extended("codec")
    fill = ("-m", "fastkd", "cache-logits", raw_beton, "--mask", raw_mask, "--teacher", teacher_file, "--codec", "fp32")
    run(*fill, "--num-seeds", 3, "--out", "l.h5", *CPU)
    assert json.loads(run("-m", "fastkd", "verify", "l.h5", "--json"))["ok"]
    read = "import fastkd, numpy; s = fastkd.LogitStore('l.h5'); numpy.save('rows.npy', s.read(s.sample_ids, 2))"
    run("-c", read)
    store = fastkd.LogitStore(teacher_store)
    assert np.array_equal(np.load(tmp_path / "rows.npy"), store.read(store.sample_ids, 2))
