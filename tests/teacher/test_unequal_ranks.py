"""Ranks of unequal speed that fill a store, or score: who is slow does less, and nobody waits long at the end."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import as_ranks
from helpers.ranks import start_ranks, wait_for
from helpers.stores import Slowed, cache

from fastkd.data.views.draw import Views
from fastkd.dist import World
from fastkd.feed.loader import Loader
from fastkd.scoring.networks import score_networks

SLOW = 2
"""The rank that takes ten times as long as the others."""
PATIENCE_S = 15.0


@pytest.fixture(scope="module")
def recipe(dataset, mask, teacher) -> dict:
    """A store of 104 blocks."""
    return {"dataset": dataset, "teacher": teacher, "views": Views("crop-flip", 32, 8), "mask": mask, "block_rows": 16}


@pytest.fixture(scope="module")
def alone(recipe, tmp_path_factory) -> Path:
    """The store of one process."""
    path = tmp_path_factory.mktemp("alone") / "l.h5"
    cache(path, **recipe)
    return path


def skewed(recipe: dict, world: World) -> dict:
    """The recipe for a rank; its teacher takes longer on the slow one."""
    seconds = 1.0 if world.rank == SLOW else 0.1
    return recipe | {"teacher": replace(recipe["teacher"], model=Slowed(recipe["teacher"].model, seconds))}


def test_a_rank_slowed_tenfold_does_fewer_blocks_and_all_end_in_good_time(recipe, alone, tmp_path):
    """Had each a third of the blocks, the others would wait for the slow one beyond their patience, for half a minute."""

    def fill(world: World) -> int:
        own = skewed(recipe, world)
        assert cache(tmp_path / "l.h5", **own, num_workers=1, world=world)["rows_written"] == 1600
        return own["teacher"].model.num_batches

    found, _ = as_ranks(3, tmp_path, fill, patience_s=PATIENCE_S)
    num_blocks = [int(text) for text in found]
    assert sum(num_blocks) == 104
    assert num_blocks[SLOW] < 104 / 4
    assert (tmp_path / "l.h5").read_bytes() == alone.read_bytes()


def test_ranks_of_a_group_that_somebody_else_made_fill_the_same_bytes(recipe, alone, tmp_path):
    def fill(world: World) -> None:
        cache(tmp_path / "l.h5", **recipe, world=world)

    assert wait_for(start_ranks(2, tmp_path / "meet", fill, with_store=False)) == [0, 0]
    assert (tmp_path / "l.h5").read_bytes() == alone.read_bytes()


def test_a_rank_that_gets_no_block_at_all_ends_with_the_others(recipe, tmp_path):
    """Five ranks, of whom three come when everything is taken: the last plane has three blocks."""
    few = recipe | {"views": Views("center", 32), "block_rows": 100}

    def fill(world: World) -> int:
        return cache(tmp_path / "l.h5", **few, world=world)["rows_written"]

    assert as_ranks(5, tmp_path, fill)[0] == ["200"] * 5


def test_a_slow_rank_scores_fewer_batches_and_the_scores_are_those_of_one_process(dataset, teacher, tmp_path):
    loader = Loader(dataset, Views("center", 32), batch_size=12, num_workers=4)
    methods = ["el2n", "grand", "moderate"]
    expected, features = score_networks([teacher], loader, methods)

    def score(world: World) -> int:
        network = skewed({"teacher": teacher}, world)["teacher"]
        found, others = score_networks([network], loader, methods, world=world)
        assert all(np.array_equal(found[method], expected[method]) for method in methods)
        assert np.array_equal(features, others)
        return network.model.num_batches

    num_batches = [int(text) for text in as_ranks(3, tmp_path, score, patience_s=PATIENCE_S)[0]]
    assert sum(num_batches) == 50
    assert num_batches[SLOW] < 50 / 3
