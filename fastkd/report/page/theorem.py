"""The page of theorem 3.1: its closed form and its simulation, cell by cell."""

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastkd import __version__
from fastkd.fingerprint import fingerprint
from fastkd.report.page.paper import PAPER
from fastkd.report.page.tables import rows_html
from fastkd.report.page.vega import Words, panel_spec, styles_of
from fastkd.report.page.write import figure_html, page_html
from fastkd.writing import write_marked

_WORDS = Words(
    "squared norm of the bias",
    {"line": "student", "where": "teacher", "closed": "closed form", "simulated": "simulated"},
)
_BARS = {"range": "band of the simulation", "none": "none"}


class Cell(NamedTuple):
    """Of one α, f and f_t, over all data: means of the closed form, of the same with f_t = f, and of the simulation; the band of the
    latter; and in how many of `num_data` data sets the inequality holds and the simulation is within its own band."""

    alpha: float
    fraction: float
    teacher_fraction: float
    bias: float
    bias_self: float
    simulated: float
    band: float
    holds: int
    agrees: int
    num_data: int


def cells_of(lines: Sequence[Mapping[str, Any]]) -> list[Cell]:
    """The lines of all data sets by α, f and f_t; their simulations are independent: the band of their mean is √Σ band² / n."""
    found: dict[tuple[float, float, float], list[Mapping[str, Any]]] = defaultdict(list)
    for line in lines:
        found[line["alpha"], line["fraction"], line["teacher_fraction"]].append(line)
    cells = []
    for (alpha, fraction, teacher_fraction), members in found.items():
        bias, own, simulated = (
            statistics.fmean(one[name] for one in members) for name in ("bias", "bias_self", "simulated")
        )
        band = math.hypot(*(one["band"] for one in members)) / len(members)
        holds, agrees = (sum(one[name] for one in members) for name in ("holds", "agrees"))
        of_data = (bias, own, simulated, band, holds, agrees, len(members))
        cells.append(Cell(alpha, fraction, teacher_fraction, *of_data))
    return cells


def write_theorem_page(
    lines: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], out: Path, *, job: str, command: str
) -> None:
    """Writes the page, atomically; an older one of the same job is replaced.

    Args:
        lines, settings: as `check_theorem` gives and takes them. job: the name of the suite. command: that made them.

    Raises:
        MismatchError: something else is there. MissingDependencyError: vl-convert is not installed.
    """
    cells, mark = cells_of(lines), f"fastkd theorem {fingerprint([job])}"
    note = (
        f"{PAPER}, theorem 3.1: ‖E[θ_s(α, f, f_t)] − θ*‖² ≤ ‖E[θ_s(α, f, f)] − θ*‖² for f ≤ f_t; θ_s by Eq. 4, a ridge regression on the "
        "samples of f that learns from labels and from one on the samples of f_t. Means over the data sets."
    )
    caption = (
        "Lines and points: the closed form. Bars: the simulation, ± its band of 99.9 %. A line begins at f_t = f, self-distillation. A point "
        "tells its numbers under the pointer; the names above switch lines on and off."
    )
    title = "Bias of the student over the fraction that the teacher was trained on"
    panels = _panels(cells)
    told = ", ".join(f"{name} {value}" for name, value in settings.items())
    parts = [
        figure_html(title, panels, _styles(cells), _BARS, caption),
        f"<p class=note>{escape(note)}</p>",
        _table(cells),
        f"<h2>How it was made</h2><pre>{escape(command)}</pre><p class=fine>{escape(told)}; fastkd {__version__}, numpy {np.__version__}</p>",
    ]
    write_marked(
        out, page_html(mark, "fastkd: theorem 3.1", escape(_lead(lines, cells, settings)), parts).encode(), mark
    )


def _lead(lines: Sequence[Mapping[str, Any]], cells: Sequence[Cell], settings: Mapping[str, Any]) -> str:
    holding, agreeing = (sum(line[name] for line in lines) for name in ("holds", "agrees"))
    less = [1 - line["bias"] / line["bias_self"] for line in lines if line["teacher_fraction"] > line["fraction"]]
    by = f", and where f_t > f it is less by {min(less):.1%} to {max(less):.1%}" if less else ""
    within = sum(abs(cell.simulated - cell.bias) <= cell.band for cell in cells)
    outside = sorted({line["data_seed"] for line in lines if not line["agrees"]})
    where = f"; the others are of data set {', '.join(map(str, outside))}" if outside else ""
    return (
        f"The squared norm of the bias with a teacher on more data is no larger than with one on the student’s own in {holding} of "
        f"{len(lines)} cells{by}. The mean of the simulation over the data sets, {settings['draws']:,} draws each, is within its band of "
        f"99.9 % of the closed form in {within} of {len(cells)} cells, that of single data sets, whose cells share their draws, in "
        f"{agreeing} of {len(lines)}{where}."
    )


def _name(fraction: float) -> str:
    return f"student on f {fraction:g}"


def _styles(cells: Sequence[Cell]) -> dict[str, Any]:
    return styles_of([_name(fraction) for fraction in sorted({cell.fraction for cell in cells})])


def _panels(cells: Sequence[Cell]) -> dict[str, Any]:
    """A panel for each α."""
    styles, places = _styles(cells), sorted({cell.teacher_fraction for cell in cells})
    domain = [0.0, 1.05 * max(max(cell.bias, cell.simulated + cell.band) for cell in cells)]
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for cell in cells:
        row = {"line": _name(cell.fraction), "x": cell.teacher_fraction, "mean": cell.bias, "at": ""}
        row |= {"lowest": cell.simulated - cell.band, "highest": cell.simulated + cell.band}
        row |= {"where": f"f_t {cell.teacher_fraction:g}", "closed": f"{cell.bias:.4g}"}
        rows[f"α {cell.alpha:g}"].append(row | {"simulated": f"{cell.simulated:.4g} ± {cell.band:.2g}"})
    return {
        title: panel_spec("teacher-fraction", of_panel, places, domain, styles, _WORDS)
        for title, of_panel in rows.items()
    }


def _table(cells: Sequence[Cell]) -> str:
    head = ("α", "f", "f_t", "closed form", "with f_t = f", "simulated", "band ±", "holds", "agrees")
    rows = [
        (
            *(f"{value:g}" for value in (cell.alpha, cell.fraction, cell.teacher_fraction)),
            *(f"{value:.4g}" for value in (cell.bias, cell.bias_self, cell.simulated, cell.band)),
            *(f"{value} of {cell.num_data}" for value in (cell.holds, cell.agrees)),
        )
        for cell in cells
    ]
    return f"<h2>All cells</h2>{rows_html(head, rows, numbers=tuple(range(9)))}"
