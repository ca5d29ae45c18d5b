"""Seeded views: which crop and flip of a sample the teacher and the student see.

A view is a pure function of (sample_id, aug_seed) and of the size of the stored image. Its geometry is drawn here with
counter-based hashes, in integers and plain IEEE arithmetic without fastmath, so that it is the same on every machine;
`decode.py` cuts the pixels. Draw numbers are fixed for each purpose and never shared: a new operation takes new ones.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastkd.arguments import as_number, as_whole
from fastkd.data.views.mix import Mix
from fastkd.errors import OptionError
from fastkd.hashing import draw_below, draw_unit
from fastkd.intrinsics import njit

CROP_FLIP, RRC, CENTER_BOX, CENTER_CROP = range(4)
KINDS = {"crop-flip": (CROP_FLIP,), "rrc": (RRC,), "center": (CENTER_BOX, CENTER_CROP)}
"""What the compiled decoder calls each version of a kind, 1 first. A kind gets another version whenever the same (sample_id,
aug_seed) would give another box, flip or resize; those of before stay, for the stores and runs that were made with them."""

MOST_RESIZED = 65_535
"""Pixels of the shorter side of an image that `center` resizes."""
PAD = 4
NUM_OFFSETS = (2 * PAD + 1) ** 2
NUM_CROP_FLIP_VIEWS = 2 * NUM_OFFSETS

# Draw numbers. crop-flip's shuffles take one number for each step; rrc takes four for each of its ten tries.
_FLIP_START = 1
_SHUFFLE = (1_000, 2_000)  # of the offsets seen unflipped and flipped
_RRC_FLIP = 2
_RRC_TRY = 100


@dataclass(frozen=True, slots=True)
class Views:
    """A family of views.

    kind: `crop-flip` (zero-pad 4, crop, flip: CIFAR), `rrc` (random resized crop, flip: ImageNet) or `center`.
    size: side of the square output in pixels.
    num_seeds: K, the number of views of a sample; aug_seed runs over 0 … K-1.
    crop_ratio: `center` only: side of the crop over the image's shorter side. An image that already has the output
        size is taken whole.
    mix: mixes each view with that of another kept sample; None for views as they are.
    version: of the kind's definition; None for the newest.
    """

    kind: str
    size: int
    num_seeds: int = 1
    crop_ratio: float = 0.875
    mix: Mix | None = None
    version: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or self.kind not in KINDS:
            raise OptionError(f"views {self.kind!r} are not known, expected one of {', '.join(KINDS)}")
        size, num_seeds = as_whole(self.size, "the size of views", 1, 4096), as_whole(self.num_seeds, "num_seeds", 0)
        mix = Mix(self.mix) if isinstance(self.mix, str) else self.mix
        if not isinstance(mix, Mix | None):
            raise OptionError(f"mix is {mix!r}, expected a Mix or its kind")
        newest = len(KINDS[self.kind])
        version = (
            newest if self.version is None else as_whole(self.version, f"the version of views {self.kind}", 1, newest)
        )
        of_python = {
            "version": version,
            "size": size,
            "num_seeds": num_seeds,
            "crop_ratio": as_number(self.crop_ratio, "crop_ratio"),
            "mix": mix,
        }
        for name, value in of_python.items():
            object.__setattr__(self, name, value)  # once, before anybody sees it
        most = {"crop-flip": NUM_CROP_FLIP_VIEWS, "center": 1}.get(self.kind, 2**31 - 1)
        if not 1 <= self.num_seeds <= most:
            raise OptionError(
                f"{self.num_seeds} seeds for views {self.kind}, which has 1 … {most} distinct views of a sample"
            )
        if not 0 < self.crop_ratio <= 1:
            raise OptionError(f"crop ratio {self.crop_ratio}, expected 0 < ratio <= 1")
        if self.code == CENTER_CROP and self.size > MOST_RESIZED * self.crop_ratio:
            raise OptionError(
                f"crop ratio {self.crop_ratio} of {self.size} pixels: images would be resized to more than {MOST_RESIZED:,}"
            )

    @property
    def code(self) -> int:
        """The kind and its version as the integer that the compiled decoder takes."""
        return KINDS[self.kind][(self.version or 1) - 1]

    def identity(self) -> dict[str, Any]:
        """What decides a view, num_seeds and the set of kept samples aside; part of a store's identity."""
        own: dict[str, dict[str, Any]] = {
            "crop-flip": {"pad": PAD},
            "rrc": {"scale": [0.08, 1.0], "ratio": "3/4 to 4/3"},
        }
        extra = own.get(self.kind, {"crop_ratio": self.crop_ratio})
        if self.mix is not None:
            extra = extra | {"mix": self.mix.identity()}
        return {"kind": self.kind, "size": self.size, "version": self.version, **extra}


