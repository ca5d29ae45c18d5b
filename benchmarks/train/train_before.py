"""The steps of training against those of another checkout, such as the commit before a change.

Claim: a change of training costs no time, and leaves the weights of a plain run what they were. `fastkd train` of both checkouts
takes turns, on labels alone, by CPU time, since the machine may be shared: what a run of three epochs takes beyond one of a single
epoch. Asserted in each round: both end with the same weights, to the bit. Where setup.py built something, it has to be built there.

    python -m benchmarks.train.train_before OTHER_CHECKOUT train.beton --model resnet8 --model resnet20
"""

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

from safetensors.torch import load_file

from benchmarks import jobs, measure
from fastkd.data.beton.dataset import open_dataset
from fastkd.prune.masks.mask import random_order, save_mask

EPOCHS = (1, 3)
PYTHON = [sys.executable, "-P", "-m", "fastkd"]
"""The package is that of PYTHONPATH, whatever the folder it is started in."""


def step_seconds(checkout: Path, folder: Path, beton: Path, model: str) -> float:
    """CPU seconds of the epochs that the longer run has more; leaves its weights in `folder`."""
    options = f"--mask {folder / 'm.h5'} --alpha 0 --model {model} --batch-size 64 --num-workers 1 --device cpu".split()
    taken = []
    for epochs in EPOCHS:
        out = folder / "run"
        shutil.rmtree(out, ignore_errors=True)
        command = ["train", str(beton), *options, "--epochs", str(epochs), "--out", str(out)]
        used = jobs.run(["env", f"PYTHONPATH={checkout}", *PYTHON, *command], folder, cores=1)
        taken.append(used.cpu_s)
    return taken[1] - taken[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="a checkout of the commit to compare with")
    parser.add_argument("beton", type=Path)
    parser.add_argument("--model", action="append", required=True)
    parser.add_argument("--count", type=int, default=3200, help="images that are trained on")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    checkouts = {"now": measure.ROOT, "before": args.other.resolve()}
    dataset = open_dataset(args.beton)
    ids = random_order(dataset.beton.labels, 0)[: args.count]
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_mask(
            folder / "m.h5",
            ids,
            num_samples=len(dataset.beton.labels),
            beton_fingerprint=dataset.fingerprint,
            params={},
        )
        for model in args.model:
            seconds: dict[str, list[float]] = {which: [] for which in checkouts}
            for turn in range(-1, args.rounds):  # before the first round, what is compiled once
                weights = {}
                for which in sorted(checkouts, reverse=bool(turn % 2)):
                    taken = step_seconds(checkouts[which], folder, args.beton.resolve(), model)
                    seconds[which] += [taken] if turn >= 0 else []
                    weights[which] = load_file(folder / "run" / "model.safetensors")
                now, before = weights["now"], weights["before"]
                assert now.keys() == before.keys()
                assert all(now[key].equal(before[key]) for key in now), f"{model}: other weights"
            steps = (EPOCHS[1] - EPOCHS[0]) * (args.count // 64)
            found[model] = {
                "steps_per_cpu_s": {
                    which: measure.summary([steps / s for s in all_s]) for which, all_s in seconds.items()
                },
                "now_over_before": measure.summary(
                    [before / now for now, before in zip(seconds["now"], seconds["before"], strict=True)]
                ),
            }
    load = os.getloadavg()[0]
    measure.save("train_before", {"models": found, "images": args.count, "rounds": args.rounds, "load_average": load})


if __name__ == "__main__":
    main()
