"""From pixels to logits, in one function that is compiled as a whole."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fastkd.models.norm import Norm


def forward(
    model: nn.Module,
    images: Tensor,
    norm: Norm,
    precision: torch.dtype | None = None,
    network: Callable[..., Tensor] | None = None,
) -> Tensor:
    """uint8 (B, 3, H, W) → float32 logits (B, C): normalised, resized where the norm says so, through the network.

    Args:
        precision: of autocast; None for float32. network: `network_logits`, or that compiled.
    """
    mean, std = norm.constants(images.device)
    return (network or network_logits)(model, norm.resized(images), mean, std, precision)


def forward_mirrored(model: nn.Module, images: Tensor, *how: Any) -> Tensor:
    """The mean of the logits of `forward` of images and of these mirrored left to right."""
    return (forward(model, images, *how) + forward(model, images.flip(3), *how)) / 2


def network_logits(
    model: nn.Module, pixels: Tensor, mean: Tensor, std: Tensor, precision: torch.dtype | None
) -> Tensor:
    """float32 logits (B, C) of pixels (B, 3, H, W), uint8 or float32, in 0 … 255 as are mean and std (1, 3, 1, 1)."""
    with torch.autocast(pixels.device.type, precision) if precision else nullcontext():
        logits_BC: Tensor = model((pixels.float() - mean) / std)
    return logits_BC.float()