@njit(cache=True, nogil=True)
def crop_flip_view(sample_id: int, aug_seed: int) -> tuple[int, int, int]:
    """Row offset, column offset (0 … 8 in the image zero-padded by 4) and flip of one of the 162 views of a sample.

    Even and odd seeds see the sample unflipped and flipped in turn, which of them first is drawn for each sample. Each
    side walks its own shuffle of the 81 offsets (Fisher-Yates, as far as it is needed), so that seeds 0 … 161 visit
    every view once.
    """
    step = aug_seed // 2
    flip = (aug_seed % 2) ^ draw_below(sample_id, 0, _FLIP_START, 2)
    base = _SHUFFLE[1] if flip else _SHUFFLE[0]
    offsets = np.arange(81).astype(np.uint8)
    for i in range(step + 1):
        j = i + draw_below(sample_id, 0, base + i, 81 - i)
        offsets[i], offsets[j] = offsets[j], offsets[i]
    return offsets[step] // 9, offsets[step] % 9, flip


@njit(cache=True, nogil=True)
def _exp(x: float) -> float:
    """exp for |x| <= 0.3 by its Taylor series in plain multiplications and additions: libm differs between machines."""
    total = 1.0
    for n in range(14, 0, -1):
        total = 1.0 + x * total / n
    return total


_LOG_RATIO = math.log(4.0 / 3.0)


@njit(cache=True, nogil=True)
def rrc_view(sample_id: int, aug_seed: int, height: int, width: int) -> tuple[int, int, int, int, int]:
    """Box (top, left, height, width in pixels) and flip of a random resized crop.

    Drawn as torchvision's RandomResizedCrop does: ten tries with an area of 8 to 100 % of the image and a log-uniform
    aspect ratio of 3/4 to 4/3, then the largest central box within these ratios.
    """
    flip = draw_below(sample_id, aug_seed, _RRC_FLIP, 2)
    for attempt in range(10):
        number = _RRC_TRY + 4 * attempt
        area = height * width * (0.08 + 0.92 * draw_unit(sample_id, aug_seed, number))
        ratio = _exp(_LOG_RATIO * (2.0 * draw_unit(sample_id, aug_seed, number + 1) - 1.0))
        w = math.floor(math.sqrt(area * ratio) + 0.5)
        h = math.floor(math.sqrt(area / ratio) + 0.5)
        if 0 < w <= width and 0 < h <= height:
            top = draw_below(sample_id, aug_seed, number + 2, height - h + 1)
            left = draw_below(sample_id, aug_seed, number + 3, width - w + 1)
            return top, left, h, w, flip
    h, w = height, width
    if 4 * width < 3 * height:
        h = min(height, max(1, math.floor(width * 4.0 / 3.0 + 0.5)))
    elif 3 * width > 4 * height:
        w = min(width, max(1, math.floor(height * 4.0 / 3.0 + 0.5)))
    return (height - h) // 2, (width - w) // 2, h, w, flip


