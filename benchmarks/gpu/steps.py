"""Steps of training with every flag of `fastkd train`, on the ranks that start this: they run, and nothing in them waits.

Each flag trains a small student for two epochs of three steps. In the second, where nothing is new any more, CUDA's sync-debug
mode is "error" around each step: an operation that waits for the GPU raises. `check.py` starts this and reads what it writes.

    python -m benchmarks.gpu.steps FOLDER cuda OUT plain,ema,bf16
    torchrun --nproc-per-node 2 -m benchmarks.gpu.steps FOLDER cpu OUT plain
"""

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from benchmarks.gpu.forms import small_images
from benchmarks.train.train_rate import NORM, make_teacher
from fastkd.agree import share, telling_failures
from fastkd.cli.common import choose_device
from fastkd.data.views.draw import Views
from fastkd.data.views.mix import Mix
from fastkd.dist import World, barrier, process_group, read_world
from fastkd.feed.loader import Loader
from fastkd.teacher.fill import fill_store
from fastkd.teacher.recipe import StoreRecipe
from fastkd.train import loop
from fastkd.train.recipe import Recipe
from fastkd.train.student import train

FLAGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "ema": {"ema": 0.99},
    "fp16": {"amp": "fp16"},
    "bf16": {"amp": "bf16"},
    "sync-bn": {"sync_bn": True},
    "compile": {},
    "dkd": {"kd": "dkd"},
    "vid": {"kd": "vid"},
    "crd": {"kd": "crd"},
    "mix": {},
    "resize-from": {"resize_from": 16},
}
"""What each changes in a recipe."""
LIVE = {"vid", "crd", "mix"}
"""Those that learn from a live teacher; the others learn from a store."""
ONE_RANK = {"crd": "keeps a memory of all samples in one process"}
STEPS, BATCH = 3, 16
VIEWS = Views("crop-flip", 32, 2)


@contextmanager
def waiting_refused(first: int) -> Iterator[None]:
    """For the length of the block, steps from the one of this number on raise where they wait for the GPU."""
    original = loop.one_step

    def one_step(run: loop.Run, batch: Any, number: int, *parts: Any) -> torch.Tensor:
        if run.loader.device.type != "cuda" or number < first:
            return original(run, batch, number, *parts)
        torch.cuda.set_sync_debug_mode("error")
        try:
            return original(run, batch, number, *parts)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    with mock.patch.object(loop, "one_step", one_step):
        yield


def run_flag(flag: str, folder: Path, device: str, world: World) -> dict[str, Any]:
    """Trains with one flag; returns the losses of the steps in which nothing waited."""
    own = folder / f"rank-{world.rank}"
    own.mkdir(exist_ok=True)
    num_images = STEPS * BATCH * world.size
    share(world, lambda: small_images(num_images, folder).num_classes)  # rank 0 makes them
    dataset = small_images(num_images, folder)
    teacher = make_teacher(own, "resnet8", dataset.num_classes, device)
    store = folder / f"l-{world.size}.h5"
    if flag not in LIVE:
        fill_store(store, StoreRecipe(dataset=dataset, teacher=teacher, views=VIEWS), num_workers=1, world=world)
    views = VIEWS if flag != "mix" else Views("crop-flip", 32, 2, mix=Mix("cutmix", 1.0))
    logits = None if flag in LIVE else store
    common = {"batch_size": BATCH, "shuffle": True, "num_workers": 1, "device": device, "world": world}
    loader = Loader(dataset, views, logits=logits, **common)
    recipe = Recipe(
        model="resnet20" if device.startswith("cuda") else "resnet8", epochs=2, batch_size=BATCH, lr=0.01, **FLAGS[flag]
    )
    out = folder / f"run-{flag}-{world.size}"
    with waiting_refused(len(loader)):
        train(
            recipe,
            loader,
            out,
            norm=NORM,
            teacher=teacher if flag in LIVE else None,
            compiled=flag == "compile",
            inputs={},
            params={},
            world=world,
        )
    barrier(world)
    if not world.is_main:
        return {}
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    shutil.rmtree(out)
    losses = [line["loss"] for line in lines if line["kind"] == "step"][len(loader) :]
    assert len(losses) == STEPS
    assert np.isfinite(losses).all()
    return {"losses": losses, "waits_refused": device.startswith("cuda")}


def main() -> None:
    folder, device, out, flags = sys.argv[1:]
    world = read_world()
    device = choose_device(device, world)
    with process_group(world, device) as world, telling_failures(world):
        for flag in flags.split(","):
            found = run_flag(flag, Path(folder), device, world)
            if world.is_main:
                with open(out, "a") as file:
                    print(json.dumps([flag, found]), file=file, flush=True)


if __name__ == "__main__":
    main()
