"""`fastkd verify`."""

from pathlib import Path
from typing import Any

import click

from fastkd.cli.common import command, progress_bar, say


@command("verify")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--write-manifest", is_flag=True, help="Write the manifest of a beton that has none, or another beton's.")
def verify(files: tuple[Path, ...], write_manifest: bool) -> tuple[dict[str, Any], str]:
    """Read each FILE whole and check all of it; exit 0 only if every one is whole.

    \b
    fastkd verify train.beton l.h5
    """
    from fastkd.report.describe import verify as check

    if write_manifest:
        from fastkd.data.beton import open_beton
        from fastkd.data.beton import write_manifest as write

        for path in files:
            manifest = write(open_beton(path), path)
            say(f"{path}.json: fingerprint {manifest['fingerprint']}")
    problems = []
    with progress_bar("verify", "samples") as progress:
        for path in files:
            problems += check(path, progress)
    names = ", ".join(str(path) for path in files)
    text = f"{names}: {len(problems)} problems\n" + "\n".join(problems) if problems else f"{names}: whole"
    return {"ok": not problems, "problems": problems}, text
