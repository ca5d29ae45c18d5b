"""Claim: a training run that is killed at random moments ends with the bytes of one that was not.

VID with a live teacher on images of BETON, on the CPU: trained once undisturbed, then in processes that are killed at
random moments, by SIGKILL and SIGTERM in turn, and started again until it is finished; as many such runs as the kills need.
Asserted: the weights of every run are those of the undisturbed one, byte for byte, and so are the losses of all steps.

    python -m benchmarks.train.train_kills test.beton --kills 30
"""

import argparse
import json
import os
import random
import signal
import tempfile
import threading
import time
from pathlib import Path

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
from fastkd.stopping import exit_on_sigterm
from fastkd.teacher.network import load_teacher
from fastkd.train.recipe import Recipe
from fastkd.train.student import train

NORM = Norm(*PRESETS["cifar"])
RECIPE = Recipe(model="resnet8", epochs=4, batch_size=32, kd="vid", alpha=0.5, beta=1.0)


def run(out: Path, dataset: Dataset, teacher: Path, num_images: int) -> None:
    views = Views("crop-flip", int(dataset.beton.heights[0]), 4)
    loader = Loader(dataset, views, mask=np.arange(num_images), batch_size=32, shuffle=True, num_workers=1)
    train(RECIPE, loader, out, norm=NORM, teacher=load_teacher(str(teacher)), checkpoint_every=3, inputs={}, params={})


def run_and_kill(after_s: float, number: int, *arguments) -> int:
    """The run in a process of its own, which a timer kills; returns 0 where it was finished before, else the signal."""
    pid = os.fork()
    if pid:
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert code in (0, -signal.SIGKILL, StoppedError.exit_code), code
        return 0 if code == 0 else number
    code = 1
    try:
        with exit_on_sigterm():  # as in the command, before the training itself looks out for it
            timer = threading.Timer(after_s, lambda: os.kill(os.getpid(), number))
            timer.daemon = True
            timer.start()
            run(*arguments)
        code = 0
    except StoppedError as error:
        code = error.exit_code
    finally:
        os._exit(code)


def losses(out: Path) -> list[float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "step"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("beton", type=Path)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--images", type=int, default=500)
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
        whole = Path(folder) / "whole"
        begin = time.perf_counter()
        run(whole, dataset, teacher, args.images)
        whole_s = time.perf_counter() - begin
        kills = {int(signal.SIGKILL): 0, int(signal.SIGTERM): 0}
        runs, out = 0, Path(folder) / "killed-0"
        while sum(kills.values()) < args.kills or (out / "run.json").exists():
            number = (signal.SIGKILL, signal.SIGTERM)[sum(kills.values()) % 2]
            # Once there are kills enough, the last run is left to finish.
            after_s = draw.uniform(0.1, whole_s / 3) if sum(kills.values()) < args.kills else 1e6
            ended = run_and_kill(after_s, number, out, dataset, teacher, args.images)
            if ended:
                kills[int(number)] += 1
                continue
            assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
            assert losses(out) == losses(whole)
            runs += 1
            out = Path(folder) / f"killed-{runs}"
        steps = len(losses(whole))
    measure.save(
        args.name,
        {
            "kills": {signal.Signals(number).name: count for number, count in kills.items()},
            "runs_finished_all_byte_equal": runs,
            "steps_of_a_run": steps,
            "undisturbed_s": whole_s,
        },
    )


if __name__ == "__main__":
    main()
