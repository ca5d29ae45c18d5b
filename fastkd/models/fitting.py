"""Whether a network can take the views that it will be given: told before anything is trained or stored."""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastkd.errors import ModelError


def require_size(model: nn.Module, name: str, size: int, way_out: str) -> list[str]:
    """Runs one empty image through a network, in evaluation mode, which draws nothing and changes nothing.

    Args:
        name: the network's. size: of its input, in pixels. way_out: what to do about one that it cannot take.

    Returns:
        The names of the batch norms that get a single value a channel from an image of this size; a batch of one image has
        no variance there.

    Raises:
        ModelError: it does not run on images of this size.
    """
    single: list[str] = []

    def look(key: str, inputs: tuple[torch.Tensor, ...]) -> None:
        if inputs[0][0, 0].numel() == 1:
            single.append(key)

    norms = [(key, module) for key, module in model.named_modules() if isinstance(module, _BatchNorm)]
    hooks = [norm.register_forward_pre_hook(lambda _, inputs, key=key: look(key, inputs)) for key, norm in norms]
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            model(torch.zeros(1, 3, size, size, device=next(model.parameters()).device))
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        reason = " ".join(str(error).split())[:150]
        raise ModelError(f"{name}: does not run on images of {size} pixels ({reason}): {way_out}") from None
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return single
