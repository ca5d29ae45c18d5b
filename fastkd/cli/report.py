"""`fastkd report`."""

from pathlib import Path
from typing import Any

import click

from fastkd.cli.command import Output, command

_X = "fraction alpha tau teacher teacher-fraction num-seeds epochs steps"
_MORE = "model method level kd source codec"


@command("report")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--x", metavar="NAME", help=f"What the figure is over, of: {_X}.  [default: fraction]")
@click.option(
    "--lines", metavar="NAME,…", help=f"What tells lines apart, of these and: {_MORE}.  [default: all that differs]"
)
@click.option("--facet", metavar="NAME", help="A figure for each of its values, side by side; names as of --lines.")
@click.option("--csv", type=Output(), help="Table of all runs to write, a line a run.")
@click.option("--out", type=Output(), required=True, help="Page (.html) or plot (.png) to write.")
def report(
    folder: Path, x: str | None, lines: str | None, facet: str | None, csv: Path | None, out: Path, force: bool
) -> tuple[dict[str, Any], str]:
    """Compare the finished runs below FOLDER: a table, and accuracy over the kept fraction.

    Runs that differ in nothing but seeds are averaged; whatever else differs is in their labels.

    \b
    fastkd report runs/ --out report.html
    fastkd report runs/ --x alpha --lines fraction --csv runs.csv --out report.html
    """
    from fastkd.report.axes import Axes
    from fastkd.report.cells import write_csv
    from fastkd.report.compare import collect_runs, finished_runs, format_table, write_page

    groups = collect_runs(folder)
    chosen = tuple(name.strip() for name in lines.split(",") if name.strip()) if lines else ()
    axes = Axes(x or "fraction", chosen, facet) if x or lines or facet else None
    write_page(groups, out, folder, axes=axes, force=force)
    if csv is not None:
        write_csv(finished_runs(folder), csv, folder, force=force)
    rows = [group.as_dict() for group in groups]
    result = {"kind": "report", "path": str(out), "groups": rows} | ({} if csv is None else {"csv": str(csv)})
    return result, format_table(groups)
