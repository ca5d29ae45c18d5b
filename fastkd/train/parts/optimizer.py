"""The optimiser of a run, made so that it starts, skips and goes on alike on every device."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from fastkd.train.recipe import Recipe

_OWN = ("fused", "foreach", "capturable", "differentiable")
"""What of a state is the machine's and not the run's: how the update is computed."""


def make_optimizer(
    recipe: Recipe, parameters: Iterable[nn.Parameter], *, fused: bool, lr: float | torch.Tensor | None = None
) -> torch.optim.Optimizer:
    """SGD with the recipe's numbers; `load_state_dict` takes the states of any device and keeps the way of this one.

    Args:
        fused: one kernel for all parameters, which also looks at the gradient scaler's findings without waiting for them.
        lr: a tensor on the parameters' device where the update is part of a graph; None for the recipe's.
    """
    optimizer = torch.optim.SGD(
        parameters,
        lr=recipe.lr if lr is None else lr,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        fused=fused,
    )
    optimizer.register_load_state_dict_pre_hook(_with_own_ways)
    if isinstance(lr, torch.Tensor):  # of which load_state_dict makes a copy

        def keep_rate(own: torch.optim.Optimizer) -> None:
            for group in own.param_groups:
                group["lr"] = lr

        optimizer.register_load_state_dict_post_hook(keep_rate)
    if fused and recipe.momentum:
        _begin_momentum(optimizer)
        optimizer.register_load_state_dict_post_hook(_begin_momentum)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets the rate of all groups; one that is a tensor stays that tensor, as a graph has recorded it."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def _with_own_ways(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """A state with this optimiser's kernels and rate in place of those that it was written with."""
    groups = [
        theirs | {name: own[name] for name in (*_OWN, "lr") if name in own}
        for own, theirs in zip(optimizer.param_groups, state["param_groups"], strict=False)
    ]
    groups += state["param_groups"][len(groups) :]  # of another network, which load_state_dict refuses
    return {**state, "param_groups": groups}


def _begin_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Momentum of 0 for parameters that have none yet. The fused update takes its first buffers as they come from memory
    and writes them with the first gradients, which is never where the scaler finds those to have overflowed."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            if state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(parameter)
