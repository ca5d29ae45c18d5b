"""The pages of a beton that is being written, and the journal that lets a killed build go on.

Samples are laid into pages in the order in which they come; space for the tables is kept in front, and they are written
last, the header very last. Every 256 MiB what was written is synced, and only then does the journal say so: after a kill
everything that it lists is on disk, and everything else is written again.

Pages go to the disk past the page cache where the file system can do that (O_DIRECT): a build would fill it with what
nobody has asked for yet, and taking the memory for that costs more than everything else that is done with an image.
While one is on its way, in a thread, the next one is filled.
"""

import contextlib
import errno
import fcntl
import mmap
import os
import zlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from fastkd.data.beton.encode import Encoded
from fastkd.data.beton.fields import SAMPLE_ID_FIELD
from fastkd.data.beton.read import FIELD_BYTES, HEADER_BYTES
from fastkd.data.beton.row_index import RowIndexWriter
from fastkd.data.views.pixels import index_entry

_COMMIT_BYTES = 256 * 2**20
_MAGIC = b"fastkd journal 2\n"
_ENTRY = np.dtype(
    [
        ("item", "<i8"),
        ("mode", "u1"),
        ("width", "<u2"),
        ("height", "<u2"),
        ("ptr", "<u8"),
        ("size", "<u8"),
        ("digest", "V16"),
        ("crc32", "<u4"),
    ]
)
"""What is known of a written sample; `item` is its number in the source."""
_COMMIT = np.dtype([("num_entries", "<u8"), ("next_item", "<u8"), ("page_start", "<u8"), ("crc32", "<u4")])
"""Begins a run of the journal: the entries follow, then a stamp of each item from the run before to `next_item`; crc32 is of all."""
_STAMP_BYTES = 16  # size and mtime_ns, int64, of the source file that an item came from, before it was read


def _crc32(commit: np.ndarray | np.void, rows: bytes) -> int:
    """What a run's own numbers and all that follows them come to."""
    return zlib.crc32(rows, zlib.crc32(commit.tobytes()[: -_COMMIT["crc32"].itemsize]))


