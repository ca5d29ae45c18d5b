"""Claim: recording forgetting, EL2N, AUM and DUAL in the training loop costs at most 2 % of the run.

Two runs of one recipe on the images of SOURCE, one with `--record` of all four and one without, take turns of a few steps,
so that both meet the same noise; a round is an epoch of each, and its two sums are one pair. Both get the same batches,
which are made beforehand: what the loader costs both is left out, which only makes the ratio larger. The clock and the CPU
time of the process are counted; the ceiling is the run without. Asserted in the same run: both networks end with the same
weights, and every sample was recorded in every epoch.

    python -m benchmarks.train.record_cost cifar.zip --root cifar10/train
"""

import argparse
import gc
import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks import measure
from fastkd.data.beton.build import WriteOptions, build_beton
from fastkd.data.beton.dataset import open_dataset
from fastkd.data.sources.open import open_source
from fastkd.data.views.draw import Views
from fastkd.dist import World
from fastkd.feed.loader import Loader
from fastkd.models.norm import parse_norm
from fastkd.prune.masks.mask import random_order
from fastkd.prune.scores.recorder import RECORDABLE
from fastkd.scoring.recording import Record, TrainingRecord
from fastkd.train.learner import make_learner
from fastkd.train.loop import Run, one_step
from fastkd.train.metrics import Stopwatch
from fastkd.train.parts.states import Checkpoints
from fastkd.train.recipe import Recipe


def start(recipe: Recipe, loader: Loader, record: Record | None) -> Run:
    """A run as `train` starts it."""
    torch.manual_seed(recipe.seed)
    learner, _ = make_learner(recipe, loader, None)
    learner.norm = parse_norm("cifar")
    optimizer = torch.optim.SGD(learner.parameters(), lr=recipe.lr, momentum=recipe.momentum)
    num_samples = loader.dataset.beton.num_samples
    return Run(
        recipe=recipe,
        learner=learner,
        wrapped=learner.train(),
        optimizer=optimizer,
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        average=None,
        loader=loader,
        live=None,
        world=World(),
        watch=Stopwatch(loader.device),
        progress=lambda done, total: None,
        checkpoints=Checkpoints(Path(), {}, {}),
        recording=TrainingRecord(record, num_samples, World(), loader.device) if record else None,
        rows=[],
        num_written=0,
        accuracy={},
        lines=None,
        table=None,
    )


def one_round(runs: dict[str, Run], epoch: int, turn_steps: int) -> dict[str, tuple[float, float]]:
    """Seconds by the clock and of the CPU that each run takes for an epoch; which goes first alternates."""
    batches = list(next(iter(runs.values())).loader.epoch(epoch))
    sums = dict.fromkeys(runs, (0.0, 0.0))
    turns = [batches[at : at + turn_steps] for at in range(0, len(batches), turn_steps)]
    for number, turn in enumerate(turns):
        names = list(runs) if (number + epoch) % 2 else list(runs)[::-1]
        for name in names:
            run, begin, busy = runs[name], time.perf_counter(), time.process_time()
            run.watch.start()
            for batch in turn:
                one_step(run, batch, 0, 1.0)
            if number == len(turns) - 1 and run.recording is not None:
                run.recording.end_epoch()
            run.watch.stop()
            wall_s, cpu_s = sums[name]
            sums[name] = wall_s + time.perf_counter() - begin, cpu_s + time.process_time() - busy
    return sums


def cost_percent(pairs: list[tuple[float, float]]) -> dict[str, float]:
    """What `with` takes beyond `without`, pair by pair: median, quartiles, lowest and highest."""
    found = [100 * (own / base - 1) for own, base in pairs]
    low, _, high = statistics.quantiles(found, n=4)
    return {**measure.summary(found), "first_quartile": low, "third_quartile": high}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--root")
    parser.add_argument("--model", default="resnet8")
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--turn-steps", type=int, default=4)
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
            "without": start(recipe, loader, None),
            "with": start(recipe, loader, Record(methods=RECORDABLE, window=3)),
        }
        one_round(runs, 0, args.turn_steps)  # compiles, and lets memory grow
        gc.disable()  # or its pauses fall on whoever allocates the last straw
        rounds = [one_round(runs, 1 + number, args.turn_steps) for number in range(args.rounds)]
        for a, b in zip(*(run.learner.model.state_dict().values() for run in runs.values()), strict=True):
            assert torch.equal(a, b)
        recording = runs["with"].recording
        assert recording is not None
        assert (recording.recorder.state["presented"][ids] == args.rounds + 1).all()
    clock, cpu = ([(sums["with"][i], sums["without"][i]) for sums in rounds] for i in (0, 1))
    measure.save(
        "record_cost",
        {
            "cost_percent_clock": cost_percent(clock),
            "cost_percent_cpu": cost_percent(cpu),
            "within_2_percent": cost_percent(cpu)["median"] <= 2,
            "images_per_s_without_loader": args.samples / statistics.median(base for _, base in clock),
            "model": args.model,
            "images": args.samples,
            "samples_of_state": dataset.beton.num_samples,
            "batch_size": args.batch_size,
            "turn_steps": args.turn_steps,
            "rounds": args.rounds,
        },
    )


if __name__ == "__main__":
    main()
