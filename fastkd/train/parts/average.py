"""The running average of a student's weights (`--ema`), which is what is measured and saved."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn


class Average:
    """average ← decay·average + (1 - decay)·weights after each step; the weights themselves after the first.

    With a warm-up the decay of step t, from 0, is (1 + t)/(10 + t) as long as that is less: that of TensorFlow's
    ExponentialMovingAverage. Without one, the average of a run of fewer than some 1 / (1 - decay) steps is mostly of its first.

    Batch statistics are the network's own: they are taken over when the average is looked at. No part of it lies on another
    device than the network, and nothing in it is ever asked of a GPU.

    Args:
        network: from whose weights it starts; it keeps a copy, `module`. decay: 0 … 1.
    """

    def __init__(self, network: nn.Module, decay: float, *, warmup: bool = False) -> None:
        self.module = deepcopy(network)
        self.decay, self.warmup, self.num_steps = decay, warmup, 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Takes the weights of a step."""
        own, new = _weights(self.module), _weights(network)
        if self.num_steps:
            least = (1 + self.num_steps) / (10 + self.num_steps) if self.warmup else 1.0
            torch._foreach_lerp_(own, new, 1 - min(self.decay, least))
        else:
            torch._foreach_copy_(own, new)
        self.num_steps += 1

    @torch.no_grad()
    def take_statistics(self, network: nn.Module) -> None:
        """Takes the network's buffers."""
        own, new = list(self.module.buffers()), list(network.buffers())
        if own:
            torch._foreach_copy_(own, new)

    @contextmanager
    def worn_by(self, network: nn.Module) -> Iterator[None]:
        """For the length of the block the network has the average's weights: what is compiled of it serves both."""
        weights = _weights(network)
        with torch.no_grad():
            kept = [weight.clone() for weight in weights]
            torch._foreach_copy_(weights, _weights(self.module))
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(weights, kept)

    def state_dict(self) -> dict[str, Tensor]:
        """As torch's AveragedModel has it, in whose form states of before are; of n_averaged, without a warm-up, only whether it is 0
        counts: a graph that is replayed leaves it as it is."""
        weights = {f"module.{name}": value for name, value in self.module.state_dict().items()}
        return {"n_averaged": torch.tensor(self.num_steps), **weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises as torch's."""
        self.module.load_state_dict(
            {name.removeprefix("module."): value for name, value in state.items() if name != "n_averaged"}
        )
        self.num_steps = int(state["n_averaged"])


def in_time(decay: float, num_steps: int, *, warmup: bool) -> bool:
    """Whether the weights of a run's first step have less than 1/20 in its average: e⁻³ after 3 / (1 - decay) steps."""
    return warmup or decay**num_steps < 0.05


def _weights(module: nn.Module) -> list[Tensor]:
    return list(module.parameters())
