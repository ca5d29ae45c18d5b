"""Running a function as the ranks of a run, in forked processes that share a gloo group."""

import os
import traceback
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from fastkd.dist import World


def start_ranks(size: int, rendezvous: Path, function: Callable[[World], object]) -> list[int]:
    """Starts `function(world)` in each of `size` processes and returns their ids.

    rendezvous: a file that does not exist yet, by which they find one another.
    """
    pids = []
    for rank in range(size):
        pid = os.fork()
        if pid:
            pids.append(pid)
            continue
        code = 1
        try:
            dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=size)
            function(World(rank=rank, local_rank=rank, size=size))
            dist.destroy_process_group()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pids


def wait_for(pids: list[int]) -> list[int]:
    """The exit codes of processes; minus the signal where one ended them."""
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
