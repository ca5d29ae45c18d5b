"""FFCV's pipeline operation: pixels of a view and the row of a mapped column, by Numba without the GIL.

What FFCV ignores is looked at here: what a decoder returns (FFCV would pass the previous image on under the new label),
the size in the JPEG header against the one in the table, the checksum of a column's row. Failures are written into a
status array, one entry a sample, from which the loader raises.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numba.typed
import numpy as np
import torch

from fastkd.data.views import draw, pixels
from fastkd.data.views.draw import Views, center_view, center_window, crop_flip_view, rrc_view
from fastkd.data.views.mix import blend
from fastkd.data.views.pixels import OK, RowIndex, check_image, cut_indexed_view, cut_padded_view, cut_window
from fastkd.intrinsics import njit, prefetch

_num_threads, _typed_dict = torch.get_num_threads(), numba.typed.Dict
# ffcv.fields fills a typed dictionary of two numbers, which only Python code reads, and for which Numba compiles for
# seconds at the start of every process; an ordinary one serves as well.
numba.typed.Dict = dict
try:
    from ffcv.fields import RGBImageField
    from ffcv.memory_managers import OSCacheManager
    from ffcv.pipeline.compiler import Compiler
    from ffcv.pipeline.graph import Graph
    from ffcv.pipeline.operation import Operation
    from ffcv.pipeline.pipeline_spec import PipelineSpec
    from ffcv.pipeline.state import State
finally:
    numba.typed.Dict = _typed_dict
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
OF_COLUMNS = (NO_ROW, BAD_ROW)
"""What says something of the rows, not of the image."""


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
    rows: RowIndex,
    out: np.ndarray,
) -> int:
    """Cuts one view of a sample into `out`, uint8 (size, size, 3); returns OK, or what it fails of."""
    image = images[sample_id]
    height, width = np.int64(image["height"]), np.int64(image["width"])
    start = np.int64(image["data_ptr"])
    payload = data[start : start + sizes[sample_id]]
    if code == draw.CROP_FLIP:
        top, left, flip = crop_flip_view(sample_id, aug_seed)
        return cut_padded_view(payload, image["mode"], height, width, top - draw.PAD, left - draw.PAD, flip, out)
    index, starts = rows
    begin = np.int64(min(starts[sample_id], np.uint64(len(index))))
    entry = index[begin:] if begin > 0 else index[:0]
    if code == draw.CENTER_CROP:
        resized_height, resized_width, top, left = center_window(height, width, size, crop_ratio)
        return cut_window(payload, image["mode"], height, width, resized_height, resized_width, top, left, out, entry)
    if code == draw.CENTER_BOX:
        top, left, h, w = center_view(height, width, size, crop_ratio)
        flip = 0
    else:
        top, left, h, w, flip = rrc_view(sample_id, aug_seed, height, width)
    return cut_indexed_view(payload, image["mode"], height, width, top, left, h, w, flip, out, entry)


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
    rows: RowIndex,
    status: np.ndarray,
    mixing: None,
    out: np.ndarray,
) -> None:
    """Cuts one view of each sample into `out`, uint8 (B, size, size, 3); what fails is noted in `status`, int32 (B,)."""
    for b in range(len(ids)):
        found = _decode_view(code, size, crop_ratio, ids[b], aug_seed, images, data, sizes, rows, out[b])
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
    rows: RowIndex,
    status: np.ndarray,
    mixing: tuple[np.ndarray, np.ndarray],
    out: np.ndarray,
) -> None:
    """The same, each mixed with the view of its partner; mixing: partners and regions, see `Mixes`."""
    partners, regions = mixing
    other = np.empty((size, size, 3), np.uint8)
    for b in range(len(ids)):
        found = _decode_view(code, size, crop_ratio, ids[b], aug_seed, images, data, sizes, rows, out[b])
        if found == OK:
            found = _decode_view(code, size, crop_ratio, partners[b], aug_seed, images, data, sizes, rows, other)
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
    source: the file that they lie in, for messages.
    """

    records: np.ndarray
    rows: np.ndarray
    width: int
    unpack: Callable
    salt: int
    source: object


class ViewDecoder(Operation):
    """Decoder of an RGB image field: one seeded view of each sample of the batch, and its rows of the columns.

    All numbers come with each batch, in `storage_state`: (file, sizes, row index, aug_seed, status, `view_numbers`, columns, mixing),
    so that what is compiled for one loader serves all whose views are mixed, or not, and whose columns unpack alike.
    Views and rows come out of one operation, since calling a compiled one takes as long as decoding the rows of a whole
    batch.

    is_mixed: whether each view is mixed with another. unpacks: how the rows of each column are unpacked; two at most.
    """

    def __init__(self, is_mixed: bool, unpacks: tuple[Callable, ...]) -> None:
        super().__init__()
        self.is_mixed, self.unpacks = is_mixed, unpacks

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, None]:
        return previous_state, None  # the loader has memory of its own

    def generate_code(self) -> Callable:
        decode_views = _decode_mixed_views if self.is_mixed else _decode_views
        has_rows, has_more = len(self.unpacks) > 0, len(self.unpacks) > 1
        spare: list[Callable] = [len, len]  # stand for what is not there and never called
        unpack, unpack_more = [*self.unpacks, *spare][:2]

        def decode(ids, out, images, state):  # type: ignore[no-untyped-def]
            data, sizes, rows, aug_seed, status, (code, mix, size, crop_ratio), columns, mixing = state
            # Numba leaves out what a constant excludes before it looks at types: without columns it sees None alone.
            if has_rows:
                records, num_rows, row_bytes, salt = columns[1]
                numbers = _find_rows(ids, aug_seed * num_rows, columns[0], records, row_bytes, status)
                good = np.empty(len(ids), np.bool_)
                unpack(records, numbers, salt, out[1], good)
                _note_bad(good, status)
            if has_more:
                more_records, _, _, more_salt = columns[2]
                unpack_more(more_records, numbers, more_salt, out[2], good)
                _note_bad(good, status)
            decode_views(code, mix, size, crop_ratio, ids, aug_seed, images, data, sizes, rows, status, mixing, out[0])
            return out

        return decode


@functools.cache
def compiled_stage(image_field: int, is_mixed: bool, *unpacks: Callable) -> tuple[Callable, int]:
    """FFCV's pipeline over one field of a beton: the compiled stage, and the number by which it knows its operation.

    Made once a process for all loaders of such views and columns, as Numba takes a second for each. The decoder is made
    here and shared with no other pipeline: FFCV's pipelines change the lists and operations that they are given.
    """
    graph = Graph(
        {"views": PipelineSpec("image", decoder=ViewDecoder(is_mixed, unpacks))},
        {"image": RGBImageField()},
        {"image": image_field},
        {f"f{image_field}": None},  # what the images are is told with each batch
        None,  # FFCV's own reader of the storage state: the operation above reads it itself
    )
    _, code = graph.collect_requirements()
    ((stage, _),), (node,) = graph.codegen_all(code)
    return stage, node


def view_numbers(views: Views) -> tuple[int, int, int, float]:
    """What of the views the compiled operation goes by: kind, kind of the mix, size, crop ratio."""
    return views.code, 0 if views.mix is None else views.mix.code, views.size, float(views.crop_ratio)


def column_state(columns: Sequence[Column]) -> tuple | None:
    """What of the columns it goes by: the row of each sample, then (records, num_rows, row_bytes, salt) of each column."""
    if not columns:
        return None
    return columns[0].rows, *((one.records.reshape(-1), *one.records.shape[1:], np.uint64(one.salt)) for one in columns)


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
