"""Claim: ranks of unequal speed fill a store in the time that the sum of their speeds allows, within a fifth.

Three ranks (gloo, forked) fill a store; the teacher of one takes ten times as long for a block, by sleeping. Before, each
kind of rank fills a part of the same store alone, and the speeds add up. Asserted in the same run: the bytes are those of
one undisturbed process; again after three such ranks were killed on their way and two went on.

    python -m benchmarks.store.skewed_fill --blocks 1800
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import measure

sys.path.insert(0, str(measure.ROOT / "tests"))
from helpers.ranks import start_ranks, wait_for
from helpers.stores import Slowed, cache, save_teacher
from helpers.synthetic import build, coloured_noise, encoded, write_files

from fastkd.data.beton.dataset import open_dataset
from fastkd.data.views.draw import Views
from fastkd.dist import World
from fastkd.store.tables import read_tables
from fastkd.teacher.network import load_teacher

RANKS, SLOW, BLOCK_ROWS = 3, 2, 4
SLOWDOWN = 10


class Job:
    """A store to fill, by ranks of which one is slow."""

    def __init__(self, folder: Path, num_blocks: int, block_s: float) -> None:
        files = {f"{i % 5}/{i}.png": encoded(coloured_noise(i, i % 5, 5, 32), "PNG") for i in range(60)}
        self.folder, self.block_s = folder, block_s
        self.dataset = open_dataset(build(write_files(folder / "images", files), folder / "x.beton").path)
        self.teacher = load_teacher(str(save_teacher(folder / "t.safetensors", num_classes=5)))
        self.num_seeds = num_blocks // (60 // BLOCK_ROWS)
        self.num_starts = 0

    def fill(self, path: Path, world: World, slowdown: float, num_seeds: int | None = None) -> tuple[int, float]:
        """Fills the store as one rank; returns how many blocks it did, and blocks a second of all."""
        network = Slowed(self.teacher.model, self.block_s * slowdown)
        views = Views("crop-flip", 32, num_seeds or self.num_seeds)
        options: dict[str, Any] = {"block_rows": BLOCK_ROWS, "num_workers": 1, "world": world}
        counts = cache(path, self.dataset, replace(self.teacher, model=network), views, **options)
        return network.num_batches, counts["rows_per_s"] / BLOCK_ROWS

    def start(self, size: int, function: Callable[[World], Any]) -> tuple[list[int], list[Path]]:
        """Processes, and the files in which each leaves what the function gave."""
        self.num_starts += 1
        found = [self.folder / f"found-{self.num_starts}-{rank}" for rank in range(size)]

        def run(world: World) -> None:
            found[world.rank].write_text(json.dumps(function(world)))

        return start_ranks(size, self.folder / f"meet-{self.num_starts}", run), found

    def run(self, size: int, function: Callable[[World], Any]) -> list[Any]:
        """What the function gave on each of some ranks."""
        pids, found = self.start(size, function)
        assert wait_for(pids) == [0] * size
        return [json.loads(path.read_text()) for path in found]


def measure_skew(folder: Path, num_blocks: int, block_s: float) -> dict[str, Any]:
    """Blocks that each rank did, and the time over that which the sum of speeds allows."""
    job, path, killed = Job(folder, num_blocks, block_s), folder / "l.h5", folder / "killed.h5"
    job.fill(folder / "undisturbed.h5", World(), 0)  # compiles what the ranks inherit
    undisturbed = (folder / "undisturbed.h5").read_bytes()
    speeds = {}
    for name, slowdown, num_seeds in (("fast", 1, max(1, job.num_seeds // 6)), ("slow", SLOWDOWN, 1)):
        alone = folder / f"{name}.h5"
        ((_, speeds[name]),) = job.run(1, lambda world, s=slowdown, k=num_seeds, p=alone: job.fill(p, world, s, k))
    slowdown_of = [SLOWDOWN if rank == SLOW else 1 for rank in range(RANKS)]
    found = job.run(RANKS, lambda world: job.fill(path, world, slowdown_of[world.rank]))
    assert path.read_bytes() == undisturbed
    pids, _ = job.start(RANKS, lambda world: job.fill(killed, world, slowdown_of[world.rank]))
    while not killed.exists() or read_tables(killed).done.mean() < 0.2:
        time.sleep(0.01)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert wait_for(pids) == [-signal.SIGKILL] * RANKS
    done = float(read_tables(killed).done.mean())
    again = job.run(2, lambda world: job.fill(killed, world, 1))
    assert killed.read_bytes() == undisturbed
    allowed = 2 * speeds["fast"] + speeds["slow"]
    total = sum(blocks for blocks, _ in found)
    return {
        "blocks": total,
        "blocks_of_each_rank": [blocks for blocks, _ in found],
        "blocks_per_s_alone": speeds,
        "seconds": total / found[0][1],
        "seconds_over_allowed": allowed / found[0][1],
        "seconds_over_allowed_by_equal_parts": (total / RANKS / speeds["slow"]) / (total / allowed),
        "done_when_killed": done,
        "blocks_of_each_rank_that_went_on": [blocks for blocks, _ in again],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=1800)
    parser.add_argument("--block-s", type=float, default=0.04, help="that the teacher sleeps for a block")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure_skew(Path(folder), args.blocks, args.block_s)
    measure.save("skewed_fill", {"ranks": RANKS, "slowdown": SLOWDOWN, "block_s": args.block_s, **found})
    assert found["seconds_over_allowed"] <= 1.2


if __name__ == "__main__":
    main()
