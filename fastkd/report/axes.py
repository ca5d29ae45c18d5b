"""What figures can be drawn over, and in which lines and facets: names for people, and the facts that they stand for."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fastkd.errors import OptionError
from fastkd.report.facts import Facts, course_of

NUMBERS: dict[str, str] = {
    "fraction": "kept fraction of the training data",
    "alpha": "weight of distillation, α",
    "tau": "temperature, τ",
    "teacher": "teacher",
    "teacher-fraction": "fraction that the teacher was trained on",
    "teacher-epoch": "epochs after which the teacher was taken",
    "num-seeds": "views of a sample, K",
    "epochs": "epochs",
    "steps": "steps",
}
"""Names of --x, and what an axis is called."""
WORDS = ("model", "method", "level", "kd", "source", "codec")
"""Names of --lines and --facet, besides those of --x."""
NAMES = (*NUMBERS, *WORDS)
_SHORT = {
    "fraction": "f",
    "alpha": "α",
    "tau": "τ",
    "num-seeds": "K",
    "teacher-fraction": "f_t",
    "teacher-epoch": "teacher of epoch",
}
_FACTS = {
    "teacher": "teacher.model",
    "teacher-fraction": "teacher.mask.fraction",
    "teacher-epoch": "teacher.epoch",
    "num-seeds": "views.num_seeds",
    "level": "mask.level",
    "codec": "logits.codec",
}


class Axes(NamedTuple):
    """What a figure is drawn over; names that tell its lines apart, () for all in which runs differ; and its facets."""

    x: str = "fraction"
    lines: tuple[str, ...] = ()
    facet: str | None = None


def value_of(facts: Facts, name: str) -> Any:
    """What runs with these facts have of a name; None where it is nothing of theirs, such as the tau of runs on labels alone."""
    if name == "method":
        method = facts.get("mask.method")
        return facts.get("mask.score", method) if method == "scores" else method
    if name == "alpha" and "alpha_rule" in facts:
        return "auto"
    if name in ("alpha", "tau") and course_of(facts, name):
        return course_of(facts, name)
    if name == "kd":
        return "none" if facts["source"] == "labels" else facts["kd"]
    if name == "steps" and facts.get("steps") is None:  # which a run of so many epochs does not say
        return _steps_of(facts) if "global_batch" in facts else None
    return facts.get(_FACTS.get(name, name))


def _steps_of(facts: Facts) -> int:
    whole, rest = divmod(facts["num_kept"], facts["global_batch"])
    return int(facts["epochs"] * (whole + (rest > 0 and not facts.get("drop_last"))))


def require_axes(axes: Axes) -> None:
    """Refuses names that nothing can be drawn by.

    Raises:
        OptionError: says which there are.
    """
    if axes.x not in NUMBERS:
        raise OptionError(f"--x {axes.x}: expected one of {', '.join(NUMBERS)}")
    for option, names in (("--lines", axes.lines), ("--facet", () if axes.facet is None else (axes.facet,))):
        for name in names:
            if name not in NAMES:
                raise OptionError(f"{option} {name}: expected some of {', '.join(NAMES)}")


def series_of(groups: Sequence[Facts], axes: Axes) -> dict[str, dict[str, list[tuple[Any, int]]]]:
    """Which groups of runs make which line of which facet.

    Args:
        groups: the facts of each.

    Returns:
        Facet, in words ("" without) → line, in words → (x, number of the group), by increasing x; x is None for groups that
        have none, such as runs on labels alone over the teacher.

    Raises:
        OptionError: unknown names; lines that do not tell two groups of one place apart: says what they differ in.
    """
    require_axes(axes)
    x, facet = axes.x, axes.facet
    told = axes.lines or _telling(groups, (x, facet, "source", "steps"))
    found: dict[str, dict[str, list[tuple[Any, int]]]] = {}
    places: dict[tuple[str, str, Any], int] = {}
    for number, facts in enumerate(groups):
        part = "" if facet is None else _words(facts, [facet])
        line, at = _words(facts, told) or "all runs", value_of(facts, x)
        other = places.setdefault((part, line, str(at)), number)
        if other != number:
            differs = sorted(
                name for name in facts.keys() | groups[other].keys() if facts.get(name) != groups[other].get(name)
            )
            raise OptionError(
                f"two kinds of runs are at {x} {at} of the line {line!r}; they differ in {', '.join(differs[:6])}: name more "
                f"by --lines or --facet, or report fewer runs"
            )
        found.setdefault(part, {}).setdefault(line, []).append((at, number))
    sizes = {value_of(facts, "teacher"): facts.get("teacher.num_parameters") or 0 for facts in groups}

    def place(point: tuple[Any, int]) -> tuple[bool, Any]:
        at = point[0]
        size = sizes.get(at) if x == "teacher" else at
        return at is not None, size if isinstance(size, int | float) else 0

    for members in found.values():
        for points in members.values():
            points.sort(key=place)
    return found


def _telling(groups: Sequence[Facts], without: Sequence[str | None]) -> list[str]:
    """The names in which groups differ that have them at all: of a run on labels alone, no teacher counts. One way to distil
    is told by its alpha."""
    differ = {}
    for name in NAMES:
        values = {str(value_of(facts, name)) for facts in groups} - {"None"}
        ways = values - {"none"} if name == "kd" else values
        differ[name] = name not in without and len(values) > 1 and len(ways) > (name == "kd")
    return [name for name in NAMES if differ[name]]


def _words(facts: Mapping[str, Any], names: Sequence[str]) -> str:
    """The values of some names, those that are there."""
    parts = []
    for name in names:
        value = value_of(dict(facts), name)
        if value is None:
            continue
        text = f"{value:.3g}" if isinstance(value, float) else str(value)  # a fraction of whole samples, 0.1001, is 0.1
        if name == "kd":
            parts.append("no KD" if text == "none" else text.upper())
        elif name == "alpha" and facts["source"] == "labels":
            parts.append("no KD")
        else:
            parts.append(f"{_SHORT.get(name, name)} {text}")
    return ", ".join(dict.fromkeys(parts))
