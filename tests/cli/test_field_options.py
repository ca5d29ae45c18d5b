"""--image-field and --label-field on every command that opens a beton."""

import ast
import inspect
import shutil
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from helpers.commands import Outcome, fastkd
from helpers.foreign import NUM_SAMPLES
from helpers.lab import CPU

from fastkd.cli import cli
from fastkd.data.beton.dataset import open_dataset
from fastkd.data.beton.part import left_behind

OPTIONS = {"--image-field", "--label-field"}
OPENERS = {"open_beton", "open_dataset", "renew_manifest"}
"""Functions that open a beton by its path."""
COMMANDS = {
    "prune": "prune {x} --keep 6 --out {new}/m.h5",
    "build-beton": "build-beton {x} --mask {m} --out {new}/part.beton",
    "train": "train {x} --alpha 0 --model resnet8 --epochs 1 --batch-size 4 --val {x} --out {new}/run",
    "cache-logits": "cache-logits {x} --teacher {t} --num-seeds 2 --out {new}/l.h5",
    "score": "score {x} --method el2n --model {t} --out {new}/s.h5",
    "import-scores": "import-scores {x} {npy} --higher hard --out {new}/s.h5",
    "evaluate": "evaluate {x} --model {t}",
    "plan": "plan {x} --num-seeds 2",
    "inspect": "inspect {x}",
    "inspect --beton": "inspect {m} --beton {x}",
    "verify": "verify {x}",
    "verify --against": "verify {l} --against {x} --teacher {t}",
    "verify --write-manifest": "verify --write-manifest {x}",
}
"""Each way in which a command opens a beton."""
ON_A_DEVICE = {"train", "cache-logits", "score", "evaluate", "verify"}


def opens_betons(name: str) -> bool:
    """Whether a command has an argument or option for a beton, or its file a function that opens one."""
    command = cli.commands[name]
    tree = ast.parse(inspect.getsource(sys.modules[command.callback.__module__]))
    taken = {one.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for one in node.names}
    return bool(taken & OPENERS) or any(param.name == "beton" or param.metavar == "BETON" for param in command.params)


OPENING = sorted(name for name in cli.commands if opens_betons(name))


def test_the_walk_is_of_all_commands_that_open_betons():
    assert {name.split()[0] for name in COMMANDS} == set(OPENING)


@pytest.mark.parametrize("name", OPENING)
def test_every_command_that_opens_a_beton_has_both_options(name):
    options = {text for param in cli.commands[name].params if isinstance(param, click.Option) for text in param.opts}
    assert options >= OPTIONS


@pytest.mark.parametrize("name", sorted(set(cli.commands) - set(OPENING)))
def test_no_other_command_has_them(name):
    options = {text for param in cli.commands[name].params if isinstance(param, click.Option) for text in param.opts}
    assert not options & OPTIONS


@pytest.fixture(scope="module")
def made(foreign, tmp_path_factory) -> dict[str, Path]:
    """A mask, a teacher and its store of a beton with two integer fields, and scores as others write them."""
    folder = tmp_path_factory.mktemp("made")
    x, label = foreign / "coarse-and-fine.beton", ("--label-field", "fine")
    paths = {name: folder / file for name, file in {"m": "m.h5", "l": "l.h5", "npy": "el2n.npy"}.items()}
    paths |= {"x": x, "t": folder / "run/model.safetensors"}
    np.save(paths["npy"], np.arange(NUM_SAMPLES, dtype=np.float32))
    student = ("--alpha", 0, "--model", "resnet8", "--batch-size", 4, "--epochs", 1, "--out", folder / "run", *CPU)
    assert fastkd("prune", x, "--keep", 6, "--out", paths["m"], *label).code == 0
    assert fastkd("train", x, *student, *label).code == 0
    store = ("--teacher", paths["t"], "--num-seeds", 2, "--out", paths["l"], *CPU)
    assert fastkd("cache-logits", x, *store, *label).code == 0
    return paths


@pytest.fixture
def line(made, tmp_path):
    """Fills the files into a command line; the beton is a copy."""
    copied = Path(shutil.copy(made["x"], tmp_path))

    def fill(name: str) -> list[object]:
        words = [word.format(**made | {"x": copied, "new": tmp_path}) for word in COMMANDS[name].split()]
        return [*words, *(CPU if words[0] in ON_A_DEVICE else ())]

    return fill


@pytest.mark.parametrize("name", COMMANDS)
def test_several_candidates_are_refused_by_every_command(line, name):
    outcome = fastkd(*line(name))
    assert outcome.code == 1
    assert len((outcome.out + outcome.err).splitlines()) == 1 + (name == "verify")  # which counts problems first
    assert "coarse (integer), fine (integer); name the label with --label-field NAME" in outcome.out + outcome.err


