"""Claim: a training run that is killed or stopped at random moments ends with the bytes of one that was not.

VID with a live teacher on images of BETON, on the CPU: trained once undisturbed, then in processes that get a signal at
random moments, of those in turn, and started again until it is finished; as many such runs as the signals need. With
--at-steps a single run gets them all, each after a random step. With --record on labels alone, with states after whole
epochs, and scores of the training at the end.
Asserted: weights and scores of every run are those of the undisturbed one, byte for byte, and so are its metrics but for the
rates.

    python -m benchmarks.train.train_kills test.beton --kills 30
    python -m benchmarks.train.train_kills test.beton --signals SIGINT --kills 20 --at-steps --name train_stops
    python -m benchmarks.train.train_kills test.beton --signals SIGINT --kills 20 --at-steps --record --epochs 20 --images 160 --name train_stops_recorded
"""

import argparse
import json
import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import measure
from fastkd.data.beton.dataset import Dataset, open_dataset
from fastkd.data.views.draw import Views
from fastkd.errors import StoppedError
from fastkd.feed.loader import Loader
from fastkd.models.checkpoint import save_weights
from fastkd.models.norm import PRESETS, Norm
from fastkd.models.registry import create_model
from fastkd.scoring.recording import Record
from fastkd.stopping import INTERRUPTED, exit_on_sigterm
from fastkd.teacher.network import load_teacher
from fastkd.train.recipe import Recipe
from fastkd.train.student import train

NORM = Norm(*PRESETS["cifar"])
RECIPE = Recipe(model="resnet8", epochs=4, batch_size=32, kd="vid", alpha=0.5, beta=1.0)
ENDS_WITH = {"SIGKILL": -signal.SIGKILL, "SIGTERM": StoppedError.exit_code, "SIGINT": INTERRUPTED}
"""Exit codes, by the signal."""
RATES = ("images_per_s", "data_wait_percent", "step_percent")


def run(
    out: Path,
    dataset: Dataset,
    teacher: Path,
    num_images: int,
    epochs: int,
    is_recorded: bool,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    views = Views("crop-flip", int(dataset.beton.heights[0]), 4)
    loader = Loader(dataset, views, mask=np.arange(num_images), batch_size=32, shuffle=True, num_workers=1)
    recipe = replace(RECIPE, epochs=epochs)
    common = {"norm": NORM, "inputs": {"beton": dataset.fingerprint}, "params": {}, "progress": progress}
    if is_recorded:
        record = Record(methods=("forgetting", "el2n", "aum", "dual"), window=3)
        train(replace(recipe, kd="kd", alpha=0.0, beta=0.0), loader, out, record=record, **common)
    else:
        train(recipe, loader, out, teacher=load_teacher(str(teacher)), checkpoint_every=3, **common)


def run_and_kill(moment: float | int | None, name: str, *arguments: Any) -> bool:
    """The run in a process of its own, which gets a signal; returns whether it was finished before.

    Args:
        moment: after so many seconds, a float, or when so many steps of the run are done, an int; None for never.
    """
    pid = os.fork()
    if pid:
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert code in (0, ENDS_WITH[name]), code
        return code == 0

    def kill() -> None:
        os.kill(os.getpid(), signal.Signals[name])

    def progress(done: int, total: int) -> None:
        if isinstance(moment, int) and done == moment:
            kill()

    code = 1
    try:
        with exit_on_sigterm():  # as in the command, before the training itself looks out for it
            if isinstance(moment, float):
                timer = threading.Timer(moment, kill)
                timer.daemon = True
                timer.start()
            run(*arguments, progress)
        code = 0
    except StoppedError as error:
        code = error.exit_code
    except KeyboardInterrupt:
        code = INTERRUPTED
    finally:
        os._exit(code)


def metrics(out: Path) -> list[dict[str, Any]]:
    """The lines of steps and epochs, without what no two runs share."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in RATES} for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("beton", type=Path)
    parser.add_argument("--kills", type=int, default=30, help="signals that end a process, in all")
    parser.add_argument("--signals", nargs="+", choices=ENDS_WITH, default=["SIGKILL", "SIGTERM"])
    parser.add_argument(
        "--longest", type=float, default=1 / 3, help="part of a run after which a signal comes at the latest"
    )
    parser.add_argument("--at-steps", action="store_true", help="all signals in one run, each after a random step")
    parser.add_argument("--record", action="store_true", help="record scores of the training")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="train_kills", help="of the file in results/")
    args = parser.parse_args()
    torch.set_num_threads(1)
    draw = random.Random(args.seed)
    dataset = open_dataset(args.beton)
    with tempfile.TemporaryDirectory() as folder:
        teacher = Path(folder) / "t.safetensors"
        torch.manual_seed(1)
        meta = {"model": "resnet8", "num_classes": dataset.num_classes, "norm": NORM.describe()}
        save_weights(teacher, create_model("resnet8", dataset.num_classes), meta)
        whole, rest = Path(folder) / "whole", (dataset, teacher, args.images, args.epochs, args.record)
        begin = time.perf_counter()
        run(whole, *rest)
        whole_s = time.perf_counter() - begin
        steps = sum(line["kind"] == "step" for line in metrics(whole))
        at_steps = sorted(draw.sample(range(1, steps), args.kills)) if args.at_steps else None
        kills = dict.fromkeys(args.signals, 0)
        of_runs, out = [0], Path(folder) / "killed-0"
        while sum(kills.values()) < args.kills or (out / "run.json").exists():
            count = sum(kills.values())
            name, moment = args.signals[count % len(args.signals)], None
            if count < args.kills:  # once there are kills enough, the last run is left to finish
                moment = at_steps[count] if at_steps else draw.uniform(0.1, whole_s * args.longest)
            if not run_and_kill(moment, name, out, *rest):
                kills[name] += 1
                of_runs[-1] += 1
                continue
            for file in ("model.safetensors", *(["scores.h5"] if args.record else [])):
                assert (out / file).read_bytes() == (whole / file).read_bytes(), file
            assert metrics(out) == metrics(whole)
            out = Path(folder) / f"killed-{len(of_runs)}"
            of_runs.append(0)
    measure.save(
        args.name,
        {
            "kills": kills,
            "kills_of_each_run": of_runs[:-1],
            "runs_finished_all_byte_equal": len(of_runs) - 1,
            "compared": ["weights", *(["scores"] if args.record else []), "metrics of steps and epochs"],
            "epochs": args.epochs,
            "steps_of_a_run": steps,
            "killed_after_steps": at_steps,
            "undisturbed_s": whole_s,
        },
    )


if __name__ == "__main__":
    main()
