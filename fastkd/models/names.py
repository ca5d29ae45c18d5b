"""The names that networks have."""

import fnmatch
from contextlib import suppress

from fastkd.models.registry import CIFAR_MODELS, canonical_name, torchvision_names


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
