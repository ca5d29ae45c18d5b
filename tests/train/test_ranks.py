"""Training in several processes: the numbers of one process, and every sample once."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.ranks import start_ranks, wait_for
from helpers.runs import step_losses
from helpers.stores import NORM
from torch import nn

from fastkd.data.beton.dataset import open_dataset
from fastkd.data.views.draw import Views
from fastkd.dist import World
from fastkd.feed.loader import Loader
from fastkd.models.sync_norm import synchronise_norms
from fastkd.train.recipe import Recipe
from fastkd.train.student import train


def train_as(
    world: World,
    beton: Path,
    out: Path,
    *,
    batch_size: int,
    epochs: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    **recipe,
) -> None:
    recipe = Recipe(model="resnet8", epochs=epochs, batch_size=batch_size, alpha=0, **recipe)
    loader = Loader(
        open_dataset(beton), Views("crop-flip", 32, 3), batch_size=batch_size, shuffle=True, num_workers=1, world=world
    )
    train(recipe, loader, out, norm=NORM, inputs={}, params={}, world=world, progress=progress)


def test_two_ranks_of_64_are_one_process_of_128(raw_beton, tmp_path):
    """20 steps, every fifth of a batch that is not full; batch norms over both ranks.

    At a small rate, because on these images the order of the samples in one process's sums alone moves the losses of 20
    steps by 8e-5 at a rate of 0.01 (by 2e-15 in float64).
    """
    options = {"epochs": 4, "lr": 0.001}
    train_as(World(), raw_beton, tmp_path / "one", batch_size=128, **options)
    pids = start_ranks(
        2,
        tmp_path / "meet",
        lambda world: train_as(world, raw_beton, tmp_path / "two", batch_size=64, sync_bn=True, **options),
    )
    assert wait_for(pids) == [0, 0]
    one, two = step_losses(tmp_path / "one"), step_losses(tmp_path / "two")
    assert len(one) == len(two) == 20
    np.testing.assert_allclose(two, one, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
@pytest.mark.parametrize("cut", [5, 7])
def test_norms_over_ranks_are_norms_over_all_samples(tmp_path, kind, cut):
    """Output, gradients and running statistics, for ranks of 5 and 2 samples, or 7 and none; those for GPUs run anywhere."""
    x = torch.randn(7, 4, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parts = [slice(0, cut), slice(cut, 7)]

    def norm() -> nn.BatchNorm2d:
        torch.manual_seed(1)
        made = nn.BatchNorm2d(4).double()
        nn.init.normal_(made.weight)
        nn.init.normal_(made.bias)
        return made

    def as_rank(world: World) -> None:
        module = synchronise_norms(nn.Sequential(norm()), kind)
        own = x[parts[world.rank]].clone().requires_grad_()
        out = module(own)
        out.pow(3).sum().backward()
        torch.save([out.detach(), own.grad, module[0].weight.grad, module[0].running_var], tmp_path / str(world.rank))

    assert wait_for(start_ranks(2, tmp_path / "meet", as_rank)) == [0, 0]
    whole, inputs = norm(), x.clone().requires_grad_()
    out = whole(inputs)
    out.pow(3).sum().backward()
    found = [torch.load(tmp_path / str(rank)) for rank in range(2)]
    close = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(torch.cat([found[0][0], found[1][0]]), out.detach(), **close)
    torch.testing.assert_close(torch.cat([found[0][1], found[1][1]]), inputs.grad, **close)
    torch.testing.assert_close(found[0][2] + found[1][2], whole.weight.grad, **close)
    torch.testing.assert_close(found[1][3], whole.running_var, **close)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("num_ids", [600, 601 - 8, 7])
def test_every_kept_sample_is_in_one_batch_of_one_rank(raw_beton, size, num_ids):
    dataset, seen = open_dataset(raw_beton), []
    ids = np.random.default_rng(num_ids).permutation(600)[:num_ids]
    for rank in range(size):
        world = World(rank=rank, local_rank=rank, size=size)
        loader = Loader(
            dataset, Views("crop-flip", 32, 3), mask=ids, batch_size=64, shuffle=True, num_workers=1, world=world
        )
        seen += [batch.sample_ids for batch in loader.epoch(2)]
    assert sorted(torch.cat(seen).tolist()) == sorted(ids.tolist())


def test_sigterm_to_one_rank_stops_both_after_the_same_step(raw_beton, tmp_path):
    def as_rank(world: World) -> None:
        def stop(done: int, total: int) -> None:
            if world.rank == 1 and done == 5:
                os.kill(os.getpid(), signal.SIGTERM)

        train_as(world, raw_beton, tmp_path / "run", batch_size=8, epochs=30, progress=stop)

    pids = start_ranks(2, tmp_path / "meet", as_rank)
    assert wait_for(pids) == [1, 1]  # StoppedError in both; neither hangs
    assert (tmp_path / "run" / "resume.pt").exists()
    assert not (tmp_path / "run" / "result.json").exists()
