"""What ranks owe one another in a step: the weight of their samples, the means of their numbers, and when to stop."""

import torch
import torch.distributed as dist
from torch import Tensor

from fastkd.dist import World
from fastkd.train.stopping import StopFlag


def over_ranks(row: Tensor, stop: StopFlag, world: World) -> Tensor:
    """The mean of a step's numbers over all samples of the global batch, and whether some rank is asked to stop."""
    row = torch.cat([row, row.new_full((1,), float(stop.asked))])
    if world.size > 1:
        dist.all_reduce(row)
        row[:4] /= world.size
    return row


def tail_share(num_ids: int, step: int, num_here: int, batch_size: int, world: World) -> float | None:
    """What this rank's mean loss counts in the mean of ranks, so that every sample of the global batch counts the same.

    None where some rank has no sample of it: such a tail, of fewer samples than ranks, is left out of training.
    """
    if world.size == 1:
        return 1.0
    num_global = min(batch_size * world.size, num_ids - step * batch_size * world.size)
    return None if num_global < world.size else num_here * world.size / num_global
