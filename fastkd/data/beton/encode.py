"""One source image as a beton stores it: its own JPEG bytes, or its pixels, raw or encoded as FFCV's image field does."""

import io
import re
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from fastkd.data.beton.read import digests
from fastkd.data.modes import MODE_JPG, MODE_RAW
from fastkd.data.sources.open import Source
from fastkd.data.views.pixels import OK, check_image, cut_view
from fastkd.errors import OptionError, SourceError

MODES = ("raw", "jpg", "keep")
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # that ends entropy-coded data: no restart, no stuffed byte
_NO_SEGMENT = {0x00, 0x01, *range(0xD0, 0xD9)}
_LARGEST = 2 * (Image.MAX_IMAGE_PIXELS or 2**27)  # pixels; Pillow refuses more, in case the header lies
_OTHER_FRAMES = {0xC3, *range(0xC5, 0xD0)}  # lossless, hierarchical, arithmetic


@dataclass(frozen=True, kw_only=True, slots=True)
class WriteOptions:
    """How images are stored.

    mode: `raw` (pixels), `jpg` (encoded anew) or `keep` (a source's own JPEG bytes where they can stand).
    max_size: larger images are shrunk until their longer side has so many pixels; None keeps every size.
    jpeg_quality: 1 … 100, for what is encoded.
    page_size: bytes of a page, a power of two from 2 MiB; no image can be larger.
    check: decode what `keep` takes over, and encode anew what does not decode without a warning.
    """

    mode: str
    max_size: int | None = None
    jpeg_quality: int = 90
    page_size: int = 8 * 2**20
    check: bool = False

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise OptionError(f"mode {self.mode!r}, expected one of {', '.join(MODES)}")
        if self.max_size is not None and not 1 <= self.max_size <= 65_535:
            raise OptionError(f"max size {self.max_size}, expected 1 … 65535 pixels")
        if not 1 <= self.jpeg_quality <= 100:
            raise OptionError(f"JPEG quality {self.jpeg_quality}, expected 1 … 100")
        if not (2**21 <= self.page_size < 2**32 and self.page_size & (self.page_size - 1) == 0):
            raise OptionError(f"page size {self.page_size}, expected a power of two from 2 MiB to 2 GiB")


@dataclass(frozen=True, slots=True)
class Encoded:
    """One image as the beton stores it: uint8 payload, its BLAKE2b-128 and its CRC-32."""

    mode: int
    height: int
    width: int
    payload: np.ndarray
    digest: bytes
    crc32: int


def stored(mode: int, height: int, width: int, payload: np.ndarray) -> Encoded:
    """A payload with its digests."""
    return Encoded(mode, height, width, payload, *digests(payload))


def default_mode(source: Source) -> str:
    """`raw` where the first image has fewer than 64 pixels a side, else `jpg`."""
    return "raw" if max(_decode(source.read(0), source.names[0]).shape[:2]) < 64 else "jpg"


def _pixels(data: bytes | np.ndarray, name: str, max_size: int | None) -> np.ndarray:
    """The pixels of a source image, shrunk where its longer side has more than `max_size`: uint8 (H, W, 3).

    JPEGs by fastkd's decoder, which gives Pillow's pixels and shrinks while it decodes, in half the time; all that it
    refuses, or warns of, by Pillow. Both are shrunk as views are, by Pillow's antialiased BILINEAR.

    Raises:
        SourceError: it cannot be decoded, or is too thin to be shrunk.
    """
    size = jpeg_size(data) if isinstance(data, bytes) else None
    if size is not None and size[0] * size[1] <= _LARGEST:
        payload, mode = np.frombuffer(data, np.uint8), MODE_JPG
        pixels = np.empty((*_shrunk(size, max_size, name), 3), np.uint8)
        if cut_view(payload, mode, *size, 0, 0, *size, 0, pixels) == OK:
            return pixels
    pixels = _decode(data, name)
    size = pixels.shape[:2]
    smaller = _shrunk(size, max_size, name)
    if smaller == size:
        return pixels
    payload, mode = np.ascontiguousarray(pixels).reshape(-1), MODE_RAW
    pixels = np.empty((*smaller, 3), np.uint8)
    found = cut_view(payload, mode, *size, 0, 0, *size, 0, pixels)
    assert found == OK
    return pixels


