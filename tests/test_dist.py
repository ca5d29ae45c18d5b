import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.commands import as_ranks
from helpers.ranks import start_ranks, wait_for
from hypothesis import given
from hypothesis import strategies as st

from fastkd.cli.common import choose_device
from fastkd.dist import World, barrier, even_split, process_group, read_world, sum_over_ranks, take_turns
from fastkd.errors import OptionError

SIZES = st.integers(1, 40)
NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE")


@pytest.fixture
def environment(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@given(st.integers(0, 500), SIZES)
def test_the_parts_follow_one_another_and_leave_nothing_out(num_items, size):
    parts = [even_split(num_items, rank, size) for rank in range(size)]
    assert [i for start, end in parts for i in range(start, end)] == list(range(num_items))


@given(st.integers(0, 500), SIZES)
def test_parts_differ_by_at_most_one_and_the_longer_come_first(num_items, size):
    lengths = [end - start for start, end in (even_split(num_items, rank, size) for rank in range(size))]
    assert max(lengths) - min(lengths) <= 1
    assert lengths == sorted(lengths, reverse=True)


def test_without_torchrun_there_is_one_process(environment):
    assert read_world() == World(rank=0, local_rank=0, size=1)
    assert read_world().is_main


def test_torchruns_variables_are_read(environment):
    for name, value in zip(NAMES, ("3", "1", "4"), strict=True):
        environment.setenv(name, value)
    assert read_world() == World(rank=3, local_rank=1, size=4)
    assert not read_world().is_main


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", ["two", "", "-1", "1.0", " 1", "0x1", "²"])
def test_a_variable_that_is_no_number_is_named_with_its_value(environment, name, value):
    environment.setenv(name, value)
    with pytest.raises(OptionError, match=name) as error:
        read_world()
    assert repr(value) in str(error.value)


@pytest.mark.parametrize(("rank", "size"), [("2", "2"), ("5", "4"), ("0", "0")])
def test_a_rank_outside_the_world_is_refused(environment, rank, size):
    environment.setenv("RANK", rank)
    environment.setenv("WORLD_SIZE", size)
    with pytest.raises(OptionError, match=f"RANK is {rank}"):
        read_world()


def test_one_process_needs_no_process_group():
    import torch.distributed

    with process_group(World()):
        assert not torch.distributed.is_initialized()


def test_turns_are_all_taken_in_order_and_a_rank_that_asks_more_often_gets_more(tmp_path):
    def function(world: World) -> list[int]:
        turns = take_turns(world, 40)
        mine = [next(turns) for _ in range(3)] if world.rank == 2 else []
        barrier(world)
        mine += list(turns) if world.rank == 0 else []
        barrier(world)  # nobody ends before all have theirs
        return mine

    found, _ = as_ranks(3, tmp_path, function)
    mine = [eval(text) for text in found]
    assert sorted(mine[0] + mine[1] + mine[2]) == list(range(40))
    assert all(part == sorted(part) for part in mine)
    assert [len(part) for part in mine] == [37, 0, 3]


def test_ranks_of_a_group_that_somebody_else_made_share_turns_evenly(tmp_path):
    def function(world: World) -> None:
        assert list(take_turns(world, 5)) == [[0, 2, 4], [1, 3]][world.rank]
        barrier(world)

    assert wait_for(start_ranks(2, tmp_path / "meeting", function, with_store=False)) == [0, 0]


def test_an_array_is_summed_over_all_ranks(tmp_path):
    def function(world: World) -> list:
        array = np.array([world.rank, 10])
        sum_over_ranks(array, world)
        return array.tolist()

    assert as_ranks(3, tmp_path, function)[0] == ["[3, 30]"] * 3


def test_one_process_takes_all_turns():
    assert list(take_turns(World(), 3)) == [0, 1, 2]


@pytest.fixture
def gpus(monkeypatch):
    """A function that makes torch see so many GPUs; CUDA itself refuses others."""

    def stub(count: int) -> None:
        def set_device(device: torch.device) -> None:
            assert torch.device(device).index < count, "invalid device ordinal"

        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "set_device", set_device)

    return stub


def on_node(local_rank: int) -> World:
    return World(rank=8 + local_rank, local_rank=local_rank, size=16)


@pytest.mark.parametrize("name", ["auto", "cuda"])
@pytest.mark.parametrize("num_gpus", [2, 4, 8])
def test_a_rank_has_the_gpu_of_its_number_on_the_node(gpus, name, num_gpus):
    gpus(num_gpus)
    assert [choose_device(name, on_node(i)) for i in range(num_gpus)] == [f"cuda:{i}" for i in range(num_gpus)]


@pytest.mark.parametrize("name", ["auto", "cuda", "cuda:0"])
@pytest.mark.parametrize("local_rank", [0, 1, 7])
def test_a_rank_that_sees_one_gpu_has_that(gpus, name, local_rank):
    gpus(1)
    assert choose_device(name, on_node(local_rank)) == "cuda:0"


@pytest.mark.parametrize("name", ["auto", "cuda"])
@pytest.mark.parametrize("local_rank", [2, 5])
def test_more_ranks_on_a_node_than_gpus_are_told_how_many_to_start(gpus, name, local_rank):
    gpus(2)
    with pytest.raises(OptionError, match=rf"process {local_rank + 1} on its node, and torch sees 2 GPUs.*per-node 2"):
        choose_device(name, on_node(local_rank))


@pytest.mark.parametrize(("name", "num_gpus"), [("cuda", 0), ("cuda:0", 0), ("cuda:1", 1), ("cuda:2", 2)])
def test_a_gpu_that_is_not_there_is_refused(gpus, name, num_gpus):
    gpus(num_gpus)
    with pytest.raises(OptionError, match=rf"device {name}: torch sees {num_gpus or 'no'} GPU here"):
        choose_device(name, World())


def test_without_a_gpu_auto_is_the_cpu(gpus):
    gpus(0)
    assert choose_device("auto", on_node(3)) == "cpu"


def test_a_rank_that_does_not_come_is_waited_for_as_long_as_was_said(tmp_path):
    def function(world: World) -> None:
        if world.rank == 1:
            time.sleep(3)
        sum_over_ranks(np.zeros(1), world)

    found, _ = as_ranks(2, tmp_path, function, patience_s=1)
    assert "rank" in found[0]
    assert found[0] != "None"


def test_ranks_on_one_gpu_are_refused_alike_by_name(monkeypatch, tmp_path):
    """As with --device cuda:0 on several ranks of a node, or one GPU that all of them see."""
    uuids = {0: "GPU-a", 1: "GPU-b", 2: "GPU-a"}

    def function(world: World) -> None:
        return None

    def properties(device: str) -> SimpleNamespace:
        return SimpleNamespace(uuid=uuids[read_world().rank])

    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    found, _ = as_ranks(3, tmp_path, function, device="cuda:0")
    assert len(set(found)) == 1
    assert found[0].startswith("OptionError: ranks 0 and 2 are on one GPU, each needs its own")
