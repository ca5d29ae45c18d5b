"""Finished runs side by side: averages over seeds, a table, and accuracy over the kept fraction."""

import base64
import html
import io
import json
import statistics
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastkd.errors import FormatError, MissingDependencyError, NotFoundError, OptionError
from fastkd.writing import atomic_path


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Runs that differ in nothing but their seed. Accuracies in percent; spread is the largest minus the smallest."""

    model: str
    num_kept: int
    fraction: float
    alpha: float
    tau: float
    epochs: int
    source: str
    """Where the logits came from: `store`, `teacher` or `labels`."""
    num_runs: int
    top1_mean: float
    top1_spread: float
    images_per_s: float

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @property
    def label(self) -> str:
        """How the group is told from others of its fraction."""
        return "no KD" if self.alpha == 0 else f"KD α={self.alpha:g} τ={self.tau:g} ({self.source})"


def collect_runs(folder: str | Path) -> list[Group]:
    """Groups of all finished runs below a folder that measured accuracy, by model, fraction and alpha.

    Raises:
        NotFoundError: no such folder, or no finished run below it.
        FormatError: a run whose files are damaged.
    """
    folder = Path(folder)
    runs: dict[tuple, list[dict[str, Any]]] = defaultdict(list)
    for path in sorted(folder.rglob("run.json")):
        result_path = path.with_name("result.json")
        if not result_path.exists():
            continue
        try:
            head, result = (json.loads(p.read_text(encoding="utf-8")) for p in (path, result_path))
            inputs, params = head["inputs"], head["params"]
            recipe = dict(params["recipe"])
            recipe.pop("seed")
            if result["val_top1"] is not None:
                drawn = ("mask", "logits")  # by seed, like the order
                data = {role: value for role, value in inputs.items() if role not in drawn}
                same = json.dumps([data, {**params, "recipe": recipe}], sort_keys=True)
                key = (same, params["num_kept"], params["fraction"], _source(recipe, inputs))
                runs[key].append(recipe | result)
        except (ValueError, KeyError, TypeError) as error:
            raise FormatError(f"{path.parent}: damaged run ({type(error).__name__}: {error})") from None
    if not runs:
        raise NotFoundError(f"{folder}: no finished run with a measured accuracy below it")
    groups = [_group(key, members) for key, members in runs.items()]
    return sorted(groups, key=lambda g: (g.model, g.fraction, g.alpha, g.source))


def _source(recipe: dict[str, Any], inputs: dict[str, str]) -> str:
    if recipe["alpha"] == 0:
        return "labels"
    return "store" if "logits" in inputs else "teacher"


def _group(key: tuple, members: list[dict[str, Any]]) -> Group:
    top1 = [run["val_top1"] for run in members]
    _, num_kept, fraction, source = key
    return Group(
        **{name: members[0][name] for name in ("model", "alpha", "tau", "epochs")},
        num_kept=num_kept,
        fraction=fraction,
        source=source,
        num_runs=len(members),
        top1_mean=statistics.fmean(top1),
        top1_spread=max(top1) - min(top1),
        images_per_s=statistics.median(run["images_per_s"] for run in members),
    )


_COLUMNS = ("student", "kept", "fraction", "training", "epochs", "runs", "top-1 %", "spread", "images/s")


def _cells(group: Group) -> tuple[str, ...]:
    return (
        group.model,
        f"{group.num_kept:,}",
        f"{group.fraction:.3g}",
        group.label,
        str(group.epochs),
        str(group.num_runs),
        f"{group.top1_mean:.2f}",
        f"{group.top1_spread:.2f}",
        f"{group.images_per_s:,.0f}",
    )


def format_table(groups: list[Group]) -> str:
    """The groups as a plain text table."""
    rows = [_COLUMNS, *map(_cells, groups)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def write_page(groups: list[Group], out: str | Path) -> None:
    """Writes the table and the plot: an .html page that stands alone, or the plot alone as .png.

    Raises:
        OptionError: another suffix.
        MissingDependencyError: matplotlib is not installed.
    """
    out = Path(out)
    if out.suffix not in (".html", ".png"):
        raise OptionError(f"--out {out}: expected a name that ends in .html or .png")
    plot = _plot(groups)
    if out.suffix == ".html":
        table = "".join(
            f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in row)}</tr>"
            for tag, row in [("th", _COLUMNS), *(("td", _cells(group)) for group in groups)]
        )
        style = (
            "body{font:15px sans-serif;margin:2em}td,th{padding:.3em .8em;text-align:left;border-bottom:1px solid #ddd}"
        )
        image = base64.b64encode(plot).decode()
        page = f"<!doctype html><meta charset=utf-8><title>fastkd report</title><style>{style}</style><h1>fastkd report</h1>"
        page += f"<table>{table}</table><p><img alt='top-1 over kept fraction' src='data:image/png;base64,{image}'></p>"
        plot = page.encode()
    with atomic_path(out) as partial:
        partial.write_bytes(plot)


def _plot(groups: list[Group]) -> bytes:
    """Top-1 over the kept fraction, one line a model and way of training, bars from the lowest to the highest seed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingDependencyError(
            "the plot needs matplotlib, which is not installed: pip install 'fastkd[report]'"
        ) from None
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    lines = defaultdict(list)
    for group in groups:
        lines[f"{group.model}, {group.label}"].append(group)
    for label, members in lines.items():
        x, y = [g.fraction for g in members], [g.top1_mean for g in members]
        axes.errorbar(x, y, yerr=[g.top1_spread / 2 for g in members], marker="o", capsize=4, label=label)
    axes.set(xlabel="kept fraction of the training data", ylabel="top-1 on the validation data, %", xscale="log")
    ticks = sorted({group.fraction for group in groups})
    axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
