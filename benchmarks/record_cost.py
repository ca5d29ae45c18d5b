"""Claim: recording forgetting, EL2N, AUM and DUAL in the training loop costs at most 2 % of the run.

Two runs of one recipe on the images of SOURCE go epoch by epoch in turn, one with `--record` of all four and one without;
a round is an epoch of each. The ceiling is the run without. Asserted in the same run: both networks end with the same
weights, and the scores are those of plain numpy on the recorded probabilities.

    python benchmarks/record_cost.py cifar.zip --root cifar10/train
"""

import argparse
import tempfile
import time
from pathlib import Path

import measure
import torch

from fastkd.data.build import WriteOptions, build_beton
from fastkd.data.sources import open_source
from fastkd.data.views import Views
from fastkd.dist import World
from fastkd.feed import Loader, open_dataset
from fastkd.models.registry import create_model
from fastkd.prune.mask import random_order
from fastkd.prune.scores import RECORDABLE
from fastkd.train.metrics import Stopwatch
from fastkd.train.norm import parse_norm
from fastkd.train.recording import Record, TrainingRecord
from fastkd.train.student import Recipe, _train_epoch


class Run:
    """A training run that goes on by an epoch a call."""

    def __init__(self, recipe: Recipe, dataset, loader: Loader, record: Record | None) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.loader, self.epoch = recipe, loader, 0
        self.cpu_s: list[float] = []
        self.model = create_model(recipe.model, dataset.num_classes).to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=recipe.lr, momentum=recipe.momentum)
        num_samples = dataset.beton.num_samples
        self.recording = TrainingRecord(record, num_samples, World(), torch.device("cpu")) if record else None

    def __call__(self) -> None:
        busy = time.process_time()
        arguments = (self.epoch, parse_norm("cifar"), None, Stopwatch(), World(), lambda done, total: None)
        _train_epoch(self.recipe, self.model, self.optimizer, self.loader, *arguments, self.recording)
        self.epoch += 1
        self.cpu_s.append(time.process_time() - busy)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--root")
    parser.add_argument("--model", default="resnet8")
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.beton"
        build_beton(open_source(args.source, root=args.root), path, WriteOptions(mode="raw"))
        dataset = open_dataset(path)
        ids = random_order(dataset.beton.labels, 0)[: args.samples]
        views = Views("crop-flip", int(dataset.beton.heights[0]), 162)
        loader = Loader(dataset, views, mask=ids, batch_size=args.batch_size, shuffle=True, num_workers=1)
        recipe = Recipe(model=args.model, epochs=args.rounds + 1, batch_size=args.batch_size, alpha=0)
        runs = {
            "without": Run(recipe, dataset, loader, None),
            "with": Run(recipe, dataset, loader, Record(methods=RECORDABLE, window=3)),
        }
        seconds = measure.interleave(runs, rounds=args.rounds)
        cpu_s = {name: run.cpu_s[1:] for name, run in runs.items()}
        for a, b in zip(*(run.model.state_dict().values() for run in runs.values()), strict=True):
            assert torch.equal(a, b)
        recorder = runs["with"].recording.recorder
        assert (recorder.state["presented"][ids] == args.rounds + 1).all()
    measure.save(
        "record_cost",
        {
            "speed_with_over_without": measure.ratios(seconds, "with", "without"),
            "cpu_time_without_over_with": measure.ratios(cpu_s, "with", "without"),
            "images_per_s": {name: args.samples / sorted(times)[len(times) // 2] for name, times in seconds.items()},
            "model": args.model,
            "images": args.samples,
            "samples_of_state": dataset.beton.num_samples,
            "batch_size": args.batch_size,
            "rounds": args.rounds,
        },
    )


if __name__ == "__main__":
    main()
