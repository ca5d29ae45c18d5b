"""The pixels of a view, by fastkd's own library: `_decoder.so`, built from decoder.cpp and resize.cpp beside this file.

Pixel definition (PIXELS names it; it is part of a store's identity). A JPEG is decoded as by libjpeg-turbo's accurate
integer DCT with fancy upsampling, to the bytes that Pillow gives; CMYK becomes RGB as in Pillow, Exif's orientation is
left alone. Of that, the box is resized by the antialiased triangle filter, what Pillow calls BILINEAR after crop(): rows
first, to 7 fractional bits, then columns, in integers with weights of 14 bits; resize.h has the formula. Flips mirror the
finished view. All of it is exact integer arithmetic, so that every CPU gives the same bytes.

Only the box is decoded: what lies below its last row is not even read. An error or a warning of libjpeg on the way ends
the view with a status. Damage that still decodes shows in `fastkd verify` alone, which has checksums.
"""

import ctypes
from pathlib import Path

import llvmlite.binding
import numpy as np
from numba import types

from fastkd.data.modes import MODE_JPG, MODE_RAW
from fastkd.errors import MissingDependencyError
from fastkd.intrinsics import njit

PIXELS = "jpeg-islow-fancy/triangle-14bit/1"
"""Raised whenever a stored image and a box would give other pixels."""

RowIndex = tuple[np.ndarray, np.ndarray]
"""A file of entries, uint8, and where in it those of the samples begin, uint64 (N,), 0 for a sample without one."""

OK, BAD_JPEG, WRONG_SIZE, NO_MEMORY = range(4)
BAD_BOX = -1
REASONS = {
    BAD_JPEG: "its JPEG does not decode",
    WRONG_SIZE: "its JPEG has another size than the beton's table says",
    NO_MEMORY: "there is not enough memory to decode it",
    BAD_BOX: "its box lies outside the image (has the beton changed since it was opened?)",
}

NO_ENTRY = np.empty(0, np.uint8)
"""What stands for the entry of an image that has none in a row index."""

_LIBRARY = Path(__file__).with_name("_decoder.so")
_VERSION = 4  # fastkd_decoder_version() of the sources beside this file


def load_library(path: Path = _LIBRARY) -> ctypes.CDLL:
    """The decoder's library.

    Raises:
        MissingDependencyError: it was not built, was built from other sources, or its libjpeg-turbo is gone.
    """
    way_out = "install libjpeg-dev and g++ (or conda's libjpeg-turbo and compilers), then fastkd again, with pip"
    if not path.is_file():
        raise MissingDependencyError(f"{path}: fastkd's image decoder has not been built; {way_out}")
    try:
        library = ctypes.CDLL(str(path))
        version = library.fastkd_decoder_version()
    except (OSError, AttributeError) as error:
        raise MissingDependencyError(f"{path}: fastkd's image decoder does not load ({error}); {way_out}") from None
    if version != _VERSION:
        raise MissingDependencyError(
            f"{path}: fastkd's image decoder is of version {version}, expected {_VERSION}; {way_out}"
        )
    return library


# Named symbols instead of ctypes functions: Numba can cache code that calls them, and compiles once a machine.
_library = load_library()
_library.fastkd_index_rows.restype = ctypes.c_int64
SYMBOLS = ("fastkd_view", "fastkd_indexed_view", "fastkd_window", "fastkd_check_jpeg")
for _name in SYMBOLS:
    llvmlite.binding.add_symbol(_name, ctypes.cast(getattr(_library, _name), ctypes.c_void_p).value)
_view = types.ExternalFunction(
    "fastkd_view",
    types.int32(types.voidptr, types.uint64, *[types.int32] * 8, types.voidptr, types.int64, *[types.int32] * 2),
)
_window = types.ExternalFunction(
    "fastkd_window",
    types.int32(
        *(types.voidptr, types.uint64, *[types.int32] * 3, *[types.int64] * 4),
        *(types.voidptr, types.int64, types.int32, types.int32, types.voidptr, types.uint64),
    ),
)
_indexed_view = types.ExternalFunction("fastkd_indexed_view", types.int32(*_view.sig.args, types.voidptr, types.uint64))
_check_jpeg = types.ExternalFunction("fastkd_check_jpeg", types.int32(types.voidptr, types.uint64, *[types.int32] * 2))


