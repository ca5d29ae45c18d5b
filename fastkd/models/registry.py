"""Networks by name, and weights into networks.

A name is one of the CIFAR networks (`resnet20`, `wrn_40_2`, `cifar_vgg8`, `cifar_resnet50` for the ResNet-50 of ImageNet's
widths), one of torchvision's classification networks (`resnet50`) or `timm:NAME`; see `libraries` for those.
"""

import collections
import fnmatch
import itertools
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial

import torch
from torch import Tensor, nn

from fastkd.errors import ModelError, OptionError
from fastkd.fingerprint import fingerprint
from fastkd.models import cifar
from fastkd.models.cifar_mobile import CifarMobileNetV2, CifarShuffleNetV1, CifarShuffleNetV2
from fastkd.models.libraries import canonical_name, flags_of, library_model, timm_names, torchvision_names

_PLAIN_CIFAR: dict[str, Callable[[int], nn.Module]] = {
    **{name: partial(cifar.WideResNet, *shape) for name, shape in cifar.WIDE_RESNETS.items()},
    **{f"cifar_vgg{depth}": partial(cifar.CifarVGG, depth) for depth in cifar.VGG_CONVS},
    "cifar_mobilenetv2": CifarMobileNetV2,
    "cifar_shufflenetv1": CifarShuffleNetV1,
    "cifar_shufflenetv2": CifarShuffleNetV2,
}
CIFAR_MODELS = (*cifar.CIFAR_RESNETS, *_PLAIN_CIFAR, *cifar.SMALL_STEM_RESNETS)

_FOREIGN_COUNTER = re.compile(r"(^|\.)(n_averaged|total_ops|total_params)$")  # torch's AveragedModel, thop
_PROBE_CLASSES = 1013  # a size that no other dimension of a network has: it marks the head


def is_cifar_model(name: str) -> bool:
    """Whether the name is one of the networks for small images that fastkd brings itself."""
    return canonical_name(name) in CIFAR_MODELS


def model_names(pattern: str = "") -> list[str]:
    """The names that `create_model` takes: fastkd's own for small images, torchvision's, then timm's where it is installed.

    Args:
        pattern: what they have in them, `*` for anything.
    """
    known = [*CIFAR_MODELS, *torchvision_names(), *timm_names()]
    return fnmatch.filter(known, f"*{canonical_name(pattern)}*")


def create_model(
    name: str,
    num_classes: int,
    *,
    shortcut: str = "B",
    drop_path: float | None = None,
    dropout: float | None = None,
) -> nn.Module:
    """Makes a network with fresh weights, drawn from torch's global generator.

    Args:
        name: a CIFAR network's name, a torchvision classification name or `timm:NAME`; see `library_model`.
        num_classes: number of logits, at least 1.
        shortcut: "A" or "B", for the CIFAR ResNets alone: see `CifarResNet`.
        drop_path: stochastic depth, the share of residual branches that are left out; of most networks that of the last
            block, from which it falls to 0 at the first. dropout: where the network's definition has it, mostly the head.
            None for the network's own rate.

    Returns:
        The network in training mode, on the CPU: float32 images (B, 3, H, W) to logits (B, num_classes).

    Raises:
        ModelError: an unknown name, or one without the shortcut asked for.
        OptionError: num_classes below 1; a network that takes no such rate.
        MissingDependencyError: a `timm:` name without timm.
    """
    name = canonical_name(name)
    if num_classes < 1:
        raise OptionError(f"{name}: num_classes is {num_classes}, expected at least 1")
    if shortcut != "B" and name not in cifar.CIFAR_RESNETS:
        raise ModelError(
            f"{name}: has no shortcut {shortcut!r}; the CIFAR ResNets alone ({', '.join(cifar.CIFAR_RESNETS)}) have"
        )
    given = {key: rate for key, rate in {"drop_path": drop_path, "dropout": dropout}.items() if rate is not None}
    if not is_cifar_model(name):
        return library_model(name, num_classes, given, others=CIFAR_MODELS)
    if any(given.values()):
        raise OptionError(
            f"{name}: has nothing that {flags_of(given)} could drop: leave it out (0 where a recipe has it), or use another --model"
        )
    if name in cifar.CIFAR_RESNETS:
        depth, widths = cifar.CIFAR_RESNETS[name]
        return cifar.CifarResNet(depth, num_classes, shortcut, widths)
    if name in _PLAIN_CIFAR:
        return _PLAIN_CIFAR[name](num_classes)
    return cifar.small_stem(library_model(cifar.SMALL_STEM_RESNETS[name], num_classes))


