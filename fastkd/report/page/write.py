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
from fastkd.report.compare import Group, caption_of
from fastkd.report.page import paper
from fastkd.report.page.costs import costs_of
from fastkd.report.page.findings import findings_of
from fastkd.report.page.vega import (
    Style,
    as_file,
    domain_of,
    draw_png,
    draw_svg,
    packed_code,
    panel_spec,
    places_of,
    rows_of,
    styles_of,
    text_of,
)
from fastkd.report.series import Figure, figure_of, figures_of, shared_by
from fastkd.writing import write_marked

BARS = {"range": "lowest to highest run", "interval": "95 % interval of the mean", "none": "none"}
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
    if published:
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
    read = resources.files("fastkd.report.page")
    style, code = (read.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<meta name=generator content='{mark}'><link rel=icon href='data:,'><title>fastkd report</title><style>{style}</style>",
        f"<h1>fastkd report</h1><p class=lead>{lead}</p>",
        f"<ul>{''.join(f'<li>{line}</li>' for line in findings)}</ul>" if findings else "",
        *map(_figure, drawn),
        *(f"<p class=note>{escape(line)}</p>" for line in left_out),
        _beside_the_paper(groups),
        _table(groups),
        _costs(groups),
        _runs(groups, folder),
        f"<script type='application/gzip' id=vega>{packed_code()}</script><script>{code}</script></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _figure(drawn: Drawn) -> str:
    """A figure of the page: its panels, drawn by page.js, and buttons for its lines and bars."""
    panels = "".join(
        f"<div class=panel>{f'<h3>{escape(title)}</h3>' if title else ''}<div class=chart></div></div>"
        for title in drawn.panels
    )
    legend = "".join(_button(line, style) for line, style in drawn.styles.items())
    bars = "".join(
        f"<button type=button data-bars={kind} aria-pressed={'true' if kind == 'range' else 'false'}>{words}</button>"
        for kind, words in BARS.items()
    )
    return (
        f"<figure><h2>{escape(drawn.figure.title)}</h2><div class=panels>{panels}</div>"
        f"<div class=legend role=group aria-label=Lines>{legend}</div>"
        f"<div class=bars role=group aria-label=Bars><span class=note>Bars:</span>{bars}</div>"
        "<figcaption>Points: means of runs that differ in seeds alone. Interval: of Student’s t; bars that leave the figure are cut, "
        "and a single run has none. A point tells its numbers under the pointer, and leads to its runs; the names above switch lines on "
        f"and off.</figcaption><script type='application/json'>{_json(list(drawn.panels.values()))}</script></figure>"
    )


def _button(line: str, style: Style) -> str:
    dash = ",".join(map(str, style.dash))
    stroke = f"<svg width=26 height=8 aria-hidden=true><path d='M0 4H26' stroke='{style.colour}' stroke-width=2.5 stroke-dasharray='{dash}'/></svg>"
    return f'<button type=button aria-pressed=true data-line="{escape(line)}">{stroke}{escape(line)}</button>'


def _json(value: Any) -> str:
    """JSON that can stand in a script element whatever words are in it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _beside_the_paper(groups: Sequence[Group]) -> str:
    told = paper.claims_of(groups)
    teachers = {
        group.facts["teacher.model"]: group.facts.get("teacher.val_top1")
        for group in groups
        if group.facts.get("teacher.model") in paper.TEACHERS
    }
    if not told and len(teachers) < 2:
        return ""
    rows = [
        (one.claim.text, one.claim.data, f"{one.claim.points:+.2f}", str(one.here), one.verdict, one.claim.source)
        for one in told
    ]
    if len(teachers) > 1:
        for name, top1 in teachers.items():
            here = f"{top1:.2f} %" if isinstance(top1, float) else "not recorded"
            rows.append(
                (f"top-1 of the teacher {name}", "CIFAR-100", f"{paper.TEACHERS[name]} %", here, "", "section 4.4")
            )
    head = ("what", "the paper’s data", "the paper", "here", "", "where")
    note = (
        f"{paper.PAPER}. Differences are in points of top-1, ± one standard error; levels on other data are not to be compared, "
        "directions are. The paper’s are of ResNet-32 and 240 epochs."
    )
    return f"<h2 id=paper>Beside the paper</h2>{_rows(head, rows, numbers=(2, 3), words=(0,))}<p class=note>{note}</p>"


def _table(groups: Sequence[Group]) -> str:
    head = (
        "student",
        "kept",
        "fraction",
        "training",
        "epochs",
        "runs",
        "top-1 %",
        "sd",
        "95 % ±",
        "lowest",
        "highest",
        "images/s",
    )
    rows = []
    for group in groups:
        spread = ("–" if value is None else f"{value:.2f}" for value in (group.top1_sd, group.top1_half95))
        found = [group.model, f"{group.num_kept:,}", f"{group.fraction:.3g}", group.label, group.epochs, group.num_runs]
        found += [
            f"{group.top1_mean:.2f}",
            *spread,
            f"{group.top1_min:.2f}",
            f"{group.top1_max:.2f}",
            f"{group.images_per_s:,.0f}",
        ]
        rows.append(found)
    numbers = (1, 2, 4, 5, 6, 7, 8, 9, 10, 11)
    return f"<h2>All kinds of runs</h2>{_rows(head, rows, numbers=numbers, words=(3,))}<p class=note>{escape(caption_of(list(groups)))}</p>"


def _costs(groups: Sequence[Group]) -> str:
    costs = costs_of(groups)
    num_runs = sum(group.num_runs for group in groups)
    lines = [f"Training: {_time(costs.seconds)} for {num_runs} runs by their rates, without validation."]
    if costs.live_forwards:
        saved = costs.live_forwards - costs.taken_forwards
        stores = f"{costs.num_stores} store{'s' * (costs.num_stores != 1)}"
        size = "" if costs.store_bytes is None else f" ({_size(costs.store_bytes)} of logits)"
        lines.append(
            f"Teachers: {costs.taken_forwards:,} forward passes of a sample, for the rows of {stores}{size} that these runs read and for "
            f"live teachers; {costs.live_forwards:,} had every teacher been live: {saved:,} saved ({100 * saved / costs.live_forwards:.0f} %)."
        )
    return f"<h2>Costs</h2><ul>{''.join(f'<li>{line}</li>' for line in lines)}</ul>"


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def _runs(groups: Sequence[Group], folder: Path) -> str:
    """For each point its runs: what came out, the command, fingerprints and versions."""
    parts = ["<h2>How each point was made</h2>"]
    for number, group in enumerate(groups, 1):
        runs = "".join(_run(run, folder) for run in group.runs)
        title = f"{group.model}, f {group.fraction:.3g}, {group.label}: {group.top1_mean:.2f} %, {group.num_runs} run{'s' * (group.num_runs > 1)}"
        parts.append(f"<details class=runs id=runs-{number}><summary>{escape(title)}</summary>{runs}</details>")
    return "".join(parts)


def _run(run: Mapping[str, Any], folder: Path) -> str:
    path = Path(run["path"])
    name = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
    seeds = f"seed {run['seed']}" + ("" if run["mask_seed"] is None else f", of the mask {run['mask_seed']}")
    top5 = "" if run["val_top5"] is None else f", top-5 {run['val_top5']:.2f} %"
    command = run["command"] or "the command was not recorded"
    prints = ", ".join(f"{role} {digest}" for role, digest in run["fingerprints"].items() if digest)
    made = ", ".join(f"{what} {value}" for what, value in run["made"].items())
    return (
        f"<p><b>{escape(name)}</b>: {escape(seeds)}; top-1 {run['val_top1']:.2f} %{top5}</p><pre>{escape(command)}</pre>"
        f"<p class=fine>{escape(made)}<br><code>{escape(prints)}</code></p>"
    )


def _rows(
    head: Sequence[str], rows: Sequence[Sequence[Any]], numbers: Sequence[int] = (), words: Sequence[int] = ()
) -> str:
    """A table that scrolls by itself where the page is narrow."""

    def row(tag: str, cells: Sequence[Any]) -> str:
        kinds = [" class=number" if i in numbers else " class=words" if i in words else "" for i in range(len(cells))]
        return f"<tr>{''.join(f'<{tag}{kind}>{escape(str(cell))}</{tag}>' for kind, cell in zip(kinds, cells, strict=True))}</tr>"

    return f"<div class=scroll><table>{row('th', head)}{''.join(row('td', cells) for cells in rows)}</table></div>"
