"""What `tools/quickstart` computes, from nothing to its table and page, and what distillation gains there.

Claims: five minutes of two CPUs that do nothing else; on each of three parts of Fashion-MNIST the mean gain of three seeds is a
point at least, and more than the accuracies of either kind spread. Betons and teacher, which one CPU makes alone, come first, with one
short run; then the rest, on all CPUs. CPU time is counted, so that other work on the machine matters little: two idle CPUs
take that of the first part and half of that of the second. The table of all runs is written beside the result.

    python -m benchmarks.sweep.quickstart
"""

import argparse
import csv
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import measure

SUITE = measure.ROOT / "tools" / "quickstart.toml"
FIRST = ("seed=[0]", "prune.keep=[0.003]", "train.alpha=[0.9]", "train.epochs=1")
"""What the first part has of the suite: all that comes before students, and one of them."""


def sweep(folder: Path, *options: str) -> dict[str, Any]:
    """Runs the suite: seconds by the clock, seconds of the CPU, and the result."""
    begin, before = time.monotonic(), os.times()
    result = measure.fastkd("sweep", SUITE, *options, "--out", folder)
    after = os.times()
    assert result["ok"], result
    return {"seconds": time.monotonic() - begin, "cpu_seconds": sum(after[2:4]) - sum(before[2:4]), "result": result}


def gains_of(table: Path) -> list[dict[str, float]]:
    """Of each fraction: the mean gain of distillation, and how far apart the seeds are with it and without, in points."""
    top1: dict[float, dict[str, list[float]]] = {}
    with table.open(encoding="utf-8") as lines:
        for run in csv.DictReader(lines):
            of_source = top1.setdefault(float(run["fraction"]), {"store": [], "labels": []})
            of_source[run["source"]].append(float(run["val_top1"]))
    return [
        {
            "fraction": fraction,
            "gain": statistics.fmean(found["store"]) - statistics.fmean(found["labels"]),
            "spread_with": max(found["store"]) - min(found["store"]),
            "spread_without": max(found["labels"]) - min(found["labels"]),
        }
        for fraction, found in sorted(top1.items())
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="quickstart")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        first = sweep(Path(folder), *(word for one in FIRST for word in ("--set", one)))
        rest = sweep(Path(folder))
        table = Path(rest["result"]["csv"])
        gains = gains_of(table)
        kept = measure.RESULTS / "sweeps" / f"{args.name}.csv"
        kept.parent.mkdir(exist_ok=True)
        shutil.copy(table, kept)
    result = {
        "two_idle_cpus_seconds": first["cpu_seconds"] + rest["cpu_seconds"] / 2,
        "to_the_teacher": {key: first[key] for key in ("seconds", "cpu_seconds")},
        "the_rest": {key: rest[key] for key in ("seconds", "cpu_seconds")},
        "gains": gains,
        "load_average": os.getloadavg()[1],
    }
    measure.save(args.name, result)
    assert result["two_idle_cpus_seconds"] <= 300
    assert all(one["gain"] >= max(1, one["spread_with"], one["spread_without"]) for one in gains)


if __name__ == "__main__":
    main()
