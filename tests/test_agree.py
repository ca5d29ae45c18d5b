"""Ranks that tell one another what they mean, what the first of them found, and that one failed."""

import os
import signal
import time

import pytest
from helpers.commands import as_ranks
from helpers.ranks import start_ranks, wait_for

from fastkd.agree import agree, require_one_node, share
from fastkd.dist import World
from fastkd.errors import MismatchError, UnfinishedError


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_that_mean_the_same_go_on(size, tmp_path):
    found, _ = as_ranks(size, tmp_path, lambda world: agree(world, {"--lr": 0.1, "mask": None, "names": ["a"]}))
    assert found == ["None"] * size


@pytest.mark.parametrize(
    ("of_the_last", "words"),
    [
        ({"--lr": 0.5, "mask": "m"}, "in --lr: 0.5, rank 0 has 0.1"),
        ({"--lr": 0.1}, "in mask: nothing, rank 0 has m"),
        ({"--lr": 0.1, "mask": "m", "more": 1}, "in more: 1, rank 0 has nothing"),
    ],
)
def test_a_rank_that_means_something_else_ends_all_by_one_line(of_the_last, words, tmp_path):
    def function(world: World) -> None:
        agree(world, of_the_last if world.rank == 2 else {"--lr": 0.1, "mask": "m"})

    found, seconds = as_ranks(3, tmp_path, function)
    assert found == [f"MismatchError: rank 2 differs from rank 0 {words}; start all ranks with the same"] * 3
    assert seconds < 30


def test_ranks_of_several_nodes_are_told_the_way_to_write_one_file(monkeypatch, tmp_path):
    def function(world: World) -> None:
        monkeypatch.setattr("fastkd.agree.this_node", lambda: f"node {world.rank // 2}")
        require_one_node(world, "l.h5")

    found, _ = as_ranks(3, tmp_path, function)
    assert len(set(found)) == 1
    assert found[0].startswith("OptionError: l.h5: rank 2 is on another node than rank 0")
    assert "--shard I/2" in found[0]
    assert "fastkd merge" in found[0]


def test_ranks_of_one_node_write_one_file(tmp_path):
    assert as_ranks(2, tmp_path, lambda world: require_one_node(world, "l.h5"))[0] == ["None"] * 2


def test_what_rank_0_finds_is_told_to_all_and_only_rank_0_looks(tmp_path):
    def function(world: World) -> list:
        first = share(world, lambda: {"rank": world.rank, "pending": [1, 2]})
        return [first, share(world, lambda: world.rank)]

    assert as_ranks(3, tmp_path, function)[0] == ["[{'rank': 0, 'pending': [1, 2]}, 0]"] * 3


def test_what_rank_0_raises_is_raised_by_all(tmp_path):
    def function(world: World) -> None:
        def find() -> None:
            raise UnfinishedError("l.h5: is being filled")

        share(world, find)

    assert as_ranks(2, tmp_path, function)[0] == ["UnfinishedError: l.h5: is being filled"] * 2


@pytest.mark.parametrize("failing", [0, 1])
def test_a_rank_that_fails_ends_those_that_wait_for_it(failing, tmp_path):
    def function(world: World) -> None:
        if world.rank == failing:
            raise MismatchError("m.h5: of another beton")
        agree(world, {"mask": "m"})

    found, seconds = as_ranks(2, tmp_path, function)
    assert found[failing] == "MismatchError: m.h5: of another beton"
    assert found[1 - failing] == f"FastKDError: rank {failing} failed: m.h5: of another beton"
    assert seconds < 30


def test_ranks_of_a_group_that_somebody_else_made_agree_through_it(tmp_path):
    def function(world: World) -> None:
        assert share(world, lambda: world.rank) == 0
        with pytest.raises(MismatchError, match="rank 1 differs from rank 0 in seed: 1"):
            agree(world, {"seed": world.rank})

    assert wait_for(start_ranks(2, tmp_path / "meeting", function, with_store=False)) == [0, 0]


def test_one_process_agrees_with_itself():
    agree(World(), {"seed": 1})
    assert share(World(), lambda: 7) == 7


def train_until(failing: int, fail) -> object:
    """What a rank does that takes steps of a network shared with the others, until one of them fails in the third."""

    def function(world: World) -> None:
        import torch
        from torch.nn.parallel import DistributedDataParallel

        network = DistributedDataParallel(torch.nn.Linear(4, 4))
        for step in range(1000):
            if step == 3 and world.rank == failing:
                fail()
            network(torch.ones(2, 4)).sum().backward()

    return function


def raise_error() -> None:
    raise MismatchError("x.beton: sample 7: damaged")


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("failing", [0, 1])
def test_a_rank_that_fails_in_a_step_is_named_by_all(failing, size, tmp_path):
    found, seconds = as_ranks(size, tmp_path, train_until(failing, raise_error))
    assert found.pop(failing) == "MismatchError: x.beton: sample 7: damaged"
    assert found == [f"FastKDError: rank {failing} failed: x.beton: sample 7: damaged"] * (size - 1)
    assert seconds < 40


@pytest.mark.parametrize("killed", [0, 1])
def test_a_rank_that_is_killed_in_a_step_is_named(killed, tmp_path):
    found, seconds = as_ranks(2, tmp_path, train_until(killed, lambda: os.kill(os.getpid(), signal.SIGKILL)))
    assert found[1 - killed].startswith(f"FastKDError: rank {killed} has ended without a word")
    assert seconds < 40


def test_a_rank_that_is_killed_before_it_came_is_waited_for_no_longer_than_it_may_be_silent(monkeypatch, tmp_path):
    monkeypatch.setattr("fastkd.agree._LOOKS_S", 0.2)
    monkeypatch.setattr("fastkd.agree._SILENT_S", 2.0)

    def function(world: World) -> None:
        if world.rank == 1:
            while not world.store.add("fastkd/beats/1", 0):
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        agree(world, {"mask": "m"})

    found, seconds = as_ranks(2, tmp_path, function)
    assert found[0].startswith("FastKDError: rank 1 has not been heard of for 2 s")
    assert seconds < 40


def test_a_rank_that_comes_late_is_waited_for(monkeypatch, tmp_path):
    monkeypatch.setattr("fastkd.agree._LOOKS_S", 0.2)
    monkeypatch.setattr("fastkd.agree._SILENT_S", 2.0)

    def function(world: World) -> None:
        if world.rank == 1:
            time.sleep(5)
        agree(world, {"mask": "m"})

    assert as_ranks(2, tmp_path, function)[0] == ["None"] * 2


@pytest.mark.parametrize("failing", [0, 1])
def test_a_rank_that_is_through_fails_with_one_that_is_not(failing, tmp_path):
    def function(world: World) -> None:
        if world.rank == failing:
            time.sleep(1)
            raise_error()

    found, _ = as_ranks(2, tmp_path, function)
    assert found[1 - failing] == f"FastKDError: rank {failing} failed: x.beton: sample 7: damaged"
