import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastkd.dist import World, even_split, process_group, read_world
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
