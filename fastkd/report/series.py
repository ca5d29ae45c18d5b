"""Figures as numbers: groups of runs as points of lines, in panels side by side."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fastkd.errors import OptionError
from fastkd.report.axes import NAMES, NUMBERS, Axes, series_of, value_of
from fastkd.report.compare import Group
from fastkd.report.facts import Facts

DRAWN_BY_THEMSELVES = ("alpha", "tau", "teacher", "teacher-fraction", "teacher-epoch", "num-seeds", "epochs")
"""Axes that a report draws over, besides the fraction, without being asked. Steps follow from epochs and fraction."""


class Point(NamedTuple):
    """A group of runs in a figure. x: None for one that belongs to no place, such as runs without what the axis is of."""

    x: Any
    group: Group


class Figure(NamedTuple):
    """Top-1 over `x`: panel, in words ("" without facets) → line, in words → its points, left to right."""

    x: str
    panels: dict[str, dict[str, list[Point]]]

    @property
    def title(self) -> str:
        """What the figure shows."""
        return f"Top-1 over the {NUMBERS[self.x]}"

    @property
    def lines(self) -> list[str]:
        """The names of its lines, each once."""
        return list(dict.fromkeys(line for lines in self.panels.values() for line in lines))

    def groups_of(self, line: str) -> list[Group]:
        """The groups of a line in all panels."""
        return [point.group for lines in self.panels.values() for point in lines.get(line, ())]


def figure_of(groups: Sequence[Group], axes: Axes) -> Figure:
    """The figure over some axes.

    Raises:
        OptionError: as `series_of`.
    """
    found = series_of([group.facts for group in groups], axes)
    return Figure(axes.x, _panels(groups, found))


def figures_of(groups: Sequence[Group]) -> tuple[list[Figure], list[str]]:
    """The figures that a report draws where it is not told: over the fraction, and over each other axis on which a line has two
    places.

    Returns:
        Them, and a line for each axis that nothing could be drawn over, with the reason.
    """
    figures, left_out = [], []
    for x in ("fraction", *DRAWN_BY_THEMSELVES):
        values = {str(value_of(group.facts, x)) for group in groups} - {"None"}
        if x != "fraction" and len(values) < 2:
            continue
        try:
            figure = figure_of(groups, Axes(x))
        except OptionError as error:
            if x != "fraction":
                left_out.append(f"Not drawn over the {NUMBERS[x]}: {error}")
                continue
            figure = by_label(groups)
        if x == "fraction" or any(len({str(p.x) for p in points}) > 1 for points in figure.panels[""].values()):
            figures.append(figure)
    return figures, left_out


def by_label(groups: Sequence[Group]) -> Figure:
    """Top-1 over the fraction with a line for each student and way of training, whatever these differ in."""
    found: dict[str, list[tuple[Any, int]]] = {}
    for number, group in enumerate(groups):
        epochs = f", {group.epochs} epochs" if "epochs" in group.differs_in else ""
        found.setdefault(f"{group.model}{epochs}, {group.label}", []).append((group.fraction, number))
    return Figure("fraction", _panels(groups, {"": found}))


def shared_by(figure: Figure, line: str) -> Facts:
    """The values, by the names of axes and lines, that all groups of a line share."""
    members = [group.facts for group in figure.groups_of(line)]
    first = {name: value_of(members[0], name) for name in NAMES}
    return {
        name: value for name, value in first.items() if all(value_of(facts, name) == value for facts in members[1:])
    }


def _panels(
    groups: Sequence[Group], found: Mapping[str, Mapping[str, Sequence[tuple[Any, int]]]]
) -> dict[str, dict[str, list[Point]]]:
    return {
        panel: {line: [Point(x, groups[number]) for x, number in points] for line, points in lines.items()}
        for panel, lines in found.items()
    }
