"""Networks of torchvision and timm by name: which there are, for images of which size, and fresh ones.

torchvision and timm are imported only where one of their names, or an error's suggestions, need them.
"""

import difflib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from types import MappingProxyType, ModuleType
from typing import Any, cast

from torch import nn

from fastkd.errors import MissingDependencyError, ModelError, OptionError

_AUXILIARY_HEADS = ("googlenet", "inception_v3")  # these return tuples of logits while they train
_OF_TORCHVISION = {"drop_path": "stochastic_depth_prob", "dropout": "dropout", "size": "image_size"}
_OF_TIMM = {"drop_path": "drop_path_rate", "dropout": "drop_rate", "size": "img_size"}
_VIT_SIZE = 224  # of torchvision's vision transformers as they are built


def canonical_name(name: str) -> str:
    """The one spelling of a network's name: lower case, `_` for `-`; what follows `timm:` stays as it is."""
    if name.lower().startswith("timm:"):
        return "timm:" + name[len("timm:") :]
    return name.lower().replace("-", "_")


def library_model(
    name: str, num_classes: int, rates: Mapping[str, float] = MappingProxyType({}), *, others: Iterable[str] = ()
) -> nn.Module:
    """Makes a network of torchvision or timm with fresh weights.

    Args:
        name: a torchvision classification name or `timm:NAME`; `NAME@PIXELS` of one whose weights have the shape of its input,
            as vision transformers have, for images of that side.
        rates: of `drop_path` and `dropout`, as for `create_model`. others: names that an unknown one may have meant, too.

    Raises:
        ModelError: an unknown name, or a size that the network is not built for.
        OptionError: it takes no such rate.
        MissingDependencyError: a `timm:` name without timm.
    """
    base, at, pixels = name.partition("@")
    if base in _AUXILIARY_HEADS:
        raise ModelError(f"{name}: has auxiliary heads, expected a network with one output; choose another")
    is_timm = base.startswith("timm:")
    library = timm_for(base) if is_timm else torchvision_for(base, others)
    options: dict[str, Any] = dict(rates)
    if at:
        own = input_size(base)
        if own is None:
            raise ModelError(f"{name}: {base} takes images of any size: leave {at}{pixels} out")
        if not (pixels.isdecimal() and 0 < int(pixels) <= 4096):
            raise ModelError(f"{name}: expected {base}@PIXELS, the side of its images, as in {base}@{own}")
        options["size"] = int(pixels)
    try:
        if is_timm:
            named = {_OF_TIMM[key]: value for key, value in options.items()}
            made = library.create_model(base.removeprefix("timm:"), pretrained=False, num_classes=num_classes, **named)
        else:
            named = {_OF_TORCHVISION[key]: value for key, value in options.items()}
            made = library.get_model(base, weights=None, num_classes=num_classes, **named)
    except (TypeError, AssertionError, ValueError, RuntimeError) as error:
        if isinstance(error, TypeError) and rates:
            if not any(rates.values()):  # it drops nothing anyway
                return library_model(name, num_classes)
            raise OptionError(
                f"{name}: does not take {flags_of(rates)} ({error}): leave it out (0 where a recipe has it), or use another --model"
            ) from None
        if at:
            raise ModelError(f"{name}: cannot be built for images of {pixels} pixels ({error})") from None
        raise
    return cast(nn.Module, made)


def flags_of(rates: Mapping[str, float]) -> str:
    """Rates of `drop_path` and `dropout` as one types them."""
    return " and ".join(f"--{key.replace('_', '-')} {rate:g}" for key, rate in rates.items())


def input_size(name: str) -> int | None:
    """The side in pixels of the images that a network is built for; None for any, as convolutional networks take.

    Raises:
        ModelError, MissingDependencyError: an unknown name of timm's, or no timm.
    """
    if name.startswith("timm:"):
        config = timm_for(name).models.get_pretrained_cfg(name.removeprefix("timm:"))
        return int(config.input_size[-1]) if config is not None and config.fixed_input_size else None
    return _VIT_SIZE if name.startswith("vit_") else None


def sized_name(name: str, size: int) -> str:
    """The name of the network for views of a size: `NAME@PIXELS` where it is one that is built for a size, and this is another.

    Args:
        name: of any network; one that has a size keeps it.

    Raises:
        ModelError, MissingDependencyError: as `input_size`.
    """
    name = canonical_name(name)
    return name if "@" in name or input_size(name) in (None, size) else f"{name}@{size}"


def torchvision_names() -> list[str]:
    """torchvision's classification networks that have one output."""
    import torchvision.models

    names = torchvision.models.list_models(module=torchvision.models)
    return [name for name in names if name not in _AUXILIARY_HEADS]


def timm_names() -> list[str]:
    """timm's networks, `timm:` before each; none where it is not installed."""
    with suppress(ImportError):
        import timm

        return [f"timm:{name}" for name in timm.list_models()]
    return []


def torchvision_for(name: str, others: Iterable[str] = ()) -> ModuleType:
    """torchvision.models, if it has the classification network. others: names that an unknown one may have meant, too."""
    import torchvision.models

    if name not in _AUXILIARY_HEADS and name not in torchvision_names():
        raise ModelError(_unknown(name, [*others, *torchvision_names()]))
    return torchvision.models


def timm_for(name: str) -> ModuleType:
    """timm, if it is installed and has the network."""
    try:
        import timm
    except ImportError:
        raise MissingDependencyError(
            f"{name}: needs timm, which is not installed: pip install 'fastkd[timm]'"
        ) from None
    if not timm.is_model(name.removeprefix("timm:").partition(".")[0]):
        raise ModelError(_unknown(name, timm_names()))
    return timm


def _unknown(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=3)
    hint = (
        f"did you mean {', '.join(close)}?"
        if close
        else "expected e.g. resnet32, a torchvision classification name or timm:NAME"
    )
    return f"unknown model {name!r}: {hint}"
