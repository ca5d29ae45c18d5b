"""Claim: data that live on the device give the loader's batches and losses, and CIFAR students in minutes.

Asserted first: every batch of some epochs is the loader's to the byte, pixels, labels and logits, and two epochs of
training have equal losses on both paths (on a GPU with cuDNN's deterministic kernels). Then a student is trained from a
store of random logits, which cost what a teacher's do. On a GPU in full: `measured_s` begins with opened files and ends
with saved weights; decoding to the device, compiling and checkpoints are in it. Elsewhere, and with --steps, some steps
of both paths are timed, interleaved, and `extrapolated_s` is what the whole length would take at the resident rate.

    python -m benchmarks.train.train_resident train.beton --device cuda --compile --amp bf16
    python -m benchmarks.train.train_resident train.beton                                       # extrapolated
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks import measure
from benchmarks.store.loader_with_logits import fill_with_noise
from fastkd.data.beton.dataset import Dataset, open_dataset
from fastkd.feed.loader import Loader, choose_views
from fastkd.feed.resident import Resident
from fastkd.models.norm import PRESETS, Norm
from fastkd.store.logit_store import LogitStore
from fastkd.train.recipe import Recipe
from fastkd.train.student import train

NORM = Norm(*PRESETS["cifar"])


class Paths:
    """Loaders of both paths over some samples, and runs on them in folders of their own."""

    def __init__(self, args: argparse.Namespace, dataset: Dataset, store: Path, folder: Path) -> None:
        self.args, self.dataset, self.folder = args, dataset, folder
        self.store = LogitStore(store)
        self.views = choose_views(dataset, store=self.store)
        self.num_runs = 0

    def loader(self, ids: np.ndarray) -> Loader:
        return Loader(
            self.dataset,
            self.views,
            mask=ids,
            logits=self.store,
            batch_size=self.args.batch_size,
            shuffle=True,
            num_workers=self.args.num_workers,
            device=self.args.device,
        )

    def resident(self, ids: np.ndarray) -> Resident:
        return Resident(self.loader(ids), self.store)

    def train(self, loader: Loader | Resident, epochs: int, *, compiled: bool = False) -> tuple[dict, list[float]]:
        """Result and losses of a run."""
        self.num_runs += 1
        out = self.folder / f"run-{self.num_runs}"
        recipe = Recipe(model=self.args.model, epochs=epochs, batch_size=self.args.batch_size, amp=self.args.amp)
        result = train(recipe, loader, out, norm=NORM, compiled=compiled, inputs={}, params={})
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        return result, [line["loss"] for line in lines if line["kind"] == "step"]


def check(paths: Paths, ids: np.ndarray, num_epochs: int) -> dict[str, int]:
    """Asserts equal batches of all ids and equal losses of the first few; returns how many were compared."""
    num_batches, loader, resident = 0, paths.loader(ids), paths.resident(ids)
    for epoch in range(num_epochs):
        for expected, found in zip(loader.epoch(epoch), resident.epoch(epoch), strict=True):
            for name in ("images", "labels", "sample_ids", "logits"):
                assert torch.equal(getattr(expected, name), getattr(found, name)), (epoch, name)
            num_batches += 1
    few = ids[: 5 * paths.args.batch_size]
    torch.backends.cudnn.deterministic = True
    losses = [paths.train(make(few), 2)[1] for make in (paths.loader, paths.resident)]
    torch.backends.cudnn.deterministic = False
    assert losses[0] == losses[1], losses
    return {"batches_byte_equal": num_batches, "losses_equal": len(losses[0])}


def extrapolate(paths: Paths, ids: np.ndarray) -> dict:
    """Rates of both paths over the same few steps, and the whole length at the resident one."""
    args = paths.args
    few = ids[: args.steps * args.batch_size]
    loaders: dict[str, Loader | Resident] = {"loader": paths.loader(few), "resident": paths.resident(few)}
    rates: dict[str, list[float]] = {name: [] for name in loaders}

    def run(name: str) -> None:
        rates[name].append(paths.train(loaders[name], 1)[0]["images_per_s"])

    measure.interleave({name: lambda name=name: run(name) for name in loaders}, rounds=args.rounds)
    rates = {name: found[-args.rounds :] for name, found in rates.items()}  # the first is a warm-up
    ratios = [r / b for r, b in zip(rates["resident"], rates["loader"], strict=True)]
    return {
        "extrapolated_s": len(ids) * args.epochs / statistics.median(rates["resident"]),
        "extrapolated_from_steps": args.steps,
        "rounds": args.rounds,
        "images_per_s": {name: measure.summary(found) for name, found in rates.items()},
        "resident_over_loader": measure.summary(ratios),
    }


def run_in_full(paths: Paths, ids: np.ndarray) -> dict:
    """The whole length on the resident path, and a tenth of it on the loader's for its rate."""
    args = paths.args
    begin = time.perf_counter()
    resident = paths.resident(ids)
    resident_s = time.perf_counter() - begin
    result, losses = paths.train(resident, args.epochs, compiled=args.compile)
    measured_s = time.perf_counter() - begin
    assert statistics.mean(losses[-10:]) < statistics.mean(losses[:10])
    other, _ = paths.train(paths.loader(ids), max(1, args.epochs // 10), compiled=args.compile)
    kept = ("images_per_s", "data_wait_percent", "step_percent")
    return {
        "measured_s": measured_s,
        "decoding_to_the_device_s": resident_s,
        "steps": len(losses),
        "resident": {name: result[name] for name in kept},
        "loader": {name: other[name] for name in kept} | {"epochs": max(1, args.epochs // 10)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("beton", type=Path)
    parser.add_argument("--model", default="resnet32")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--epochs", type=int, default=240)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--num-seeds", type=int, help="views in the store; all 162 where left out")
    parser.add_argument("--check-epochs", type=int, default=2)
    parser.add_argument("--steps", type=int, help="time so many and extrapolate; 40 where left out, on a GPU all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--num-workers", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--amp", choices=["off", "bf16", "fp16"], default="off")
    parser.add_argument("--compile", action="store_true", help="of the full run")
    parser.add_argument("--name", default="train_resident", help="of the file in results/")
    args = parser.parse_args()
    on_gpu = args.device.startswith("cuda")
    in_full = on_gpu and args.steps is None
    if args.compile and not in_full:
        parser.error("--compile is of a full run, --device cuda without --steps")
    args.steps = args.steps or 40
    dataset = open_dataset(args.beton)
    ids = np.random.default_rng(0).permutation(dataset.beton.num_samples)[: args.images]
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "noise.h5"
        fill_with_noise(store, dataset, choose_views(dataset, "crop-flip", num_seeds=args.num_seeds), "fp16", ids)
        paths = Paths(args, dataset, store, Path(folder))
        equal = check(paths, ids, args.check_epochs)
        timed = run_in_full(paths, ids) if in_full else extrapolate(paths, ids)
    measure.save(
        args.name,
        {
            "equal": equal,
            **timed,
            "model": args.model,
            "images": len(ids),
            "epochs": args.epochs,
            "batch_size": args.batch_size,
            "num_seeds": paths.views.num_seeds,
            "amp": args.amp,
            "compiled": args.compile,
            "device": torch.cuda.get_device_name() if on_gpu else "cpu",
            "torch_threads": torch.get_num_threads(),
        },
    )


if __name__ == "__main__":
    main()
