"""torchrun's environment, read in one place, with defaults that make one process the ordinary case."""

import gc
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from fastkd.errors import OptionError

if TYPE_CHECKING:
    import numpy as np
    import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """This process among those of the run.

    rank: 0 … size-1 over all nodes. local_rank: the same on this node. size: number of processes. store: torch's, by which
    the ranks of a `process_group` found each other; turns: numbers what they tell one another through it (`agree`).
    """

    rank: int = 0
    local_rank: int = 0
    size: int = 1
    store: Any = field(default=None, compare=False, repr=False)
    turns: Iterator[int] = field(default_factory=itertools.count, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise OptionError(f"RANK is {self.rank}, expected 0 … {self.size - 1} (WORLD_SIZE is {self.size})")

    @property
    def is_main(self) -> bool:
        """True on the one rank that prints and writes."""
        return self.rank == 0


def read_world() -> World:
    """The World of RANK, LOCAL_RANK and WORLD_SIZE; a single process where they are not set.

    Raises:
        OptionError: a variable that is not an integer, or a rank outside the world.
    """
    values = {}
    for name, default in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1)):
        text = os.environ.get(name, str(default))
        if not text.isascii() or not text.isdigit():
            raise OptionError(f"environment variable {name} is {text!r}, expected a non-negative integer")
        values[name] = int(text)
    return World(rank=values["RANK"], local_rank=values["LOCAL_RANK"], size=values["WORLD_SIZE"])


def find_device(name: "str | torch.device") -> "torch.device":
    """The CPU or a GPU by torch's name for it.

    Raises:
        OptionError: another kind of device, or a GPU that is not there.
    """
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        raise OptionError(f"device {name}: expected cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise OptionError(f"device {name}: expected cpu, cuda or cuda:N")
    num_gpus = torch.cuda.device_count() if device.type == "cuda" else 1
    if (device.index or 0) >= num_gpus:
        raise OptionError(f"device {name}: torch sees {num_gpus or 'no'} GPU here")
    return device


@contextmanager
def process_group(world: World, device_type: str = "cpu") -> Iterator[World]:
    """Joins the process group (NCCL on GPUs, gloo else) for the length of the block; nothing to do in a single process.

    Yields:
        The World, with the store of the group.
    """
    if world.size == 1:
        yield world
        return
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(rendezvous("env://", world.rank, world.size))
    backend = "nccl" if device_type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.PrefixStore("group", store), rank=world.rank, world_size=world.size)
    try:
        yield replace(world, store=store)
        dist.barrier()
    finally:
        # A DDP network that is still in a reference cycle keeps gloo's threads beyond the group, and a process that ends
        # then now and then aborts ("terminate called without an active exception").
        gc.collect()
        dist.destroy_process_group()


def barrier(world: World) -> None:
    """Waits until all ranks are here."""
    if world.size > 1:
        import torch.distributed as dist

        dist.barrier()


def sum_over_ranks(array: "np.ndarray", world: World, device: str = "cpu") -> None:
    """Adds up an array over all ranks, in place; one that is zero on all ranks but one stays as it is on that one.

    Args:
        array: contiguous; integers or floats of a type that torch has.
        device: where the process group's backend wants its tensors.
    """
    if world.size == 1:
        return
    import torch
    import torch.distributed as dist

    shared = torch.from_numpy(array)
    there = shared.to(device)
    dist.all_reduce(there)
    if there is not shared:
        shared.copy_(there)


def even_split(num_items: int, rank: int, size: int) -> tuple[int, int]:
    """Part `rank` of `num_items` cut into `size` contiguous parts whose lengths differ by at most one.

    The first `num_items % size` parts are the longer ones; nothing is padded, repeated or dropped.

    Returns:
        start and end (exclusive) of the part.
    """
    base, extra = divmod(num_items, size)
    start = rank * base + min(rank, extra)
    return start, start + base + (rank < extra)
