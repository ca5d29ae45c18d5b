"""Making a logit store and filling it, crash-proof.

HDF5 is used to create the file. While a store is filled no HDF5 handle is open: rows are written at their byte offsets
and synced before the flag of their block is, so a kill at any moment loses at most the blocks in flight.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fastkd.artefact import HDF5_VERSION, Header, atomic_path, content_fingerprint, write_header
from fastkd.errors import BusyError, OptionError
from fastkd.store.codec import Codec, encode_rows
from fastkd.store.logit_store import FORMAT_VERSION, KIND, StoreTables, read_tables

_ALIGN = 4096


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
) -> None:
    """Makes an empty store, whole and durable before it has its name.

    Args:
        sample_ids: int64 (R,), the row order: the mask's priority order.
        inputs: fingerprints of beton, mask and teacher. params: views, pixels, teacher, …; `codec`, `num_classes`,
            `num_seeds` and `block_rows` are added to them.
        probes: int64 (P, 2), pairs (sample_id, aug_seed); probe_crc32c: uint32 (P,), of their pixels.

    Raises:
        OptionError: the disk has no room for it.
    """
    path = Path(path)
    num_rows = len(sample_ids)
    shape = (num_seeds, num_rows, codec.row_bytes)
    num_blocks = -(-num_rows // block_rows)
    params = params | {
        "codec": codec.name,
        "num_classes": codec.num_classes,
        "num_seeds": num_seeds,
        "block_rows": block_rows,
    }
    need, free = int(np.prod(shape)), _free_bytes(path.parent)
    if need > free:
        raise OptionError(
            f"{path}: the store takes {need:,} bytes, {free:,} are free; fewer --num-seeds, a smaller mask or another disk"
        )
    # The fingerprint is over what decides the logits: they do not exist yet, and follow from it.
    identity = {"sample_ids": np.ascontiguousarray(sample_ids, np.int64)}
    header = Header(
        kind=KIND,
        format_version=FORMAT_VERSION,
        fingerprint=content_fingerprint(KIND, inputs, params, identity),
        inputs=inputs,
        params=params,
    )
    with atomic_path(path) as partial:
        with h5py.File(partial, "w", libver=HDF5_VERSION, alignment_threshold=1, alignment_interval=_ALIGN) as file:
            write_header(file, header)
            file.create_dataset("sample_ids", data=identity["sample_ids"], track_times=False)
            file.create_dataset("probes", data=np.asarray(probes, np.int64), track_times=False)
            file.create_dataset("probe_crc32c", data=np.asarray(probe_crc32c, np.uint32), track_times=False)
            _create_contiguous(file, "done", (num_seeds, num_blocks), zeros=True)
            _create_contiguous(file, "logits", shape, zeros=False)
        os.truncate(partial, max(partial.stat().st_size, read_tables(partial).logits_offset + need))


def _create_contiguous(file: h5py.File, name: str, shape: tuple[int, ...], *, zeros: bool) -> None:
    """A uint8 dataset whose place in the file is fixed at once, filled with zeros or left as the disk gives it."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.CONTIGUOUS)
    plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plist.set_fill_time(h5py.h5d.FILL_TIME_ALLOC if zeros else h5py.h5d.FILL_TIME_NEVER)
    plist.set_obj_track_times(False)
    space = h5py.h5s.create_simple(shape)
    h5py.h5d.create(file.id, name.encode(), h5py.h5t.STD_U8LE, space, dcpl=plist)


def _free_bytes(folder: Path) -> int:
    stat = os.statvfs(folder if folder.is_dir() else ".")
    return stat.f_bavail * stat.f_frsize


class StoreFiller:
    """Writes blocks of a store by their byte ranges; several ranks may each have one open on the same file."""

    def __init__(self, tables: StoreTables) -> None:
        self.tables = tables
        self._fd = os.open(tables.path, os.O_RDWR)

    def close(self) -> None:
        """Closes the file; every block written before is on disk."""
        os.close(self._fd)

    def block_ids(self, block: int) -> np.ndarray:
        """The sample_ids of a block: int64, at most `block_rows` of them."""
        size = self.tables.block_rows
        return self.tables.sample_ids[block * size : (block + 1) * size]

    def write(self, aug_seed: int, block: int, logits_BC: np.ndarray) -> None:
        """Encodes and writes one block, and marks it done once it is on disk.

        Args:
            logits_BC: float32 (rows of the block, num_classes), finite and within float16's range.
        """
        t = self.tables
        records = encode_rows(t.codec, logits_BC)
        row = aug_seed * t.num_rows + block * t.block_rows
        _write_all(self._fd, records.tobytes(), t.logits_offset + row * t.codec.row_bytes)
        os.fdatasync(self._fd)
        _write_all(self._fd, b"\1", t.done_offset + aug_seed * t.num_blocks + block)

    def flush(self) -> None:
        """Puts the flags on disk as well."""
        os.fdatasync(self._fd)


def _write_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


@contextmanager
def fill_lock(path: str | Path) -> Iterator[None]:
    """Holds the store for the one run that fills it.

    Raises:
        BusyError: another run fills it at the moment.
    """
    fd = os.open(path, os.O_RDWR)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(f"{path}: another process is filling this store; wait for it, or stop it") from None
        yield
    finally:
        os.close(fd)
