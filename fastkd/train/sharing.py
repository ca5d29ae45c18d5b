"""What ranks owe one another in a step: the means of their numbers, and when to stop."""

import torch
import torch.distributed as dist
from torch import Tensor

from fastkd.dist import World
from fastkd.stopping import StopFlag


def over_ranks(row: Tensor, stop: StopFlag, world: World) -> Tensor:
    """The mean of a step's numbers over all samples of the global batch, and whether some rank is asked to stop."""
    row = torch.cat([row, row.new_full((1,), float(stop.asked))])
    if world.size > 1:
        dist.all_reduce(row)
        row[:4] /= world.size
    return row
