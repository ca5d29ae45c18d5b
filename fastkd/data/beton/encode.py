"""One source image as a beton stores it: its own JPEG bytes, or its pixels, raw or encoded as FFCV's image field does."""

from dataclasses import dataclass

import numpy as np

from fastkd.data.beton.read import digests
from fastkd.data.modes import MODE_JPG, MODE_RAW
from fastkd.data.sources.jpeg import Jpeg, find_jpeg
from fastkd.data.sources.open import Source
from fastkd.data.sources.picture import MAX_PIXELS, decode, size_of
from fastkd.data.views.pixels import OK, check_image, cut_view, index_entry
from fastkd.errors import OptionError, SourceError

MODES = ("raw", "jpg", "keep")
_SAMPLE = 64  # images, evenly spread, that the choice of a mode looks at
_RAW_BELOW = 64  # pixels of the longer side


@dataclass(frozen=True, kw_only=True, slots=True)
class WriteOptions:
    """How images are stored.

    mode: `raw` (pixels), `jpg` (encoded anew) or `keep` (a source's own JPEG bytes where they can stand).
    max_size: larger images are shrunk until their longer side has so many pixels; None keeps every size.
    jpeg_quality: 1 … 100, for what is encoded.
    page_size: bytes of a page, a power of two from 2 MiB; no image can be larger.
    check: decode to its end what `keep` takes over, and encode anew what does not decode without a warning.
    """

    mode: str
    max_size: int | None = None
    jpeg_quality: int = 90
    page_size: int = 8 * 2**20
    check: bool = True

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
    """One image as the beton stores it: uint8 payload, its BLAKE2b-128 and its CRC-32, its entry in the row index."""

    mode: int
    height: int
    width: int
    payload: np.ndarray
    digest: bytes
    crc32: int
    rows: bytes


def stored(mode: int, height: int, width: int, payload: np.ndarray) -> Encoded:
    """A payload with its digests and its entry in the row index."""
    return Encoded(mode, height, width, payload, *digests(payload), index_entry(payload, mode, height, width))


def default_mode(source: Source) -> tuple[str, str]:
    """How images are stored where nothing is said, by some of them: `raw` where half have a longer side below 64 pixels, else
    `jpg`; and why, in a line. Images that cannot be opened do not count: the build comes to them."""
    sides = []
    for i in np.unique(np.linspace(0, len(source) - 1, _SAMPLE).astype(int)).tolist():
        try:
            data = source.read(i)
            sides.append(max(data.shape[:2] if isinstance(data, np.ndarray) else size_of(data, source.names[i])))
        except SourceError:
            continue
    if not sides:
        return "jpg", "stored as jpg: no image looked at can be opened; --mode says otherwise"
    median = sorted(sides)[len(sides) // 2]
    mode = "raw" if median < _RAW_BELOW else "jpg"
    seen = f"of {len(sides)} images looked at the median longer side is {median:,} pixels"
    return mode, f"stored as {mode}: {seen}; --mode says otherwise"


def _pixels(data: bytes | np.ndarray, name: str, max_size: int | None) -> np.ndarray:
    """The pixels of a source image, shrunk where its longer side has more than `max_size`: uint8 (H, W, 3).

    JPEGs by fastkd's decoder, which gives Pillow's pixels and shrinks while it decodes, in half the time; all that it
    refuses, or warns of, by Pillow. Both are shrunk as views are, by Pillow's antialiased BILINEAR.

    Raises:
        SourceError: it cannot be decoded, or is too thin to be shrunk.
    """
    jpeg = find_jpeg(data) if isinstance(data, bytes) else None
    if jpeg is not None and jpeg.height * jpeg.width <= MAX_PIXELS:
        size, payload, mode = (jpeg.height, jpeg.width), np.frombuffer(data, np.uint8), MODE_JPG
        pixels = np.empty((*_shrunk(size, max_size, name), 3), np.uint8)
        if cut_view(payload, mode, *size, 0, 0, *size, 0, pixels) == OK:
            return pixels
    pixels = decode(data, name) if isinstance(data, bytes) else data
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


def keepable(data: bytes, options: WriteOptions) -> Jpeg | None:
    """Where in the data a JPEG lies whose bytes can stand as they are; None where it has to be encoded anew.

    It can stand when it is a whole RGB (YCbCr) JPEG (`find_jpeg`) within the largest size, which the loader's decoder reads
    without a warning: to its end with `options.check`, else its headers and first rows. Pillow and others read over what
    libjpeg warns of (JFIF of another major version, a wrong spectral range, an unknown colour transform), the loader does not.
    """
    jpeg = find_jpeg(data)
    if jpeg is None or (options.max_size is not None and max(jpeg.height, jpeg.width) > options.max_size):
        return None
    payload, size = np.frombuffer(data, np.uint8, jpeg.end), (jpeg.height, jpeg.width)
    if options.check:
        return jpeg if check_image(payload, MODE_JPG, *size) == OK else None
    return jpeg if cut_view(payload, MODE_JPG, *size, 0, 0, 1, 1, 0, np.empty((1, 1, 3), np.uint8)) == OK else None


def encode(data: bytes | np.ndarray, name: str, options: WriteOptions) -> Encoded:
    """One source image as the beton stores it. Of a JPEG that is kept, what follows its end is left out.

    Raises:
        SourceError: the image cannot be decoded, or is larger than the format can say or a page can hold.
    """
    found = _encoded(data, name, options)
    if len(found.payload) > options.page_size:
        raise SourceError(
            f"{name}: {len(found.payload):,} bytes, more than a page of {options.page_size:,}; give a larger --page-size or a "
            f"--max-size, or leave it out with --skip-bad"
        )
    return found


def _encoded(data: bytes | np.ndarray, name: str, options: WriteOptions) -> Encoded:
    if options.mode == "keep" and isinstance(data, bytes) and (jpeg := keepable(data, options)) is not None:
        return stored(MODE_JPG, jpeg.height, jpeg.width, np.frombuffer(data, np.uint8, jpeg.end))
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
