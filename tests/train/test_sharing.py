"""What ranks share and what each has of its own: drops, compiled batches, buckets of gradients, batch statistics."""

import json
from pathlib import Path

import numpy as np
import torch
from helpers.ranks import start_ranks, wait_for
from helpers.runs import step_losses
from helpers.stores import NORM
from torch import nn

from fastkd.data.views.draw import Views
from fastkd.dist import World
from fastkd.feed.loader import Loader
from fastkd.train.recipe import Recipe
from fastkd.train.sharing import seed_dropout, wrapped
from fastkd.train.student import train


def test_ranks_drop_other_values_and_a_step_is_repeated():
    def dropped(rank: int, step: int) -> tuple[float, ...]:
        torch.manual_seed(0)
        seed_dropout(0, step, World(rank=rank, local_rank=rank, size=4))
        return tuple(nn.functional.dropout(torch.ones(32)).tolist())

    masks = [dropped(rank, step) for rank in range(1, 4) for step in range(3)]
    assert len(set(masks)) == 9
    assert dropped(2, 1) == masks[4]
    assert dropped(0, 0) == dropped(0, 1) not in masks  # as a single process: its own generator goes on


def train_ranks(world: World, dataset, out: Path, *, compiled: bool, num_ids: int, **recipe) -> None:
    recipe = Recipe(**{"model": "resnet8", "epochs": 2, "batch_size": 8, "alpha": 0, "lr": 0.001} | recipe)
    common = {"num_workers": 1, "world": world}
    loader = Loader(dataset, Views("crop-flip", 32, 3), mask=np.arange(num_ids), batch_size=8, shuffle=True, **common)
    val = Loader(dataset, Views("center", 32), mask=np.arange(30), batch_size=9, **common)
    train(recipe, loader, out, norm=NORM, val=val, compiled=compiled, inputs={}, params={}, world=world)


def test_compiled_ranks_with_tails_train_as_plain_ones_and_compile_full_batches_alone(dataset, tmp_path, monkeypatch):
    """33 samples in batches of 16: of the last one a rank has one sample and the other none. Compiled by torch as far as its
    kernels, which take a minute."""
    flags = {"ema": 0.9, "amp": "bf16"}
    whole = torch.compile

    def counted(function, **options):
        def backend(module, inputs):
            with (tmp_path / "sizes").open("a") as file:
                file.write(json.dumps([list(x.shape) for x in inputs if isinstance(x, torch.Tensor)][:400]) + "\n")
            return module

        assert options == {"mode": None, "dynamic": False}
        return whole(function, backend=backend, dynamic=False)

    monkeypatch.setattr(torch, "compile", counted)
    for name, compiled in (("plain", False), ("compiled", True)):
        pids = start_ranks(
            2,
            tmp_path / f"meet-{name}",
            lambda world, name=name, compiled=compiled: train_ranks(
                world, dataset, tmp_path / name, compiled=compiled, num_ids=33, **flags
            ),
        )
        assert wait_for(pids) == [0, 0]
    assert len(step_losses(tmp_path / "plain")) == 6
    np.testing.assert_allclose(step_losses(tmp_path / "compiled"), step_losses(tmp_path / "plain"), rtol=0, atol=1e-5)
    shapes = [shape for line in (tmp_path / "sizes").read_text().splitlines() for shape in json.loads(line)]
    assert {shape[0] for shape in shapes if shape[1:] == [3, 32, 32]} == {8, 9}  # a step's, and an evaluation's


def test_what_is_compiled_is_split_where_a_bucket_of_gradients_is_full(tmp_path):
    """A wide network, of more than the first bucket's megabyte: gradients are sent while others are computed."""

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(12)))
            self.graphs: list[int] = []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            def backend(module, inputs):
                self.graphs.append(1)
                return module

            return torch.compile(self.layers, backend=backend)(x)

    def as_rank(world: World) -> None:
        made = Wide()
        wrapped(made, world, is_static=False)(torch.zeros(2, 1024)).sum().backward()
        assert len(made.graphs) >= 2

    assert wait_for(start_ranks(2, tmp_path / "meet", as_rank)) == [0, 0]


def test_batch_statistics_are_not_sent_in_every_step_and_gradients_lie_in_their_buckets(tmp_path):
    def as_rank(world: World) -> None:
        ddp = wrapped(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), world, is_static=True)
        assert not ddp.will_sync_module_buffers()
        assert ddp.gradient_as_bucket_view
        assert ddp.static_graph

    assert wait_for(start_ranks(2, tmp_path / "meet", as_rank)) == [0, 0]
