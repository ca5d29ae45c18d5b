"""A figure of some series, in facets side by side: means with bars from the lowest to the highest run."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Point(NamedTuple):
    """A group of runs in a figure. x: None for one that belongs to no place, such as runs without what the axis is of."""

    x: Any
    mean: float
    lowest: float
    highest: float


def draw_series(facets: Mapping[str, Mapping[str, Sequence[Point]]], x_label: str, note: str) -> "Figure":
    """Facet → line → its points, left to right. Numbers have a linear axis, words a place each; a line whose points have no place
    is drawn across."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(line for lines in facets.values() for line in lines))
    placed = [
        point.x for lines in facets.values() for points in lines.values() for point in points if point.x is not None
    ]
    words = list(dict.fromkeys(x for x in placed if not isinstance(x, int | float)))
    figure = Figure(figsize=(max(6.4, 3.6 * len(facets)), 4.4 + 0.2 * len(names)), layout="constrained")
    all_axes = figure.subplots(1, len(facets), sharey=True, squeeze=False)[0]
    handles: dict[str, Any] = {}
    for axes, (facet, lines) in zip(all_axes, facets.items(), strict=True):
        for line, points in lines.items():
            colour = f"C{names.index(line) % 10}"
            at = [point for point in points if point.x is not None]
            x = [words.index(point.x) if point.x in words else point.x for point in at]
            reach = [[p.mean - p.lowest for p in at], [p.highest - p.mean for p in at]]
            if at:
                drawn = axes.errorbar(x, [p.mean for p in at], yerr=reach, marker="o", capsize=4, color=colour)
                handles.setdefault(line, drawn)
            for point in points:
                if point.x is None:
                    handles.setdefault(line, axes.axhline(point.mean, linestyle="--", color=colour))
        if words:
            axes.set_xticks(range(len(words)), words, rotation=20)
        axes.set_title(facet, fontsize=9, parse_math=False)
        axes.set_xlabel(x_label)
        axes.grid(alpha=0.3)
    all_axes[0].set_ylabel("top-1 on the validation data, %")
    figure.suptitle(note, fontsize=8, x=0.01, ha="left")
    legend = figure.legend(handles.values(), handles.keys(), fontsize=8, loc="outside lower left")
    for text in legend.get_texts():
        text.set_parse_math(False)  # a name with $ in it is a name
    return figure
