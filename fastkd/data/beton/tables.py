"""The tables of a beton: its fields, and every image in an allocation of its own, inside a page, of its own size."""

from collections.abc import Callable, Iterator

import numpy as np

from fastkd.data.modes import MODE_RAW

ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
POINTER_FIELDS = (2, 3, 4, 5, 6)
"""Types of fields whose values lie in allocations."""
_IMAGE = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
_POINTER_AND_SIZE = np.dtype([("ptr", "<u8"), ("size", "<u8")])
_FIELD_TYPES = {0: "<f8", 1: "<i8", 2: _IMAGE, 3: _POINTER_AND_SIZE, 4: "<u8", 5: _POINTER_AND_SIZE, 6: "<u8"}


def find_fields(
    rows: np.ndarray, need: Callable[[bool, str], None]
) -> tuple[tuple[int, ...], tuple[str, ...], np.dtype]:
    """Types and names of the fields that a table, uint8 (num_fields, FIELD_BYTES), describes; and the type of a sample's row."""
    types = tuple(int(x) for x in rows[:, 0])
    names = tuple(bytes(row[1:17]).split(b"\0")[0].decode("ascii", "replace") for row in rows)
    unknown = [name for name, kind in zip(names, types, strict=True) if kind not in _FIELD_TYPES]
    need(not unknown, f"field {unknown[0] if unknown else ''!r} is of a type that FFCV does not define")
    need(len(set(names)) == len(names), f"two fields of one name among {', '.join(names)}")
    return types, names, np.dtype([("", _FIELD_TYPES[kind]) for kind in types], align=True)


def find_allocations(
    data_ptrs: np.ndarray, table: np.ndarray, num_samples: int, need: Callable[[bool, str], None]
) -> tuple[np.ndarray, np.ndarray]:
    """Start and size of every image: its pointer, looked up in the (unordered) allocation table; int64 (N,) each."""
    starts, sizes, owners = table["ptr"], table["size"], table["sample_id"]
    need(int(starts.max()) < 2**63 and int(sizes.max()) < 2**63, "allocations beyond 2^63")
    # Where the table is in order, as build-beton writes it, it need not be sorted and searched, which takes most of the time.
    if not bool((starts[:-1] < starts[1:]).all()):
        order = np.argsort(starts, kind="stable")
        starts, sizes, owners = starts[order], sizes[order], owners[order]
    ptrs, own_sizes = data_ptrs.astype(np.int64), np.empty(num_samples, np.int64)
    same = len(starts) == num_samples and np.array_equal(starts, data_ptrs)
    for rows in _blocks(num_samples):
        at = rows if same else np.minimum(np.searchsorted(starts, data_ptrs[rows]), len(starts) - 1)
        wrong = (starts[at] != data_ptrs[rows]) | (owners[at] != np.arange(rows.start, rows.stop, dtype=np.uint64))
        first = rows.start + int(wrong.argmax())
        need(not wrong.any(), f"sample {first} points to data that no allocation of its own covers")
        own_sizes[rows] = sizes[at]
    for rows in _blocks(len(starts) - 1):
        after = starts[rows.start + 1 : rows.stop + 1]
        overlap = starts[rows] + sizes[rows] > after
        need(not overlap.any(), f"two allocations overlap at byte {int(after[overlap.argmax()]):,}")
    return ptrs, own_sizes


def _blocks(num_rows: int) -> Iterator[slice]:
    """All rows in pieces whose temporary arrays stay in the cache: fresh memory costs more than the checks."""
    for start in range(0, num_rows, 2**15):
        yield slice(start, min(start + 2**15, num_rows))


def check_rows(
    ptrs: np.ndarray,
    sizes: np.ndarray,
    heights: np.ndarray,
    widths: np.ndarray,
    modes: np.ndarray,
    first: int,
    last: int,
    page_size: int,
    need: Callable[[bool, str], None],
) -> None:
    """The rules that every row of a beton keeps; names the first sample that breaks one."""
    for rows in _blocks(len(ptrs)):
        ptr, size, height, width, mode = (column[rows] for column in (ptrs, sizes, heights, widths, modes))
        rules = (
            ("has an empty image", (height < 1) | (width < 1) | (size < 1)),
            ("has an image mode that is neither 0 (jpg) nor 1 (raw)", mode > MODE_RAW),
            ("lies outside the pages", (ptr < first) | (ptr > last - size)),
            ("crosses a page", ptr // page_size != (ptr + np.maximum(size, 1) - 1) // page_size),
            ("is raw with a size that is not 3·height·width", (mode == MODE_RAW) & (size != 3 * height * width)),
        )
        for what, broken in rules:
            need(not broken.any(), f"sample {rows.start + int(broken.argmax())} {what}")
