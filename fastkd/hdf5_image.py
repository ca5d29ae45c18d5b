"""An HDF5 file in memory, of which only what is written takes room: HDF5 itself never meets a disk that fails.

A write that fails below HDF5 leaves its library with a file that it cannot close, which now and then ends the interpreter.
So it writes here, and the bytes then go to the disk by plain calls, whose errors are ordinary ones.
"""

import io
import os
from pathlib import Path

from fastkd.writing import write_all

_PAGE = 2**16  # bytes


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
        for number in [number for number in self._pages if number * _PAGE >= self.size]:
            del self._pages[number]
        return self.size

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        target = memoryview(buffer).cast("B")
        count = max(0, min(len(target), self.size - self._at))
        done = 0
        while done < count:
            number, start = divmod(self._at + done, _PAGE)
            length = min(_PAGE - start, count - done)
            page = self._pages.get(number)
            target[done : done + length] = bytes(length) if page is None else page[start : start + length]
            done += length
        self._at += count
        return count

    def write(self, data: "bytes | bytearray | memoryview") -> int:  # type: ignore[override]
        source = memoryview(data).cast("B")
        done = 0
        while done < len(source):
            number, start = divmod(self._at + done, _PAGE)
            length = min(_PAGE - start, len(source) - done)
            page = self._pages.setdefault(number, bytearray(_PAGE)) if length < _PAGE else None
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
                write_all(file, page[: self.size - number * _PAGE], number * _PAGE)
        finally:
            os.close(file)
