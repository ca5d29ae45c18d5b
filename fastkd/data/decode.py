"""FFCV's pipeline operation: pixels of a view and the row of a mapped column, by Numba without the GIL.

What FFCV ignores is looked at here: what a decoder returns (FFCV would pass the previous image on under the new label),
the size in the JPEG header against the one in the table, the checksum of a column's row. Failures are written into a
status array, one entry a sample, from which the loader raises.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numba import njit

from fastkd.data import pixels
from fastkd.data.mix import blend
from fastkd.data.pixels import OK, check_image, cut_padded_view, cut_view
from fastkd.data.views import CENTER, CROP_FLIP, PAD, Views, center_view, crop_flip_view, rrc_view
from fastkd.intrinsics import prefetch

_num_threads = torch.get_num_threads()
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

NO_ROW, BAD_ROW = 101, 102
OF_PARTNER = 1000
"""What a status is greater by where not the sample but the one that it is mixed with failed."""
REASONS = pixels.REASONS | {
    NO_ROW: "it has no row in the store",
    BAD_ROW: "its row in the store does not match its checksum",
}


@njit(cache=True, nogil=True)
def first_outside(ids: np.ndarray, known: np.ndarray) -> int:
    """The place of the first id that is not known, bool (N,); -1 where all are."""
    for i in range(len(ids)):
        if ids[i] < 0 or ids[i] >= len(known) or not known[ids[i]]:
            return i
    return -1


@njit(cache=True, nogil=True)
def check_images(
    first: int,
    end: int,
    images: np.ndarray,
    data: np.ndarray,
    sizes: np.ndarray,
    status: np.ndarray,
) -> None:
    """Decodes the samples first … end-1 and notes in `status`, int32 (N,), what each of them comes to."""
    for sample_id in range(first, end):
        image = images[sample_id]
        start = np.int64(image["data_ptr"])
        payload = data[start : start + sizes[sample_id]]
        height, width = np.int64(image["height"]), np.int64(image["width"])
        status[sample_id] = check_image(payload, image["mode"], height, width)


@njit(cache=True, nogil=True)
def _decode_view(
    code: int,
    size: int,
    crop_ratio: float,
    sample_id: int,
    aug_seed: int,
    images: np.ndarray,
    data: np.ndarray,
    sizes: np.ndarray,
    out: np.ndarray,
) -> int:
    """Cuts one view of a sample into `out`, uint8 (size, size, 3); returns OK, or what it fails of."""
    image = images[sample_id]
    height, width = np.int64(image["height"]), np.int64(image["width"])
    start = np.int64(image["data_ptr"])
    payload = data[start : start + sizes[sample_id]]
    if code == CROP_FLIP:
        top, left, flip = crop_flip_view(sample_id, aug_seed)
        return cut_padded_view(payload, image["mode"], height, width, top - PAD, left - PAD, flip, out)
    if code == CENTER:
        top, left, h, w = center_view(height, width, size, crop_ratio)
        return cut_view(payload, image["mode"], height, width, top, left, h, w, 0, out)
    top, left, h, w, flip = rrc_view(sample_id, aug_seed, height, width)
    return cut_view(payload, image["mode"], height, width, top, left, h, w, flip, out)


@njit(cache=True, nogil=True)
def _decode_views(
    code: int,
    mix: int,
    size: int,
    crop_ratio: float,
    ids: np.ndarray,
    aug_seed: int,
    images: np.ndarray,
    data: np.ndarray,
    sizes: np.ndarray,
    status: np.ndarray,
    mixing: None,
    out: np.ndarray,
) -> None:
    """Cuts one view of each sample into `out`, uint8 (B, size, size, 3); what fails is noted in `status`, int32 (B,)."""
    for b in range(len(ids)):
        found = _decode_view(code, size, crop_ratio, ids[b], aug_seed, images, data, sizes, out[b])
        if found != OK:
            status[b] = found


@njit(cache=True, nogil=True)
def _decode_mixed_views(
    code: int,
    mix: int,
    size: int,
    crop_ratio: float,
    ids: np.ndarray,
    aug_seed: int,
    images: np.ndarray,
    data: np.ndarray,
    sizes: np.ndarray,
    status: np.ndarray,
    mixing: tuple[np.ndarray, np.ndarray],
    out: np.ndarray,
) -> None:
    """The same, each mixed with the view of its partner; mixing: partners and regions, see `Mixes`."""
    partners, regions = mixing
    other = np.empty((size, size, 3), np.uint8)
    for b in range(len(ids)):
        found = _decode_view(code, size, crop_ratio, ids[b], aug_seed, images, data, sizes, out[b])
        if found == OK:
            found = _decode_view(code, size, crop_ratio, partners[b], aug_seed, images, data, sizes, other)
            if found != OK:
                found += OF_PARTNER
        if found == OK:
            blend(mix, regions[b], out[b], other)
        else:
            status[b] = found


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """Mapped rows that accompany the samples, one plane for each aug_seed.

    records: uint8 (K, R, row_bytes). rows: int32 (N,), the row of each sample_id, -1 where it has none.
    width: values in a row. unpack: compiled (data uint8, numbers int64 (B,) of records in it, salt uint64, out float32
    (B, width), good bool (B,)): fills `out`, and `good` with whether each row is sound. salt: what its checksums begin with.
    """

    records: np.ndarray
    rows: np.ndarray
    width: int
    unpack: Callable
    salt: int


class ViewDecoder(Operation):
    """Decoder of an RGB image field: one seeded view of each sample of the batch, and its row of the column.

    `storage_state` is what the loader passes for each batch: (file, sizes, aug_seed, status, column, mixing). Views and
    rows come out of one operation, since calling a compiled one takes as long as decoding the rows of a whole batch.
    """

    def __init__(self, views: Views, column: Column | None, embeddings: Column | None = None) -> None:
        super().__init__()
        self.views, self.column, self.embeddings = views, column, embeddings

    def declare_state_and_memory(
        self, previous_state: State
    ) -> tuple[State, AllocationQuery | tuple[AllocationQuery, ...]]:
        shape = (self.views.size, self.views.size, 3)
        state = replace(previous_state, jit_mode=True, shape=shape, dtype=np.dtype("u1"))
        pixels = AllocationQuery(shape, np.dtype("u1"))
        if self.column is None:
            return state, pixels
        columns = (self.column, self.embeddings)
        rows = (AllocationQuery((one.width,), np.dtype("f4")) for one in columns if one is not None)
        return state, (pixels, *rows)

    def generate_code(self) -> Callable:
        code, size, crop_ratio = self.views.code, self.views.size, self.views.crop_ratio
        decode_views, mix = _decode_views, 0
        if self.views.mix is not None:
            decode_views, mix = _decode_mixed_views, self.views.mix.code

        def decode(ids, out, images, state):  # type: ignore[no-untyped-def]
            data, sizes, aug_seed, status, _, mixing = state
            decode_views(code, mix, size, crop_ratio, ids, aug_seed, images, data, sizes, status, mixing, out)
            return out

        if self.column is None:
            return decode
        unpack, salt = self.column.unpack, np.uint64(self.column.salt)
        _, num_rows, row_bytes = self.column.records.shape

        def decode_with_rows(ids, out, images, state):  # type: ignore[no-untyped-def]
            data, sizes, aug_seed, status, (records, rows), mixing = state
            pixels, values = out
            numbers = _find_rows(ids, aug_seed * num_rows, rows, records, row_bytes, status)
            good = np.empty(len(ids), np.bool_)
            unpack(records, numbers, salt, values, good)
            _note_bad(good, status)
            decode_views(code, mix, size, crop_ratio, ids, aug_seed, images, data, sizes, status, mixing, pixels)
            return out

        if self.embeddings is None:
            return decode_with_rows
        unpack_more, more_salt = self.embeddings.unpack, np.uint64(self.embeddings.salt)

        def decode_with_embeddings(ids, out, images, state):  # type: ignore[no-untyped-def]
            data, sizes, aug_seed, status, (records, rows, more_records), mixing = state
            pixels, values, more_values = out
            numbers = _find_rows(ids, aug_seed * num_rows, rows, records, row_bytes, status)
            good = np.empty(len(ids), np.bool_)
            unpack(records, numbers, salt, values, good)
            _note_bad(good, status)
            unpack_more(more_records, numbers, more_salt, more_values, good)
            _note_bad(good, status)
            decode_views(code, mix, size, crop_ratio, ids, aug_seed, images, data, sizes, status, mixing, pixels)
            return out

        return decode_with_embeddings


@njit(nogil=True, inline="always")
def _note_bad(good: np.ndarray, status: np.ndarray) -> None:
    """Notes the rows that do not match their checksum."""
    for b in range(len(good)):
        if not good[b] and status[b] == OK:
            status[b] = BAD_ROW


@njit(cache=True, nogil=True)
def _find_rows(
    ids: np.ndarray, first: int, rows: np.ndarray, records: np.ndarray, row_bytes: int, status: np.ndarray
) -> np.ndarray:
    """Which of the records the samples' rows are: int64 (B,), first + row. All are asked for, so that their cache misses
    overlap."""
    for sample_id in ids:
        prefetch(rows, sample_id)
    numbers = np.empty(len(ids), np.int64)
    for b in range(len(ids)):
        row = rows[ids[b]]
        if row < 0:
            row, status[b] = 0, NO_ROW
        numbers[b] = first + row
        prefetch(records, numbers[b] * row_bytes)
    return numbers
