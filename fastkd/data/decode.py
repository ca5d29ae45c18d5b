"""FFCV's pipeline operation: pixels of a view and the row of a mapped column, by Numba without the GIL.

Pixel definition (PIXELS below names it; it is part of a store's identity): JPEGs are decoded whole by FFCV's libjpeg-turbo
call, boxes are resized by its OpenCV INTER_AREA call, `crop-flip` and equal-sized `center` copy pixels without resizing.
Flips mirror the finished view.

What FFCV ignores is looked at here: the decoder's return code (FFCV would pass the previous image on under the new
label), the size in the JPEG header against the one in the table, the checksum of a column's row. Failures are written
into a status array, one entry a sample, from which the loader raises.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, replace

import llvmlite.binding
import numpy as np
import torch
from numba import njit, types

from fastkd.data.beton import MODE_JPG
from fastkd.data.views import CENTER, CROP_FLIP, PAD, Views, center_view, crop_flip_view, rrc_view

_num_threads = torch.get_num_threads()
from ffcv import libffcv  # noqa: E402
from ffcv.memory_managers import OSCacheManager  # noqa: E402
from ffcv.pipeline.allocation_query import AllocationQuery  # noqa: E402
from ffcv.pipeline.compiler import Compiler  # noqa: E402
from ffcv.pipeline.operation import Operation  # noqa: E402
from ffcv.pipeline.state import State  # noqa: E402

torch.set_num_threads(_num_threads)  # importing ffcv sets torch to one thread


def _compile_reader(_: OSCacheManager) -> Callable:
    """FFCV's own, less the types: to name them it marks Numba's one uint8[::1] read-only in place, which changes its
    hash, and after an `ffcv.loader.Loader` in the same process nothing that was compiled for it is found again."""

    def read(address, mem_state):  # type: ignore[no-untyped-def]
        size = mem_state[2][np.searchsorted(mem_state[1], address)]
        return mem_state[0][address : address + size]

    return Compiler.compile(read)


OSCacheManager.compile_reader = _compile_reader

PIXELS = "ffcv-turbojpeg/opencv-area/1"

OK, BAD_JPEG, WRONG_SIZE, NO_ROW, BAD_ROW = range(5)
REASONS = {
    BAD_JPEG: "its JPEG does not decode",
    WRONG_SIZE: "its JPEG has another size than the beton's table says",
    NO_ROW: "it has no row in the store",
    BAD_ROW: "its row in the store does not match its checksum",
}

# Named symbols instead of ctypes functions: Numba can cache code that calls them, and compiles once a machine.
llvmlite.binding.add_symbol("fastkd_imdecode", ctypes.cast(libffcv.lib.imdecode, ctypes.c_void_p).value)
llvmlite.binding.add_symbol("fastkd_resize", ctypes.cast(libffcv.lib.resize, ctypes.c_void_p).value)
_imdecode = types.ExternalFunction(
    "fastkd_imdecode",
    types.int32(
        types.voidptr, types.uint64, *[types.uint32] * 2, types.voidptr, *[types.uint32] * 6, *[types.uint8] * 2
    ),
)
_resize = types.ExternalFunction("fastkd_resize", types.void(*[types.int64] * 11))


@njit(cache=True, nogil=True)
def first_outside(ids: np.ndarray, known: np.ndarray) -> int:
    """The place of the first id that is not known, bool (N,); -1 where all are."""
    for i in range(len(ids)):
        if ids[i] < 0 or ids[i] >= len(known) or not known[ids[i]]:
            return i
    return -1


@njit(cache=True, nogil=True)
def jpeg_size(data: np.ndarray) -> tuple[int, int]:
    """Height and width in the frame header of a JPEG; (0, 0) where there is none."""
    n, i = len(data), 2
    if n < 4 or data[0] != 0xFF or data[1] != 0xD8:
        return 0, 0
    while i + 9 <= n and data[i] == 0xFF:
        marker = data[i + 1]
        if 0xC0 <= marker <= 0xCF and marker != 0xC4 and marker != 0xC8 and marker != 0xCC:
            return data[i + 5] * 256 + data[i + 6], data[i + 7] * 256 + data[i + 8]
        if marker == 0xFF:
            i += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD8:
            i += 2
        else:
            i += 2 + data[i + 2] * 256 + data[i + 3]
    return 0, 0


@njit(cache=True, nogil=True)
def decode_pixels(
    payload: np.ndarray, mode: int, height: int, width: int, scratch: np.ndarray
) -> tuple[int, np.ndarray]:
    """Status and pixels (flat uint8, 3·height·width) of one stored image; decoded into `scratch` where it is a JPEG."""
    if mode != MODE_JPG:
        return OK, payload
    pixels = scratch[: 3 * height * width]
    found = jpeg_size(payload)
    if found[0] != height or found[1] != width:
        return WRONG_SIZE, pixels
    code = _imdecode(
        payload.ctypes, len(payload), height, width, pixels.ctypes, height, width, 0, 0, 1, 1, np.uint8(0), np.uint8(0)
    )
    return (OK if code == 0 else BAD_JPEG), pixels


@njit(cache=True, nogil=True)
def check_images(
    first: int,
    end: int,
    images: np.ndarray,
    data: np.ndarray,
    sizes: np.ndarray,
    scratch: np.ndarray,
    status: np.ndarray,
) -> None:
    """Decodes the samples first … end-1 and notes in `status`, int32 (N,), what each of them comes to."""
    for sample_id in range(first, end):
        image = images[sample_id]
        start = np.int64(image["data_ptr"])
        payload = data[start : start + sizes[sample_id]]
        height, width = np.int64(image["height"]), np.int64(image["width"])
        status[sample_id], _ = decode_pixels(payload, image["mode"], height, width, scratch)


@njit(cache=True, nogil=True)
def _copy_shifted(pixels: np.ndarray, size: int, top: int, left: int, out: np.ndarray) -> None:
    """The size×size box at (top, left) of the image zero-padded by PAD, into `out` (size, size, 3)."""
    row_shift, col_shift = top - PAD, left - PAD
    first_col, end_col = max(0, -col_shift), min(size, size - col_shift)
    out[:] = 0
    for row in range(max(0, -row_shift), min(size, size - row_shift)):
        start = 3 * ((row + row_shift) * size + first_col + col_shift)
        count = 3 * (end_col - first_col)
        line = out[row].reshape(-1)
        line[3 * first_col : 3 * first_col + count] = pixels[start : start + count]


@njit(cache=True, nogil=True)
def _flip(image: np.ndarray) -> None:
    """Mirrors an image (H, W, 3) left to right in place."""
    height, width, _ = image.shape
    for row in range(height):
        for left in range(width // 2):
            right = width - 1 - left
            for channel in range(3):
                held = image[row, left, channel]
                image[row, left, channel] = image[row, right, channel]
                image[row, right, channel] = held


@njit(cache=True, nogil=True)
def decode_views(
    code: int,
    size: int,
    crop_ratio: float,
    ids: np.ndarray,
    aug_seed: int,
    images: np.ndarray,
    data: np.ndarray,
    sizes: np.ndarray,
    scratch: np.ndarray,
    status: np.ndarray,
    out: np.ndarray,
) -> None:
    """Cuts one view of each sample into `out`, uint8 (B, size, size, 3); what fails is noted in `status`, int32 (B,)."""
    for b in range(len(ids)):
        sample_id = ids[b]
        image = images[sample_id]
        height, width = np.int64(image["height"]), np.int64(image["width"])
        start = np.int64(image["data_ptr"])
        problem, pixels = decode_pixels(data[start : start + sizes[sample_id]], image["mode"], height, width, scratch)
        if problem != OK:
            status[b] = problem
            continue
        flip = 0
        if code == CROP_FLIP:
            top, left, flip = crop_flip_view(sample_id, aug_seed)
            _copy_shifted(pixels, size, top, left, out[b])
        else:
            if code == CENTER:
                top, left, h, w = center_view(height, width, size, crop_ratio)
            else:
                top, left, h, w, flip = rrc_view(sample_id, aug_seed, height, width)
            if h == size and w == size:
                source = pixels.reshape(height, width, 3)
                out[b] = source[top : top + h, left : left + w]
            else:
                _resize(
                    0, pixels.ctypes.data, height, width, top, top + h, left, left + w, out[b].ctypes.data, size, size
                )
        if flip:
            _flip(out[b])


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """Mapped rows that accompany the samples, one plane for each aug_seed.

    records: uint8 (K, R, row_bytes). rows: int32 (N,), the row of each sample_id, -1 where it has none.
    width: values in a row. unpack: compiled (data uint8, starts int64 (B,) of records in it, out float32 (B, width),
    good bool (B,)): fills `out`, and `good` with whether each row is sound.
    """

    records: np.ndarray
    rows: np.ndarray
    width: int
    unpack: Callable


class ViewDecoder(Operation):
    """Decoder of an RGB image field: one seeded view of each sample of the batch, and its row of the column.

    `storage_state` is what the loader passes for each batch: (file, sizes, aug_seed, scratch, status, column). Views and
    rows come out of one operation, since calling a compiled one takes as long as decoding the rows of a whole batch.
    """

    def __init__(self, views: Views, column: Column | None) -> None:
        super().__init__()
        self.views, self.column = views, column

    def declare_state_and_memory(
        self, previous_state: State
    ) -> tuple[State, AllocationQuery | tuple[AllocationQuery, AllocationQuery]]:
        shape = (self.views.size, self.views.size, 3)
        state = replace(previous_state, jit_mode=True, shape=shape, dtype=np.dtype("u1"))
        pixels = AllocationQuery(shape, np.dtype("u1"))
        if self.column is None:
            return state, pixels
        return state, (pixels, AllocationQuery((self.column.width,), np.dtype("f4")))

    def generate_code(self) -> Callable:
        code, size, crop_ratio = self.views.code, self.views.size, self.views.crop_ratio

        def decode(ids, out, images, state):  # type: ignore[no-untyped-def]
            data, sizes, aug_seed, scratch, status, _ = state
            decode_views(code, size, crop_ratio, ids, aug_seed, images, data, sizes, scratch, status, out)
            return out

        if self.column is None:
            return decode
        unpack = self.column.unpack

        def decode_with_rows(ids, out, images, state):  # type: ignore[no-untyped-def]
            data, sizes, aug_seed, scratch, status, (records, rows, num_rows, row_bytes) = state
            pixels, values = out
            starts = _find_rows(ids, aug_seed, records, rows, num_rows, row_bytes, status, values)
            decode_views(code, size, crop_ratio, ids, aug_seed, images, data, sizes, scratch, status, pixels)
            good = np.empty(len(ids), np.bool_)
            unpack(records, starts, values, good)
            for b in range(len(ids)):
                if not good[b] and status[b] == OK:
                    status[b] = BAD_ROW
            return out

        return decode_with_rows


@njit(cache=True, nogil=True)
def _find_rows(
    ids: np.ndarray,
    aug_seed: int,
    records: np.ndarray,
    rows: np.ndarray,
    num_rows: int,
    row_bytes: int,
    status: np.ndarray,
    values: np.ndarray,
) -> np.ndarray:
    """Where in `records` the samples' rows begin: int64 (B,).

    A byte of each is put into `values`, float32 (B, width): so their cache misses overlap, and pass while the views are
    made.
    """
    starts = np.empty(len(ids), np.int64)
    for b in range(len(ids)):
        row = rows[ids[b]]
        if row < 0:
            row, status[b] = 0, NO_ROW
        starts[b] = (aug_seed * num_rows + row) * row_bytes
        values[b, 0] = records[starts[b]]
    return starts
