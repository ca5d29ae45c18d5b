"""What can be said in each section of a suite: the options of a command, less what the sweep gives it, and a few of its own."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from fastkd.errors import OptionError
from fastkd.sweep.suite.places import Path


class Commands(NamedTuple):
    """What a suite has to know of fastkd's commands, whose options it names.

    keys: of a command, by its name. check: raises OptionError for (command, key, value) that it would refuse. words: a
    command as it is typed, from its name and values by key.
    """

    keys: Callable[[str], frozenset[str]]
    check: Callable[[str, str, Any], None]
    words: Callable[[str, Mapping[str, Any]], list[str]]


OWN: dict[str, dict[str, tuple[type, ...]]] = {
    "": {"seed": (int,), "threads": (int,)},
    "data": {"train": (str, dict), "val": (str, dict), "source": (str,)},
    "teacher": {"checkpoint": (str,), "mask": (str,), "epoch": (int,)},
    "prune": {"method": (str,)},
    "score": {"teacher": (str,)},
    "train": {"source": (str,), "teacher": (str,)},
    "report": {"x": (str,), "lines": (str,), "facet": (str,)},
}
"""Keys of a suite's own in each section, and the types of their values."""

OF_VIEWS = ("views", "size", "num-seeds", "mix", "mix-alpha")
OF_NETWORK = ("teacher-model", "teacher-norm", "teacher-size", "teacher-precision", "ema-weights")
"""Options of `cache-logits` and `train` that are a teacher's."""
_ALWAYS = {"out", "force", "json", "beton"}
_MADE = {
    "build-beton": _ALWAYS | {"source", "mask", "split"},
    "prune": _ALWAYS | {"mask"},
    "score": _ALWAYS | {"model", "logits", "method", "features-out", "ema-weights", "model-name", "norm"},
    "cache-logits": _ALWAYS | {"mask", "teacher", "reuse", "shard", *OF_VIEWS, *OF_NETWORK},
    "train": _ALWAYS | {"mask", "logits", "teacher", "val", *OF_NETWORK},
}
"""Options that the sweep gives the commands itself."""
COMMAND_OF = {name: name for name in ("prune", "score", "cache-logits", "train")} | {"data": "build-beton"}
SOURCES = ("store", "live", "labels")
"""Where a run's logits come from."""


def check_axis(
    inner: Path,
    value: Any,
    path: Path,
    commands: Commands,
    teachers: Mapping[str, Any],
    place: Callable[..., str],
) -> None:
    """Checks one value that cells of the grid have."""
    names = tuple(map(str, inner))
    if names == ("seed",):
        check_type(path, value, (int,), place)
        return
    is_teacher = len(names) == 3 and names[0] == "teacher" and names[1] in teachers
    if not is_teacher and not (len(names) == 2 and names[0] in COMMAND_OF and names[0] != "data"):
        raise OptionError(
            f"{place(path)}: {'.'.join(names)} is no key of a grid, expected seed, SECTION.OPTION or teacher.NAME.OPTION of a "
            f"teacher that the suite has"
        )
    check_key(names[:-1], names[-1], value, path, commands, teachers, place)


def check_key(
    section: tuple[str, ...],
    key: str,
    value: Any,
    path: Path,
    commands: Commands,
    teachers: Mapping[str, Any],
    place: Callable[..., str],
) -> None:
    own = OWN.get(section[0], {})
    if key in own:
        check_type(path, value, own[key], place)
        if section == ("train",) and key == "source" and value not in SOURCES:
            raise OptionError(f"{place(path)}: source is {value!r}, expected one of {', '.join(SOURCES)}")
        if key == "teacher" and value not in teachers:
            raise OptionError(
                f"{place(path)}: there is no [teacher.{value}], expected one of {', '.join(teachers) or 'none'}"
            )
        return
    try:
        for command in commands_for(section[0], key, commands):
            commands.check(command, key, value)
    except OptionError as error:
        raise OptionError(f"{place(path)}: {error}") from None


def commands_for(section: str, key: str, commands: Commands) -> list[str]:
    """The commands that get an option of a section.

    Raises:
        OptionError: none has it, or the sweep gives it itself.
    """
    if section == "report":
        raise OptionError(f"[report] has no {key!r}, expected some of {', '.join(OWN['report'])}")
    if section == "teacher":
        if key in OF_NETWORK:
            return ["cache-logits"]
        of_train = key in commands.keys("train") and key not in _MADE["train"]
        of_prune = key in commands.keys("prune") and key not in _MADE["prune"]
        if key in ("image-field", "label-field") or not (of_train or of_prune):
            raise OptionError(f"neither train nor prune has an option {key!r} that a teacher could have")
        return [name for name, has in (("train", of_train), ("prune", of_prune)) if has]
    command = COMMAND_OF[section]
    if key in _MADE[command]:
        where = " (store and student see the same views: say it in [train])" if key in OF_VIEWS else ""
        raise OptionError(f"{command} is given its {key} by the sweep: leave it out{where}")
    return [command]


def check_type(path: Path, value: Any, kinds: tuple[type, ...], place: Callable[..., str]) -> None:
    listed = path[0] == "report" and path[-1] == "lines" and isinstance(value, list)
    if isinstance(value, bool) or not (isinstance(value, kinds) or listed):
        names = {int: "a whole number", str: "text", dict: "a table"}
        expected = " or ".join(names[kind] for kind in kinds)
        raise OptionError(f"{place(path)}: {path[-1]} is {value!r}, expected {expected}")