@pytest.mark.parametrize("name", COMMANDS)
def test_the_field_that_is_named_is_taken_by_every_command(line, name):
    outcome = fastkd(*line(name), "--image-field", "image", "--label-field", "fine")
    assert outcome.code == 0, outcome.out + outcome.err


@pytest.mark.parametrize("name", COMMANDS)
def test_a_field_that_is_not_there_is_refused_by_every_command(line, name):
    outcome = fastkd(*line(name), "--label-field", "finest")
    assert outcome.code == 1
    assert "has no field 'finest' for --label-field" in outcome.out + outcome.err


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        ("plan --num-samples 9 --num-classes 3 --num-seeds 2", "BETON"),
        ("inspect {m}", "a beton among FILES or --beton"),
        ("verify {m}", "a beton among FILES or --against"),
    ],
)
@pytest.mark.parametrize("option", sorted(OPTIONS))
def test_names_of_fields_are_refused_where_no_beton_is_opened(made, photo_folder, tmp_path, arguments, where, option):
    words = arguments.format(**made, images=photo_folder, new=tmp_path).split()
    outcome = fastkd(*words, option, "fine")
    assert (outcome.code, outcome.err) == (1, f"fastkd: error: {option} fine does nothing without {where}\n")


@pytest.mark.parametrize("option", sorted(OPTIONS))
def test_names_of_fields_are_refused_where_a_source_has_none(photo_folder, tmp_path, option):
    outcome = fastkd("build-beton", photo_folder, "--out", tmp_path / "x.beton", option, "fine")
    assert outcome.code == 1
    assert f"{option} fine: is for webdataset:, parquet: and betons with --mask, but the source is" in outcome.err


def test_names_of_fields_can_stand_in_a_config(made, tmp_path):
    (tmp_path / "x.toml").write_text('label-field = "coarse"')
    outcome = fastkd("plan", made["x"], "--num-seeds", 2, "--config", tmp_path / "x.toml", "--json")
    assert outcome.result["num_classes"] == 2


# What is said


def test_inspect_lists_all_fields_and_says_which_are_used(foreign):
    found = fastkd("inspect", foreign / "other-names.beton", "--json").result
    assert list(found["fields"].items()) == [("cls", "integer"), ("weight", "float"), ("picture", "RGB image")]
    assert (found["image_field"], found["label_field"]) == ("picture", "cls")


def test_inspect_says_the_same_in_words(foreign):
    text = fastkd("inspect", foreign / "index-before-label.beton").out
    assert '"index": "integer"' in text
    assert "label_field      label\n" in text


def test_a_part_says_which_fields_it_leaves_behind(foreign, tmp_path):
    x, m, part = foreign / "two-images.beton", tmp_path / "m.h5", tmp_path / "part.beton"
    fastkd("prune", x, "--keep", 6, "--out", m)
    outcome = fastkd("build-beton", x, "--mask", m, "--out", part)
    assert f"{part}: has image and label alone; left behind of {x}: left (RGB image), right (RGB image)" in outcome.err
    assert left_behind(open_dataset(part).beton) == ""


def test_a_part_of_a_beton_of_fastkds_says_nothing_of_fields(raw_beton, raw_mask, tmp_path):
    outcome = fastkd("build-beton", raw_beton, "--mask", raw_mask, "--out", tmp_path / "part.beton")
    assert (outcome.code, outcome.err) == (0, "")


# Validation data


def train(beton: Path, val: Path, out: Path, *options: object) -> Outcome:
    recipe = ("--alpha", 0, "--model", "resnet8", "--batch-size", 4, "--epochs", 1)
    return fastkd("train", beton, "--val", val, *recipe, "--out", out, *CPU, *options, "--json")


@pytest.mark.parametrize("val", ["index-before-label", "coarse-and-fine", "other-names"])
def test_names_apply_to_validation_data_where_it_has_such_fields(foreign, tmp_path, val):
    outcome = train(
        foreign / "coarse-and-fine.beton", foreign / f"{val}.beton", tmp_path / "r", "--label-field", "fine"
    )
    assert outcome.result["val_top1"] is not None


def test_validation_data_that_are_not_clear_by_themselves_are_refused(foreign, tmp_path):
    val = foreign / "coarse-and-fine.beton"
    outcome = train(foreign / "other-names.beton", val, tmp_path / "r", "--label-field", "cls")
    assert outcome.code == 1
    assert f"{val}: 2 integer fields and none called 'label'" in outcome.err
