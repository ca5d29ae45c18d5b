"""Batches on their way to a GPU: copied on a stream of their own, so that a copy passes while the step before is computed."""

import functools
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing

import torch

from fastkd.data.batch import Batch

# The memory of a batch is free again once the GPU is through with its step: so the host may be only some steps ahead.
_STEPS_AHEAD = 4


@functools.cache
def copy_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream of all copies to a device: torch keeps freed memory for the stream that had it, so another one would take more."""
    return torch.cuda.Stream(device)


def uploaded(batches: Generator[Batch], device: torch.device) -> Iterator[Batch]:
    """The same batches on a GPU, in order. What the caller starts on its current stream waits for the batch's copy alone;
    the host waits only where it is more than four steps ahead.

    Args:
        batches: in pinned memory; closed at the end.
    """
    copies = copy_stream(device)
    through: deque[torch.cuda.Event] = deque()
    with closing(batches):
        for batch in batches:
            if len(through) == _STEPS_AHEAD:
                through.popleft().synchronize()
            with torch.cuda.stream(copies):
                there = batch.to(device)
            steps = torch.cuda.current_stream(device)
            steps.wait_stream(copies)
            for name in Batch.__slots__:
                if isinstance(tensor := getattr(there, name), torch.Tensor):
                    tensor.record_stream(steps)  # its memory is not used again before they are through with it
            del batch
            yield there
            del there
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(device))
            through.append(event)
