"""Figures in Vega-Lite, as plain JSON, for the page and for files."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from fastkd.report.axes import NUMBERS
from fastkd.report.compare import Group
from fastkd.report.series import Figure, Point

RANGE = "bars: from the lowest to the highest run"
_COLOURS = (
    "#2f7ebc",
    "#d9581c",
    "#2a9d6e",
    "#b65fa8",
    "#c99700",
    "#5aaede",
    "#8d6fd1",
    "#8a8a8a",
    "#a8623a",
    "#6b9e23",
)
_DASHES = ([1, 0], [5, 3], [2, 2], [8, 3, 2, 3])
_MOST_TICKS = 12


class Style(NamedTuple):
    """How a line is drawn: a colour, and the lengths of dashes and gaps."""

    colour: str
    dash: list[int]


class Words(NamedTuple):
    """What the vertical axis is called, and field of a row → what its value is called under the pointer."""

    y: str
    tooltip: Mapping[str, str]


ACCURACY = Words(
    "top-1 on the validation data, %",
    {
        "line": "line",
        "where": "at",
        "accuracy": "top-1",
        "spread": "lowest to highest",
        "interval": "95 % interval",
        "runs": "runs",
    },
)


def styles_of(lines: Sequence[str]) -> dict[str, Style]:
    """Lines without distillation are dashed, in the colour of the one line with it that is named alike; all others have colours of
    their own, and other dashes once these are used up."""
    plain = {line: ", ".join(word for word in line.split(", ") if word != "no KD") for line in lines}
    whole = [line for line in lines if plain[line] == line]
    found = {
        line: Style(_COLOURS[n % len(_COLOURS)], _DASHES[n // len(_COLOURS) % len(_DASHES)])
        for n, line in enumerate(whole)
    }
    number = len(whole)
    for line in lines:
        if line in found:
            continue
        words = set(plain[line].split(", ")) - {""}
        alike = [other for other in whole if words and words <= set(other.split(", "))]
        colour = found[alike[0]].colour if len(alike) == 1 else _COLOURS[number % len(_COLOURS)]
        number += len(alike) != 1
        found[line] = Style(colour, _DASHES[1])
    return {line: found[line] for line in lines}


def rows_of(figure: Figure, panel: Mapping[str, Sequence[Point]], anchors: Mapping[int, str]) -> list[dict[str, Any]]:
    """The points of a panel as rows: where they are, the ends of their bars, and what they say under the pointer.

    Args:
        anchors: id of a group → where the page tells of its runs.
    """
    return [
        {"line": line, "x": x, "at": anchors.get(id(group), "")} | _told(group, figure.x, x)
        for line, points in panel.items()
        for x, group in points
    ]


def panel_spec(
    x: str,
    rows: Sequence[Mapping[str, Any]],
    places: Sequence[Any],
    domain: Sequence[float],
    styles: Mapping[str, Style],
    words: Words = ACCURACY,
) -> dict[str, Any]:
    """A panel as Vega-Lite. Signals: `off`, the lines that are not shown; `bars`: range, interval or none.

    Args:
        rows: as `rows_of`; x is None for those that are drawn across. places: on the axis, in order, as `places_of`.
        domain: of the means.
    """
    is_number = all(map(_is_number, places))
    values = [dict(row) | {"x": row["x"] if is_number or row["x"] is None else text_of(row["x"])} for row in rows]
    placed, colour, dash = _x_axis(x, places, is_number), _scale("color", styles), _scale("dash", styles)
    tooltip = [{"field": name, "title": title} for name, title in words.tooltip.items()]
    low, high = ({"calculate": f"bars == 'range' ? datum.{a} : datum.{b}", "as": c} for a, b, c in _ENDS)
    layers: list[dict[str, Any]] = [
        {
            "transform": [
                {"filter": "isValid(datum.x) && bars != 'none'"},
                low,
                high,
                {"filter": "isValid(datum.low)"},
            ],
            "mark": {"type": "rule", "strokeWidth": 1.5, "opacity": 0.55, "clip": True},
            "encoding": {"x": placed, "y": _y("low", domain, words), "y2": {"field": "high"}, "color": colour},
        },
        {
            "transform": [{"filter": "isValid(datum.x)"}],
            "mark": {"type": "line", "strokeWidth": 2},
            "encoding": {"x": placed, "y": _y("mean", domain, words), "color": colour, "strokeDash": dash},
        },
        {
            "transform": [{"filter": "isValid(datum.x)"}],
            "mark": {"type": "point", "filled": True, "size": 65, "opacity": 1},
            "encoding": {"x": placed, "y": _y("mean", domain, words), "color": colour, "tooltip": tooltip},
        },
    ]
    if any(row["x"] is None for row in rows):
        across = {"y": _y("mean", domain, words), "color": colour, "strokeDash": dash, "tooltip": tooltip}
        transform = [{"filter": "!isValid(datum.x)"}]
        layers.append({"transform": transform, "mark": {"type": "rule", "strokeWidth": 2}, "encoding": across})
    return {
        "width": "container",
        "height": 300,
        "params": _PARAMS,
        "data": {"values": values},
        "transform": [{"filter": "indexof(off, datum.line) < 0"}],
        "layer": layers,
    }


def as_file(figure: Figure, panels: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The panels of a figure, by their titles, side by side, with a title, a legend and a white ground."""
    drawn: list[dict[str, Any]] = []
    for heading, spec in panels.items():
        inner = {name: value for name, value in spec.items() if name not in ("params", "width")}
        inner["layer"] = [dict(layer) for layer in spec["layer"]]
        drawn.append(inner | {"width": 380, "title": {"text": heading, "fontSize": 11}})
    legend: dict[str, Any] = {"title": None, "orient": "bottom", "columns": min(2, len(drawn)), "labelLimit": 0}
    legend |= {"symbolType": "stroke", "symbolStrokeWidth": 2, "symbolSize": 300, "symbolOpacity": 1}
    for layer in drawn[0]["layer"]:
        of_lines = {name: layer["encoding"][name] for name in ("color", "strokeDash") if name in layer["encoding"]}
        layer["encoding"] = layer["encoding"] | {name: one | {"legend": legend} for name, one in of_lines.items()}
    title = {"text": figure.title, "subtitle": f"points: means of the runs; {RANGE}", "anchor": "start"}
    return {
        "background": "white",
        "padding": 12,
        "title": title,
        "params": _PARAMS,
        "hconcat": drawn,
        "resolve": {"scale": {"color": "shared", "strokeDash": "shared"}},
        "config": {"view": {"stroke": None}, "axis": {"gridColor": "#e4e4e4", "titleFontWeight": "normal"}},
    }


