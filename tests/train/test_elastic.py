"""Runs that go on with another number of ranks: the batches stay what they were, and so does the loss."""

import json
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import fastkd, fastkd_as_ranks
from helpers.moments import at_call
from helpers.ranks import start_ranks, wait_for
from helpers.runs import step_losses
from helpers.stores import NORM

from fastkd.data.beton.dataset import Dataset, open_dataset
from fastkd.data.views.draw import Views
from fastkd.dist import World
from fastkd.distil.logits import dkd_loss
from fastkd.distil.methods import METHODS, Context
from fastkd.errors import OptionError, StoppedError
from fastkd.feed.loader import Loader
from fastkd.train.recipe import Recipe
from fastkd.train.student import train

VIEWS = Views("crop-flip", 32, 3)


class Watched:
    """A loader that writes down which samples it hands out, and has SIGTERM sent after some of its batches."""

    def __init__(self, loader: Loader, out: Path, stop_after: int | None) -> None:
        self.loader, self.out, self.left = loader, out, stop_after

    def __getattr__(self, name: str) -> object:
        return getattr(self.loader, name)

    def __len__(self) -> int:
        return len(self.loader)

    def epoch(self, epoch: int, *, start_batch: int = 0):
        for step, batch in enumerate(self.loader.epoch(epoch, start_batch=start_batch), start_batch):
            if self.left is not None:
                self.left -= 1
                if self.left == 0:
                    os.kill(os.getpid(), signal.SIGTERM)
            with (self.out / f"seen-{self.loader.world.rank}").open("a") as file:
                file.write(json.dumps([epoch, step, batch.sample_ids.tolist()]) + "\n")
            yield batch


def train_part(
    world: World, dataset: Dataset, num_ids: int, global_batch: int, run: Path, notes: Path, stop_after: int | None
) -> None:
    """Trains until the SIGTERM, or to the end."""
    notes.mkdir(exist_ok=True)
    loader = Loader(
        dataset,
        VIEWS,
        mask=np.arange(num_ids),
        global_batch=global_batch,
        shuffle=True,
        num_workers=1,
        world=world,
    )
    watched = Watched(loader, notes, stop_after if world.is_main else None)
    recipe = Recipe(model="resnet8", epochs=2, alpha=0, lr=0.001, sync_bn=True)
    try:
        train(recipe, watched, run, norm=NORM, inputs={}, params={}, world=world)
    except StoppedError:
        assert stop_after is not None


def run_as(size: int, tmp_path: Path, name: str, *arguments) -> dict[tuple[int, int], list[list[int]]]:
    """Trains in so many ranks; returns the ids of each trained step, a list a rank."""
    pids = start_ranks(size, tmp_path / f"meet-{name}", lambda world: train_part(world, *arguments))
    assert wait_for(pids) == [0] * size
    return seen(arguments[-2], size)


def seen(notes: Path, size: int) -> dict[tuple[int, int], list[list[int]]]:
    parts: dict[tuple[int, int], list[list[int]]] = {}
    for rank in range(size):
        for line in (notes / f"seen-{rank}").read_text().splitlines():
            epoch, step, ids = json.loads(line)
            parts.setdefault((epoch, step), []).append(ids)
    return parts


