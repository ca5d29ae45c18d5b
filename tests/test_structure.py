import ast
import collections
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import fastkd
from fastkd.cli import cli

PACKAGE = Path(fastkd.__file__).parent
FLOORS = {
    "fastkd": [
        *(
            "errors",
            "arguments",
            "fingerprint",
            "splitmix",
            "intrinsics",
            "hashing",
            "differences",
            "writing",
            "hdf5",
            "artefact",
            "stopping",
        ),
        *("dist", "agree"),
        *(
            "models",
            "data",
            "prune",
            "store",
            "distil",
            "losses",
            "feed",
            "teacher",
            "scoring",
            "train",
            "report",
            "sweep",
            "cli",
        ),
    ],
    "fastkd.data": [
        "modes",
        "sources",
        "views",
        "beton",
        "order",
        "batch",
        "epochs",
        "memory",
        "flow",
        "upload",
        "loader",
        "identity",
    ],
    "fastkd.prune": ["scale", "select", "scores", "masks"],
}
"""What lies in a folder, ground floor first: a file or folder imports from those before its own."""
STRANGERS = {"data", "prune", "store", "distil"}
"""Rooms that do not know one another."""
DOORS = {"fastkd", "fastkd.__main__"}
"""What users come in by: files that name rooms to load them on first use."""
MOST_FILES, MOST_LINES = 14, 300
SOURCES = {".py", ".cpp", ".h"}


def name_of(path: Path) -> str:
    """A module's full name."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports_of(path: Path) -> Iterator[tuple[str, list[str]]]:
    """What a file imports, at its top, in functions and for type checkers alike: modules, and the names taken from each."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield node.module or "", [alias.name for alias in node.names]


def modules_used(name: str) -> set[str]:
    """The modules of fastkd that a module imports."""
    found = set()
    for module, names in imports_of(MODULES[name]):
        inside = {f"{module}.{one}" for one in names} & MODULES.keys()
        found |= inside or ({module} & MODULES.keys())
    return found - {name}


USES = {name: modules_used(name) for name in MODULES if name not in DOORS}


def place_in(folder: str, module: str) -> str:
    """What of a folder a module of it is, or lies in; empty for the folder's own __init__."""
    return module[len(folder) + 1 :].split(".")[0]


@pytest.mark.parametrize("folder", FLOORS)
def test_everything_in_a_folder_has_its_floor(folder):
    inside = {place_in(folder, name) for name in USES if name.startswith(f"{folder}.")}
    assert inside - {""} == set(FLOORS[folder])


@pytest.mark.parametrize("name", USES)
def test_no_arrow_runs_to_a_floor_above_its_own(name):
    for folder, floors in FLOORS.items():
        if name.startswith(f"{folder}."):
            allowed = floors[: floors.index(place_in(folder, name)) + 1] if place_in(folder, name) else []
            used = {used for used in USES[name] if used.startswith(f"{folder}.")}
            assert sorted(one for one in used if place_in(folder, one) not in allowed) == []


@pytest.mark.parametrize("name", [name for name in USES if place_in("fastkd", name) in STRANGERS])
def test_data_prune_store_and_distil_do_not_know_one_another(name):
    rooms = {place_in("fastkd", used) for used in USES[name]}
    assert rooms & (STRANGERS - {place_in("fastkd", name)}) == set()


def test_models_knows_no_data():
    assert (
        not {place_in("fastkd", used) for name in USES for used in USES[name] if "fastkd.models." in name} & STRANGERS
    )


def test_no_files_import_each_other_by_whatever_way():
    order = graphlib.TopologicalSorter(USES)
    order.prepare()  # raises CycleError, which names the files


def test_nobody_takes_a_name_with_an_underscore_from_another_file():
    wrong = [
        f"{path}: {name} of {module}"
        for path in MODULES.values()
        for module, names in imports_of(path)
        for name in names
        if module.startswith("fastkd") and name.startswith("_") and name != "__version__"
    ]
    assert wrong == []


def test_no_room_holds_more_files_or_lines_than_one_keeps_in_mind():
    files = [path for path in PACKAGE.rglob("*") if path.suffix in SOURCES]
    rooms = collections.Counter(path.parent for path in files if path.name != "__init__.py")
    assert [str(room) for room, count in rooms.items() if count > MOST_FILES and room.name != "cli"] == []
    assert [str(path) for path in files if len(path.read_bytes().splitlines()) > MOST_LINES] == []


def test_no_two_files_of_tests_have_one_name():
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert len(names) == len(set(names)), sorted(name for name in names if names.count(name) > 1)


def test_every_room_has_a_door_plate_of_one_or_two_screens():
    rooms = {
        "." if folder == PACKAGE else folder.name for folder in PACKAGE.iterdir() if (folder / "__init__.py").exists()
    }
    for room in rooms:
        lines = (PACKAGE / room / "README.md").read_text(encoding="utf-8").splitlines()
        assert 12 <= len(lines) <= 130, room


def test_only_data_imports_ffcv():
    users = {
        place_in("fastkd", name)
        for name in USES
        if any(module.split(".")[0] == "ffcv" for module, _ in imports_of(MODULES[name]))
    }
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
    assert not loaded & {"torch", "torchvision", "ffcv", "numba", "h5py", "numpy", "scipy", "cv2", "PIL", "vl_convert"}


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
    assert getattr(fastkd, name).__name__.removeprefix("fastkd.") == name
    assert name in dir(fastkd)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'Lodaer'"):
        fastkd.Lodaer  # noqa: B018
