"""What networks have inside: the outputs and inputs of modules, caught by name while the network runs."""

import difflib
import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastkd.errors import ModelError, OptionError

_STAGE = re.compile(r"(layer|block|stage)s?[._]?\d+")


class Taps:
    """Catches tensors inside a network: `layer2` is that module's output, `fc:input` what the module reads, `layer2:preact`
    what the ReLU reads that the module ends with (see `preact_name`).

    Args:
        model: the network, not compiled.
        names: of modules, as `named_modules` gives them, with `:input` or `:preact` where those are meant. A network may say
            by `tap_names` that one of them is to be found elsewhere.
        option: the option that gave the names, for messages.

    Raises:
        OptionError: a name that the network does not have.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], option: str) -> None:
        self.names = tuple(names)
        self._caught: dict[str, Tensor] = {}
        modules = dict(model.named_modules())
        for name in self.names:
            module_name, _, what = getattr(model, "tap_names", {}).get(name, name).partition(":")
            if module_name not in modules or not module_name or what not in ("", "input", "preact"):
                close = (
                    difflib.get_close_matches(name, [known for known in modules if known], n=3) or list(modules)[1:4]
                )
                raise OptionError(
                    f"{option} {name}: {type(model).__name__} has no such module: did you mean {', '.join(close)}?"
                )
            if what == "preact":
                module_name, _, what = preact_name(model, module_name).partition(":")
            if what:
                own = modules[module_name]
                overwrites = getattr(own, "inplace", False)  # as torchvision's ReLUs do with what they read
                own.register_forward_pre_hook(
                    lambda _module, inputs, key=name, clones=overwrites: self._caught.__setitem__(
                        key, inputs[0].clone() if clones else inputs[0]
                    )
                )
            else:
                modules[module_name].register_forward_hook(
                    lambda _module, _inputs, output, key=name: self._caught.__setitem__(key, output)
                )

    def take(self) -> list[Tensor]:
        """What the last forward pass left, in the order of the names; it is given away."""
        caught, self._caught = self._caught, {}
        missing = [name for name in self.names if not isinstance(caught.get(name), Tensor)]
        if missing:
            raise ModelError(f"layer {missing[0]}: gives no tensor in a forward pass; choose another")
        return [caught[name] for name in self.names]

    def shapes(self, model: nn.Module, size: int) -> list[tuple[int, ...]]:
        """The shapes that are caught from one image of `size` pixels, without the batch: tuples of 1 or 3 numbers."""
        device = next(model.parameters()).device
        was_training = model.training
        model.eval()  # so that batch norms keep their statistics
        with torch.no_grad():
            model(torch.zeros(1, 3, size, size, device=device))
        model.train(was_training)
        return [tuple(tensor.shape[1:]) for tensor in self.take()]


def stage_names(model: nn.Module) -> list[str]:
    """What a network names as its stages (`feature_stages`), or the modules layer1 …, block1 …; empty where it has none."""
    own = getattr(model, "feature_stages", None)
    return list(own) if own else [name for name, _ in model.named_children() if _STAGE.fullmatch(name)]


def preact_name(model: nn.Module, stage: str) -> str:
    """Where the values of a stage are before its last ReLU, as a name for `Taps`.

    That is what the last ReLU reads that the stage, or its last block, has as its own; of a stage without one its output.
    """
    name, module = stage, model.get_submodule(stage)
    while isinstance(module, nn.Sequential) and len(module):
        child, module = list(module.named_children())[-1]
        name = f"{name}.{child}"
    if isinstance(module, nn.ReLU):
        return f"{name}:input"
    relus = [child for child, one in module.named_children() if isinstance(one, nn.ReLU)]
    return f"{name}.{relus[-1]}:input" if relus else stage


def embedding_name(model: nn.Module, way_out: str = "give --layers") -> str:
    """What the head reads: the input of the last linear layer.

    Raises:
        ModelError: a network without one.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ModelError(f"{type(model).__name__} has no linear head whose input could be the embedding; {way_out}")
    return f"{linear[-1]}:input"
