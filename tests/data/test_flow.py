"""How much is made at a time: all workers are busy, and no more memory is held than was said."""

import json
import os
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from helpers.batches import ids_of, pixels
from helpers.scripts import benchmark

from fastkd.data import flow
from fastkd.data.batch import Batch
from fastkd.data.beton.read import open_beton
from fastkd.data.flow import default_num_workers, grouped
from fastkd.data.loader import ViewLoader
from fastkd.data.memory import BatchMemory
from fastkd.data.upload import copy_stream, uploaded
from fastkd.data.views.draw import Views
from fastkd.errors import CorruptError

PATIENCE_S = 120
SIZES = [(224, 1), (224, 64), (224, 256), (32, 16), (32, 512)]


def loader_of(beton, size: int, batch_size: int, num_workers: int, **options) -> ViewLoader:
    return ViewLoader(
        open_beton(beton), Views("center", size), batch_size=batch_size, num_workers=num_workers, **options
    )


# Workers


@pytest.mark.parametrize("num_workers", [1, 2, 4, 8, 16])
@pytest.mark.parametrize(("size", "batch_size"), SIZES)
def test_as_many_goes_are_made_at_a_time_as_there_are_workers(raw_beton, size, batch_size, num_workers):
    loader = loader_of(raw_beton, size, batch_size, num_workers)
    blocks = enumerate(grouped(loader.jobs(0), loader._flow.group))
    num_goes = sum(loader._flow.num_goes(sum(map(len, parts)), is_first=number == 0) for number, (parts, _) in blocks)
    of_full_rounds = threading.Semaphore(num_goes // num_workers * num_workers)
    round_of_all = threading.Barrier(num_workers)

    def make(**_: object) -> None:
        if of_full_rounds.acquire(blocking=False):
            round_of_all.wait(PATIENCE_S)  # as long as one worker has nothing to make, no other one goes on

    loader._stage = make
    assert num_goes >= num_workers
    assert sum(map(len, loader.epoch(0))) == 600


@pytest.mark.parametrize(("size", "batch_size"), SIZES)
def test_the_first_batch_is_made_by_all_workers_at_once(raw_beton, size, batch_size):
    loader = loader_of(raw_beton, size, batch_size, 8)
    made: list[int] = []
    loader._stage = lambda *, batch_indices, **_: made.append(int(batch_indices[0]))
    next(loader.epoch(0))
    assert sum(first < batch_size for first in made) == min(8, batch_size)


@pytest.mark.parametrize(
    ("own", "of_launcher", "num_local", "expected"),
    [
        (16, 16, 1, 16),  # no torchrun
        (128, 128, 8, 16),  # all of a node's CPUs for each of its ranks
        (16, 128, 8, 16),  # bound to CPUs of its own
        (64, 128, 8, 16),  # bound to a NUMA node that four ranks share
        (32, 32, 8, 4),  # a container that has a part of the node
        (2, 2, 8, 1),
        (16, None, 8, 2),  # the launcher has gone
    ],
)
def test_cpus_are_divided_among_the_ranks_of_a_node_once(monkeypatch, own, of_launcher, num_local, expected):
    def affinity(pid: int) -> set[int]:
        if pid and of_launcher is None:
            raise ProcessLookupError
        return set(range(of_launcher if pid else own))

    monkeypatch.setattr(os, "sched_getaffinity", affinity)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(num_local))
    assert default_num_workers() == expected


# Parts of a batch


@pytest.fixture
def small_goes(monkeypatch) -> None:
    """Batches of more than four views of 24 pixels are made in parts."""
    monkeypatch.setattr(flow, "_GO_BYTES", 4 * 3 * 24**2)


@pytest.mark.parametrize("num_workers", [2, 5])
def test_a_batch_that_is_made_in_parts_is_the_one_made_whole(jpg_beton, small_goes, num_workers):
    beton, views = open_beton(jpg_beton), Views("rrc", 24, 3)
    whole, parts = (
        ViewLoader(beton, views, batch_size=23, shuffle=True, num_workers=workers) for workers in (1, num_workers)
    )
    assert parts._flow.num_goes(23) == num_workers
    for one, other in zip(whole.epoch(2), parts.epoch(2), strict=True):
        assert ids_of([one]) == ids_of([other])
        assert pixels([one]) == pixels([other])
        assert torch.equal(one.labels, other.labels)


def test_damage_in_any_part_of_a_batch_is_named(jpg_beton, copy_of, small_goes):
    beton = open_beton(jpg_beton)
    for sample_id in (0, 11, 23):
        path = copy_of(jpg_beton, {int(beton.ptrs[sample_id]) + 2: bytes(20)})
        loader = ViewLoader(open_beton(path), Views("rrc", 24), batch_size=24, num_workers=4)
        with pytest.raises(CorruptError, match=f"sample {sample_id}: "):
            list(loader.epoch(0))


# Memory


@contextmanager
def peak_bytes() -> Iterator[list[int]]:
    """A list that gets the most memory that Python and numpy took in the block at a time."""
    found: list[int] = []
    tracemalloc.start()
    try:
        yield found
        found.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("num_workers", [1, 2, 8])
