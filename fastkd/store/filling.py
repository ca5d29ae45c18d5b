"""Making a logit store and filling it, crash-proof.

HDF5 is used to create the file. While a store is filled no HDF5 handle is open: rows are written at their byte offsets
and synced before the flag of their block is, so a kill at any moment loses at most the blocks in flight: those of about a
second, which are synced together.
"""

import errno
import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fastkd.artefact import HDF5_VERSION, Header, write_header
from fastkd.errors import BusyError, DiskError, OptionError, SpaceError
from fastkd.hdf5 import Image
from fastkd.store.codec import Codec, encode_rows
from fastkd.store.tables import (
    FORMAT_VERSION,
    KIND,
    StoreTables,
    embedding_codec,
    read_tables,
    store_fingerprint,
    top1_checksum,
    write_about,
)
from fastkd.writing import NO_ROOM, atomic_path, write_all

_ALIGN = 4096
SYNC_S = 1.0
"""How long blocks wait for each other until they are synced, about. A disk takes as long for one as for many of them."""


def create_store(
    path: str | Path,
    *,
    sample_ids: np.ndarray,
    num_seeds: int,
    codec: Codec,
    block_rows: int,
    inputs: dict[str, str],
    params: dict[str, Any],
    probes: np.ndarray,
    probe_crc32c: np.ndarray,
    num_shards: int = 1,
    about: dict[str, Any] | None = None,
) -> None:
    """Makes an empty store, whole and durable before it has its name.

    Args:
        sample_ids: int64 (R,), the row order: the mask's priority order.
        codec: of the logits. inputs: fingerprints of beton, mask and teacher. params: views, pixels, teacher, …, and
            `embedding` where the store is to have embeddings, with their `dim`; `codec`, `num_classes`, `num_seeds` and
            `block_rows` are added to them.
        probes: int64 (P, 2), pairs (sample_id, aug_seed); probe_crc32c: uint32 (P,), of their pixels.
        num_shards: files that the rows are spread over; the disk needs room for one of them.
        about: what else is known of where the logits come from, plain JSON values of at most some 2 kB; no part of the
            store's identity.

    Raises:
        OptionError: the disk has no room for it.
    """
    path = Path(path)
    num_rows = len(sample_ids)
    codecs = {"logits": codec}
    if "embedding" in params:  # the logits are the last in the file, whatever else it has
        codecs = {"embeddings": embedding_codec(params["embedding"]), "logits": codec}
    num_blocks = -(-num_rows // block_rows)
    params = params | {
        "codec": codec.name,
        "num_classes": codec.num_classes,
        "num_seeds": num_seeds,
        "block_rows": block_rows,
    }
    require_space(path, num_seeds * num_rows * sum(one.row_bytes for one in codecs.values()) // num_shards)
    arrays: dict[str, np.ndarray] = {
        "sample_ids": np.ascontiguousarray(sample_ids, np.int64),
        "probes": np.asarray(probes, np.int64),
        "probe_crc32c": np.asarray(probe_crc32c, np.uint32),
    }
    header = Header(
        kind=KIND,
        format_version=FORMAT_VERSION,
        fingerprint=store_fingerprint(inputs, params, **arrays),
        inputs=inputs,
        params=params,
    )
    options: dict[str, Any] = {
        "libver": HDF5_VERSION,
        "alignment_threshold": 1,
        "alignment_interval": _ALIGN,
    }
    image = Image()
    with h5py.File(image, "w", **options) as file:
        write_header(file, header)
        if about:
            write_about(file, header, about)
        for name, array in arrays.items():
            file.create_dataset(name, data=array, track_times=False)
        _create_contiguous(file, "done", h5py.h5t.STD_U8LE, (num_seeds, num_blocks), zeros=True)
        _create_contiguous(file, "top1", h5py.h5t.STD_U32LE, (num_seeds, num_blocks, 2), zeros=True)
        for name, one in codecs.items():
            shape = (num_seeds, num_rows, one.row_bytes)
            _create_contiguous(file, name, h5py.h5t.STD_U8LE, shape, zeros=False)
    with atomic_path(path) as partial:
        image.save(partial)
        os.truncate(partial, read_tables(partial).size_bytes)
        size = store_bytes(
            num_seeds, num_rows, codec, block_rows, len(arrays["probes"]), embedding=codecs.get("embeddings")
        )
        assert partial.stat().st_size == size


def store_bytes(
    num_seeds: int, num_rows: int, codec: Codec, block_rows: int, num_probes: int, *, embedding: Codec | None = None
) -> int:
    """The size of a store's file: every table of HDF5's and every dataset starts a page of 4,096 B, the logits are last.

    Args:
        embedding: the codec of the embeddings; None for a store without.
    """
    num_blocks = num_seeds * -(-num_rows // block_rows)
    tables = [8 * num_rows, 16 * num_probes, 4 * num_probes, num_blocks, 8 * num_blocks]
    tables += [num_seeds * num_rows * embedding.row_bytes] if embedding is not None else []
    heads = 2 + len(tables) + 1  # superblock and root, one for each dataset
    return _ALIGN * (heads + sum(-(-size // _ALIGN) for size in tables)) + num_seeds * num_rows * codec.row_bytes


def _create_contiguous(
    file: h5py.File, name: str, dtype: h5py.h5t.TypeID, shape: tuple[int, ...], *, zeros: bool
) -> None:
    """A dataset whose place in the file is fixed at once, filled with zeros or left as the disk gives it."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.CONTIGUOUS)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plist.set_fill_time(h5py.h5d.FILL_TIME_ALLOC if zeros else h5py.h5d.FILL_TIME_NEVER)
    plist.set_obj_track_times(False)
    space = h5py.h5s.create_simple(shape)
    h5py.h5d.create(file.id, name.encode(), dtype, space, dcpl=plist)


def require_space(path: Path, need: int) -> None:
    """Refuses to begin what the disk of `path` has no room for.

    Raises:
        OptionError: says how many bytes are needed and free.
    """
    stat = os.statvfs(path.parent if path.parent.is_dir() else ".")
    free = stat.f_bavail * stat.f_frsize
    if need > free:
        raise OptionError(
            f"{path}: the store takes {need:,} bytes, {free:,} are free; fewer --num-seeds, a smaller mask or another disk"
        )


class StoreFiller:
    """Writes blocks of a store by their byte ranges; several ranks may each have one open on the same file.

    Args:
        sync_s: a block is synced, with all since the last sync, when the first of them was written so long ago; `inf` where
            the file gets its name only when all of it is on disk.
    """

    def __init__(self, tables: StoreTables, *, sync_s: float = SYNC_S) -> None:
        self.tables, self.sync_s = tables, sync_s
        self._fd = os.open(tables.path, os.O_RDWR)
        self._written: list[int] = []  # numbers of the blocks that have no flag yet
        self._since = 0.0  # when the first of them was written
        self._has_flags = False  # that are not synced yet

    def close(self) -> None:
        """Closes the file; every block written before is on disk and marked done.

        Raises:
            SpaceError, DiskError: as `write_records`.
        """
        try:
            self.flush()
        finally:
            os.close(self._fd)

    def block_ids(self, block: int) -> np.ndarray:
        """The sample_ids of a block: int64, at most `block_rows` of them."""
        return self.tables.sample_ids[self.tables.block_rows_of(block)]

    def numbers(self, aug_seed: int, block: int) -> np.ndarray:
        """Which records of the store the rows of a block are: int64."""
        rows = self.tables.block_rows_of(block)
        return np.arange(rows.start, rows.stop) + aug_seed * self.tables.num_rows

    def write(
        self,
        aug_seed: int,
        block: int,
        logits_BC: np.ndarray,
        num_correct: int = 0,
        *,
        embeddings_BD: np.ndarray | None = None,
    ) -> None:
        """Encodes and writes one block; see `write_records`.

        Args:
            logits_BC: float32 (rows of the block, num_classes), finite and within ±65000. embeddings_BD: as many rows of
                the embedding's dimension, where the store has embeddings.
        """
        t, numbers = self.tables, self.numbers(aug_seed, block)
        values = [logits_BC] if embeddings_BD is None else [logits_BC, embeddings_BD]
        records = [encode_rows(one.codec, rows, numbers, one.salt) for one, rows in zip(t.outputs, values, strict=True)]
        self.write_records(aug_seed, block, records, num_correct)

    def write_records(self, aug_seed: int, block: int, records: Sequence[np.ndarray], num_correct: int) -> None:
        """Writes one block, which is marked done once it is on disk.

        Args:
            records: of each of the store's outputs, uint8 (rows of the block, row_bytes).
            num_correct: how many of the rows have their largest logit at their label.

        Raises:
            SpaceError, DiskError: the disk is full, or fails; the blocks written before stay valid.
        """
        t = self.tables
        number = aug_seed * t.num_blocks + block
        top1 = np.array([num_correct, top1_checksum(num_correct, number, t.salt)], "<u4")
        if not self._written:
            self._since = time.monotonic()
        with self._naming_failures():
            row = aug_seed * t.num_rows + block * t.block_rows
            for output, rows in zip(t.outputs, records, strict=True):
                write_all(self._fd, rows.tobytes(), output.offset + row * output.codec.row_bytes)
            write_all(self._fd, top1.tobytes(), t.top1_offset + number * top1.nbytes)
        self._written.append(number)
        if time.monotonic() - self._since >= self.sync_s:
            self._mark()

    def flush(self) -> None:
        """Puts on disk what was written, and that it is done.

        Raises:
            SpaceError, DiskError: as `write_records`.
        """
        if self._written:
            self._mark()
        if self._has_flags:
            with self._naming_failures():
                os.fdatasync(self._fd)
            self._has_flags = False

    def _mark(self) -> None:
        """Waits until the blocks written are on disk, and then sets their flags."""
        with self._naming_failures():
            os.fdatasync(self._fd)
            for number in self._written:
                write_all(self._fd, b"\1", self.tables.done_offset + number)
        self._written, self._has_flags = [], True

    @contextmanager
    def _naming_failures(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            kind, way_out = (SpaceError, "make room") if error.errno in NO_ROOM else (DiskError, "mend that")
            raise kind(
                f"{self.tables.path}: {error.strerror} while rows were written; those before are safe: {way_out} and run the same command again"
            ) from None


@contextmanager
def fill_lock(path: str | Path, *, is_first: bool = True) -> Iterator[bool]:
    """Holds the store for the one run that fills it: its first process keeps other runs out, the others join it.

    Yields:
        False where the file system knows no locks.

    Raises:
        BusyError: another run fills it at the moment.
    """
    fd = os.open(path, os.O_RDWR)
    try:
        try:
            if is_first:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            held = True
        except BlockingIOError:
            raise BusyError(f"{path}: another process is filling this store; wait for it, or stop it") from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            held = False
        yield held
    finally:
        os.close(fd)