@njit(cache=True, nogil=True)
def center_view(height: int, width: int, size: int, crop_ratio: float) -> tuple[int, int, int, int]:
    """Central square box (top, left, height, width in pixels); the whole image where it already has the output size."""
    if height == size and width == size:
        return 0, 0, height, width
    side = max(1, int(min(height, width) * crop_ratio))
    return (height - side) // 2, (width - side) // 2, side, side


@njit(cache=True, nogil=True)
def center_window(height: int, width: int, size: int, crop_ratio: float) -> tuple[int, int, int, int]:
    """What torchvision's Resize and CenterCrop do: the sides of the whole image resized, and (top, left) of the crop in it.

    The shorter side becomes size / crop_ratio, rounded down as in timm (224 / 0.875 = 256), the longer one is rounded down,
    the crop's offsets to the nearest even. An image that already has the output size is taken whole.
    """
    if height == size and width == size:
        return height, width, 0, 0
    short = max(size, math.floor(size / crop_ratio * (1 + 1e-12)))  # 224 / (224 / 232) is to be 232
    resized_height, resized_width = (
        (short, short * width // height) if height <= width else (short * height // width, short)
    )
    top, left = (resized_height - size) // 2, (resized_width - size) // 2
    top += ((resized_height - size) % 2) * (top % 2)
    left += ((resized_width - size) % 2) * (left % 2)
    return resized_height, resized_width, top, left


@njit(cache=True, nogil=True)
def _boxes(
    code: int,
    size: int,
    crop_ratio: float,
    sample_ids: np.ndarray,
    aug_seed: int,
    heights: np.ndarray,
    widths: np.ndarray,
) -> np.ndarray:
    out = np.zeros((len(sample_ids), 5), np.int64)
    for i in range(len(sample_ids)):
        if code == CROP_FLIP:
            top, left, flip = crop_flip_view(sample_ids[i], aug_seed)
            out[i] = (top, left, heights[i], widths[i], flip)
        elif code == RRC:
            out[i] = rrc_view(sample_ids[i], aug_seed, heights[i], widths[i])
        elif code == CENTER_CROP:
            _, _, top, left = center_window(heights[i], widths[i], size, crop_ratio)
            out[i] = (top, left, size, size, 0)
        else:
            out[i, :4] = center_view(heights[i], widths[i], size, crop_ratio)
    return out


def boxes(views: Views, sample_ids: np.ndarray, aug_seed: int, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """The geometry of one view of each sample, as the decoder draws it.

    Args:
        sample_ids: int64 (n,). aug_seed: 0 … num_seeds-1. heights, widths: int64 (n,), pixels of the stored images.

    Returns:
        int64 (n, 5): top, left, height, width, flip. In pixels of the stored image; for `crop-flip` in pixels of the
        image padded by 4, for `center` from version 2 on of the image resized (see `center_window`). Divided by the image's height and width the box holds at any output size.

    Raises:
        OptionError: an aug_seed that the family does not have.
    """
    if not 0 <= aug_seed < views.num_seeds:
        raise OptionError(f"aug_seed {aug_seed}, expected 0 … {views.num_seeds - 1}")
    ids, h, w = (np.ascontiguousarray(x, dtype=np.int64) for x in (sample_ids, heights, widths))
    return _boxes(views.code, views.size, views.crop_ratio, ids, aug_seed, h, w)


def check_sizes(
    views: Views, sample_ids: np.ndarray, heights: np.ndarray, widths: np.ndarray, path: str | Path
) -> None:
    """Refuses images that a family of views is not for.

    Args:
        sample_ids: int64 (n,). heights, widths: integers (N,), pixels of all stored images. path: of the beton.

    Raises:
        OptionError: `crop-flip` of an image that does not have the output size.
    """
    if views.kind != "crop-flip":
        return
    wrong = sample_ids[(heights[sample_ids] != views.size) | (widths[sample_ids] != views.size)]
    if len(wrong):
        raise OptionError(
            f"{path}: views crop-flip of size {views.size} need images of {views.size}×{views.size}, sample {wrong[0]} has "
            f"{heights[wrong[0]]}×{widths[wrong[0]]}; use rrc"
        )
