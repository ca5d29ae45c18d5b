"""Finished runs as one HTML page that stands alone, and its figures as files."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from fastkd.errors import OptionError
from fastkd.fingerprint import fingerprint
from fastkd.report.axes import Axes
from fastkd.report.compare import Group
from fastkd.report.page import paper
from fastkd.report.page.converter import draw_png, draw_svg, packed_code
from fastkd.report.page.findings import findings_of
from fastkd.report.page.tables import beside_the_paper, costs_in_words, runs_of, table_of
from fastkd.report.page.vega import (
    Style,
    as_file,
    domain_of,
    panel_spec,
    places_of,
    rows_of,
    styles_of,
    text_of,
)
from fastkd.report.series import Figure, figure_of, figures_of, shared_by
from fastkd.writing import write_marked

_BARS = {"range": "lowest to highest run", "interval": "95 % interval of the mean", "none": "none"}
_CAPTION = (
    "Points: means of runs that differ in seeds alone. Interval: of Student’s t; bars that leave the figure are cut, and a single run "
    "has none. A point tells its numbers under the pointer, and leads to its runs; the names above switch lines on and off."
)
_HERE, _PAPER = "These runs", "The paper’s own numbers"


class Drawn(NamedTuple):
    """A figure, how its lines look, and its panels by their titles as Vega-Lite."""

    figure: Figure
    styles: dict[str, Style]
    panels: dict[str, dict[str, Any]]


def write_page(
    groups: Sequence[Group],
    out: str | Path,
    folder: str | Path,
    *,
    axes: Axes | None = None,
    job: str | None = None,
    force: bool = False,
) -> None:
    """Writes the page, or its first figure alone.

    Args:
        out: .html, .svg or .png. folder: where the runs are, which paths are told from; a report of the same folder is
            replaced. axes: of the figure; None for all that `figures_of` draws. job: what is replaced instead, wherever it
            is: a report of this name. force: replace whatever file is there.

    Raises:
        OptionError: another suffix; axes as `series_of`.
        MismatchError: a file that is no report of this folder.
        MissingDependencyError: vl-convert is not installed.
    """
    out, mark = Path(out), _mark(folder, job)
    if out.suffix not in (".html", ".svg", ".png"):
        raise OptionError(f"--out {out}: expected a name that ends in .html, .svg or .png")
    drawn, left_out = _drawn(groups, axes)
    if out.suffix == ".html":
        content = _page(groups, drawn, left_out, Path(folder), mark).encode()
    else:
        content = _file(drawn[0], out.suffix, mark)
    write_marked(out, content, mark, force=force)


def write_figures(
    groups: Sequence[Group],
    out: str | Path,
    folder: str | Path,
    *,
    axes: Axes | None = None,
    job: str | None = None,
    force: bool = False,
) -> list[Path]:
    """Writes each figure of the page as SVG and PNG into a folder, which is made; they are named by their axes.

    Raises:
        As `write_page`.
    """
    out, mark = Path(out), _mark(folder, job)
    contents = {
        out / f"over-{one.figure.x}{suffix}": _file(one, suffix, mark)
        for one in _drawn(groups, axes)[0]
        for suffix in (".svg", ".png")
    }
    out.mkdir(parents=True, exist_ok=True)
    for path, content in contents.items():
        write_marked(path, content, mark, force=force)
    return list(contents)


def _mark(folder: str | Path, job: str | None) -> str:
    return f"fastkd report {fingerprint([job or os.path.realpath(folder)])}"


def _drawn(groups: Sequence[Group], axes: Axes | None) -> tuple[list[Drawn], list[str]]:
    """The figures of a report, and lines that say which could not be drawn."""
    figures, left_out = figures_of(groups) if axes is None else ([figure_of(groups, axes)], [])
    numbers = {id(group): f"runs-{n}" for n, group in enumerate(groups, 1)}
    return [_draw(figure, numbers) for figure in figures], left_out


def _draw(figure: Figure, anchors: Mapping[int, str]) -> Drawn:
    """A figure's panels, and beside them what the paper's text gives of its lines."""
    styles, places = styles_of(figure.lines), places_of(figure)
    rows = {title: rows_of(figure, panel, anchors) for title, panel in figure.panels.items()}
    ends = [row[end] for of_panel in rows.values() for row in of_panel for end in ("lowest", "highest")]
    panels = {
        title: panel_spec(figure.x, of_panel, places, domain_of(ends), styles) for title, of_panel in rows.items()
    }
    published = list(_published(figure)) if figure.x == "fraction" else []
    if len({row["line"] for row in published}) > 1:  # of one line, the table below says as much
        panels = {title or _HERE: panel for title, panel in panels.items()}
        at = sorted({*places, *(row["x"] for row in published)})
        domain = domain_of(row["mean"] for row in published)
        panels[f"{_PAPER} ({paper.OF_POINTS})"] = panel_spec(figure.x, published, at, domain, styles)
    return Drawn(figure, styles, panels)


def _published(figure: Figure) -> Iterator[dict[str, Any]]:
    """The paper's points of a figure's lines, as rows."""
    seen = set()
    for line in figure.lines:
        points = paper.points_of(shared_by(figure, line))
        if points and (key := tuple(points.items())) not in seen:
            seen.add(key)
            for x, top1 in points.items():
                told = {"where": f"fraction {text_of(x)}", "accuracy": f"{top1:.2f} %", "runs": "the paper's"}
                yield {"line": line, "x": x, "mean": top1, "lowest": None, "low95": None, "at": "paper"} | told


def _file(drawn: Drawn, suffix: str, mark: str) -> bytes:
    spec = as_file(drawn.figure, drawn.panels)
    return draw_svg(spec, mark).encode() if suffix == ".svg" else draw_png(spec, mark)


def _page(groups: Sequence[Group], drawn: Sequence[Drawn], left_out: Sequence[str], folder: Path, mark: str) -> str:
    lead, *findings = map(escape, findings_of(groups))
    parts = [
        f"<ul>{''.join(f'<li>{line}</li>' for line in findings)}</ul>" if findings else "",
        *(figure_html(one.figure.title, one.panels, one.styles, _BARS, _CAPTION) for one in drawn),
        *(f"<p class=note>{escape(line)}</p>" for line in left_out),
        beside_the_paper(groups),
        table_of(groups),
        costs_in_words(groups),
        runs_of(groups, folder),
    ]
    return page_html(mark, "fastkd report", lead, parts)


def page_html(mark: str, title: str, lead: str, parts: Sequence[str]) -> str:
    """A page that stands alone.

    Args:
        mark: what tells whose it is. title: plain words. lead, parts: HTML; empty parts are left out.
    """
    read = resources.files("fastkd.report.page")
    style, code = (read.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    whole = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<meta name=generator content='{mark}'><link rel=icon href='data:,'><title>{title}</title><style>{style}</style>",
        f"<h1>{title}</h1><p class=lead>{lead}</p>",
        *parts,
        f"<script type='application/gzip' id=vega>{packed_code()}</script><script>{code}</script></html>",
    ]
    return "\n".join(part for part in whole if part) + "\n"


def figure_html(
    title: str, panels: Mapping[str, Any], styles: Mapping[str, Style], bars: Mapping[str, str], caption: str
) -> str:
    """A figure of the page: its panels, drawn by page.js, and buttons for its lines and bars.

    Args:
        panels: Vega-Lite by titles. bars: signal → words, the first of them shown at the start. caption: HTML.
    """
    drawn = "".join(
        f"<div class=panel>{f'<h3>{escape(name)}</h3>' if name else ''}<div class=chart></div></div>" for name in panels
    )
    legend = "".join(_button(line, style) for line, style in styles.items())
    kinds = "".join(
        f"<button type=button data-bars={kind} aria-pressed={'true' if kind == 'range' else 'false'}>{words}</button>"
        for kind, words in bars.items()
    )
    return (
        f"<figure><h2>{escape(title)}</h2><div class=panels>{drawn}</div>"
        f"<div class=legend role=group aria-label=Lines>{legend}</div>"
        f"<div class=bars role=group aria-label=Bars><span class=note>Bars:</span>{kinds}</div>"
        f"<figcaption>{caption}</figcaption><script type='application/json'>{_json(list(panels.values()))}</script></figure>"
    )


def _button(line: str, style: Style) -> str:
    dash = ",".join(map(str, style.dash))
    stroke = f"<svg width=26 height=8 aria-hidden=true><path d='M0 4H26' stroke='{style.colour}' stroke-width=2.5 stroke-dasharray='{dash}'/></svg>"
    return f'<button type=button aria-pressed=true data-line="{escape(line)}">{stroke}{escape(line)}</button>'


def _json(value: Any) -> str:
    """JSON that can stand in a script element whatever words are in it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
