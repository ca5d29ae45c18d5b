"""The loader's rate by the number of its workers, where decoding a view takes so long that all else is small beside it.

Claim: with 4, 8, 16 workers views come at 4, 8, 16 times the rate of one, whatever the batch size, in the memory that was
stated before. Each view is decoded, and then slept for: a machine with few cores shows whether workers wait for anything
but their views. Counted from when the first batch is asked for until the last one has come.

    python -m benchmarks.data.loader_workers SOURCE
"""

import argparse
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure
from fastkd.data.beton.build import WriteOptions, build_beton
from fastkd.data.beton.read import open_beton
from fastkd.data.loader import ViewLoader
from fastkd.data.sources.open import open_source
from fastkd.data.views.draw import Views


def slowed(loader: ViewLoader, seconds: float) -> ViewLoader:
    """The loader, whose workers sleep so long for each view that they decode, without Python's lock."""
    stage: Any = loader._stage

    def run(**arguments: Any) -> None:
        stage(**arguments)
        time.sleep(seconds * len(arguments["batch_indices"]))

    loader._stage = run
    return loader


def rate(loader: ViewLoader, num_views: int) -> dict[str, float]:
    """Views a second over batches of that many views, seconds to the first batch, and the most memory taken."""
    jobs = [job for epoch in range(1 + num_views // len(loader.ids)) for job in loader.jobs(epoch)]
    ends = np.cumsum([len(ids) for ids, _ in jobs])
    jobs = jobs[: 1 + int(np.searchsorted(ends, num_views))]
    tracemalloc.start()
    begin, first_s, total = time.perf_counter(), 0.0, 0
    for batch in loader.run(jobs):
        first_s = first_s or time.perf_counter() - begin
        total += len(batch)
    seconds = time.perf_counter() - begin
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {"views_per_s": total / seconds, "first_batch_s": first_s, "most_bytes": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--num-workers", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--sleep-ms", type=float, default=10.0, help="a view")
    parser.add_argument("--seconds", type=float, default=6.0, help="that a measurement takes about")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--name", default="loader_workers")
    args = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.beton"
        build_beton(open_source(args.source), path, WriteOptions(mode="raw"))
        beton, views = open_beton(path), Views("center", args.size)
        next(ViewLoader(beton, views).epoch(0))  # compiles
        for batch_size in args.batch_sizes:
            rows: dict[int, list[dict[str, float]]] = {workers: [] for workers in [1, *args.num_workers]}
            stated = {}
            for _ in range(args.rounds):
                for workers, runs in rows.items():
                    loader = ViewLoader(beton, views, batch_size=batch_size, shuffle=True, num_workers=workers)
                    stated[workers] = getattr(loader, "most_bytes", None)  # a version before stated none
                    slow = slowed(loader, args.sleep_ms / 1000)
                    runs.append(rate(slow, round(args.seconds * workers * 1000 / args.sleep_ms)))
            alone = [run["views_per_s"] for run in rows[1]]
            found[str(batch_size)] = {
                str(workers): {
                    "rate_over_one_worker": measure.summary(
                        [run["views_per_s"] / one for run, one in zip(runs, alone, strict=True)]
                    ),
                    "first_batch_s": measure.summary([run["first_batch_s"] for run in runs]),
                    "stated_bytes": stated[workers],
                    "most_bytes": max(run["most_bytes"] for run in runs),
                }
                for workers, runs in rows.items()
            }
    options = {"size": args.size, "sleep_ms": args.sleep_ms, "seconds": args.seconds, "rounds": args.rounds}
    measure.save(args.name, {**options, "by_batch_size_and_workers": found})


if __name__ == "__main__":
    main()