def load_weights(model_name: str, state_dict: Mapping[str, Tensor], num_classes: int | None = None) -> nn.Module:
    """Makes the network that the keys describe and loads all of them, and nothing else, into it.

    `module.` and `_orig_mod.` prefixes are taken off, and what all keys start with (`model.`, `net.`, `backbone.`, …) where
    the rest fits; averages' and profilers' counters (`n_averaged`, `total_ops`, `total_params`) are left out; akamaster's and
    RepDistiller's `resnetv2` names become ours; the shortcut option and the number of classes are read off the keys and the
    head; missing `num_batches_tracked` (torch before 0.4.1) are taken as 0.

    Args:
        model_name: as for `create_model`.
        state_dict: name to tensor.
        num_classes: the number of classes that the head must have, or None for any.

    Returns:
        The network, on the CPU, in training mode.

    Raises:
        ModelError: an unknown name, keys or shapes that are not this network's, another number of classes, or weights that
            are NaN or infinite.
        MissingDependencyError: a `timm:` name without timm.
    """
    name = canonical_name(model_name)
    state = {key: value for key, value in strip_prefixes(state_dict).items() if not _FOREIGN_COUNTER.search(key)}
    shortcut = _shortcut(name, state)
    shapes = _any_shapes(name, shortcut)
    matches = {prefix: _match(name, _without(prefix, state), shapes) for prefix in _shared_prefixes(state)}
    best = max(matches, key=lambda prefix: (matches[prefix][2] is None, len(matches[prefix][0].keys() & shapes.keys())))
    found, classes, problem = matches[best]
    if problem is not None:
        likely = _lookalike(name, _without(best, state))
        hint = f"; the keys look like {likely}" if likely else ""
        raise ModelError(f"{name}: the weights do not fit: {_cause(best, state, shapes)}{problem}{hint}")
    if num_classes not in (None, classes):
        raise ModelError(f"{name}: the weights have {classes} classes, expected {num_classes}")
    bad = next((key for key, value in found.items() if not value.isfinite().all()), None)
    if bad is not None:
        raise ModelError(f"{name}: {bad} holds what are no finite numbers (NaN or infinite): take another checkpoint")
    model = create_model(name, classes, shortcut=shortcut)
    complete = model.state_dict()  # with torch's version marks and the counters that the weights may lack
    complete.update(found)
    model.load_state_dict(complete)
    return model


def entries_and_head(model_name: str) -> tuple[set[str], set[str]]:
    """The names in a network's state dict, and those of them that are the head's: that have a row for each class.

    Raises:
        ModelError, MissingDependencyError: as `create_model`.
    """
    shapes = _any_shapes(canonical_name(model_name), "B")
    return set(shapes), {key for key, shape in shapes.items() if shape[:1] == (_PROBE_CLASSES,)}


def count_classes(model_name: str, state_dict: Mapping[str, Tensor]) -> int:
    """The number of classes of a network, read off its head.

    Raises:
        ModelError, MissingDependencyError: as `create_model`.
    """
    return len(state_dict[min(entries_and_head(model_name)[1])])


def weights_fingerprint(model: nn.Module) -> str:
    """The fingerprint of a network's parameters and buffers: 32 hex digits, whatever its device and its wrapper."""
    return state_fingerprint(model.state_dict())


def state_fingerprint(state_dict: Mapping[str, Tensor]) -> str:
    """BLAKE2b-128 over the entries in the order of their names: name, dtype, shape, bytes. Prefixes do not count."""
    entries = sorted(strip_prefixes(state_dict).items())
    return fingerprint(
        part for key, value in entries for part in (f"{key} {value.dtype} {tuple(value.shape)}", _bytes(value))
    )


