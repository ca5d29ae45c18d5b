"""Finished runs as a table, a line a run: what each was, what came out of it, and how long it took."""

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastkd.report.compare import Finished
from fastkd.writing import write_marked

FIRST = ("run", "model", "source", "mask.method", "mask.level", "fraction", "num_kept", "kd", "alpha", "tau")
DRAWN = ("seed", "mask.seed", "teacher.fingerprint", "teacher.val_top1")
RESULTS = ("val_top1", "val_top5", "fingerprint")
TIMES = ("images_per_s", "data_wait_percent")
"""Columns of a table that no two runs of one command share, the last ones of it."""


def table_of(runs: Mapping[Path, Finished], folder: Path) -> list[dict[str, Any]]:
    """A line a run, in the order of their paths: the columns FIRST, all other facts by name, DRAWN, RESULTS and TIMES.

    Args:
        folder: what the paths are told from.
    """
    facts = sorted({name for one in runs.values() for name in one.facts} - {*FIRST, *DRAWN})
    lines = []
    for path, one in runs.items():
        about = one.head.get("about") or {}
        mask, teacher = about.get("mask") or {}, about.get("teacher") or {}
        known = one.facts | {"run": path.relative_to(folder).as_posix()}
        known |= {"seed": one.recipe["seed"], "mask.seed": mask.get("seed")}
        if "teacher.training" in one.facts:
            known |= {f"teacher.{name}": teacher.get(name) for name in ("fingerprint", "val_top1")}
        line = {name: known.get(name) for name in (*FIRST, *facts, *DRAWN)}
        lines.append(line | {name: one.result.get(name) for name in (*RESULTS, *TIMES)})
    return lines


def csv_text(lines: list[dict[str, Any]]) -> str:
    """A table as CSV (RFC 4180, lines end in \\n): numbers as Python writes them, lists as JSON, nothing for what is not known."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    for line in lines:
        plain = {name: json.dumps(value) if isinstance(value, list | bool) else value for name, value in line.items()}
        writer.writerow(plain)
    return file.getvalue()


def write_csv(runs: Mapping[Path, Finished], out: Path, folder: Path, *, force: bool = False) -> None:
    """Writes the table of some runs, atomically; an older one is replaced. force: replace whatever file is there.

    Raises:
        MismatchError: something else is there.
    """
    write_marked(out, csv_text(table_of(runs, folder)).encode(), f"run,{','.join(FIRST[1:])},", force=force)
