import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import fastkd
from fastkd.cli import cli

PACKAGE = Path(fastkd.__file__).parent
FLOORS = [
    "errors",
    "fingerprint",
    "splitmix",
    "intrinsics",
    "hashing",
    "artefact",
    "stopping",
    "dist",
    "models",
    "data",
    "prune",
    "store",
    "distil",
    "feed",
    "teacher",
    "scoring",
    "train",
    "report",
    "cli",
]
"""The rooms of the house, ground floor first."""
STRANGERS = {"data", "prune", "store", "distil"}
"""Rooms that do not know one another."""
DOORS = {"__init__", "__main__"}
"""What users come in by: files that name rooms to load them on first use."""


def files() -> list[tuple[str, Path]]:
    """Every module of the package with its room: the folder or file right below `fastkd`."""
    found = [(path.relative_to(PACKAGE).parts[0].removesuffix(".py"), path) for path in PACKAGE.rglob("*.py")]
    return sorted(found)


def imported(path: Path) -> Iterator[str]:
    """The full names of all modules that a file imports, at its top, in functions and for type checkers alike."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms_of(path: Path) -> set[str]:
    """The rooms of fastkd that a file imports from."""
    parts = (name.split(".") for name in imported(path))
    return {part[1] for part in parts if part[0] == "fastkd" and len(part) > 1} & set(FLOORS)


MODULES = [pytest.param(room, path, id=str(path.relative_to(PACKAGE))) for room, path in files() if room not in DOORS]


def test_every_file_lives_in_a_room_of_the_house():
    assert {room for room, _ in files()} == {*FLOORS, *DOORS}


@pytest.mark.parametrize(("room", "path"), MODULES)
def test_no_file_imports_from_a_floor_above_its_own(room, path):
    allowed = FLOORS[: FLOORS.index(room) + 1]
    assert sorted(rooms_of(path) - set(allowed)) == []


@pytest.mark.parametrize(("room", "path"), [param for param in MODULES if param.values[0] in STRANGERS])
def test_data_prune_and_store_do_not_know_one_another(room, path):
    assert rooms_of(path) & (STRANGERS - {room}) == set()


def test_only_data_imports_ffcv():
    users = {room for room, path in files() if any(name.split(".")[0] == "ffcv" for name in imported(path))}
    assert users == {"data"}


def test_help_imports_nothing_heavy():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "fastkd", "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    loaded = {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "click" in loaded
    assert not loaded & {"torch", "torchvision", "ffcv", "numba", "h5py", "numpy", "scipy", "cv2", "PIL", "matplotlib"}


def help_of(name: str) -> str:
    return cli.commands[name].get_help(click.Context(cli.commands[name], info_name=name, max_content_width=110))


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_prints_json_where_asked_and_shows_an_example(name):
    text = help_of(name)
    assert "--json" in text
    assert f"fastkd {name} " in text


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_option_of_a_command_is_explained(name):
    unexplained = [
        param.name for param in cli.commands[name].params if isinstance(param, click.Option) and not param.help
    ]
    assert unexplained == []


@pytest.mark.parametrize("name", fastkd.__all__)
def test_every_public_name_loads(name):
    assert getattr(fastkd, name).__name__ == name
    assert name in dir(fastkd)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'Lodaer'"):
        fastkd.Lodaer  # noqa: B018
