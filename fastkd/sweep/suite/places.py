"""Where in a TOML file something is said, which `tomllib` does not tell."""

import re
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

Path = tuple[str | int, ...]
"""Names of tables and keys from the top of a file; numbers count the members of an array of tables from 0."""

_TABLES = re.compile(r"\[\[\s*(?P<name>[^\[\]]+?)\s*\]\]\s*(#.*)?")
_TABLE = re.compile(r"\[\s*(?P<name>[^\[\]]+?)\s*\]\s*(#.*)?")
_KEY = re.compile(r"""(?P<name>[\w"'-]+(\s*\.\s*[\w"'-]+)*)\s*=""")


def split_key(text: str) -> tuple[str, ...]:
    """The names in a dotted key, without quotes."""
    return tuple(part.strip().strip("\"'") for part in text.split("."))


def key_lines(text: str) -> dict[Path, int]:
    """The line, from 1, on which each table and key of a file begins."""
    found: dict[Path, int] = {}
    counts: dict[Path, int] = {}
    table: Path = ()
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if match := _TABLES.fullmatch(line):
            name = split_key(match["name"])
            counts[name] = counts.get(name, -1) + 1
            table = (*name, counts[name])
        elif match := _TABLE.fullmatch(line):
            table = split_key(match["name"])
        elif match := _KEY.match(line):
            path = (*table, *split_key(match["name"]))
            for length in range(len(table) + 1, len(path) + 1):
                found.setdefault(path[:length], number)
            continue
        else:
            continue
        found.setdefault(table, number)
    return found


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """One file's content laid over another's: tables are joined, all else is replaced."""
    found = dict(base)
    for name, value in over.items():
        below = found.get(name)
        found[name] = merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return found


def nested(path: Sequence[str], value: Any) -> dict[str, Any]:
    """A value below the tables that a dotted key names."""
    for name in reversed(path):
        value = {name: value}
    return value


def flat(table: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Dotted keys of a table and of the tables in it → value."""
    found: dict[tuple[str, ...], Any] = {}
    for name, value in table.items():
        path = (*prefix, *split_key(name))
        found |= flat(value, path) if isinstance(value, dict) else {path: value}
    return found


def parse_value(text: str) -> Any:
    """A value as TOML has it; text that is none of TOML's values stands for itself, so that a shell needs no more quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
