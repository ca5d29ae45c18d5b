"""Published networks: their weights, over the network or from torch's (or timm's) cache, and what these expect."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pickle import UnpicklingError

from torch import nn

from fastkd.errors import MissingDependencyError, ModelError
from fastkd.models.classes import imagenet_wnids
from fastkd.models.libraries import canonical_name, timm_for, torchvision_for
from fastkd.models.registry import is_cifar_model

_DOWNLOAD_ERRORS = (OSError, RuntimeError, HTTPException, EOFError, UnpicklingError)


def pretrained(name: str) -> tuple[nn.Module, dict]:
    """Loads a published network, over the network where it is not in torch's (or timm's) cache.

    Args:
        name: a torchvision classification name, for its DEFAULT weights, or `timm:NAME`.

    Returns:
        The network in evaluation mode, and what its weights expect: `model`, `weights` (their name), `num_classes`,
        `class_names` (ImageNet's wnids, or None where they are not known), `mean` and `std` (of pixels in 0-1, a float a
        channel), `resize_size` (shorter side) and `crop_size`, in pixels.

    Raises:
        ModelError: an unknown name, or one without published weights.
        MissingDependencyError: timm is missing, or the weights cannot be fetched.
    """
    name = canonical_name(name)
    if is_cifar_model(name):
        raise ModelError(f"{name}: has no published weights that fastkd knows; give the path of a checkpoint")
    load = _timm_pretrained if name.startswith("timm:") else _torchvision_pretrained
    try:
        with _safe_unpickling():
            model, spec = load(name)
    except _DOWNLOAD_ERRORS as error:
        reason = str(error).strip().split("\n")[0]
        message = f"{name}: its published weights cannot be fetched ({reason}); give the path of a checkpoint instead"
        raise MissingDependencyError(message) from None
    return model.eval(), {"model": name, **spec}


def _torchvision_pretrained(name: str) -> tuple[nn.Module, dict]:
    models = torchvision_for(name)
    weights = models.get_model_weights(name).DEFAULT
    expects = weights.transforms()
    spec = {
        "weights": weights.name,
        "num_classes": len(weights.meta["categories"]),
        "class_names": _imagenet_names(len(weights.meta["categories"])),
        "mean": tuple(expects.mean),
        "std": tuple(expects.std),
        "resize_size": expects.resize_size[0],
        "crop_size": expects.crop_size[0],
    }
    return models.get_model(name, weights=weights, progress=False), spec


def _timm_pretrained(name: str) -> tuple[nn.Module, dict]:
    timm = timm_for(name)
    model = timm.create_model(name.removeprefix("timm:"), pretrained=True)
    expects = timm.data.resolve_model_data_config(model, use_test_size=True)
    tag = str(model.pretrained_cfg.get("tag", ""))
    spec = {
        "weights": tag,
        "num_classes": model.num_classes,
        "class_names": _imagenet_names(model.num_classes) if "in1k" in tag else None,
        "mean": tuple(expects["mean"]),
        "std": tuple(expects["std"]),
        "resize_size": int(expects["input_size"][-1] / expects["crop_pct"]),
        "crop_size": expects["input_size"][-1],
    }
    return model, spec


def _imagenet_names(num_classes: int) -> list[str] | None:
    """What the outputs of a classifier that was trained on ImageNet last are called: all versions of torchvision have the
    same 1,000 classes in the same order, but not the same words for them."""
    return list(imagenet_wnids()) if num_classes == len(imagenet_wnids()) else None


@contextmanager
def _safe_unpickling() -> Iterator[None]:
    """torch.hub unpickles whatever it finds; inside the block torch's own switch makes every load weights-only."""
    switch = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(switch)
    os.environ[switch] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[switch]
        else:
            os.environ[switch] = before
