"""Claim: kill -9 at any moment of a filling loses at most the blocks in flight, and never a byte of the result.

Three ranks (gloo, forked) fill a store with a small teacher's logits and are killed at a random moment, all at once or
one after another; then the file is looked at, and the next three go on. After every kill: the file opens, and each block
marked done has the bytes of an undisturbed store. A filling that ends has the undisturbed bytes; the next begins anew.
The moment is uniform over a little more than three ranks take for a whole store, so that many a store is carried to its
end, by one filling or by several.

    python -m benchmarks.store.store_kills --kills 200
"""

import argparse
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import measure

sys.path.insert(0, str(measure.ROOT / "tests"))
from helpers.ranks import start_ranks, wait_for
from helpers.stores import cache, save_teacher
from helpers.synthetic import build, coloured_noise, encoded, write_files

from fastkd.data.beton.dataset import open_dataset
from fastkd.data.views.draw import Views
from fastkd.errors import FastKDError
from fastkd.store.tables import read_tables
from fastkd.teacher.network import load_teacher

RANKS, NUM_SEEDS, BLOCK_ROWS = 3, 24, 4
MOMENTS = 1.5  # times what a whole store takes


def kill_many(folder: Path, kills: int, seed: int = 0) -> dict:
    """Counts of what was found after `kills` kills."""
    files = {f"{i % 5}/{i}.png": encoded(coloured_noise(i, i % 5, 5, 32), "PNG") for i in range(60)}
    dataset = open_dataset(build(write_files(folder / "images", files), folder / "x.beton").path)
    teacher = load_teacher(str(save_teacher(folder / "t.safetensors", num_classes=5)))
    recipe = {"dataset": dataset, "teacher": teacher, "views": Views("crop-flip", 32, NUM_SEEDS)}
    recipe |= {"block_rows": BLOCK_ROWS, "num_workers": 1}
    cache(folder / "undisturbed.h5", **recipe)  # compiles what the ranks inherit
    undisturbed = (folder / "undisturbed.h5").read_bytes()
    whole = read_tables(folder / "undisturbed.h5")
    path, rng = folder / "l.h5", np.random.default_rng(seed)
    found = {"kills": 0, "kills_while_running": 0, "kills_before_the_file": 0, "not_opened": 0, "blocks_done": 0}
    found |= {"blocks_wrong": 0, "stores_finished": 0, "stores_different": 0, "failed": 0}
    begin = time.perf_counter()
    pids = start_ranks(RANKS, folder / "meet", lambda world: cache(path, **recipe, world=world))
    found["failed"] += any(wait_for(pids)) or path.read_bytes() != undisturbed
    path.unlink()
    whole_s = time.perf_counter() - begin
    attempts = 0
    while found["kills"] < kills:
        attempts += 1
        begin = time.perf_counter()
        pids = start_ranks(RANKS, folder / f"meet{attempts}", lambda world: cache(path, **recipe, world=world))
        deadline = begin + rng.uniform(0, MOMENTS * whole_s)
        ended: dict[int, int] = {}
        while len(ended) < RANKS and time.perf_counter() < deadline:
            for pid in set(pids) - set(ended):
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    ended[pid] = os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        if len(ended) < RANKS:
            found["kills"] += 1
            found["kills_before_the_file"] += not path.exists()
            for pid in rng.permutation(sorted(set(pids) - set(ended))).tolist():
                os.kill(pid, signal.SIGKILL)
                time.sleep(rng.choice([0, 0, 0.005]))
            killed = wait_for(sorted(set(pids) - set(ended)))
            found["kills_while_running"] += killed.count(-signal.SIGKILL) == RANKS
        else:
            found["failed"] += any(code != 0 for code in ended.values())
        if not path.exists():
            continue
        try:
            tables = read_tables(path)
        except FastKDError:
            found["not_opened"] += 1
            path.unlink()
            continue
        data = path.read_bytes()
        for aug_seed, block in np.argwhere(tables.done == 1).tolist():
            rows = tables.block_rows_of(block)
            start = tables.logits_offset + (aug_seed * tables.num_rows + rows.start) * tables.codec.row_bytes
            end = start + (rows.stop - rows.start) * tables.codec.row_bytes
            same = np.array_equal(tables.top1[aug_seed, block], whole.top1[aug_seed, block])
            found["blocks_done"] += 1
            found["blocks_wrong"] += not (same and data[start:end] == undisturbed[start:end])
        if (tables.done == 1).all():
            found["stores_finished"] += 1
            found["stores_different"] += data != undisturbed
            path.unlink()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = kill_many(Path(folder), args.kills, args.seed)
    measure.save("store_kills", {"ranks": RANKS, **found})
    assert not found["not_opened"] + found["blocks_wrong"] + found["stores_different"] + found["failed"]
    assert found["stores_finished"]


if __name__ == "__main__":
    main()
