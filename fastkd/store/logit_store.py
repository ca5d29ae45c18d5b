"""The logit store: teacher logits for K seeded views of each kept sample, in one HDF5 file.

Layout (README, "Logit store format"): `logits` (K, R, row_bytes) uint8, contiguous and aligned; `sample_ids` (R,) int64,
the row order; `done` (K, num_blocks) uint8; `top1` (K, num_blocks, 2) uint32; `probes` (P, 2) int64 and `probe_crc32c`
(P,) uint32. HDF5 is used to find the datasets in the file; the rows are read from a mapping of it. `filling.py` makes
stores, `verify.py` checks them.
"""

import mmap
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastkd.artefact import Header, content_fingerprint, open_artefact, read_dataset
from fastkd.errors import CorruptError, FormatError, MismatchError, OptionError, UnfinishedError
from fastkd.hashing import crc32c, crc32c_with
from fastkd.store.codec import Codec, decode_rows, make_codec
from fastkd.store.gather import gather_rows

KIND, FORMAT_VERSION = "logit-store", 1


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StoreTables:
    """What a store says of itself, and where its bytes lie.

    logits_offset, done_offset, top1_offset: bytes from the start of the file. block_rows: rows of a block, the teacher's
    batch. done: 1 for each block that is filled. top1: of each block, how many of its rows have their largest logit at
    their label, and a checksum of that.
    """

    path: Path
    header: Header
    codec: Codec
    num_seeds: int
    num_rows: int
    block_rows: int
    sample_ids: np.ndarray
    done: np.ndarray
    top1: np.ndarray
    probes: np.ndarray
    probe_crc32c: np.ndarray
    logits_offset: int
    done_offset: int
    top1_offset: int

    @property
    def num_blocks(self) -> int:
        """Blocks of a plane; the last may be shorter."""
        return -(-self.num_rows // self.block_rows)

    @property
    def size_bytes(self) -> int:
        """Bytes of the file: it ends with the logits."""
        return self.logits_offset + self.num_seeds * self.num_rows * self.codec.row_bytes

    @property
    def salt(self) -> int:
        """What makes the checksums of its records its own: the first 64 bits of its fingerprint."""
        return int(self.header.fingerprint[:16], 16)

    def block_rows_of(self, block: int) -> slice:
        """The rows of a block, 0 … R."""
        return slice(block * self.block_rows, min((block + 1) * self.block_rows, self.num_rows))

    def map_records(self) -> np.ndarray:
        """The records, mapped for reading: uint8 (K, R, row_bytes); those of blocks that are not done mean nothing."""
        shape = (self.num_seeds, self.num_rows, self.codec.row_bytes)
        return np.memmap(self.path, np.uint8, "r", offset=self.logits_offset, shape=shape)


def store_fingerprint(
    inputs: dict, params: dict, sample_ids: np.ndarray, probes: np.ndarray, probe_crc32c: np.ndarray
) -> str:
    """The fingerprint of a store: over what decides its logits, which do not exist yet when it is made."""
    arrays = {"sample_ids": sample_ids, "probes": probes, "probe_crc32c": probe_crc32c}
    return content_fingerprint(KIND, inputs, params, arrays)


def done_rows(tables: StoreTables) -> int:
    """How many rows are filled."""
    done = tables.done == 1
    short = tables.num_blocks * tables.block_rows - tables.num_rows
    return int(done.sum()) * tables.block_rows - short * int(done[:, -1].sum())


def top1_checksum(num_correct: int, number: int, salt: int) -> int:
    """The checksum beside the count of a block: CRC32C of the count (uint32) and of the block's number + salt (uint64)."""
    crc = crc32c(np.array([num_correct], "<u4").view(np.uint8))
    return int(crc32c_with(crc, np.uint64((number + salt) % 2**64)))


def read_tables(path: str | Path) -> StoreTables:
    """Reads everything of a store but the logits, and checks that it fits together.

    Raises:
        NotFoundError, FormatError: no file, another kind or version, cut, or tables that contradict each other.
        CorruptError: the header or the row order does not match the fingerprint.
    """
    tables = _tables(Path(path))
    header = tables.header
    found = store_fingerprint(header.inputs, header.params, tables.sample_ids, tables.probes, tables.probe_crc32c)
    if found != header.fingerprint:
        raise CorruptError(
            f"{path}: header, row order and probes have fingerprint {found[:12]}, the header says {header.fingerprint[:12]}"
        )
    return tables


def _tables(path: Path) -> StoreTables:
    with open_artefact(path, KIND, FORMAT_VERSION) as (file, header):
        try:
            params = header.params
            codec = make_codec(str(params["codec"]), int(params["num_classes"]))
            num_seeds, block_rows = int(params["num_seeds"]), int(params["block_rows"])
            offsets = [file[name].id.get_offset() for name in ("logits", "done", "top1")]
            shape, dtype = file["logits"].shape, file["logits"].dtype
        except (KeyError, TypeError, ValueError, AttributeError, OSError, RuntimeError, OptionError) as error:
            raise FormatError(f"{path}: damaged store ({error})") from None
        sample_ids = read_dataset(file, "sample_ids", dtype="<i8", ndim=1, path=path)
        done = read_dataset(file, "done", dtype="u1", ndim=2, path=path)
        top1 = read_dataset(file, "top1", dtype="<u4", ndim=3, path=path)
        probes = read_dataset(file, "probes", dtype="<i8", ndim=2, path=path)
        probe_crc32c = read_dataset(file, "probe_crc32c", dtype="<u4", ndim=1, path=path)
    num_rows = len(sample_ids)
    expected = (num_seeds, num_rows, codec.row_bytes)
    blocks = (num_seeds, -(-num_rows // block_rows)) if block_rows > 0 else ()
    same = shape == expected and dtype == np.uint8 and done.shape == blocks and top1.shape == (*blocks, 2)
    if not same or None in offsets or not num_rows:
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
        top1=top1,
        probes=probes,
        probe_crc32c=probe_crc32c,
        logits_offset=offsets[0],
        done_offset=offsets[1],
        top1_offset=offsets[2],
    )


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
        mapped = t.map_records()
        self._mmap: mmap.mmap = mapped._mmap  # type: ignore[attr-defined]
        self.records = mapped.view(np.ndarray)
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
        ids = np.asarray(ids, np.int64).reshape(-1)
        logits, good = decode_rows(self.tables.codec, self.records, self._numbers(ids, aug_seed), self.tables.salt)
        if not good.all():
            bad = ids[int(np.flatnonzero(~good)[0])]
            raise CorruptError(
                f"{self.tables.path}: sample {bad}, aug_seed {aug_seed}: the row does not match its checksum"
            )
        return logits

    def gather(self, ids: np.ndarray, aug_seed: int) -> np.ndarray:
        """The records of some samples in one view as they are, unchecked: uint8 (n, row_bytes); else as `read`."""
        numbers = self._numbers(np.asarray(ids, np.int64).reshape(-1), aug_seed)
        out = np.empty((len(numbers), self.tables.codec.row_bytes), np.uint8)
        gather_rows(self.records.reshape(-1).view(np.uint64), numbers, out.view(np.uint64))
        return out

    def _numbers(self, ids: np.ndarray, aug_seed: int) -> np.ndarray:
        if not 0 <= aug_seed < self.num_seeds:
            raise OptionError(f"aug_seed {aug_seed}, {self.tables.path} holds 0 … {self.num_seeds - 1}")
        return aug_seed * self.tables.num_rows + self.rows_of(ids)

    def prefetch(self, aug_seed: int, num_rows: int | None = None) -> None:
        """Tells the system that the plane of an aug_seed, or its first rows, will be read soon; returns at once."""
        t = self.tables
        start = t.logits_offset % mmap.ALLOCATIONGRANULARITY + aug_seed * t.num_rows * t.codec.row_bytes
        end = start + (t.num_rows if num_rows is None else num_rows) * t.codec.row_bytes
        start -= start % mmap.PAGESIZE
        self._mmap.madvise(mmap.MADV_WILLNEED, start, end - start)