@pytest.mark.parametrize(
    ("before", "after", "num_ids", "global_batch"), [(2, 1, 101, 32), (1, 2, 101, 25), (3, 2, 98, 32)]
)
def test_a_run_goes_on_with_other_ranks(raw_beton, tmp_path, before, after, num_ids, global_batch):
    """Stopped within the first epoch. Tails of 5, 1 and 2 samples: the second leaves a rank empty, the third one of three."""
    dataset, run = open_dataset(raw_beton), tmp_path / "run"
    common = (dataset, num_ids, global_batch)
    train_part(World(), *common, tmp_path / "whole", tmp_path / "one", None)
    first = run_as(before, tmp_path, "a", *common, run, tmp_path / "before", 2)
    assert not (run / "result.json").exists()
    done = torch.load(run / "resume.pt", weights_only=True)["step"]
    assert 2 <= done <= 3
    rest = run_as(after, tmp_path, "b", *common, run, tmp_path / "after", None)
    assert min(rest) == (0, done)
    trained = {place: parts for place, parts in first.items() if place < (0, done)} | rest
    alone = seen(tmp_path / "one", 1)
    assert {place: [i for part in parts for i in part] for place, parts in trained.items()} == {
        p: ids for p, (ids,) in alone.items()
    }
    for epoch in range(2):
        ids = [i for (e, _), parts in trained.items() if e == epoch for part in parts for i in part]
        assert sorted(ids) == list(range(num_ids))
    assert all(max(map(len, parts)) - min(map(len, parts)) <= 1 for parts in trained.values())
    np.testing.assert_allclose(step_losses(run), step_losses(tmp_path / "whole"), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [*sorted(METHODS.keys() - {"crd"}), "dkd"])  # crd: one process, never without samples
def test_a_rank_without_a_sample_learns_nothing_and_breaks_nothing(name):
    """Every loss on no samples has gradients that are 0, which ranks with samples can be averaged with."""
    empty = torch.zeros(0, 10, requires_grad=True)
    if name == "dkd":
        dkd_loss(empty, torch.zeros(0, 10), torch.zeros(0, dtype=torch.int64), tau=4, beta=8).backward()
        return
    is_vector = METHODS[name].layers == "embedding"
    shape = (8,) if is_vector else (8, 4, 4)
    ids = torch.arange(20)
    method = METHODS[name].make(
        [shape] * 2, [shape] * 2, Context(num_samples=20, sample_ids=ids, labels=ids % 3, seed=0)
    )
    student = [torch.zeros(0, *shape, requires_grad=True) for _ in range(2)]
    own, parts = method(student, [torch.zeros(0, *shape)] * 2, labels=ids[:0], sample_ids=ids[:0], step=0)
    (0.0 * (own + parts)).backward()
    assert all(p.grad is None or not p.grad.count_nonzero() for p in method.parameters())
    assert not any(torch.isnan(value).any() for value in method.state_dict().values())


def test_ranks_that_sigterm_stops_exit_75_and_one_process_goes_on_with_their_batches(raw_beton, tmp_path):
    """Two ranks of 20, started as Slurm starts them; one process under the same command makes batches of 40."""
    run = tmp_path / "run"
    options = ["--alpha", 0, "--model", "resnet8", "--epochs", 5, "--batch-size", 20, "--device", "cpu"]
    command = ("train", raw_beton, *options, "--num-workers", 1, "--out", run, "--json")

    def stop_in_the_second_epoch(rank: int) -> None:
        if rank:
            at_call("train_epoch " * 2, lambda: os.kill(os.getpid(), signal.SIGTERM))()

    stopped = fastkd_as_ranks(command, command, first=stop_in_the_second_epoch)
    assert [outcome.code for outcome in stopped] == [75, 75], stopped[0].err + stopped[1].err
    assert re.search(r"stopped by SIGTERM after (step \d+ of )?epoch", stopped[0].err)
    assert "Traceback" not in stopped[0].err + stopped[1].err
    outcome = fastkd(*command)
    assert outcome.code == 0, outcome.err
    assert "5 epochs of 15 steps of 40" in outcome.err
    assert len(step_losses(run)) == 5 * 15


def test_more_ranks_than_samples_in_a_batch_are_refused(raw_beton, tmp_path):
    world = World(rank=1, size=3)
    loader = Loader(open_dataset(raw_beton), VIEWS, global_batch=2, num_workers=1, world=world)
    with pytest.raises(OptionError, match="batches of 2 samples cannot be shared by 3 ranks; use fewer"):
        train(Recipe(model="resnet8", alpha=0), loader, tmp_path / "run", norm=NORM, inputs={}, params={}, world=world)
