"""From the loader's uint8 pixels to what a network was trained on."""

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from fastkd.errors import OptionError

PRESETS = {
    "cifar": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),  # RepDistiller's, on all of its data
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


@dataclass(frozen=True, slots=True)
class Norm:
    """Mean and standard deviation of each channel, of pixels in 0 … 1; and the input size, None for the view's own."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    size: int | None = None

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (B, 3, H, W) to float32 of the same shape (or of `size`), channels_last kept."""
        mean, std = self.constants(images.device)
        return (self.resized(images).float() - mean) / std

    def constants(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of pixels in 0 … 255: float32 (1, 3, 1, 1) on the device."""
        return _constant(self.mean, str(device)), _constant(self.std, str(device))

    def resized(self, images: torch.Tensor) -> torch.Tensor:
        """float32 of `size`; images as they are where they have it, or none is given."""
        if self.size is None or images.shape[-1] == self.size:
            return images
        return F.interpolate(
            images.float(), size=(self.size, self.size), mode="bilinear", antialias=True, align_corners=False
        )

    def describe(self) -> dict:
        """As JSON, for headers and checkpoints."""
        return {"mean": list(self.mean), "std": list(self.std), "size": self.size}


@functools.lru_cache(maxsize=64)
def _constant(values: tuple[float, float, float], device: str) -> torch.Tensor:
    """Kept on the device, because a copy in every step would wait for the GPU."""
    with torch.inference_mode(False):
        return torch.tensor([255 * value for value in values], device=device).view(1, 3, 1, 1)


def parse_norm(text: str, option: str = "--norm", size: int | None = None) -> Norm:
    """A preset's name, or `M,M,M/S,S,S` in units of 0 … 1.

    Raises:
        OptionError: neither; or a standard deviation that is not positive.
    """
    if text in PRESETS:
        return Norm(*PRESETS[text], size)
    try:
        mean, std = (tuple(float(x) for x in part.split(",")) for part in text.split("/"))
    except ValueError:
        mean, std = (), ()
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0 or not all(abs(x) < 1e3 for x in mean + std):
        raise OptionError(f"{option} {text!r}: expected {', '.join(PRESETS)}, or M,M,M/S,S,S such as .5,.5,.5/.2,.2,.2")
    return Norm(mean, std, size)


def norm_of(meta: dict, size: int | None = None) -> Norm | None:
    """The normalisation that a checkpoint's meta records, if it does."""
    found = meta.get("norm")
    return Norm(tuple(found["mean"]), tuple(found["std"]), size or found.get("size")) if found else None