def strip_prefixes(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Takes off what (Distributed)DataParallel (`module.`) and torch.compile (`_orig_mod.`) put into the names."""
    return {re.sub(r"^(module\.)+", "", key.replace("_orig_mod.", "")): value for key, value in state_dict.items()}


def _shared_prefixes(state: Mapping[str, Tensor]) -> list[str]:
    """What all keys start with, in whole words: nothing first, then `model.`, `model.net.` and so on."""
    words = [key.split(".")[:-1] for key in state] or [[]]
    pairs = zip(min(words), max(words), strict=False)
    shared = [one for one, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)]
    return ["".join(f"{word}." for word in shared[:length]) for length in range(len(shared) + 1)]


def _without(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items()}


def _cause(prefix: str, state: Mapping[str, Tensor], probe: Mapping[str, tuple[int, ...]]) -> str:
    """What about the names as a whole makes weights a misfit, to be told before the first difference; mostly nothing."""
    shared = _shared_prefixes(state)[-1]
    if shared and not any(key.startswith(shared) for key in probe):
        return (
            f"all keys start with {shared!r}; without {prefix!r}, " if prefix else f"all keys start with {shared!r}; "
        )
    groups = collections.Counter(key.partition(".")[0] for key in state)
    if 1 < len(groups) <= 4 and not groups.keys() & {key.partition(".")[0] for key in probe}:
        return f"the keys start with {', '.join(f'{group!r} ({count})' for group, count in groups.items())}; "
    return ""


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _match(
    name: str, state: Mapping[str, Tensor], probe: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, Tensor], int, str | None]:
    """Compares a state dict with the shapes of the network at _PROBE_CLASSES classes.

    Returns:
        The state dict under our names, its number of classes, and the first difference (None where everything fits).
    """
    found = _rename(name, state)
    heads = [found[key] for key, shape in probe.items() if shape[:1] == (_PROBE_CLASSES,) and key in found]
    num_classes = next((len(head) for head in heads if head.ndim), _PROBE_CLASSES)
    for key, shape in probe.items():
        expected = (num_classes, *shape[1:]) if shape[:1] == (_PROBE_CLASSES,) else shape
        if key not in found and not key.endswith("num_batches_tracked"):
            told = str(expected).replace(str(_PROBE_CLASSES), "classes")
            return found, num_classes, f"{key} is missing, expected shape {told}"
        if key in found and tuple(found[key].shape) != expected:
            return found, num_classes, f"{key} has shape {tuple(found[key].shape)}, expected {expected}"
    extra = next((key for key in found if key not in probe), None)
    problem = extra and f"{extra} has shape {tuple(found[extra].shape)}, expected no such key"
    return found, num_classes, problem


def _rename(name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names of akamaster and of RepDistiller's resnetv2 as ours: head `linear`, option B under `shortcut`."""
    if name not in cifar.CIFAR_RESNETS and name not in cifar.SMALL_STEM_RESNETS:
        return dict(state)
    return {
        re.sub(r"^linear\.", "fc.", key.replace(".shortcut.", ".downsample.")): value for key, value in state.items()
    }


def _shortcut(name: str, state: Mapping[str, Tensor]) -> str:
    has_parameters = any(".downsample." in key or ".shortcut." in key for key in state)
    return "A" if name in cifar.CIFAR_RESNETS and not has_parameters else "B"


def _shapes(name: str, shortcut: str, device: str = "meta") -> dict[str, tuple[int, ...]]:
    """The shape of every entry of a network's state dict, at _PROBE_CLASSES classes; on "meta" it costs no memory."""
    with torch.device(device):
        model = create_model(name, _PROBE_CLASSES, shortcut=shortcut)
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def _any_shapes(name: str, shortcut: str) -> dict[str, tuple[int, ...]]:
    try:
        return _shapes(name, shortcut)
    except RuntimeError:  # regnet reads values of tensors while it is built, which "meta" has not
        return _shapes(name, shortcut, device="cpu")


def _lookalike(name: str, state: Mapping[str, Tensor]) -> str | None:
    """The CIFAR network, or the network of torchvision's same family, that the state dict fits."""
    family = re.match("[a-z]*", name.removeprefix("timm:").removeprefix("cifar_"))
    prefix = family.group() if family else ""
    relatives = [other for other in torchvision_names() if prefix and other.startswith(prefix)]
    for candidate in (*CIFAR_MODELS, *relatives):
        with suppress(RuntimeError):  # a network that cannot be built on "meta" is not worth its memory for a hint
            shapes = _shapes(candidate, _shortcut(candidate, state))
            if candidate != name and _match(candidate, state, shapes)[2] is None:
                return candidate
    return None
