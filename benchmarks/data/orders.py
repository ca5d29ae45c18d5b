"""Claim: a rank has its part of an epoch's order of 100 M samples sooner than numpy has one permutation, in under 3 GB.

Both orders of the loader (`shuffle`, `pages`) for one of 8 ranks over a mask of NUM ids in random priority order, beside
`numpy.random.Generator.permutation` of the whole, interleaved; the ceiling is a copy of the ids. Then, in a process of its
own, the peak memory of a rank, all of it. Asserted: the parts of the 8 ranks are the ids, each once, and even.

    python -m benchmarks.data.orders --num 100_000_000
"""

import argparse
import statistics
import subprocess
import sys

import numpy as np

from benchmarks import measure
from fastkd.data.order import batch_ids, epoch_order, num_batches

RANKS, BATCH, PER_PAGE = 8, 128, 75  # a page of 8 MiB holds 75 photos of 110 kB


def part_of(rank: int, order: np.ndarray) -> np.ndarray:
    """Everything that a rank sees of an epoch."""
    batches = range(num_batches(len(order), global_batch=BATCH * RANKS, drop_last=False))
    return np.concatenate([batch_ids(order, b, global_batch=BATCH * RANKS, rank=rank, size=RANKS) for b in batches])


def order_of(kind: str, ids: np.ndarray, epoch: int, pages: np.ndarray | None) -> np.ndarray:
    group = 16 * BATCH * RANKS
    return epoch_order(ids, epoch=epoch, shuffle=True, seed=0, pages=pages if kind == "pages" else None, group=group)


def peak_bytes(kind: str, num: int) -> int:
    """Peak memory of a process that is one rank."""
    code = "import sys; sys.path.append(sys.argv[1]); from benchmarks.data import orders; orders.one_rank(sys.argv[2], int(sys.argv[3]))"
    command = [sys.executable, "-c", code, str(measure.ROOT), kind, str(num)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def one_rank(kind: str, num: int) -> None:
    ids = np.arange(num)
    pages = (ids // PER_PAGE).astype(np.int32) if kind == "pages" else None
    part_of(3, order_of(kind, ids, 0, pages))
    print(measure.peak_bytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=100_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    ids = np.random.default_rng(1).permutation(args.num)
    by_page = np.sort(ids)  # as the loader does, once
    pages = (by_page // PER_PAGE).astype(np.int32)
    for kind in ("shuffle", "pages"):
        parts = [part_of(rank, order_of(kind, by_page if kind == "pages" else ids, 0, pages)) for rank in range(RANKS)]
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        seen = np.zeros(args.num, np.uint8)
        for part in parts:
            seen[part] += 1
        assert (seen == 1).all()
    generator = np.random.default_rng(0)
    seconds = measure.interleave(
        {
            "shuffle": lambda: part_of(3, order_of("shuffle", ids, 1, pages)),
            "pages": lambda: part_of(3, order_of("pages", by_page, 1, pages)),
            "numpy": lambda: generator.permutation(args.num),
            "copy": lambda: ids.copy(),
        },
        rounds=args.rounds,
    )
    measure.save(
        "orders",
        {
            "shuffle_over_numpy": measure.ratios(seconds, "shuffle", "numpy"),
            "pages_over_numpy": measure.ratios(seconds, "pages", "numpy"),
            "seconds": {name: statistics.median(times) for name, times in seconds.items()},
            "peak_bytes_of_a_rank": {kind: peak_bytes(kind, args.num) for kind in ("shuffle", "pages")},
            "num_ids": args.num,
            "ranks": RANKS,
            "batch_size": BATCH,
            "rounds": args.rounds,
        },
    )


if __name__ == "__main__":
    main()
