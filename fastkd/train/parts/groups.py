"""Which parameters decay, and at which share of the rate each learns."""

import re
from typing import Any

from torch import nn

from fastkd.errors import OptionError
from fastkd.train.recipe import Recipe

_LAYER = re.compile(r"^(?:[a-z_]+\.)*?[a-z_]*\d+(?:\.(?:blocks\.)?\d+)?(?=\.)")
"""What of a parameter's name names its layer: `layer1.0`, `features.3.2`, `stages.2.blocks.5`, `encoder_layer_3`."""
_SCALES = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


def parameter_groups(recipe: Recipe, learner: nn.Module, network: nn.Module) -> list[Any]:
    """The parameters of a learner as an optimiser takes them: a plain list where all are alike, else groups.

    Args:
        network: the part of the learner that has layers; what its method adds learns at the whole rate.

    Returns:
        Parameters; or dicts of `params`, `weight_decay` and, with a layer decay, `lr_scale`, the share of the rate.
    """
    if not recipe.no_decay and recipe.layer_decay == 1:
        return list(learner.parameters())
    spared = _without_decay(learner, network, recipe.no_decay)
    shares = _shares(network, recipe.layer_decay)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in learner.parameters():
        decay = 0.0 if id(parameter) in spared else recipe.weight_decay
        groups.setdefault((decay, shares.get(id(parameter), 1.0)), []).append(parameter)
    scaled = recipe.layer_decay != 1
    return [
        {"params": params, "weight_decay": decay} | ({"lr_scale": share} if scaled else {})
        for (decay, share), params in groups.items()
    ]


def _without_decay(learner: nn.Module, network: nn.Module, kinds: tuple[str, ...]) -> set[int]:
    """The ids of parameters that do not decay; with any of them those that a network of timm names itself."""
    found = set()
    for module in learner.modules():
        for name, parameter in module.named_parameters(recurse=False):
            is_bias = name.endswith("bias")
            of_channels = sum(length > 1 for length in parameter.shape) <= 1 and not is_bias
            if ("bias" in kinds and is_bias) or ("norm" in kinds and (of_channels or isinstance(module, _SCALES))):
                found.add(id(parameter))
    own = getattr(network, "no_weight_decay", None)
    if kinds and callable(own):
        named = dict(network.named_parameters())
        found |= {id(named[name]) for name in own() if name in named}
    return found


def _shares(network: nn.Module, decay: float) -> dict[int, float]:
    """The share of the rate at which each parameter of a network learns: 1 in the last layer, `decay` of that before, …

    Layers are those that a network of timm names itself (`group_matcher`), else the numbered parts of the names, in their order.
    """
    if decay == 1:
        return {}
    layers = _timm_layers(network) if hasattr(network, "group_matcher") else _named_layers(network)
    last = max(layers.values())
    if last == 0:
        raise OptionError(f"--layer-decay {decay}: {type(network).__name__} has one layer alone: leave it out")
    return {id(parameter): decay ** (last - layers[name]) for name, parameter in network.named_parameters()}


def _named_layers(network: nn.Module) -> dict[str, int]:
    numbers: dict[str, int] = {}
    found = {}
    for name, _ in network.named_parameters():
        match = _LAYER.match(name)
        layer = match[0] if match else name.rpartition(".")[0]
        found[name] = numbers.setdefault(layer, len(numbers))
    return found


def _timm_layers(network: nn.Module) -> dict[str, int]:
    from timm.models import group_parameters

    return dict(group_parameters(network, network.group_matcher(coarse=False), reverse=True))  # type: ignore[operator]
