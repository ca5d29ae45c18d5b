"""Fresh networks: which there are by name, and with what rates of dropout and stochastic depth."""

import fnmatch
from contextlib import suppress

from torch import nn

from fastkd.errors import OptionError
from fastkd.models.registry import (
    CIFAR_MODELS,
    canonical_name,
    create_model,
    is_cifar_model,
    timm_for,
    torchvision_for,
    torchvision_names,
)

_OF_TORCHVISION = {"drop_path": "stochastic_depth_prob", "dropout": "dropout"}
_OF_TIMM = {"drop_path": "drop_path_rate", "dropout": "drop_rate"}


def model_names(pattern: str = "") -> list[str]:
    """The names that `create_model` takes: fastkd's own for small images, torchvision's, then timm's where it is installed.

    Args:
        pattern: what they have in them, `*` for anything.
    """
    known = [*CIFAR_MODELS, *torchvision_names()]
    with suppress(ImportError):
        import timm

        known += [f"timm:{name}" for name in timm.list_models()]
    return fnmatch.filter(known, f"*{canonical_name(pattern)}*")


def create_with_drops(
    name: str, num_classes: int, *, drop_path: float | None = None, dropout: float | None = None
) -> nn.Module:
    """As `create_model`; with rates that the network is built with in place of its own.

    Args:
        drop_path: stochastic depth, the share of residual branches that are left out; of most networks that of the last
            block, from which it falls to 0 at the first. dropout: where the network's definition has it, mostly the head.

    Raises:
        OptionError: a network that takes no such rate.
        ModelError, MissingDependencyError: as `create_model`.
    """
    given = {key: rate for key, rate in {"drop_path": drop_path, "dropout": dropout}.items() if rate is not None}
    name = canonical_name(name)
    if not given:
        return create_model(name, num_classes)
    flags = " and ".join(f"--{key.replace('_', '-')} {rate:g}" for key, rate in given.items())
    if is_cifar_model(name):
        raise OptionError(f"{name}: has nothing that {flags} could drop: leave it out, or use another --model")
    is_timm = name.startswith("timm:")
    names = _OF_TIMM if is_timm else _OF_TORCHVISION
    options = {names[key]: rate for key, rate in given.items()}
    try:
        if is_timm:
            made: nn.Module = timm_for(name).create_model(
                name.removeprefix("timm:"), pretrained=False, num_classes=num_classes, **options
            )
        else:
            made = torchvision_for(name).get_model(name, weights=None, num_classes=num_classes, **options)
    except TypeError as error:
        raise OptionError(f"{name}: does not take {flags} ({error}): leave it out, or use another --model") from None
    return made
