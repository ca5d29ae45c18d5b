"""Finished runs side by side: averages over seeds, a table, and accuracy over the kept fraction."""

import base64
import html
import io
import json
import os
import statistics
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fastkd.errors import FormatError, MissingDependencyError, NotFoundError, OptionError
from fastkd.fingerprint import fingerprint
from fastkd.report.axes import NUMBERS, Axes, series_of
from fastkd.report.facts import Facts, differing, facts_of, label_of, shown_names
from fastkd.report.series import Point, draw_series
from fastkd.train.checks import require_files
from fastkd.train.run_folder import read_result, read_run
from fastkd.writing import write_marked

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BARS = "points: mean of the runs; bars: from the lowest to the highest run"


class Finished(NamedTuple):
    """A finished run: what it was, its recipe, what came out of it, and all that run.json says."""

    facts: Facts
    recipe: dict[str, Any]
    result: dict[str, Any]
    head: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Runs that differ in nothing but what is drawn by seed. Accuracies in percent; spread is the largest minus the smallest.

    label: how the group is told from others of its student and fraction. differs_in: in what any groups of the report
    differ. facts: all that is recorded of its runs, see `facts_of`. top1_sd: of a sample, n - 1; None for a single run.
    """

    model: str
    num_kept: int
    fraction: float
    alpha: float
    tau: float
    epochs: int
    source: str
    """Where the logits came from: `store`, `teacher` or `labels`."""
    num_runs: int
    seeds: list[int]
    top1_mean: float
    top1_spread: float
    top1_min: float
    top1_max: float
    top1_sd: float | None
    images_per_s: float
    label: str
    differs_in: list[str]
    facts: Facts

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def collect_runs(*folders: str | Path) -> list[Group]:
    """Groups of all finished runs below some folders that measured accuracy: those that differ in seeds alone are one.

    Raises:
        NotFoundError: no such folder, or no finished run below it.
        FormatError: a run whose files are damaged.
        CorruptError, MismatchError: a finished run with files that it did not write.
    """
    runs: dict[str, list[Finished]] = defaultdict(list)
    for read in finished_runs(*folders).values():
        runs[json.dumps(read.facts, sort_keys=True)].append(read)
    every = [members[0].facts for members in runs.values()]
    names = differing(every)
    groups = [_group(members, label_of(members[0].facts, every, names), names) for members in runs.values()]
    return sorted(groups, key=lambda g: (g.model, g.fraction, g.alpha, g.source, g.label))


def finished_runs(*folders: str | Path) -> dict[Path, Finished]:
    """All finished runs below some folders that measured accuracy, in the order of their paths.

    Raises:
        NotFoundError, FormatError, CorruptError, MismatchError: as `collect_runs`.
    """
    found = {}
    for path in sorted({path for folder in folders for path in Path(folder).rglob("result.json")}):
        read = _read_finished(path.parent)
        if read is not None:
            found[path.parent] = read
    if not found:
        told = f"{folders[0]}{f' and {len(folders) - 1} more' if folders[1:] else ''}"
        raise NotFoundError(f"{told}: no finished run with a measured accuracy below it")
    return found


def _read_finished(out: Path) -> Finished | None:
    """What a finished run was, its recipe, and what came out of it; None where it is no run, or measured no accuracy."""
    head = read_run(out)
    if head is None:
        if (out / "metrics.jsonl").exists():
            raise NotFoundError(f"{out}/run.json: missing beside result.json: put it back, or remove {out}")
        return None
    result = read_result(out, head)
    if result is None or result["val_top1"] is None:
        return None
    require_files(out, result)
    try:
        facts, recipe = facts_of(head), head["params"]["recipe"]
        _require_sense(facts, recipe)
        return Finished(facts, recipe, result, head)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(
            f"{out}/run.json: damaged ({type(error).__name__}: {error}); remove {out} and train anew"
        ) from None


def _require_sense(facts: Facts, recipe: dict[str, Any]) -> None:
    """Raises KeyError or TypeError where what is averaged and drawn is not what a run can have been."""
    numbers = {name: facts[name] for name in ("num_kept", "fraction", "alpha", "epochs")}
    numbers |= {name: recipe[name] for name in ("tau", "seed")}
    for name, value in numbers.items():
        if not isinstance(value, int | float) or not abs(value) < 2**63:  # which NaN is not
            raise TypeError(f"{name} is {value!r}")
    if not isinstance(facts["model"], str) or facts["fraction"] <= 0:
        raise TypeError(f"{facts['fraction']} of the samples by {facts['model']!r}")


def _group(members: list[Finished], label: str, names: list[str]) -> Group:
    facts, results = members[0].facts, [one.result for one in members]
    top1 = [result["val_top1"] for result in results]
    return Group(
        **{name: facts[name] for name in ("model", "num_kept", "fraction", "alpha", "epochs", "source")},
        tau=members[0].recipe["tau"],
        num_runs=len(members),
        seeds=sorted(one.recipe["seed"] for one in members),
        top1_mean=statistics.fmean(top1),
        top1_spread=max(top1) - min(top1),
        top1_min=min(top1),
        top1_max=max(top1),
        top1_sd=statistics.stdev(top1) if len(top1) > 1 else None,
        images_per_s=statistics.median(result["images_per_s"] for result in results),
        label=label,
        differs_in=shown_names(names),
        facts=facts,
    )


_COLUMNS = (
    "student",
    "kept",
    "fraction",
    "training",
    "epochs",
    "runs",
    "top-1 %",
    "lowest",
    "highest",
    "sd",
    "images/s",
)


def _cells(group: Group) -> tuple[str, ...]:
    return (
        group.model,
        f"{group.num_kept:,}",
        f"{group.fraction:.3g}",
        group.label,
        str(group.epochs),
        str(group.num_runs),
        f"{group.top1_mean:.2f}",
        f"{group.top1_min:.2f}",
        f"{group.top1_max:.2f}",
        "-" if group.top1_sd is None else f"{group.top1_sd:.2f}",
        f"{group.images_per_s:,.0f}",
    )


def _caption(groups: list[Group]) -> str:
    """In what the groups differ, and what their numbers are."""
    names = groups[0].differs_in
    differs = f"differs in: {', '.join(names)}" if names else "one kind of run"
    return f"{differs}; runs that differ in seeds alone are averaged; sd: of a sample, n - 1"


def format_table(groups: list[Group]) -> str:
    """The groups as a plain text table."""
    rows = [_COLUMNS, *map(_cells, groups)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], "", _caption(groups)])


def write_page(
    groups: list[Group],
    out: str | Path,
    folder: str | Path,
    *,
    axes: Axes | None = None,
    job: str | None = None,
    force: bool = False,
) -> None:
    """Writes the table and the plot: an .html page that stands alone, or the plot alone as .png.

    Args:
        folder: where the runs are; a report of the same folder is replaced. axes: of the figure; None for the kept fraction
            and a line for each label. job: what is replaced instead, wherever it is: a report of this name. force: replace
            whatever file is there.

    Raises:
        OptionError: another suffix; axes as `series_of`.
        MismatchError: a file that is no report of this folder.
        MissingDependencyError: matplotlib is not installed.
    """
    out = Path(out)
    if out.suffix not in (".html", ".png"):
        raise OptionError(f"--out {out}: expected a name that ends in .html or .png")
    mark = f"fastkd report {fingerprint([job or os.path.realpath(folder)])}"
    plot = _plot(groups, mark, axes)
    if out.suffix == ".html":
        table = "".join(
            f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in row)}</tr>"
            for tag, row in [("th", _COLUMNS), *(("td", _cells(group)) for group in groups)]
        )
        style = "body{font:15px sans-serif;margin:2em}td,th{padding:.3em .8em;text-align:left;border-bottom:1px solid #ddd}img{max-width:100%}"
        image = base64.b64encode(plot).decode()
        page = f"<!doctype html><meta charset=utf-8><meta name=generator content='{mark}'><title>fastkd report</title><style>{style}</style><h1>fastkd report</h1>"
        page += f"<table>{table}</table><p>{html.escape(_caption(groups))}</p>"
        page += f"<p><img alt='top-1 over {NUMBERS[axes.x] if axes else 'kept fraction'}' src='data:image/png;base64,{image}'></p><p>{BARS}</p>"
        plot = page.encode()
    write_marked(out, plot, mark, force=force)


def _plot(groups: list[Group], mark: str, axes: Axes | None) -> bytes:
    """The figure as PNG, marked by what made it."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ImportError:
        raise MissingDependencyError(
            "the plot needs matplotlib, which is not installed: pip install 'fastkd[report]'"
        ) from None
    buffer = io.BytesIO()
    figure = draw_figure(groups) if axes is None else draw_series(points_of(groups, axes), NUMBERS[axes.x], BARS)
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": mark})
    return buffer.getvalue()