@pytest.mark.parametrize(("size", "batch_size"), [(224, 64), (224, 256), (32, 4), (128, 20)])
@pytest.mark.parametrize("prefetch", [1, 5])
def test_no_more_memory_is_held_than_the_loader_says(raw_beton, size, batch_size, num_workers, prefetch):
    loader = loader_of(raw_beton, size, batch_size, num_workers, prefetch=prefetch, shuffle=True)
    loader._stage = lambda **_: None
    with peak_bytes() as peak:
        for epoch in range(3):
            for _ in loader.epoch(epoch):
                pass
    assert peak[0] <= loader.most_bytes + 200_000  # for the rest of what Python does
    assert f"at most {loader.most_bytes / 1e6:,.1f} MB" in loader.describe()


def test_memory_is_bounded_by_prefetched_batches_and_goes_of_the_workers(raw_beton):
    for num_workers in (1, 4, 16, 64):
        for batch_size in (1, 16, 64, 256, 600):
            loader = loader_of(raw_beton, 224, batch_size, num_workers, prefetch=2)
            batch = 3 * 224**2 * batch_size
            assert loader.most_bytes <= 1.01 * (
                4 * max(batch, 2**22) + 2 * num_workers * max(2**22, batch // num_workers)
            )


def test_the_script_that_measures_workers_in_short(raw_folder, monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark("measure"), "RESULTS", tmp_path)
    short = "--size 32 --batch-sizes 40 --num-workers 3 --sleep-ms 0.01 --seconds 0.001 --rounds 1 --name found"
    monkeypatch.setattr(sys, "argv", ["loader_workers", raw_folder, *short.split()])
    benchmark("data.loader_workers").main()
    rows = json.loads((tmp_path / "found.json").read_text())["by_batch_size_and_workers"]["40"]
    assert rows["1"]["rate_over_one_worker"]["median"] == 1
    assert all(row["most_bytes"] <= row["stated_bytes"] + 200_000 for row in rows.values())


def test_pinned_memory_is_told_as_torch_takes_it():
    layout = {"images": ((224, 224, 3), np.dtype("u1")), "labels": ((), np.dtype("i8"))}
    memory = BatchMemory(layout, num_kept=1, is_pinned=True)
    assert memory.block_bytes(64) == 2**24 + 512  # 9.6 MB of images


# Copies to a GPU, whose calls are written down by stand-ins


class Noted(torch.Tensor):
    """A tensor that notes which streams use it."""

    calls: list[tuple]

    def record_stream(self, stream: object) -> None:  # type: ignore[override]
        self.calls.append(("used by", stream))

    def to(self, *_: object, **__: object) -> "Noted":  # type: ignore[override]
        self.calls.append(("copy",))
        return self


@pytest.fixture
def calls(monkeypatch) -> Iterator[list[tuple]]:
    """What is asked of CUDA, in order, on a device whose current stream is "steps"."""
    calls: list[tuple] = []

    class Stream(str):
        def wait_stream(self, other: str) -> None:
            calls.append((self, "waits for", other))

    class Event:
        def record(self, stream: str) -> None:
            self.number = sum(call[0] == "mark" for call in calls)
            calls.append(("mark", stream))

        def synchronize(self) -> None:
            calls.append(("host waits for", self.number))

    @contextmanager
    def on(stream: str) -> Iterator[None]:
        calls.append(("on", stream))
        yield
        calls.append(("off", stream))

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("copies"))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("steps"))
    monkeypatch.setattr(torch.cuda, "stream", on)
    copy_stream.cache_clear()
    yield calls
    copy_stream.cache_clear()


def noted_batches(number: int, calls: list[tuple]) -> Iterator[Batch]:
    tensor = torch.zeros(1).as_subclass(Noted)
    tensor.calls = calls
    try:
        for _ in range(number):
            yield Batch(images=tensor, labels=tensor, sample_ids=tensor, logits=None, aug_seed=0)
    finally:
        calls.append(("closed",))


def test_a_batch_is_copied_beside_the_steps_and_kept_until_they_are_through_with_it(calls):
    next(uploaded(noted_batches(1, calls), torch.device("cuda")))
    assert calls[:9] == [
        ("on", "copies"),
        *[("copy",)] * 3,
        ("off", "copies"),
        ("steps", "waits for", "copies"),
        *[("used by", "steps")] * 3,
    ]


def test_the_host_waits_for_the_step_of_four_batches_before(calls):
    assert len(list(uploaded(noted_batches(7, calls), torch.device("cuda")))) == 7
    waits = [call[1] for call in calls if call[0] == "host waits for"]
    assert waits == [0, 1, 2]
    assert calls.index(("host waits for", 0)) > [i for i, call in enumerate(calls) if call[0] == "mark"][3]


def test_leaving_the_loop_closes_what_makes_the_batches(calls):
    batches = uploaded(noted_batches(7, calls), torch.device("cuda"))
    next(batches)
    batches.close()
    assert calls[-1] == ("closed",)
