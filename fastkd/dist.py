"""torchrun's environment, read in one place, with defaults that make one process the ordinary case; and what ranks share."""

import gc
import itertools
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastkd.errors import OptionError

if TYPE_CHECKING:
    import numpy as np
    import torch

PATIENCE_S = 3600.0
"""How long a rank waits for another, wherever it does; a beton without a manifest is read whole before its rank can say
what it is, and rank 0 measures a codec while the others wait. A rank that fails or ends is known much sooner."""


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """This process among those of the run.

    rank: 0 … size-1 over all nodes. local_rank: the same on this node. size: number of processes. store: torch's, by which
    the ranks of a `process_group` found each other; turns: numbers what they tell one another (`agree`) and share out
    (`take_turns`) through it.
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


def this_node() -> str:
    """What tells the machine apart from all others: its kernel's id, which containers on it share as they share its caches."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


@contextmanager
def process_group(world: World, device: str = "cpu", *, patience_s: float = PATIENCE_S) -> Iterator[World]:
    """Joins the process group for the length of the block: gloo for tensors on the CPU, and NCCL for those on GPUs where
    the ranks are there; nothing to do in a single process.

    Args:
        device: of this rank, `cpu` or `cuda:N`.
        patience_s: how long a rank waits for the others, in any operation.

    Yields:
        The World, with the store of the group.

    Raises:
        OptionError: two ranks on one GPU.
    """
    if world.size == 1:
        yield world
        return
    import torch
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    patience = timedelta(seconds=patience_s)
    store, _, _ = next(rendezvous("env://", world.rank, world.size, timeout=patience))
    world = replace(world, store=store)
    options: dict[str, Any] = {"backend": "gloo"}
    if device.startswith("cuda"):
        _require_own_gpu(world, device)
        options = {"backend": "cpu:gloo,cuda:nccl", "device_id": torch.device(device)}
    shared = dist.PrefixStore("group", store)
    dist.init_process_group(store=shared, rank=world.rank, world_size=world.size, timeout=patience, **options)
    try:
        yield world
        barrier(world)
    finally:
        # A DDP network that is still in a reference cycle keeps gloo's threads beyond the group, and a process that ends
        # then now and then aborts ("terminate called without an active exception").
        gc.collect()
        dist.destroy_process_group()


def _require_own_gpu(world: World, device: str) -> None:
    """Refuses ranks that share a GPU, which NCCL cannot do; all of them raise the same.

    Raises:
        OptionError: names the first two such ranks.
    """
    import torch

    keys = [f"fastkd/gpu/{rank}" for rank in range(world.size)]
    gpu = str(getattr(torch.cuda.get_device_properties(device), "uuid", device))
    world.store.set(keys[world.rank], f"{this_node()} {gpu}")
    found: dict[bytes, int] = {}
    gpus = [world.store.get(key) for key in keys]
    world.store.set(f"fastkd/seen/{world.rank}", "")
    if world.is_main:  # with it ends the store
        world.store.wait([f"fastkd/seen/{rank}" for rank in range(world.size)])
    for rank, one in enumerate(gpus):
        first = found.setdefault(one, rank)
        if first != rank:
            raise OptionError(
                f"ranks {first} and {rank} are on one GPU, each needs its own: start as many processes on a node as it has GPUs "
                f"(torchrun --nproc-per-node), leave --device at auto, or take --device cpu"
            )


def barrier(world: World) -> None:
    """Waits until all ranks are here."""
    if world.size > 1:
        import torch
        import torch.distributed as dist

        dist.all_reduce(torch.zeros(1))  # of the CPU: no GPU's watchdog ends the waiting


def sum_over_ranks(array: "np.ndarray", world: World) -> None:
    """Adds up an array over all ranks, in place; one that is zero on all ranks but one stays as it is on that one.

    It goes from CPU to CPU. A group that somebody else made needs a backend for that (torch's default one has it).

    Args:
        array: contiguous; integers or floats of a type that torch has.
    """
    if world.size > 1:
        import torch
        import torch.distributed as dist

        dist.all_reduce(torch.from_numpy(array))


def take_turns(world: World, total: int) -> Iterator[int]:
    """Numbers 0 … total-1, rising, each given to one rank: to whichever asks next, so that a slow one gets fewer and all
    end together. In a group that somebody else made, every size-th number.

    Every rank has to call this the same number of times.
    """
    if world.store is None:
        return iter(range(world.rank, total, world.size))
    key = f"fastkd/{next(world.turns)}/given"
    return itertools.takewhile(lambda number: number < total, (world.store.add(key, 1) - 1 for _ in itertools.count()))


def even_split(num_items: int, rank: int, size: int) -> tuple[int, int]:
    """Part `rank` of `num_items` cut into `size` contiguous parts whose lengths differ by at most one.

    The first `num_items % size` parts are the longer ones; nothing is padded, repeated or dropped.

    Returns:
        start and end (exclusive) of the part.
    """
    base, extra = divmod(num_items, size)
    start = rank * base + min(rank, extra)
    return start, start + base + (rank < extra)
