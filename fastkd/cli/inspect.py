"""`fastkd inspect`."""

import json
from pathlib import Path
from typing import Any

import click

from fastkd.cli.common import command


@command("inspect", first_rank_alone=True)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
def inspect(files: tuple[Path, ...]) -> tuple[dict[str, Any], str]:
    """Say what each FILE is: a beton, a mask, a logit store, a checkpoint or the folder of a run.

    \b
    fastkd inspect train.beton m.h5 l.h5 run/
    """
    from fastkd.report.describe import describe

    found = [describe(path) for path in files]
    text = "\n\n".join("\n".join(f"{name:16} {_plain(value)}" for name, value in one.items()) for one in found)
    return found[0] if len(found) == 1 else {"files": found}, text


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
