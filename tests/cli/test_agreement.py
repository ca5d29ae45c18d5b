"""Ranks that were started differently: every option bears on the result or is said not to, and what differs ends them all."""

import shutil

import click
import pytest
from helpers.commands import fastkd_as_ranks
from helpers.moments import at_call, stall
from helpers.stores import save_teacher

from fastkd.cli import cli
from fastkd.cli.command import LOCAL, Output, bearing

ON_RANKS = ("cache-logits", "evaluate", "score", "train")
UNSEEN = {"help", "config", "dump", "as_json"}
"""What no function of a command gets: options of the command line itself."""


def options_of(name: str) -> list[click.Parameter]:
    return [param for param in cli.commands[name].params if param.name not in UNSEEN]


def another(param: click.Parameter, tmp_path) -> object:
    """A value that an option can have and that is not its default."""
    if isinstance(param.type, Output):
        return tmp_path / "out"
    if isinstance(param.type, click.Choice):
        value = next(choice for choice in param.type.choices if choice != param.default)
    elif isinstance(param.type, click.Path):
        value = tmp_path / "a file"
        value.touch()
    elif getattr(param, "is_flag", False):
        value = not param.default
    elif param.type.name.startswith(("integer", "float")):
        value = 7
    else:
        value = "something"
    return (value,) if param.multiple or param.nargs == -1 else value


def test_the_commands_that_run_on_ranks_are_these():
    found = [name for name, one in cli.commands.items() if any(param.name == "device" for param in one.params)]
    assert sorted({*found} - {"plan", "verify"}) == sorted(ON_RANKS)  # these two compute on the first rank alone


@pytest.mark.parametrize(("name", "option"), [(name, param.name) for name in ON_RANKS for param in options_of(name)])
def test_each_option_changes_the_digest_of_a_start_unless_it_is_said_to_bear_on_nothing(name, option, tmp_path):
    params = cli.commands[name].params
    plain = {param.name: None for param in params}
    param = next(param for param in params if param.name == option)
    before, after = (bearing(name, params, plain | {option: value}) for value in (None, another(param, tmp_path)))
    assert (before != after) == (option not in LOCAL)


def test_versions_and_commands_are_in_the_digest():
    assert {"fastkd's version", "the command"} <= bearing("train", [], {}).keys()


def test_copies_of_a_file_are_the_same_whatever_their_paths_and_a_missing_one_is_not(tmp_path):
    param = click.Argument(["beton"], type=click.Path(path_type=None))
    (tmp_path / "a").touch()
    (tmp_path / "b").touch()
    one, other, missing = (bearing("x", [param], {"beton": tmp_path / name}) for name in "abc")
    assert one == other != missing


@pytest.fixture(scope="module")
def files(raw_beton, raw_mask, teacher_file, tmp_path_factory) -> dict:
    """What commands need, and another of each."""
    folder = tmp_path_factory.mktemp("ranks")
    other = save_teacher(folder / "other.safetensors", seed=1)
    copy = shutil.copy(teacher_file, folder / "copy.safetensors")
    return {"x": raw_beton, "m": raw_mask, "t": teacher_file, "other": other, "copy": copy}


CACHE = "cache-logits {x} --mask {m} --teacher {t} --views crop-flip --num-seeds 2"
SCORE = "score {x} --method el2n --model {t}"
TRAIN = "train {x} --mask {m} --alpha 0 --model resnet8 --epochs 1 --batch-size 20"
EVALUATE = "evaluate {x} --model {t}"


@pytest.mark.parametrize(
    ("command", "of_the_last", "words"),
    [
        (CACHE, {"{t}": "{other}"}, "in teacher:"),
        (CACHE, {"--num-seeds 2": "--num-seeds 3"}, "in --num-seeds: 3, rank 0 has 2"),
        (CACHE, {"--mask {m}": ""}, "in --mask: nothing, rank 0 has a file"),
        (SCORE, {"{t}": "{other}"}, "in model 1:"),
        (SCORE, {"el2n": "margin"}, 'in --method: ["margin"], rank 0 has ["el2n"]'),
        (SCORE, {"{t}": "{t} --size 28"}, "in --size: 28, rank 0 has nothing"),
        (TRAIN, {"--epochs 1": "--epochs 2"}, "in --epochs: 2, rank 0 has 1"),
        (TRAIN, {"--mask {m}": ""}, "in --mask: nothing, rank 0 has a file"),
        (TRAIN, {"--alpha 0": "--alpha 0 --lr 0.5"}, "in --lr: 0.5, rank 0 has nothing"),
        (EVALUATE, {"{t}": "{other}"}, "in model:"),
        (EVALUATE, {"{t}": "{t} --crop-ratio 0.5"}, "in --crop-ratio: 0.5, rank 0 has 0.875"),
        (EVALUATE, {"{t}": "{t} --norm none"}, "in --norm: none, rank 0 has nothing"),
    ],
)
@pytest.mark.parametrize("size", [2, 3])
def test_ranks_that_were_started_differently_are_refused_by_all(command, of_the_last, words, size, files, tmp_path):
    last = command
    for old, new in of_the_last.items():
        last = last.replace(old, new)
    end = "" if command == EVALUATE else f" --out {tmp_path / 'out'}"
    lines = [
        f"{line} --device cpu --num-workers 1{end}".format(**files).split() for line in [*[command] * (size - 1), last]
    ]
    outcomes = fastkd_as_ranks(*lines)
    assert [outcome.code for outcome in outcomes] == [1] * size, [outcome.err for outcome in outcomes]
    for outcome in outcomes:
        errors = [line for line in outcome.err.splitlines() if "error:" in line]
        assert len(errors) == 1
        assert f"rank {size - 1} differs from rank 0 {words}" in errors[0]
    assert not list(tmp_path.iterdir())


def test_ranks_with_copies_of_their_own_of_the_same_files_agree(files, tmp_path):
    lines = [
        f"{CACHE} --device cpu --num-workers 1 --out {tmp_path / 'l.h5'}".format(**files | {"t": files[name]}).split()
        for name in ("t", "copy")
    ]
    assert [outcome.code for outcome in fastkd_as_ranks(*lines)] == [0, 0]


def test_a_rank_with_a_folder_of_its_own_does_not_see_the_state_that_rank_0_goes_on_from(files, tmp_path):
    command = f"{TRAIN} --device cpu --num-workers 1".format(**files).replace("--epochs 1", "--epochs 2").split()
    own = [[*command, "--out", tmp_path / str(rank)] for rank in (0, 1)]
    stopped = fastkd_as_ranks(
        *own, first=lambda rank: at_call("end_epoch " * 2, stall)(), until=(tmp_path / "0" / "resume.pt").exists
    )
    assert [outcome.code for outcome in stopped] == [-9, -9]
    outcomes = fastkd_as_ranks(*own)
    assert [outcome.code for outcome in outcomes] == [1, 1]
    for outcome in outcomes:
        (line,) = [line for line in outcome.err.splitlines() if "error:" in line]
        assert "rank 1 does not see the state in" in line
        assert "that rank 0 goes on from" in line
    shutil.copytree(tmp_path / "0", tmp_path / "1", dirs_exist_ok=True)
    assert [outcome.code for outcome in fastkd_as_ranks(*own)] == [0, 0]
