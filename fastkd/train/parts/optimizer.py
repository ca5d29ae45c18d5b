"""The optimiser of a run, made so that it starts, skips and goes on alike on every device."""

from collections.abc import Iterable
from typing import Any

import torch

from fastkd.errors import OptionError
from fastkd.train.recipe import Recipe
from fastkd.train.recipes.update import require_timm_optimizer

_OWN = ("fused", "foreach", "capturable", "differentiable")
"""What of a state is the machine's and not the run's: how the update is computed."""


def make_optimizer(
    recipe: Recipe, parameters: Iterable[Any], *, fused: bool, lr: torch.Tensor | None = None
) -> torch.optim.Optimizer:
    """The recipe's optimiser; `load_state_dict` takes the states of any device and keeps the way of this one.

    Args:
        parameters: as `parameter_groups` gives them.
        fused: one kernel for all parameters, which also looks at the gradient scaler's findings without waiting for them.
        lr: a tensor on the parameters' device where the update is part of a graph; None for the recipe's.

    Raises:
        OptionError, MissingDependencyError: timm's, which is not there, or takes no such options.
    """
    rate = recipe.lr if lr is None else lr
    optimizer = _made(recipe, parameters, fused, rate)
    optimizer.register_load_state_dict_pre_hook(_with_own_ways)
    if isinstance(rate, torch.Tensor):  # of which load_state_dict makes a copy; each group has its own
        rates = [rate, *(rate.clone() for _ in optimizer.param_groups[1:])]

        def keep_rates(own: torch.optim.Optimizer) -> None:
            for group, one in zip(own.param_groups, rates, strict=True):
                group["lr"] = one

        keep_rates(optimizer)
        optimizer.register_load_state_dict_post_hook(keep_rates)
    if fused and recipe.opt == "sgd" and recipe.momentum:
        _begin_momentum(optimizer)
        optimizer.register_load_state_dict_post_hook(_begin_momentum)
    return optimizer


def _made(recipe: Recipe, parameters: Iterable[Any], fused: bool, lr: float | torch.Tensor) -> torch.optim.Optimizer:
    own: dict[str, Any] = {"betas": recipe.betas, "eps": recipe.eps}
    own = {name: value for name, value in own.items() if value is not None}
    if recipe.opt == "sgd":
        own = {"momentum": recipe.momentum, "nesterov": recipe.nesterov}
        return torch.optim.SGD(parameters, lr=lr, weight_decay=recipe.weight_decay, fused=fused, **own)
    if recipe.opt == "adamw":
        in_graph = isinstance(lr, torch.Tensor)  # its count of steps lies on the device, too
        return torch.optim.AdamW(
            parameters, lr=lr, weight_decay=recipe.weight_decay, fused=fused, capturable=in_graph, **own
        )
    optim, name = require_timm_optimizer(recipe.opt), recipe.opt.removeprefix("timm:")
    own |= {"lr": recipe.lr, "weight_decay": recipe.weight_decay, "momentum": recipe.momentum}
    try:
        found: torch.optim.Optimizer = optim.create_optimizer_v2(list(parameters), opt=name, **own)
    except TypeError as error:
        raise OptionError(f"--opt {recipe.opt}: {error}: leave that option out") from None
    return found


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets the rate of all groups, times their `lr_scale`; one that is a tensor stays that tensor, as a graph has recorded it."""
    for group in optimizer.param_groups:
        own = lr * group.get("lr_scale", 1.0)
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(own)
        else:
            group["lr"] = own


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
