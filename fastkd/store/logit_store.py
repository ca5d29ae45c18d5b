"""The logit store: teacher logits for K seeded views of each kept sample, in one HDF5 file.

Layout (README, "Logit store format"): `logits` (K, R, row_bytes) uint8, contiguous and aligned; `sample_ids` (R,) int64,
the row order; `done` (K, num_blocks) uint8; `probes` (P, 2) int64 and `probe_crc32c` (P,) uint32. HDF5 is used to create
the file and to find the datasets in it. While a store is filled no HDF5 handle is open: rows are written at their byte
offsets and synced before the flag of their block is, so a kill at any moment loses at most the blocks in flight.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fastkd.artefact import (
    HDF5_VERSION,
    Header,
    atomic_path,
    content_fingerprint,
    open_artefact,
    read_dataset,
    write_header,
)
from fastkd.errors import BusyError, CorruptError, FormatError, MismatchError, OptionError, UnfinishedError
from fastkd.store.codec import Codec, decode_rows, encode_rows, make_codec

KIND, FORMAT_VERSION = "logit-store", 1
_ALIGN = 4096


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StoreTables:
    """What a store says of itself, and where its bytes lie.

    logits_offset, done_offset: bytes from the start of the file. block_rows: rows of a block, the teacher's batch.
    """

    path: Path
    header: Header
    codec: Codec
    num_seeds: int
    num_rows: int
    block_rows: int
    sample_ids: np.ndarray
    done: np.ndarray
    probes: np.ndarray
    probe_crc32c: np.ndarray
    logits_offset: int
    done_offset: int

    @property
    def num_blocks(self) -> int:
        """Blocks of a plane; the last may be shorter."""
        return -(-self.num_rows // self.block_rows)


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
        os.truncate(partial, max(partial.stat().st_size, _tables(partial).logits_offset + need))


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


def read_tables(path: str | Path) -> StoreTables:
    """Reads everything of a store but the logits, and checks that it fits together.

    Raises:
        NotFoundError, FormatError: no file, another kind or version, cut, or tables that contradict each other.
        CorruptError: the header or the row order does not match the fingerprint.
    """
    tables = _tables(Path(path))
    found = content_fingerprint(KIND, tables.header.inputs, tables.header.params, {"sample_ids": tables.sample_ids})
    if found != tables.header.fingerprint:
        raise CorruptError(
            f"{path}: header and row order have fingerprint {found[:12]}, the header says {tables.header.fingerprint[:12]}"
        )
    return tables


def _tables(path: Path) -> StoreTables:
    with open_artefact(path, KIND, FORMAT_VERSION) as (file, header):
        try:
            params = header.params
            codec = make_codec(str(params["codec"]), int(params["num_classes"]))
            num_seeds, block_rows = int(params["num_seeds"]), int(params["block_rows"])
            offsets = [file[name].id.get_offset() for name in ("logits", "done")]
            shape, dtype = file["logits"].shape, file["logits"].dtype
        except (KeyError, TypeError, ValueError, AttributeError, OSError, RuntimeError, OptionError) as error:
            raise FormatError(f"{path}: damaged store ({error})") from None
        sample_ids = read_dataset(file, "sample_ids", dtype="<i8", ndim=1, path=path)
        done = read_dataset(file, "done", dtype="u1", ndim=2, path=path)
        probes = read_dataset(file, "probes", dtype="<i8", ndim=2, path=path)
        probe_crc32c = read_dataset(file, "probe_crc32c", dtype="<u4", ndim=1, path=path)
    num_rows = len(sample_ids)
    expected = (num_seeds, num_rows, codec.row_bytes)
    blocks = (num_seeds, -(-num_rows // block_rows)) if block_rows > 0 else ()
    if shape != expected or dtype != np.uint8 or done.shape != blocks or None in offsets or not num_rows:
        raise FormatError(
            f"{path}: logits of shape {shape} and flags of shape {done.shape}, expected {expected} and {blocks}"
        )
    known = np.isin(probes[:, :1], sample_ids).all() and ((probes[:, 1:2] >= 0) & (probes[:, 1:2] < num_seeds)).all()
    if probes.shape == (len(probe_crc32c), 2) and not known:
        raise FormatError(f"{path}: its probes name views that it does not hold")
    if probes.shape != (len(probe_crc32c), 2):
        raise FormatError(f"{path}: {probes.shape} probes with {len(probe_crc32c)} checksums")
    end, size = offsets[0] + int(np.prod(expected)), path.stat().st_size
    if end > size:
        raise FormatError(f"{path}: cut: {size:,} bytes, its logits end at byte {end:,}")
    return StoreTables(
        path=path,
        header=header,
        codec=codec,
        num_seeds=num_seeds,
        num_rows=num_rows,
        block_rows=block_rows,
        sample_ids=sample_ids,
        done=done,
        probes=probes,
        probe_crc32c=probe_crc32c,
        logits_offset=offsets[0],
        done_offset=offsets[1],
    )


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


class LogitStore:
    """A finished store, mapped for reading; the checksum of every row that is read is checked.

    Raises (on opening):
        NotFoundError, FormatError, CorruptError: as `read_tables`.
        UnfinishedError: blocks are missing; the same `cache-logits` command goes on with them.
    """

    def __init__(self, path: str | Path) -> None:
        self.tables = read_tables(path)
        t = self.tables
        missing = int(np.count_nonzero(t.done != 1))
        if missing:
            raise UnfinishedError(
                f"{path}: {missing} of {t.done.size} blocks are not filled yet; the `fastkd cache-logits` command that made it goes on with them"
            )
        shape = (t.num_seeds, t.num_rows, t.codec.row_bytes)
        self.records = np.memmap(path, np.uint8, "r", offset=t.logits_offset, shape=shape).view(np.ndarray)
        self._order = np.argsort(t.sample_ids, kind="stable")
        self._ordered_ids = t.sample_ids[self._order]

    @property
    def num_seeds(self) -> int:
        """K, the views stored of each sample."""
        return self.tables.num_seeds

    @property
    def num_classes(self) -> int:
        """C, the logits of a row."""
        return self.tables.codec.num_classes

    @property
    def sample_ids(self) -> np.ndarray:
        """int64 (R,): the samples it holds, in row order."""
        return self.tables.sample_ids

    def rows_of(self, ids: np.ndarray) -> np.ndarray:
        """The row of each sample_id.

        Args:
            ids: int64 (n,).

        Returns:
            int64 (n,), rows 0 … R-1.

        Raises:
            MismatchError: samples that the store does not hold; says how many.
        """
        at = np.minimum(np.searchsorted(self._ordered_ids, ids), len(self._ordered_ids) - 1)
        missing = self._ordered_ids[at] != ids
        if missing.any():
            raise MismatchError(
                f"{self.tables.path}: holds {len(self._ordered_ids)} samples, {int(missing.sum())} of the {len(ids)} asked for are not "
                f"among them (sample {int(np.asarray(ids)[missing][0])} is the first); make a store for this mask"
            )
        return self._order[at]

    def read(self, ids: np.ndarray, aug_seed: int) -> np.ndarray:
        """The stored logits of some samples in one view.

        Args:
            ids: int64 (n,), sample_ids in any order, repeats allowed. aug_seed: 0 … K-1.

        Returns:
            float32 (n, C).

        Raises:
            OptionError: an aug_seed outside the store.
            MismatchError: samples that the store does not hold.
            CorruptError: a row that does not match its checksum.
        """
        if not 0 <= aug_seed < self.num_seeds:
            raise OptionError(f"aug_seed {aug_seed}, {self.tables.path} holds 0 … {self.num_seeds - 1}")
        ids = np.asarray(ids, np.int64).reshape(-1)
        logits, good = decode_rows(self.tables.codec, self.records[aug_seed, self.rows_of(ids)])
        if not good.all():
            bad = ids[int(np.flatnonzero(~good)[0])]
            raise CorruptError(
                f"{self.tables.path}: sample {bad}, aug_seed {aug_seed}: the row does not match its checksum"
            )
        return logits


def verify_store(path: str | Path) -> list[str]:
    """Reads every row of a store and checks it.

    Returns:
        One line for each problem; none for a whole store.
    """
    store = LogitStore(path)
    problems = []
    step = 65_536
    for seed in range(store.num_seeds):
        bad = 0
        for start in range(0, store.tables.num_rows, step):
            logits, good = decode_rows(store.tables.codec, store.records[seed, start : start + step])
            bad += int(np.count_nonzero(~(good & np.isfinite(logits).all(axis=1))))
        if bad:
            problems.append(f"aug_seed {seed}: {bad} of {store.tables.num_rows} rows do not match their checksum")
    if len(np.unique(store.sample_ids)) != len(store.sample_ids):
        problems.append("sample_ids are not distinct")
    return problems
