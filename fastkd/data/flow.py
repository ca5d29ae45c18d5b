"""How the making of batches is cut into goes of the workers, so that all of them are busy and little memory is held."""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

_GO_BYTES = (
    2**22
)  # pixels that a worker makes in one go: some 20 ms of photos, beside which the turns at Python's lock are little
_GOES = 8  # at least that many goes an epoch for each worker, so that all of them end at about the same time


def default_num_workers() -> int:
    """The CPUs for the threads of this process: those that it may use, or its share of what its launcher has, if that is less.

    torchrun tells by LOCAL_WORLD_SIZE how many processes share the node. Where it bound each of them to CPUs of its own
    (`--numa-binding`), as Slurm does, they are divided already, which shows in the launcher having more of them.
    """
    local = os.environ.get("LOCAL_WORLD_SIZE", "1")
    own, num_local = len(os.sched_getaffinity(0)), max(1, int(local) if local.isdigit() else 1)
    if num_local == 1:
        return own
    try:
        of_launcher = len(os.sched_getaffinity(os.getppid()))
    except OSError:  # it has gone
        of_launcher = own
    return max(1, min(own, of_launcher // num_local))


@dataclass(frozen=True, slots=True)
class Flow:
    """What is made at a time.

    A worker makes views for at most 4 MiB of pixels in one go: a part of a large batch, or several small batches, which then
    lie in one block of memory. As many goes as keep all workers busy are under way, whatever the size of a batch.

    num_workers: threads. prefetch: batches at least that are made ahead of the one that is asked for. go: views that a worker
    makes in one go. group: samples at most of several batches that are made in one go; a longer batch has a block of its own.
    """

    num_workers: int
    prefetch: int
    go: int
    group: int

    @property
    def goes_ahead(self) -> int:
        """Goes beyond those of the batch that is waited for: one for each worker, and for every second one another to go on with
        while a slow one holds the batch up. (Simulated with goes whose times have a deviation of 30 %: 0.98 of the workers' time
        is used, up to 32 of them. With two for each, workers and caller wait more for Python's lock where CPUs are short.)"""
        return self.num_workers + (self.num_workers - 1) // 2

    def num_goes(self, num_samples: int, *, is_first: bool = False) -> int:
        """Parts in which a block of so many samples is made; the first one, which a step waits for, by all workers together."""
        return max(1, min(self.num_workers, num_samples if is_first else -(-num_samples // self.go)))

    def num_blocks(self, batch_size: int) -> tuple[int, int]:
        """Blocks that are held at a time at the most, that of the batch in the caller's hands among them; batches in each."""
        in_block = max(1, self.group // batch_size)
        goes = self.num_goes(in_block * batch_size)
        ahead = max(-(-self.prefetch // in_block), -(-self.goes_ahead // goes))
        return ahead + 2, in_block


def plan_flow(num_samples: int, view_bytes: int, num_workers: int, prefetch: int, *, is_alone: bool) -> Flow:
    """The flow of an epoch of so many samples on all ranks, whose views take `view_bytes` of pixels each.

    Args:
        is_alone: whether each batch needs a block of its own.
    """
    go = max(1, _GO_BYTES // view_bytes)
    group = 1 if is_alone else min(go, num_samples // (_GOES * num_workers))
    return Flow(num_workers, prefetch, go, group)


class Piece(NamedTuple):
    """What a worker makes in one go: int64 (n,) sample_ids, the arrays for them by name, and int32 (n,) what fails of them."""

    ids: np.ndarray
    arrays: dict[str, np.ndarray]
    status: np.ndarray

    def cut(self, start: int, end: int) -> "Piece":
        """A part of it, in the same memory."""
        arrays = {name: array[start:end] for name, array in self.arrays.items()}
        return Piece(self.ids[start:end], arrays, self.status[start:end])


class Block(NamedTuple):
    """Batches of one aug_seed under way in one block of memory: the whole, who makes its parts, and the size of each batch."""

    whole: Piece
    goes: list[Future[None]]
    sizes: list[int]
    aug_seed: int


def grouped(jobs: Iterable[tuple[np.ndarray, int]], most: int) -> Iterator[tuple[list[np.ndarray], int]]:
    """Consecutive jobs of one aug_seed that go into one block: several where the batches are small, `most` samples together.

    Each go costs the worker and the caller a turn at Python's lock, as long as the making of 30 raw images. The first batch,
    which a step waits for, comes by itself.
    """
    parts: list[np.ndarray] = []
    seed, num_samples, is_first = 0, 0, True
    for ids, aug_seed in jobs:
        if parts and aug_seed != seed:
            yield parts, seed
            parts, num_samples = [], 0
        seed = aug_seed
        parts.append(ids)
        num_samples += len(ids)
        if is_first or num_samples + len(ids) > most:
            yield parts, seed
            parts, num_samples, is_first = [], 0, False
    if parts:
        yield parts, seed
