"""The loader's rate against that of another checkout, such as the commit before a change.

Claim: a change of the loader costs no time. Each checkout has a process that stays; epochs take turns between them, and
count by the CPU time of their process, since the machine may be shared; where it is crowded, the best epoch of each tells more
than the median, as others take the caches. The pixels of both are compared first.

    python -m benchmarks.data.loader_before OTHER_CHECKOUT CIFAR.zip PHOTOS.zip --root cifar10/train
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import measure

# Of each case: beton, views and size, batch size, workers, passes a round.
CASES: dict[str, tuple[str, str, int, int, int, int]] = {
    "raw 32, batches of 64": ("raw", "crop-flip", 32, 64, 1, 4),
    "raw 32, batches of 64, 2 workers": ("raw", "crop-flip", 32, 64, 2, 4),
    "raw 32, batches of 512": ("raw", "crop-flip", 32, 512, 1, 4),
    "rrc 224, batches of 64": ("photos", "rrc", 224, 64, 1, 1),
    "rrc 224, batches of 64, 2 workers": ("photos", "rrc", 224, 64, 2, 1),
    "rrc 224, batches of 256, 2 workers": ("photos", "rrc", 224, 256, 2, 1),
}


def serve(folder: Path) -> None:
    """Makes an epoch of a case for each line on stdin; answers with its seconds and, for epoch 0, what the pixels come to."""
    from fastkd.data.views.draw import Views
    from fastkd.feed.loader import Loader

    loaders: dict[str, Loader] = {}
    for line in sys.stdin:
        name, epoch = json.loads(line)
        beton, kind, size, batch_size, num_workers, passes = CASES[name]
        if name not in loaders:
            views = Views(kind, size, 8)
            common = {"batch_size": batch_size, "shuffle": True, "num_workers": num_workers}
            loaders[name] = Loader(folder / f"{beton}.beton", views, **common)
        digest = hashlib.blake2b()
        cpu_s, wall_s, num_images = time.process_time(), time.perf_counter(), 0
        for number in range(passes):
            for batch in loaders[name].epoch(epoch + number):
                num_images += len(batch)
                if epoch == 0:
                    digest.update(
                        batch.images.permute(0, 2, 3, 1).numpy().tobytes() + batch.sample_ids.numpy().tobytes()
                    )
        cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
        answer = {"cpu_s": cpu_s, "wall_s": wall_s, "images": num_images, "digest": digest.hexdigest()}
        print(json.dumps(answer), flush=True)


def start(checkout: Path, folder: Path) -> subprocess.Popen:
    """The process of a checkout."""
    return subprocess.Popen(
        [sys.executable, __file__, "--serve", str(folder)],
        env=os.environ | {"PYTHONPATH": str(checkout)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def ask(process: subprocess.Popen, name: str, epoch: int) -> dict:
    """One epoch of a process."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps([name, epoch]) + "\n")
    process.stdin.flush()
    answer: dict = json.loads(process.stdout.readline())
    return answer


def compare(processes: dict[str, subprocess.Popen], name: str, rounds: int) -> dict:
    """Rates of a case in both checkouts, and their ratios round by round."""
    first = {which: ask(process, name, 0)["digest"] for which, process in processes.items()}
    assert first["now"] == first["before"], f"{name}: other pixels"
    found: dict[str, list[dict]] = {which: [] for which in processes}
    for turn in range(rounds):
        for which in ("now", "before") if turn % 2 else ("before", "now"):
            found[which].append(ask(processes[which], name, 1 + turn))
    pairs = list(zip(found["now"], found["before"], strict=True))
    best = {which: min(one["cpu_s"] for one in rows) for which, rows in found.items()}
    return {
        "now_over_before_at_best": best["before"] / best["now"],
        "now_over_before": measure.summary([b["cpu_s"] / a["cpu_s"] for a, b in pairs]),
        "now_over_before_by_wall_time": measure.summary([b["wall_s"] / a["wall_s"] for a, b in pairs]),
        "images_per_cpu_s": {
            which: measure.summary([one["images"] / one["cpu_s"] for one in rows]) for which, rows in found.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="the other checkout, its decoder built")
    parser.add_argument("small", help="source of small images of one size")
    parser.add_argument("photos", help="source of photos")
    parser.add_argument("--root", help="of the small images")
    parser.add_argument("--num-small", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--name", default="loader_before")
    args = parser.parse_args()
    from benchmarks.data.photos import some
    from fastkd.data.beton.build import WriteOptions, build_beton
    from fastkd.data.sources.open import open_source

    with tempfile.TemporaryDirectory() as folder:
        source = open_source(args.small, root=args.root)
        ids = [i * len(source) // args.num_small for i in range(min(args.num_small, len(source)))]
        build_beton(some(source, ids), Path(folder) / "raw.beton", WriteOptions(mode="raw"))
        build_beton(open_source(args.photos), Path(folder) / "photos.beton", WriteOptions(mode="jpg", max_size=500))
        processes = {"now": start(measure.ROOT, Path(folder)), "before": start(args.before, Path(folder))}
        try:
            cases = {name: compare(processes, name, args.rounds) for name in CASES}
        finally:
            for process in processes.values():
                process.communicate()
    measure.save(args.name, {"rounds": args.rounds, "cases": cases})


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(Path(sys.argv[2]))
    else:
        main()