_ENDS = (("lowest", "low95", "low"), ("highest", "high95", "high"))
_PARAMS: list[dict[str, Any]] = [{"name": "off", "value": []}, {"name": "bars", "value": "range"}]


def text_of(value: Any) -> str:
    """A value of an axis, for people."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _told(group: Group, x_name: str, x: Any) -> dict[str, Any]:
    """What a point says under the pointer, and the ends of its bars."""
    half = group.top1_half95
    sd = "" if group.top1_sd is None else f", sd {group.top1_sd:.2f}"
    return {
        "mean": group.top1_mean,
        "lowest": group.top1_min,
        "highest": group.top1_max,
        "low95": None if half is None else group.top1_mean - half,
        "high95": None if half is None else group.top1_mean + half,
        "where": "no place on this axis" if x is None else f"{x_name} {text_of(x)}",
        "accuracy": f"{group.top1_mean:.2f} %{sd}",
        "spread": f"{group.top1_min:.2f} to {group.top1_max:.2f} %",
        "interval": "none of one run" if half is None else f"{group.top1_mean:.2f} ± {half:.2f} %",
        "runs": f"{group.num_runs} (seed {', '.join(map(str, group.seeds))})",
    }


def places_of(figure: Figure) -> list[Any]:
    """The places on the axis in their order: numbers, then words, networks by their size."""
    found: dict[Any, float] = {}
    for lines in figure.panels.values():
        for x, group in (point for points in lines.values() for point in points):
            size = group.facts.get("teacher.num_parameters", 0) if figure.x == "teacher" else 0
            if x is not None:
                found.setdefault(x, float(x) if _is_number(x) else float(size) if isinstance(size, int) else 0.0)
    return sorted(found, key=lambda x: (not _is_number(x), found[x], str(x)))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _x_axis(name: str, places: Sequence[Any], is_number: bool) -> dict[str, Any]:
    """Numbers have a tick at each place, on a logarithmic axis where the largest is eight times the smallest or more."""
    if not is_number:
        axis: dict[str, Any] = {"labelAngle": -25 if len(places) > 3 else 0, "title": NUMBERS[name], "labelLimit": 140}
        return {"field": "x", "type": "ordinal", "sort": [text_of(place) for place in places], "axis": axis}
    ends = (
        [0.8 * places[0], 1.2 * places[0]]
        if len(places) == 1 and places[0]
        else [places[0], places[-1]]
        if places
        else [0, 1]
    )
    scale: dict[str, Any] = {"domain": ends, "nice": False, "padding": 14}
    is_wide = bool(places) and places[0] > 0 and places[-1] >= 8 * places[0]
    scale |= {"type": "log"} if is_wide else {"zero": False}  # of which a logarithmic one complains
    axis = {"title": NUMBERS[name], "grid": False, "labelOverlap": "greedy", "format": ".3~g"}
    if len(places) <= _MOST_TICKS:
        axis["values"] = list(places)
    return {"field": "x", "type": "quantitative", "scale": scale, "axis": axis}


def domain_of(values: Iterable[float]) -> list[float]:
    """From the lowest to the highest of some accuracies, and a little more, in percent."""
    low, high = min(values := list(values)), max(values)
    room = max(0.05 * (high - low), 0.25)
    return [max(0.0, low - room), min(100.0, high + room)]


def _y(field: str, domain: Sequence[float], words: Words) -> dict[str, Any]:
    scale = {"domain": list(domain), "zero": False, "nice": False}
    return {"field": field, "type": "quantitative", "title": words.y, "scale": scale}


def _scale(what: str, styles: Mapping[str, Style]) -> dict[str, Any]:
    values = [style.colour if what == "color" else style.dash for style in styles.values()]
    return {"field": "line", "type": "nominal", "legend": None, "scale": {"domain": list(styles), "range": values}}