class PageWriter:
    """Writes `X.beton.partial`, beside it `X.beton.journal`; goes on where the same job was stopped.

    Args:
        path: where the beton will stand.
        job: fingerprint of all that decides the beton's bytes; a journal of another job is thrown away.
        labels: int64 (num_items,), of all samples that the source has, of which fewer may be written.
        sample_ids: int64 (num_items,), the numbers of the items in another beton, for a part of one; kept in a field.
        is_unchanged: asked of the items of each run in the journal, with their stamps, int64 (n, 2), whether the source
            still has what they were made of; from the first run on that it has not, all is written anew.
        log: takes a line about a journal that is thrown away.

    Raises:
        OSError: the disk is full, or fails.
    """

    def __init__(
        self,
        path: Path,
        job: str,
        labels: np.ndarray,
        page_size: int,
        sample_ids: np.ndarray | None = None,
        *,
        is_unchanged: Callable[[range, np.ndarray], bool] = lambda items, stamps: True,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        from ffcv.fields import IntField, RGBImageField
        from ffcv.types import get_metadata_type

        self.partial, self.journal_path = (path.with_name(path.name + end) for end in (".partial", ".journal"))
        self.page_size, self.labels, self.sample_ids = page_size, labels, sample_ids
        self.fields = {"image": RGBImageField(), "label": IntField()}
        if sample_ids is not None:
            self.fields[SAMPLE_ID_FIELD] = IntField()
        self.row_type = get_metadata_type(list(self.fields.values()))
        self.entries, self.stamps = np.zeros(len(labels), _ENTRY), np.zeros((len(labels), 2), np.int64)
        self.num_samples = self.next_item = self.num_commits = self._num_committed = self._next_committed = 0
        tables = HEADER_BYTES + FIELD_BYTES * len(self.fields) + len(labels) * self.row_type.itemsize
        self.page_start = -(-tables // page_size) * page_size
        # Aligned, as writing past the cache wants it.
        self._page, self._other_page = (np.frombuffer(mmap.mmap(-1, page_size), np.uint8) for _ in range(2))
        self._used, self._uncommitted = 0, 0
        self._thread, self._written = ThreadPoolExecutor(1), Future[None]()
        self._written.set_result(None)
        self._journal = os.open(self.journal_path, os.O_RDWR | os.O_CREAT, 0o644)
        is_new = not self._resume(job.encode(), is_unchanged, log)
        self._file = self.partial.open("wb" if is_new else "r+b")
        self.rows = RowIndexWriter(path)
        try:
            self._file.truncate(self.page_start)
            self._index_committed()
        except OSError:
            self.close(keep=self.num_commits > 0)
            raise
        self._file.seek(self.page_start)
        self._bypass_cache(True)

    def _index_committed(self) -> None:
        """The row index of what an earlier process wrote, made anew of the pages."""
        if self.num_samples:
            data = np.memmap(self.partial, np.uint8, "r")
            for mode, width, height, ptr, size in self.entries[["mode", "width", "height", "ptr", "size"]][
                : self.num_samples
            ].tolist():
                self.rows.add(index_entry(data[ptr : ptr + size], mode, height, width))

    def _bypass_cache(self, on: bool) -> None:
        """Whether what is written from now on goes past the page cache; nothing where that cannot be done."""
        with contextlib.suppress(OSError):
            flags = fcntl.fcntl(self._file, fcntl.F_GETFL)
            fcntl.fcntl(self._file, fcntl.F_SETFL, flags | os.O_DIRECT if on else flags & ~os.O_DIRECT)

    def _resume(
        self, job: bytes, is_unchanged: Callable[[range, np.ndarray], bool], log: Callable[[str], None]
    ) -> bool:
        """Takes over what the journal of the same job lists; begins a new journal where there is none."""
        content, head = self.journal_path.read_bytes(), _MAGIC + job
        if not content.startswith(head) or not self.partial.exists():
            if content:
                of_another = "of another version of fastkd" if not content.startswith(_MAGIC) else "of another build"
                reason = f"without {self.partial.name}" if content.startswith(head) else of_another
                log(f"{self.journal_path}: {reason}, not gone on from: all is written anew")
            os.ftruncate(self._journal, 0)
            os.pwrite(self._journal, head, 0)
            content = head
        at = len(head)
        on_disk = self.partial.stat().st_size if self.partial.exists() else 0
        while at + _COMMIT.itemsize <= len(content):
            commit = np.frombuffer(content, _COMMIT, 1, at)[0]
            items = range(self.next_item, int(commit["next_item"]))
            middle = at + _COMMIT.itemsize + int(commit["num_entries"]) * _ENTRY.itemsize
            end = middle + len(items) * _STAMP_BYTES
            if end > len(content) or _crc32(commit, content[at + _COMMIT.itemsize : end]) != commit["crc32"]:
                break  # the kill came while this was written
            stamps = np.frombuffer(content[middle:end], np.int64).reshape(-1, 2)
            if commit["page_start"] > on_disk or not is_unchanged(items, stamps):
                break
            added = np.frombuffer(content[at + _COMMIT.itemsize : middle], _ENTRY)
            self.stamps[items.start : items.stop] = stamps
            self.entries[self.num_samples : self.num_samples + len(added)] = added
            self.num_samples += len(added)
            self.next_item, self.page_start = items.stop, int(commit["page_start"])
            self.num_commits += 1
            at = end
        self._num_committed, self._next_committed = self.num_samples, self.next_item
        os.ftruncate(self._journal, at)
        os.lseek(self._journal, at, os.SEEK_SET)
        return self.num_commits > 0

    def add(self, item: int, image: Encoded) -> None:
        """Lays the next sample of the source, which is no larger than a page, into it."""
        size = len(image.payload)
        assert size <= self.page_size
        if self._used + size > self.page_size:
            self._flush(item)
        self._page[self._used : self._used + size] = image.payload
        self.entries[self.num_samples] = (
            item,
            image.mode,
            image.width,
            image.height,
            self.page_start + self._used,
            size,
            image.digest,
            image.crc32,
        )
        self.rows.add(image.rows)
        self._used += size
        self.num_samples += 1

    def _flush(self, next_item: int) -> None:
        self._page[self._used :] = 0
        self._written.result()
        self._written = self._thread.submit(self._write_page, self._page)
        self._page, self._other_page = self._other_page, self._page
        self.page_start += self.page_size
        self._used = 0
        self._uncommitted += self.page_size
        if self._uncommitted >= _COMMIT_BYTES:
            self._written.result()
            self._file.flush()
            os.fdatasync(self._file.fileno())
            rows = self.entries[self._num_committed : self.num_samples].tobytes()
            rows += self.stamps[self._next_committed : next_item].tobytes()
            commit = np.array((self.num_samples - self._num_committed, next_item, self.page_start, 0), _COMMIT)
            commit["crc32"] = _crc32(commit, rows)
            os.write(self._journal, commit.tobytes() + rows)
            os.fdatasync(self._journal)
            self._num_committed, self._next_committed, self._uncommitted = self.num_samples, next_item, 0
            self.num_commits += 1

    def _write_page(self, page: np.ndarray) -> None:
        start = self._file.tell()
        try:
            self._file.write(page.data)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._bypass_cache(False)  # the file system said it could, and cannot
            self._file.seek(start)
            self._file.write(page.data)

    def finish(self) -> None:
        """Writes the last page and the tables; the partial file is a whole beton then."""
        from ffcv.types import ALLOC_TABLE_TYPE, CURRENT_VERSION, TYPE_ID_HANDLER, FieldDescType, HeaderType

        self._uncommitted = -self.page_size  # the tables follow: nothing more to go on from
        self._flush(len(self.entries))
        self._written.result()
        self._bypass_cache(False)
        entries = self.entries[: self.num_samples]
        table = np.zeros(len(entries), ALLOC_TABLE_TYPE)
        table["sample_id"], table["ptr"], table["size"] = np.arange(len(entries)), entries["ptr"], entries["size"]
        self._file.write(table.tobytes())
        rows = np.zeros(len(entries), self.row_type)
        for name in ("mode", "width", "height"):
            rows["f0"][name] = entries[name]
        rows["f0"]["data_ptr"], rows["f1"] = entries["ptr"], self.labels[entries["item"]]
        if self.sample_ids is not None:
            rows["f2"] = self.sample_ids[entries["item"]]
        types = {handler: type_id for type_id, handler in TYPE_ID_HANDLER.items()}
        descriptions = np.zeros(len(self.fields), FieldDescType)
        for row, (name, field) in zip(descriptions, self.fields.items(), strict=True):
            row["type_id"] = types[type(field)]
            row["name"][: len(name)] = np.frombuffer(name.encode("ascii"), np.uint8)
            row["arguments"] = field.to_binary()[0]
        header = np.zeros(1, HeaderType)
        header["version"], header["num_fields"] = CURRENT_VERSION, len(self.fields)
        header["page_size"], header["num_samples"] = self.page_size, self.num_samples
        header["alloc_table_ptr"] = self.page_start
        self._file.seek(0)
        self._file.write(header.tobytes() + descriptions.tobytes() + rows.tobytes())
        self._file.close()

    def close(self, *, keep: bool) -> None:
        """Ends the writing; with `keep` what was committed stays, for the same job to go on from."""
        self._thread.shutdown()
        self._file.close()
        self.rows.close()
        if not keep:
            self.partial.unlink(missing_ok=True)
            self.journal_path.unlink(missing_ok=True)
        os.close(self._journal)
