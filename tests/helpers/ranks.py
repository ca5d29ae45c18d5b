"""Running functions in forked processes: alone, or as the ranks of a run that share a gloo group."""

import os
import traceback
from collections.abc import Callable
from pathlib import Path

from fastkd.dist import World


def forked(function: Callable[[], object]) -> int:
    """Starts a process that calls the function and ends, with 1 where it raises; returns its id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        function()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def start_ranks(
    size: int, rendezvous: Path, function: Callable[[World], object], *, with_store: bool = True
) -> list[int]:
    """Starts `function(world)` in each of `size` processes and returns their ids.

    rendezvous: a file that does not exist yet, by which they find one another. with_store: whether their World has the
    store of the group, as that of commands has, or is one of a group that somebody else made.
    """
    import torch.distributed as dist

    def as_rank(rank: int) -> None:
        store = dist.FileStore(str(rendezvous), size)
        dist.init_process_group("gloo", store=dist.PrefixStore("group", store), rank=rank, world_size=size)
        function(World(rank=rank, local_rank=rank, size=size, store=store if with_store else None))
        dist.destroy_process_group()

    return [forked(lambda rank=rank: as_rank(rank)) for rank in range(size)]


def wait_for(pids: list[int]) -> list[int]:
    """The exit codes of processes; minus the signal where one ended them."""
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
