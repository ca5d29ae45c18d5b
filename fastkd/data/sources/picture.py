"""Image files as Pillow opens them, of a stated list of formats, whatever the suffix of the name says."""

import functools
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, UnidentifiedImageError

from fastkd.errors import SourceError

FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "AVIF": (".avif",),
}
"""The formats that are opened, by Pillow's names, with their suffixes.

They are those that data sets come in. Pillow knows 35 more: some start a program (EPS: Ghostscript), most nobody fuzzes."""
IMAGE_SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
MAX_PIXELS = 178_956_970
"""Of an image, the number at which Pillow stops, too: the memory that a header can claim ends at 0.7 GB."""

_BITS_PER_SAMPLE = 258  # the tag of a TIFF


def decode(data: bytes, name: str) -> np.ndarray:
    """The pixels of an image file as Pillow decodes them, of 16 bits the upper eight: uint8 (H, W, 3).

    Of an animation it is the first picture.

    Raises:
        SourceError: a format that is not opened, an image that cannot be decoded, more than MAX_PIXELS, or pixels whose
            range nothing tells (32-bit integers, floats, TIFFs of 12 bits).
    """
    image = _opened(data, name)
    with _told_of(name):
        image.load()
    is_deep = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")
    if image.format == "TIFF" and is_deep:
        is_deep = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE) == (16,)
    if image.mode[0] in "IF" and not is_deep:
        raise SourceError(
            f"{name}: found pixels of a range that nothing tells ({image.format}, Pillow's mode {image.mode}), expected 8 or 16 "
            f"bits a channel; convert it, or leave it out with --skip-bad"
        )
    with _told_of(name):
        if is_deep:  # which convert() would clip at 255, to a white picture
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def size_of(data: bytes, name: str) -> tuple[int, int]:
    """Height and width that the header of an image file gives. Raises SourceError as `decode`, of the header alone."""
    width, height = _opened(data, name).size
    return height, width


def _opened(data: bytes, name: str) -> Image.Image:
    with _told_of(name):
        try:
            image = Image.open(io.BytesIO(data), formats=_formats())
        except UnidentifiedImageError:
            found = _other_format(data)
            raise SourceError(
                f"{name}: cannot be decoded ({found}; those read are {', '.join(FORMATS)}); convert it, or leave it out with "
                f"--skip-bad"
            ) from None
    if image.width * image.height > MAX_PIXELS:
        raise _undecodable(name, f"{image.width}×{image.height} pixels, at most {MAX_PIXELS:,} are read")
    return image


@contextmanager
def _told_of(name: str) -> Iterator[None]:
    """Turns whatever Pillow and its plugins raise into a SourceError with the name of the image. Their warnings, which do not
    say of which image, are dropped."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except SourceError:
        raise
    except Exception as error:  # each plugin has its own: struct.error, KeyError, NotImplementedError, zlib.error …
        raise _undecodable(name, str(error) or type(error).__name__) from None


def _undecodable(name: str, reason: str) -> SourceError:
    return SourceError(f"{name}: cannot be decoded ({reason[:200]}); mend it, or leave it out with --skip-bad")


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of FORMATS that this Pillow has: older ones have no AVIF."""
    Image.init()
    return tuple(kind for kind in FORMATS if kind in Image.OPEN)


def _other_format(data: bytes) -> str:
    """What a file is that is of none of the formats, as far as its first bytes tell."""
    for kind, (_, accepts) in Image.OPEN.items():
        if kind not in FORMATS and accepts and accepts(data[:16]) is True:
            return f"a file of the format {kind}"
    return "no image, or one whose header is damaged"
