"""A step recorded once and replayed: hundreds of launches as one, which is what small networks on small images wait for."""

import sys
from collections.abc import Callable
from dataclasses import fields

import torch
from torch import Tensor

from fastkd.data.batch import Batch
from fastkd.dist import World
from fastkd.distil.methods import LOGIT_LOSSES
from fastkd.train.recipe import Recipe

Step = Callable[[Batch], Tensor]
Recorder = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]

_EAGER_STEPS = (
    3  # of a training run's own; cuDNN chooses its ways, and the optimiser makes its buffers, before a recording
)


def can_be_captured(recipe: Recipe, world: World, *, is_resident: bool) -> bool:
    """Whether a graph can hold the whole step: all it reads lies on the device, and what it does is the same in each.

    Args:
        is_resident: whether the batches are made there.
    """
    is_same = recipe.kd in LOGIT_LOSSES and recipe.amp != "fp16" and recipe.resize_from is None
    has_numbers_of_its_own = recipe.ema_warmup or recipe.alpha_course or recipe.tau_course
    can_hold = is_same and recipe.opt in ("sgd", "adamw") and not has_numbers_of_its_own
    return can_hold and is_resident and world.size == 1


def captured(step: Step, size: int, record: Recorder, log: Callable[[str], None] = lambda line: None) -> Step:
    """A step that is recorded once and replayed for batches of `size`; others, and the first few, run as they are.

    Every batch is trained on exactly once, in the same order of operations as by `step` alone.

    Args:
        step: forward, backward and update; returns a tensor that the next call may overwrite.
        record: see `cuda_graph`. It must not run what it records; where it raises RuntimeError, steps go on as they are.
        log: told so.

    Returns:
        A function of a batch; what it returns is the caller's own.
    """
    held: Batch | None = None
    replay: Callable[[], Tensor] | None = None
    num_left = _EAGER_STEPS

    def run(batch: Batch) -> Tensor:
        nonlocal held, replay, num_left
        if len(batch) != size or num_left > 0:
            num_left -= len(batch) == size
            return step(batch)
        if held is None or replay is None:
            own = held = batch.copy()
            try:
                replay = record(lambda: step(own))
            except RuntimeError as error:
                log(
                    f"train: the step cannot be recorded as one graph, so it is launched part by part: {' '.join(str(error).split())[:200]}"
                )
                num_left = sys.maxsize
                return step(batch)
        for field in fields(Batch):
            value = getattr(batch, field.name)
            if isinstance(value, Tensor):
                getattr(held, field.name).copy_(value, non_blocking=True)
        return replay().clone()

    return run


def cuda_graph(device: torch.device) -> Recorder:
    """A recorder by a CUDA graph: records without running, replays on the current stream."""

    def record(work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(device), torch.cuda.graph(graph):
            out = work()

        def replay() -> Tensor:
            graph.replay()
            return out

        return replay

    return record
