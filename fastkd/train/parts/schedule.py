"""The learning rate of every step of a run, by torch's schedulers: a function of the recipe and the step, without a state."""

import bisect
import math

import torch
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from fastkd.train.recipe import Recipe

_FIRST_SHARE = 0.01
"""Of the rate, with which a warm-up begins; that of torchvision's references."""
_PEAK = 5 / 24
"""Of a cyclic run, where its rate is largest; FFCV's CIFAR example."""


class Rates:
    """The learning rate of step 0, 1, … of a run: `rates(step)`.

    torch's schedulers turn the rate of an optimiser that trains nothing, as far as they are asked; so that a run which goes on
    has the rates of one that was never stopped, and lines of metrics can be told those of steps that are done.

    Args:
        steps_per_epoch: of the loader.
    """

    def __init__(self, recipe: Recipe, steps_per_epoch: int) -> None:
        self._steps_of_one = 1 if recipe.by_step else steps_per_epoch
        self._optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=recipe.lr)
        self._scheduler = _scheduler(recipe, self._optimizer, steps_per_epoch)
        self._found: list[float] = []

    def __call__(self, step: int) -> float:
        """The rate of a step; past the last one, that of the end."""
        place = step // self._steps_of_one
        while len(self._found) <= place:
            self._found.append(float(self._scheduler.get_last_lr()[0]))
            self._optimizer.step()
            self._scheduler.step()
        return self._found[place]


def _scheduler(recipe: Recipe, optimizer: torch.optim.Optimizer, steps_per_epoch: int) -> LRScheduler:
    """The scheduler of a recipe, which is told of each step, or of each epoch."""
    in_epoch = steps_per_epoch if recipe.by_step else 1
    total = recipe.epochs * in_epoch if recipe.steps is None else recipe.steps
    warmup = round(recipe.warmup_epochs * in_epoch)
    if recipe.schedule == "cyclic":
        up = min(total - 1, warmup or round(_PEAK * total))
        return lr_scheduler.CyclicLR(
            optimizer, recipe.min_lr, recipe.lr, max(1, up), max(1, total - up), cycle_momentum=False
        )
    if not warmup:
        return _falling(recipe, optimizer, total, 0, in_epoch)
    rising = lr_scheduler.LinearLR(optimizer, start_factor=_FIRST_SHARE, total_iters=warmup)
    falling = _falling(recipe, optimizer, max(1, total - warmup), warmup, in_epoch)
    return lr_scheduler.SequentialLR(optimizer, [rising, falling], milestones=[warmup])


def _falling(recipe: Recipe, optimizer: torch.optim.Optimizer, total: int, begun: int, in_epoch: int) -> LRScheduler:
    """What comes after a warm-up.

    Args:
        total, begun: steps (or epochs) of it, and of the run before it. in_epoch: of an epoch.
    """
    low = recipe.min_lr / recipe.lr
    if recipe.schedule == "constant":
        return lr_scheduler.ConstantLR(optimizer, factor=1.0)
    if recipe.schedule == "linear":
        return lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=low, total_iters=total)
    if recipe.schedule == "cosine":
        return lr_scheduler.LambdaLR(
            optimizer, lambda t: low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(t, total) / total))
        )
    epochs = recipe.milestones or tuple(round(recipe.epochs * share / 240) for share in (150, 180, 210))
    places = [round(epoch * in_epoch) - begun for epoch in epochs]
    return lr_scheduler.LambdaLR(optimizer, lambda t: recipe.gamma ** bisect.bisect_right(places, t))
