"""`fastkd report`."""

from pathlib import Path
from typing import Any

import click

from fastkd.cli.command import Output, command

_X = "fraction alpha tau teacher teacher-fraction teacher-epoch num-seeds epochs steps"
_MORE = "model method level kd source codec"


@command("report")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--x", metavar="NAME", help=f"What the figure is over, of: {_X}.  [default: fraction]")
@click.option(
    "--lines", metavar="NAME,…", help=f"What tells lines apart, of these and: {_MORE}.  [default: all that differs]"
)
@click.option("--facet", metavar="NAME", help="A figure for each of its values, side by side; names as of --lines.")
@click.option("--csv", type=Output(), help="Table of all runs to write, a line a run.")
@click.option("--figures", type=Output(is_folder=True), help="Folder for each figure as SVG and PNG.")
@click.option("--out", type=Output(), required=True, help="Page (.html), or its first figure (.svg, .png).")
def report(
    folder: Path,
    x: str | None,
    lines: str | None,
    facet: str | None,
    csv: Path | None,
    figures: Path | None,
    out: Path,
    force: bool,
) -> tuple[dict[str, Any], str]:
    """Compare the finished runs below FOLDER: what they show, in words, figures and tables.

    Runs that differ in nothing but seeds are averaged; whatever else differs is in their labels. Without --x there is a figure
    over each of its names in which runs differ.

    \b
    fastkd report runs/ --out report.html
    fastkd report runs/ --x alpha --lines fraction --csv runs.csv --figures figures/ --out report.html
    """
    from fastkd.report.axes import Axes
    from fastkd.report.cells import write_csv
    from fastkd.report.compare import collect_runs, finished_runs, format_table
    from fastkd.report.page.write import write_figures, write_page

    groups = collect_runs(folder)
    chosen = tuple(name.strip() for name in lines.split(",") if name.strip()) if lines else ()
    axes = Axes(x or "fraction", chosen, facet) if x or lines or facet else None
    write_page(groups, out, folder, axes=axes, force=force)
    result: dict[str, Any] = {"kind": "report", "path": str(out), "groups": [group.as_dict() for group in groups]}
    if csv is not None:
        write_csv(finished_runs(folder), csv, folder, force=force)
        result["csv"] = str(csv)
    if figures is not None:
        result["figures"] = [str(path) for path in write_figures(groups, figures, folder, axes=axes, force=force)]
    return result, format_table(groups)