@njit(cache=True, nogil=True)
def cut_view(
    payload: np.ndarray,
    mode: int,
    height: int,
    width: int,
    top: int,
    left: int,
    box_height: int,
    box_width: int,
    flip: int,
    out: np.ndarray,
) -> int:
    """Resizes a box of one stored image to the size of `out`, uint8 (out_height, out_width, 3), and mirrors it if asked.

    Args:
        payload: uint8 (n,), the stored bytes. mode, height, width: as the beton's table has them.
        top, left, box_height, box_width: in pixels, inside the image.

    Returns:
        OK, or what the view fails of; `out` is then in part written.
    """
    return _view(
        payload.ctypes,
        len(payload),
        mode == MODE_RAW,
        height,
        width,
        top,
        left,
        box_height,
        box_width,
        flip,
        out.ctypes,
        3 * out.shape[1],
        out.shape[0],
        out.shape[1],
    )


@njit(cache=True, nogil=True)
def cut_indexed_view(
    payload: np.ndarray,
    mode: int,
    height: int,
    width: int,
    top: int,
    left: int,
    box_height: int,
    box_width: int,
    flip: int,
    out: np.ndarray,
    entry: np.ndarray,
) -> int:
    """`cut_view`, in less time where the image has an entry in a row index.

    Args:
        entry: uint8 (n,), from the entry's first byte on, as far as the index goes; n may be 0.
    """
    return _indexed_view(
        payload.ctypes,
        len(payload),
        mode == MODE_RAW,
        height,
        width,
        top,
        left,
        box_height,
        box_width,
        flip,
        out.ctypes,
        3 * out.shape[1],
        out.shape[0],
        out.shape[1],
        entry.ctypes,
        len(entry),
    )


@njit(cache=True, nogil=True)
def cut_window(
    payload: np.ndarray,
    mode: int,
    height: int,
    width: int,
    resized_height: int,
    resized_width: int,
    top: int,
    left: int,
    out: np.ndarray,
    entry: np.ndarray,
) -> int:
    """The part of a whole stored image, resized, from (top, left) on that `out` has room for: uint8 (rows, columns, 3).

    Args:
        resized_height, resized_width, top, left: in pixels of the resized image, inside it. The rest as for `cut_indexed_view`.
    """
    return _window(
        payload.ctypes,
        len(payload),
        mode == MODE_RAW,
        height,
        width,
        resized_height,
        resized_width,
        top,
        left,
        out.ctypes,
        3 * out.shape[1],
        out.shape[0],
        out.shape[1],
        entry.ctypes,
        len(entry),
    )


@njit(cache=True, nogil=True)
def cut_padded_view(
    payload: np.ndarray,
    mode: int,
    height: int,
    width: int,
    top: int,
    left: int,
    flip: int,
    out: np.ndarray,
) -> int:
    """The part of one stored image that a window at (top, left) shows, which may reach beyond it; zeros elsewhere.

    Args:
        top, left: in pixels of the image, from -size on. The rest as for `cut_view`.
    """
    out_height, out_width, _ = out.shape
    out[:] = 0
    first_row, end_row = max(0, top), min(height, top + out_height)
    first_col, end_col = max(0, left), min(width, left + out_width)
    if first_row >= end_row or first_col >= end_col:
        return OK
    col = left + out_width - end_col if flip else first_col - left
    target = out.reshape(-1)[3 * ((first_row - top) * out_width + col) :]
    return _view(
        payload.ctypes,
        len(payload),
        mode == MODE_RAW,
        height,
        width,
        first_row,
        first_col,
        end_row - first_row,
        end_col - first_col,
        flip,
        target.ctypes,
        3 * out_width,
        end_row - first_row,
        end_col - first_col,
    )


@njit(cache=True, nogil=True)
def check_image(payload: np.ndarray, mode: int, height: int, width: int) -> int:
    """Decodes a whole stored image, to its last byte: OK where every view of it can be had, or what it fails of."""
    if mode != MODE_JPG:
        return OK if len(payload) == 3 * height * width else WRONG_SIZE
    return _check_jpeg(payload.ctypes, len(payload), height, width)


def index_entry(payload: np.ndarray, mode: int, height: int, width: int) -> bytes:
    """What a row index says of a stored image (jpeg/row_index.h); empty for what is not decoded from one: raw pixels, JPEGs that
    are progressive, have restart markers, are small, or are otherwise libjpeg's to decode."""
    if mode == MODE_RAW:
        return b""
    payload = np.ascontiguousarray(payload)
    entry = np.empty(8 + 10 * -(-height // 8), np.uint8)
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (payload, entry)]
    size = _library.fastkd_index_rows(
        pointers[0], ctypes.c_uint64(len(payload)), height, width, pointers[1], ctypes.c_int64(len(entry))
    )
    return entry[:size].tobytes()
