"""The logit store: teacher logits for K seeded views of each kept sample, in one HDF5 file.

Layout (README, "Logit store format"): `logits` (K, R, row_bytes) uint8, contiguous and aligned; `sample_ids` (R,) int64,
the row order; `done` (K, num_blocks) uint8; `probes` (P, 2) int64 and `probe_crc32c` (P,) uint32. HDF5 is used to find
the datasets in the file; the rows are read from a mapping of it. `filling.py` makes stores.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastkd.artefact import Header, content_fingerprint, open_artefact, read_dataset
from fastkd.errors import CorruptError, FormatError, MismatchError, OptionError, UnfinishedError
from fastkd.store.codec import Codec, decode_rows, make_codec

KIND, FORMAT_VERSION = "logit-store", 1


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
