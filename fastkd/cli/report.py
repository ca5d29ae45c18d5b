"""`fastkd report`."""

from pathlib import Path
from typing import Any

import click

from fastkd.cli.command import Output, command


@command("report")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--out", type=Output(), required=True, help="Page (.html) or plot (.png) to write.")
def report(folder: Path, out: Path, force: bool) -> tuple[dict[str, Any], str]:
    """Compare the finished runs below FOLDER: a table, and accuracy over the kept fraction.

    Runs that differ in nothing but seeds are averaged; whatever else differs is in their labels.

    \b
    fastkd report runs/ --out report.html
    """
    from fastkd.report.compare import collect_runs, format_table, write_page

    groups = collect_runs(folder)
    write_page(groups, out, folder, force=force)
    rows = [group.as_dict() for group in groups]
    return {"kind": "report", "path": str(out), "groups": rows}, format_table(groups)
