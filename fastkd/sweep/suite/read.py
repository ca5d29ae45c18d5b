"""Suites: which runs there are, in TOML; read and checked, each fault told with its place."""

import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastkd.errors import FastKDError, OptionError
from fastkd.report.axes import Axes, require_axes
from fastkd.sweep.suite.grid import cells_of
from fastkd.sweep.suite.keys import COMMAND_OF, OWN, Commands, check_axis, check_key, check_type
from fastkd.sweep.suite.places import Path, flat, key_lines, merged, nested, parse_value, split_key


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Suite:
    """What is to be run.

    sections: `data`, `prune`, `score`, `cache-logits`, `train` → options by key; teachers: by their names. cells: for each
    run what it has of its own, dotted key → value, as (section, …, key). threads: of each command, which its bits depend
    on. axes: of the figure, as [report] says. theorem, gallery: the tables of these names, of suites without runs. place: where
    something is said, for messages.
    """

    name: str
    sections: dict[str, dict[str, Any]]
    teachers: dict[str, dict[str, Any]]
    cells: list[dict[tuple[str, ...], Any]]
    threads: int
    axes: Axes | None
    theorem: dict[str, Any] | None
    gallery: dict[str, Any] | None
    place: Callable[..., str]

    def of(self, section: str, cell: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
        """The options of a section, or of `teacher.NAME`, in one cell; `seed` is that of mask and run, unless they say their own."""
        prefix = split_key(section)
        own = self.teachers.get(prefix[1], {}) if prefix[0] == "teacher" else self.sections.get(section, {})
        found = own | {path[-1]: value for path, value in cell.items() if path[:-1] == prefix}
        if section in ("prune", "train") and ("seed",) in cell:
            found.setdefault("seed", cell["seed",])
        return found

    def told(self, section: str, error: FastKDError) -> OptionError:
        """A command's refusal of options of a section, with the place of the option that it names."""
        option = re.search(r"(?:--|unknown )([a-z][a-z-]*)", str(error))
        path = (*split_key(section), option[1]) if option else split_key(section)
        zips = [("zip", *path), *(("zip", number, *path) for number in range(9))]
        return OptionError(f"{self.place(path, ('matrix', *path), *zips, path)}: {error}")


_TABLES = (*COMMAND_OF, "teacher", "matrix", "zip", "include", "exclude", "report", "scale", "theorem", "gallery")


def read_suite(
    text: str, where: str, commands: Commands, *, name: str, scale: str | None = None, sets: Sequence[str] = ()
) -> Suite:
    """Reads a suite and checks all that can be checked before anything is there.

    Args:
        text: of the file. where: its name, for messages. name: of the suite. scale: of its [scale.NAME] tables the one that
            is laid over the rest. sets: KEY=VALUE, laid over that.

    Raises:
        OptionError: no TOML; unknown tables, keys or scales; values that a command would refuse; an empty grid. Says where.
    """
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise OptionError(f"{where}: {error}") from None
    lines, said = key_lines(text), dict[Path, str]()
    scales = content.pop("scale", {})
    if scale is not None and (
        scale in scales or scale != "full"
    ):  # a suite is its own full form, where it says no other
        if scale not in scales:
            known = ", ".join(scales) or "none"
            raise OptionError(f"{where}: --scale {scale}: the suite has {known}")
        content = merged(content, scales[scale])
    for one in sets:
        key, equals, value = one.partition("=")
        path = split_key(key)
        if not equals or not all(path):
            raise OptionError(f"--set {one}: expected KEY=VALUE such as train.epochs=30")
        for axes in ("matrix", "zip"):
            if path in flat(content.get(axes, {})):
                path = (axes, *path)
        found = parse_value(value)
        if path[0] == "matrix" and not isinstance(found, list):
            found = [found]
        content = merged(content, nested(path, found))
        said[path] = f"--set {one}"

    def place(path: Path, *others: Path) -> str:
        """Where the first of these is said; else where the table is in which the first would be."""
        for known in (*others, *(path[:length] for length in range(len(path), 0, -1))):
            for full in (known, ("scale", scale or "", *known)):
                if full in said:
                    return said[full]
                if full in lines:
                    return f"{where}, line {lines[full]}"
        return where

    return _suite(content, commands, place, name)


def _suite(content: dict[str, Any], commands: Commands, place: Callable[..., str], name: str) -> Suite:
    for key, value in content.items():
        if key in OWN[""]:
            check_type((key,), value, OWN[""][key], place)
        elif key not in _TABLES:
            raise OptionError(f"{place((key,))}: [{key}] is nothing of a suite, expected one of {', '.join(_TABLES)}")
    _check(content, commands, place)
    grids = [(path, value) for path, value in _axes(content, place)]
    for path, values in grids:
        if not isinstance(values, list) or not values:
            raise OptionError(
                f"{place(path)}: {'.'.join(map(str, path))} is no list of values, which a grid is made of"
            )
    teachers = content.get("teacher", {})
    sections = {section: content.get(section, {}) for section in COMMAND_OF}
    cells = cells_of(content, place)
    if "seed" in content:
        cells = [{("seed",): content["seed"]} | cell for cell in cells]
    if ("theorem" in content or "gallery" in content) and "train" not in content:
        cells = []
    elif not cells:
        raise OptionError(f"{place(('matrix',))}: the grid is empty: all of it is excluded")
    if content.get("threads", 1) < 1:
        raise OptionError(f"{place(('threads',))}: threads is {content['threads']}, expected at least 1")
    return Suite(
        name=name,
        sections=sections,
        teachers=teachers,
        cells=cells,
        threads=content.get("threads", 1),
        axes=_axes_of_figure(content.get("report", {}), place),
        theorem=content.get("theorem"),
        gallery=content.get("gallery"),
        place=place,
    )


def _axes_of_figure(report: dict[str, Any], place: Callable[..., str]) -> Axes | None:
    """What [report] says."""
    if not report:
        return None
    lines = report.get("lines", ())
    axes = Axes(report.get("x", "fraction"), (lines,) if isinstance(lines, str) else tuple(lines), report.get("facet"))
    try:
        require_axes(axes)
    except OptionError as error:
        option = str(error).split()[0].removeprefix("--")
        raise OptionError(f"{place(('report', option))}: {error}") from None
    return axes


def _axes(content: dict[str, Any], place: Callable[..., str]) -> Iterator[tuple[Path, Any]]:
    """The lists that a grid is made of, with their paths."""
    for path, values in flat(content.get("matrix", {})).items():
        yield ("matrix", *path), values
    zips = content.get("zip", [])
    for number, one in enumerate(zips if isinstance(zips, list) else [zips]):
        found = flat(one)
        prefix: Path = ("zip", number) if isinstance(zips, list) else ("zip",)
        lengths = {len(values) for values in found.values() if isinstance(values, list)}
        if len(lengths) > 1:
            raise OptionError(
                f"{place(prefix)}: lists of {', '.join(map(str, sorted(lengths)))} values do not go together"
            )
        for path, values in found.items():
            yield (*prefix, *path), values


def _check(content: dict[str, Any], commands: Commands, place: Callable[..., str]) -> None:
    """Refuses keys that nothing has and values that a command would refuse, in sections and in the grid."""
    teachers = content.get("teacher", {})
    for section in (*COMMAND_OF, "report"):
        for key, value in _table(content, (section,), place).items():
            check_key((section,), key, value, (section, key), commands, teachers, place)
    for name in _table(content, ("teacher",), place):
        for key, value in _table(teachers, ("teacher", name), place).items():
            check_key(("teacher", name), key, value, ("teacher", name, key), commands, teachers, place)
    for path, values in _axes(content, place):
        inner = path[2:] if path[0] == "zip" and isinstance(path[1], int) else path[1:]
        for value in values if isinstance(values, list) else ():
            check_axis(inner, value, path, commands, teachers, place)
    for part in ("include", "exclude"):
        tables = content.get(part, [])
        if not isinstance(tables, list):
            raise OptionError(f"{place((part,))}: [{part}] is one table, write [[{part}]] for each")
        for number, table in enumerate(tables):
            for inner, value in flat(table).items():
                check_axis(inner, value, (part, number, *inner), commands, teachers, place)


def _table(content: dict[str, Any], path: tuple[str, ...], place: Callable[..., str]) -> dict[str, Any]:
    found = content.get(path[-1], {})
    if not isinstance(found, dict):
        raise OptionError(f"{place(path)}: {'.'.join(path)} is no table")
    return found
