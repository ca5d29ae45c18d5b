"""What is made fast for the sizes that a run has: what `--compile` compiles of a step, and cuDNN's choices."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

from fastkd.train.objective import objective
from fastkd.train.parts.forward import network_logits

T = TypeVar("T")


def compile_step(sizes: Collection[int], *, grows: bool, on_gpu: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`network_logits` and `objective`, compiled for batches of some sizes; on a GPU as CUDA graphs.

    Args:
        grows: whether the images do while the run lasts: then they are compiled once for all sizes, and no graphs are
            recorded, of which each size would need its own.
    """
    options: dict[str, Any] = {"mode": "reduce-overhead" if on_gpu and not grows else None, "dynamic": grows}
    return compiled(network_logits, sizes, is_first=True, **options), compiled(objective, sizes, **options)


def compiled(
    function: Callable[..., T], sizes: Collection[int], *, is_first: bool = False, **options: Any
) -> Callable[..., T]:
    """torch.compile of a function whose second argument is a batch's tensor, for batches of these sizes alone.

    Others, the last of an epoch, run as they are: each size would be compiled anew, and none is for a rank without a sample.

    Args:
        is_first: whether it is what a step begins with, which CUDA graphs want to know. options: torch.compile's.
    """
    fast = torch.compile(function, **options)

    def call(first: Any, of_batch: Tensor, *args: Any, **named: Any) -> T:
        if len(of_batch) not in sizes:
            return function(first, of_batch, *args, **named)
        if is_first and of_batch.is_cuda:
            torch.compiler.cudagraph_mark_step_begin()
        return fast(first, of_batch, *args, **named)

    return call


@contextmanager
def measured_convolutions(device: torch.device) -> Iterator[None]:
    """For the length of the block cuDNN tries its ways once for each size, where there is a GPU."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or device.type == "cuda"
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