def points_of(groups: list[Group], axes: Axes) -> dict[str, dict[str, list[Point]]]:
    """Facet → line → points of a figure, see `series_of`."""

    def point(x: Any, group: Group) -> Point:
        return Point(x, group.top1_mean, group.top1_min, group.top1_max)

    return {
        facet: {line: [point(x, groups[number]) for x, number in points] for line, points in lines.items()}
        for facet, lines in series_of([group.facts for group in groups], axes).items()
    }


def draw_figure(groups: list[Group]) -> "Figure":
    """Top-1 over the kept fraction, one line a student and way of training, bars from the lowest to the highest run."""
    from matplotlib.figure import Figure

    lines = defaultdict(list)
    for group in groups:
        epochs = f", {group.epochs} epochs" if "epochs" in group.differs_in else ""
        lines[f"{group.model}{epochs}, {group.label}"].append(group)
    width = max(8.0, 1 + 0.062 * max(map(len, lines)))  # inches, so that the longest label fits
    figure = Figure(figsize=(width, 4.4 + 0.2 * len(lines)), layout="constrained")
    axes = figure.add_subplot()
    for label, members in lines.items():
        x, y = [g.fraction for g in members], [g.top1_mean for g in members]
        reach = [[g.top1_mean - g.top1_min for g in members], [g.top1_max - g.top1_mean for g in members]]
        axes.errorbar(x, y, yerr=reach, marker="o", capsize=4, label=label)
    axes.set(xlabel="kept fraction of the training data", ylabel="top-1 on the validation data, %", xscale="log")
    axes.set_title(BARS, fontsize=8, loc="left")
    ticks = sorted({group.fraction for group in groups})
    axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    for text in figure.legend(fontsize=8, loc="outside lower left").get_texts():
        text.set_parse_math(False)  # a name with $ in it is a name
    return figure
