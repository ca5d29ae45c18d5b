"""HDF5 files that anybody may have written: reading only what is expected, only from the file itself, never more than it has.

HDF5 can say that a dataset lies in another file, is put together from several, is unpacked by a plugin, or is far larger
than what is stored. fastkd writes none of these. What is looked at here is looked at before a value is read.

And writing them so that HDF5 itself never meets a disk that fails: a write that fails below it leaves its library with a file
that it cannot close, which now and then ends the interpreter. It writes into an `Image`, whose bytes then go to the disk by
plain calls, whose errors are ordinary ones.
"""

import io
import math
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fastkd.errors import FormatError
from fastkd.writing import write_all

_PAGE_BYTES = 2**16
MOST_TEXT_BYTES = 4 << 20
"""Of a text in an attribute: JSON of so many bytes takes some 200 MB at most."""

MALFORMED = (KeyError, TypeError, ValueError, OSError, RuntimeError, AttributeError, MemoryError)
"""What h5py raises at files that are damaged."""


def find_dataset(file: h5py.File, name: str, *, dtype: str, ndim: int, path: object) -> h5py.h5d.DatasetID:
    """A dataset whose values lie in the file, all of them: contiguous, or in chunks that are stored as they are.

    Args:
        name: of the dataset, groups before it; only names that are expected are opened.
        dtype, ndim: what it has to be. path: the file, for messages.

    Raises:
        FormatError: missing, of another type, elsewhere (behind a soft or external link, in external storage, virtual),
            filtered, or larger than what the file has of it.
    """
    try:
        dataset = _open(file, name)
        wrong = _what_is_wrong(dataset, np.dtype(dtype), ndim, file_bytes(file))
    except MALFORMED as error:
        raise FormatError(f"{path}: dataset {name!r} cannot be read ({error})") from None
    if wrong:
        raise FormatError(f"{path}: dataset {name!r} {wrong}")
    return dataset


def size_bytes(dataset: h5py.h5d.DatasetID) -> int:
    """Bytes of a dataset's values."""
    return math.prod(dataset.shape) * int(dataset.dtype.itemsize)


def read_dataset(file: h5py.File, name: str, *, dtype: str, ndim: int, path: object) -> np.ndarray:
    """Reads one dataset whole, as `find_dataset` finds it: it takes no more memory than the file has bytes.

    Raises:
        FormatError: as `find_dataset`, or unreadable.
    """
    dataset = find_dataset(file, name, dtype=dtype, ndim=ndim, path=path)
    try:
        values = np.empty(dataset.shape, dtype)
        if values.size:
            dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, values)
    except MALFORMED as error:
        raise FormatError(f"{path}: dataset {name!r} cannot be read ({error})") from None
    return values


def read_attribute(file: h5py.File, name: str, kind: str) -> Any:
    """A scalar root attribute; its type and size are looked at before HDF5 reads the value.

    Args:
        kind: `S`, a text of fixed length up to MOST_TEXT_BYTES, or `i`.

    Raises:
        KeyError: missing. TypeError: of another type, or larger. Others of MALFORMED: damaged.
    """
    attribute = file.attrs.get_id(name)
    if attribute.dtype.kind != kind or attribute.shape != ():
        raise TypeError(f"{name} is of another type")
    most = min(MOST_TEXT_BYTES, file_bytes(file))
    if attribute.dtype.itemsize > most:
        raise TypeError(f"{name} of {attribute.dtype.itemsize:,} bytes, expected at most {most:,}")
    return file.attrs[name]


def file_bytes(file: h5py.File) -> int:
    """The size of an open file, as the disk has it: the one in HDF5's own tables may be any number."""
    return os.fstat(file.id.get_vfd_handle()).st_size


def _open(file: h5py.File, name: str) -> h5py.h5d.DatasetID:
    """Opens a dataset by hard links alone: any other leads elsewhere."""
    *groups, last = (part.encode() for part in name.split("/"))
    place: Any = file.id
    for part in groups:
        _require_hard(place, part)
        place = h5py.h5g.open(place, part)
    _require_hard(place, last)
    return h5py.h5d.open(place, last)


def _require_hard(place: Any, name: bytes) -> None:
    if place.links.get_info(name).type != h5py.h5l.TYPE_HARD:
        raise ValueError("a link, which is not followed; expected it in the file")


def _what_is_wrong(dataset: h5py.h5d.DatasetID, dtype: np.dtype, ndim: int, most: int) -> str | None:
    """Why a dataset is not read, in words. The layout comes first: to ask a virtual one for its shape opens its sources."""
    layout = dataset.get_create_plist()
    if layout.get_layout() == h5py.h5d.VIRTUAL or layout.get_external_count():
        return "lies in other files, which are not read; expected it in the file"
    if layout.get_layout() not in (h5py.h5d.CONTIGUOUS, h5py.h5d.CHUNKED) or layout.get_nfilters():
        return "is compressed or packed, expected plain values"
    shape = dataset.shape
    if not dataset.get_type().equal(h5py.h5t.py_create(dtype)) or shape is None or len(shape) != ndim:
        return f"is not {ndim}-dimensional {dtype.str}"
    need = math.prod(shape) * dtype.itemsize
    if layout.get_layout() == h5py.h5d.CHUNKED:
        stored = dataset.get_storage_size()
        return None if need <= stored <= most else f"of {need:,} bytes has {stored:,} in a file of {most:,}"
    start = dataset.get_offset()
    if need and (start is None or start + need > most):
        return f"of {need:,} bytes is cut: it begins at byte {start} of {most:,}"
    return None


class Image(io.RawIOBase):
    """A file for h5py's file-object driver: pages of what was written, zeros elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self._pages: dict[int, bytearray] = {}
        self._at = self.size = 0

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self.size)[whence]
        return self._at

    def truncate(self, size: int | None = None) -> int:
        self.size = self._at if size is None else size
        for number in [number for number in self._pages if number * _PAGE_BYTES >= self.size]:
            del self._pages[number]
        return self.size

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        target = memoryview(buffer).cast("B")
        count = max(0, min(len(target), self.size - self._at))
        done = 0
        while done < count:
            number, start = divmod(self._at + done, _PAGE_BYTES)
            length = min(_PAGE_BYTES - start, count - done)
            page = self._pages.get(number)
            target[done : done + length] = bytes(length) if page is None else page[start : start + length]
            done += length
        self._at += count
        return count

    def write(self, data: "bytes | bytearray | memoryview") -> int:  # type: ignore[override]
        source = memoryview(data).cast("B")
        done = 0
        while done < len(source):
            number, start = divmod(self._at + done, _PAGE_BYTES)
            length = min(_PAGE_BYTES - start, len(source) - done)
            page = self._pages.setdefault(number, bytearray(_PAGE_BYTES)) if length < _PAGE_BYTES else None
            if page is None:
                self._pages[number] = bytearray(source[done : done + length])
            else:
                page[start : start + length] = source[done : done + length]
            done += length
        self._at += done
        self.size = max(self.size, self._at)
        return done

    def save(self, path: Path) -> None:
        """Writes the bytes to a new file; where nothing was written it has holes.

        Raises:
            OSError: the disk is full, or fails.
        """
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        try:
            os.ftruncate(file, self.size)
            for number, page in sorted(self._pages.items()):
                write_all(file, page[: self.size - number * _PAGE_BYTES], number * _PAGE_BYTES)
        finally:
            os.close(file)
