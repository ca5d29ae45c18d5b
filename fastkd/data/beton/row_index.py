"""The row index beside a beton, `X.beton.rows`: where in each JPEG its rows of blocks begin, so that a view is decoded from its own.

    head      64 bytes: `fastkd rows 1\\n`, filled up with zeros to 16, then the beton's num_samples, size_bytes and the CRC-32
              of its tables, the file's size, where the table begins, uint64 each, and the CRC-32 of these 56 bytes
    entries   of the images that have one, 64 bytes and more from the start, made and read by the decoder (jpeg/row_index.h)
    table     where the entry of each sample begins, uint64; 0 where it has none

It is mapped, and of it only the entries that are used are read. Each has a checksum of itself and of its image's bytes: a
damaged one, or one of another image, costs time and changes no pixel. A beton without an index works as well.
"""

import mmap
import os
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from fastkd.data.beton.read import Beton
from fastkd.data.views.pixels import RowIndex, index_entry
from fastkd.errors import FormatError, MismatchError, OptionError
from fastkd.writing import claim, naming, sync_file

_MAGIC, _HEAD_BYTES = b"fastkd rows 1\n\0\0", 64
_BUFFER = 2**20


def row_index_path(path: str | Path) -> Path:
    """`X.beton` → `X.beton.rows`."""
    return Path(path).with_name(Path(path).name + ".rows")


class RowIndexWriter:
    """Writes `X.beton.rows.partial`, entry by entry in sample order; `finish` gives the file its name.

    Raises:
        OSError: the disk is full, or fails.
    """

    def __init__(self, beton_path: Path) -> None:
        self.path = row_index_path(beton_path)
        self.partial = self.path.with_name(self.path.name + ".partial")
        self._file = self.partial.open("wb", buffering=_BUFFER)
        self._file.write(bytes(_HEAD_BYTES))
        self._starts: list[int] = []
        self._size = _HEAD_BYTES

    def add(self, entry: bytes) -> None:
        """The entry of the next sample, empty where it has none."""
        self._starts.append(self._size if entry else 0)
        self._file.write(entry)
        self._size += len(entry)

    def finish(self, beton: Beton) -> int:
        """Puts the index in the place of the one before, or of none where no sample has an entry: the number of those that have."""
        starts = np.array(self._starts, "<u8")
        if not starts.any():
            self.close()
            self.path.unlink(missing_ok=True)
            return 0
        self._file.write(bytes(-self._size % 8))
        table = self._file.tell()
        self._file.write(starts.tobytes())
        numbers = (len(starts), beton.size_bytes, beton.tables_crc32, table + starts.nbytes, table)
        head = _MAGIC + np.array(numbers, "<u8").tobytes()
        self._file.seek(0)
        self._file.write(head + zlib.crc32(head).to_bytes(8, "little"))
        self._file.close()
        sync_file(self.partial)
        os.replace(self.partial, self.path)
        return int(np.count_nonzero(starts))

    def close(self) -> None:
        """Ends the writing; what is not finished is gone."""
        with suppress(OSError):  # of a full disk, told where it was written
            self._file.close()
        self.partial.unlink(missing_ok=True)


def require_row_index(path: Path) -> None:
    """Refuses to write a row index over a file that is none.

    Raises:
        OptionError: the file is somebody's.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        head = file.read(len(_MAGIC))
    if head[:6] != _MAGIC[:6]:
        raise OptionError(
            f"{path}: is there, and no row index of fastkd's, which a beton of this name would put in its place; choose another "
            f"name for the beton, or move the file away"
        )


def open_row_index(beton: Beton) -> RowIndex:
    """The index beside a beton, its entries numbered as the beton's samples are; without one nothing and zeros. Read-only.

    Raises:
        FormatError: it is damaged, or of another version.
        MismatchError: it belongs to another beton.
    """
    starts, nothing = np.zeros(beton.num_samples, np.uint64), np.zeros(0, np.uint8)
    for array in (starts, nothing):
        array.setflags(write=False)  # as what is mapped: to the compiler another type
    path = row_index_path(beton.path)
    if not path.is_file():
        path = row_index_path(os.path.realpath(beton.path))  # a link may stand for a beton elsewhere
    if not path.is_file():
        return nothing, starts
    way_out = f"`fastkd verify --write-manifest {beton.path}` makes it again, and without it views only take longer"
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size < _HEAD_BYTES:
            raise FormatError(f"{path}: {size} bytes, a row index has {_HEAD_BYTES} and more; {way_out}")
        data = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    head = data[:_HEAD_BYTES].tobytes()
    if not head.startswith(_MAGIC):
        raise FormatError(f"{path}: begins with {head[:14]!r}, a row index with {_MAGIC[:14]!r}; {way_out}")
    if int.from_bytes(head[-8:], "little") != zlib.crc32(head[:-8]):
        raise FormatError(f"{path}: damaged: its head does not match its checksum; {way_out}")
    num_samples, beton_bytes, tables_crc32, whole, table = np.frombuffer(head, "<u8", 5, len(_MAGIC)).tolist()
    ids = beton.sample_ids
    if (num_samples, beton_bytes, tables_crc32) != (len(ids), beton.size_bytes, beton.tables_crc32):
        raise MismatchError(f"{path}: belongs to another beton than {beton.path.name} stands here; {way_out}")
    if whole != size or table % 8 or not _HEAD_BYTES <= table <= size or size - table != 8 * num_samples:
        raise FormatError(f"{path}: {size:,} bytes, {whole:,} expected (cut?); {way_out}")
    found = data[table:].view("<u8")
    if beton.present is None:
        return data, found
    spread = np.zeros(beton.num_samples, np.uint64)
    spread[ids[np.argsort(beton.ptrs[ids])]] = found  # a part's rows are in the order of their images
    spread.setflags(write=False)
    return data, spread


def entry_of(beton: Beton, sample_id: int) -> bytes:
    """A sample's entry, made anew."""
    height, width = int(beton.heights[sample_id]), int(beton.widths[sample_id])
    return index_entry(beton.payload(sample_id).view(np.ndarray), int(beton.modes[sample_id]), height, width)


def write_row_index(beton: Beton, progress: Callable[[int, int], None] = lambda done, total: None) -> int:
    """Makes the index of a beton that stands; as `RowIndexWriter.finish`."""
    path = Path(os.path.realpath(beton.path))
    with claim(row_index_path(path)) as real, naming(real):
        require_row_index(real)
        writer = RowIndexWriter(path)
        try:
            for sample_id in range(beton.num_samples):
                writer.add(entry_of(beton, sample_id))
                progress(sample_id + 1, beton.num_samples)
            return writer.finish(beton)
        finally:
            writer.close()


def damaged_entries(beton: Beton) -> list[int]:
    """The samples whose entries are not those of their images; reads the whole beton.

    Raises:
        FormatError, MismatchError: as `open_row_index`.
    """
    data, starts = open_row_index(beton)
    if not len(data):
        return []

    def is_own(sample_id: int) -> bool:
        start, entry = int(starts[sample_id]), entry_of(beton, sample_id)
        return bool(start) == bool(entry) and data[start : start + len(entry)].tobytes() == entry

    return [sample_id for sample_id in beton.sample_ids.tolist() if not is_own(sample_id)]