def _shrunk(size: tuple[int, int], max_size: int | None, name: str) -> tuple[int, int]:
    """Height and width with a longer side of at most `max_size`, rounded down as FFCV does."""
    longer = max(size)
    if max_size is None or longer <= max_size:
        return size
    height, width = (side * max_size // longer for side in size)
    if not height or not width:
        raise SourceError(
            f"{name}: {size[1]}×{size[0]} pixels cannot be shrunk to {max_size}; leave it out with --skip-bad"
        )
    return height, width


def _decode(data: bytes | np.ndarray, name: str) -> np.ndarray:
    """The pixels of a source image as Pillow decodes them: uint8 (H, W, 3)."""
    if isinstance(data, np.ndarray):
        return data
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode.startswith("I;16"):  # which convert() would clip at 255, to a white picture
                return np.asarray(Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB"))
            return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        reason = "no image format that Pillow knows" if isinstance(error, UnidentifiedImageError) else error
        raise SourceError(f"{name}: cannot be decoded ({reason}); mend it, or leave it out with --skip-bad") from None


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Height and width of a JPEG whose structure is whole; None where it is not, or of a form that is not kept.

    Kept are baseline, extended and progressive Huffman-coded JPEGs of 8 bits and three components. Every segment has to
    lie inside the data, tables and frame to come before the first scan, and the image to end with its own end marker. The
    entropy-coded bytes themselves are only searched for markers: decoding them takes fifteen times as long.
    """
    if data[:2] != b"\xff\xd8":
        return None
    size, seen, at = None, set(), 2
    while True:
        while data[at : at + 2] == b"\xff\xff":  # fill bytes
            at += 1
        if data[at : at + 1] != b"\xff" or at + 4 > len(data):
            return size if data[at : at + 2] == b"\xff\xd9" and 0xDA in seen else None
        marker = data[at + 1]
        if marker == 0xD9:
            return size if 0xDA in seen else None
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in _NO_SEGMENT or marker in _OTHER_FRAMES or end < at + 4 or end > len(data):
            return None
        if marker in (0xC0, 0xC1, 0xC2):
            if size or end - at < 19 or data[at + 4] != 8 or data[at + 9] != 3:
                return None
            size = int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
        seen.add(marker)
        if marker == 0xDA:
            if size is None or min(size) < 1 or not {0xC4, 0xDB} <= seen:
                return None
            found = _MARKER.search(data, end)
            if found is None:
                return None
            end = found.start()
        at = end


def keepable(data: bytes, options: WriteOptions) -> tuple[int, int] | None:
    """Height and width of a JPEG whose bytes can stand as they are; None where it has to be encoded anew.

    It can stand when it is a whole RGB (YCbCr) JPEG (`jpeg_size`) within the largest size; with `options.check` the
    loader's decoder has to read it to its end without a warning, too.
    """
    size = jpeg_size(data)
    if size is None or (options.max_size is not None and max(size) > options.max_size):
        return None
    if options.check and check_image(np.frombuffer(data, np.uint8), MODE_JPG, *size) != OK:
        return None
    return size


def encode(data: bytes | np.ndarray, name: str, options: WriteOptions) -> Encoded:
    """One source image as the beton stores it.

    Raises:
        SourceError: the image cannot be decoded, or is larger than the format can say.
    """
    if options.mode == "keep" and isinstance(data, bytes) and (size := keepable(data, options)) is not None:
        return stored(MODE_JPG, size[0], size[1], np.frombuffer(data, np.uint8))
    pixels = _pixels(data, name, options.max_size)
    height, width = pixels.shape[:2]
    if max(height, width) > 65_535:
        raise SourceError(f"{name}: {width}×{height} pixels, a beton holds sides up to 65535; give --max-size")
    if options.mode == "raw":
        return stored(MODE_RAW, height, width, np.ascontiguousarray(pixels).reshape(-1))  # what FFCV's field does
    import cv2
    from ffcv.fields.rgb_image import encode_jpeg

    try:
        payload = encode_jpeg(pixels, options.jpeg_quality)
    except (cv2.error, ValueError):
        raise SourceError(
            f"{name}: {width}×{height} pixels cannot be stored as JPEG; leave it out with --skip-bad, or give --max-size"
        ) from None
    return stored(MODE_JPG, height, width, payload)
