"""The running average of a student's weights (`--ema`), which is what is measured and saved."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn


class Average:
    """average ← decay·average + (1 - decay)·weights after each step; the weights themselves after the first.

    Batch statistics are the network's own: they are taken over when the average is looked at. No part of it lies on another
    device than the network, and nothing in it is ever asked of a GPU.

    Args:
        network: from whose weights it starts; it keeps a copy, `module`. decay: 0 … 1.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.module = deepcopy(network)
        self.decay, self.has_begun = decay, False

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Takes the weights of a step."""
        own, new = _weights(self.module), _weights(network)
        if self.has_begun:
            torch._foreach_lerp_(own, new, 1 - self.decay)
        else:
            torch._foreach_copy_(own, new)
        self.has_begun = True

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
        """As torch's AveragedModel has it, in whose form states of before are; of n_averaged only whether it is 0 counts."""
        weights = {f"module.{name}": value for name, value in self.module.state_dict().items()}
        return {"n_averaged": torch.tensor(int(self.has_begun)), **weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises as torch's."""
        self.module.load_state_dict(
            {name.removeprefix("module."): value for name, value in state.items() if name != "n_averaged"}
        )
        self.has_begun = bool(state["n_averaged"] > 0)


def _weights(module: nn.Module) -> list[Tensor]:
    return list(module.parameters())
