"""What ranks owe one another in training: the means of their numbers, when to stop, and one set of batch statistics."""

from collections import deque
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastkd.dist import World
from fastkd.hashing import draw
from fastkd.stopping import StopFlag

_LAG = {"cpu": 1, "cuda": 2}  # steps after which ranks look at what they told one another, so that no GPU is waited for
_DROPOUT = 42  # number of the draw


def wrapped(learner: nn.Module, world: World, *, is_static: bool) -> nn.Module:
    """The learner as one of those of several ranks, whose gradients are their mean; itself in a single process.

    Batch statistics are each rank's own while an epoch lasts, see `share_buffers`: to send them in every step would change no
    loss. What is compiled inside is split where a bucket of gradients is full, so that they are sent while others come.

    Args:
        is_static: whether every step runs the same operations, which what is compiled does not.
    """
    if world.size == 1:
        return learner
    ddp = DistributedDataParallel(learner, gradient_as_bucket_view=True, static_graph=is_static)
    ddp.broadcast_buffers = False
    return ddp


def unsent(learner: nn.Module) -> AbstractContextManager[None]:
    """For the length of the block gradients stay on their rank, to be sent with those of the block after it."""
    return learner.no_sync() if isinstance(learner, DistributedDataParallel) else nullcontext()


def share_buffers(buffers: Iterable[Tensor], world: World) -> None:
    """Gives all ranks the first one's: the network that is measured and saved is rank 0's."""
    if world.size > 1:
        for buffer in buffers:
            dist.broadcast(buffer, 0)


def seed_dropout(seed: int, step: int, world: World) -> None:
    """Has each rank drop other values: all but the first draw by (seed, rank, step), so that a run that goes on needs no state
    of theirs. The first goes on with its own generator, as a single process does."""
    if world.rank > 0:
        torch.manual_seed(int(draw(int(draw(seed, world.rank, _DROPOUT)) >> 1, step, _DROPOUT)) >> 1)


def over_ranks(row: Tensor, stop: StopFlag, world: World) -> Tensor:
    """The mean of a step's numbers over all samples of the global batch, and whether some rank is asked to stop."""
    row = torch.cat([row, row.new_full((1,), float(stop.asked))])
    if world.size > 1:
        dist.all_reduce(row)
        row[:4] /= world.size
    return row


class Vote:
    """Whether to stop, on all ranks after the same step: as soon as asked in a single process, else by the rows that they
    exchanged a step ago, on GPUs two, from where they come while it goes on."""

    def __init__(self, stop: StopFlag, world: World) -> None:
        self.stop, self.world = stop, world
        self._coming: deque[tuple[torch.cuda.Event | None, Tensor]] = deque()

    def hear(self, row: Tensor) -> bool:
        """Takes what `over_ranks` gave for a step."""
        if self.world.size == 1:
            return self.stop.asked
        flag, arrived = row[-1:].to("cpu", non_blocking=True), None
        if row.is_cuda:
            arrived = torch.cuda.Event()
            arrived.record(torch.cuda.current_stream(row.device))
        self._coming.append((arrived, flag))
        if len(self._coming) <= _LAG[row.device.type]:
            return False
        arrived, flag = self._coming.popleft()
        if arrived is not None:
            arrived.synchronize()
        return bool(flag.item() > 0)
