"""The logit store: teacher logits for K seeded views of each kept sample, in one HDF5 file, read from a mapping of it.

`tables.py` has the layout, `filling.py` makes stores, `verify.py` checks them.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fastkd.arguments import as_ids, as_path, as_whole
from fastkd.errors import CorruptError, MismatchError, UnfinishedError
from fastkd.store.codec import decode_rows
from fastkd.store.gather import gather_rows
from fastkd.store.tables import Output, read_tables

_PIECE_BYTES = 2**24  # asked of the disk at a time


class LogitStore:
    """A teacher's logits of K seeded views of each sample, as `fastkd cache-logits` stored them, mapped for reading.

        store = fastkd.LogitStore("l.h5")
        store.read([7, 42], aug_seed=3)  # float32 (2, C)

    A `fastkd.Loader` takes it, or its path, as `logits`. The checksum of every row that is read is checked.

    Args:
        path: of the file.

    It stays the one that was opened, whatever is put in its place. If it becomes shorter, the next read raises; should that
    happen within a read, or the disk fail, the system ends the process by SIGBUS, which no exception can stand for.

    Raises (on opening):
        NotFoundError, FormatError, CorruptError: no file; not a store, or of a newer version; damaged.
        UnfinishedError: blocks are missing; the same `cache-logits` command goes on with them.
    """

    def __init__(self, path: str | Path) -> None:
        self.tables = read_tables(as_path(path, "a store"))
        self._place = os.path.abspath(path)  # for other processes, wherever this one has gone by then
        t = self.tables
        missing = int(np.count_nonzero(t.done != 1))
        if missing:
            raise UnfinishedError(
                f"{path}: {missing} of {t.done.size} blocks are not filled yet; the `fastkd cache-logits` command that made it goes on with them"
            )
        self.records, *others = (t.map_records(output) for output in t.outputs)
        self.embedding_records: np.ndarray | None = others[0] if others else None
        self._order = np.argsort(t.sample_ids, kind="stable")
        self._ordered_ids = t.sample_ids[self._order]

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens the same file again."""
        return _reopened, (self._place, self.tables.header.fingerprint)

    def __repr__(self) -> str:
        """The store in a line."""
        t = self.tables
        more = "" if t.embeddings is None else f", embeddings of {t.embeddings.codec.num_classes:,}"
        views = f"{t.num_seeds} views of {t.num_rows:,} samples, {t.codec.num_classes:,} classes"
        return f"LogitStore({t.path}: {views}, {t.codec.name}{more})"

    @property
    def num_seeds(self) -> int:
        """K, the views stored of each sample."""
        return self.tables.num_seeds

    @property
    def num_classes(self) -> int:
        """C, the logits of a row."""
        return self.tables.codec.num_classes

    @property
    def embedding_dim(self) -> int | None:
        """D, the values of an embedding; None for a store without embeddings."""
        return self.tables.embeddings.codec.num_classes if self.tables.embeddings else None

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
        ids = as_ids(ids)
        at = np.minimum(np.searchsorted(self._ordered_ids, ids), len(self._ordered_ids) - 1)
        missing = self._ordered_ids[at] != ids
        if missing.any():
            raise MismatchError(
                f"{self.tables.path}: holds {len(self._ordered_ids)} samples, {int(missing.sum())} of the {len(ids)} asked for are not "
                f"among them (sample {int(ids[missing][0])} is the first); make a store for this mask"
            )
        return self._order[at]

    def read(self, ids: np.ndarray, aug_seed: int) -> np.ndarray:
        """The stored logits of some samples in one view.

        Args:
            ids: (n,) sample_ids in any order, repeats allowed: an array or tensor of integers, or a sequence. aug_seed:
                0 … K-1.

        Returns:
            float32 (n, C).

        Raises:
            OptionError: an aug_seed outside the store, or ids that are none.
            MismatchError: samples that the store does not hold.
            FormatError: a file that became shorter since it was opened.
            CorruptError: a row that does not match its checksum.
        """
        return self._read(self.tables.outputs[0], self.records, ids, aug_seed)

    def read_embeddings(self, ids: np.ndarray, aug_seed: int) -> np.ndarray:
        """The teacher's embeddings of some samples in one view, of a store that has them.

        Args:
            ids: (n,) sample_ids in any order, repeats allowed: an array or tensor of integers, or a sequence. aug_seed:
                0 … K-1.

        Returns:
            float32 (n, D).

        Raises:
            OptionError: an aug_seed outside the store, or ids that are none.
            MismatchError: samples that the store does not hold; a store without embeddings.
            CorruptError: a row that does not match its checksum.
        """
        return self._read(*self.require_embeddings(), ids, aug_seed)

    def require_embeddings(self) -> tuple[Output, np.ndarray]:
        """The embeddings and their records.

        Raises:
            MismatchError: the store has none.
        """
        output, records = self.tables.embeddings, self.embedding_records
        if output is None or records is None:
            raise MismatchError(
                f"{self.tables.path}: holds logits alone, no embeddings; fill a store with `fastkd cache-logits --outputs logits,embedding`"
            )
        return output, records

    def _read(self, output: Output, records: np.ndarray, ids: np.ndarray, aug_seed: int) -> np.ndarray:
        ids = as_ids(ids)
        return read_rows(self.tables.path, output, records, self._numbers(ids, aug_seed), ids, aug_seed)

    def gather(self, ids: np.ndarray, aug_seed: int) -> np.ndarray:
        """The records of some samples in one view as they are stored, unchecked: uint8 (n, row_bytes)."""
        numbers = self._numbers(as_ids(ids), aug_seed)
        out = np.empty((len(numbers), self.tables.codec.row_bytes), np.uint8)
        gather_rows(self.records.reshape(-1).view(np.uint64), numbers, out.view(np.uint64))
        return out

    def _numbers(self, ids: np.ndarray, aug_seed: int) -> np.ndarray:
        self.tables.require_length()
        aug_seed = as_whole(aug_seed, f"{self.tables.path}: aug_seed", 0, self.num_seeds - 1)
        return aug_seed * self.tables.num_rows + self.rows_of(ids)

    def prefetch(
        self,
        aug_seed: int,
        num_rows: int | None = None,
        *,
        embeddings: bool = False,
        is_over: Callable[[], bool] = lambda: False,
    ) -> None:
        """Has the system read the plane of an aug_seed, or its first rows, into memory.

        It goes piece by piece and takes as long as the system needs to begin with each, meanwhile other threads go on.

        Args:
            embeddings: those too, where the store has them. is_over: asked between pieces whether to leave the rest.
        """
        t = self.tables
        file = t.file.fileno()
        for output in t.outputs[: 1 + embeddings]:
            row_bytes = output.codec.row_bytes
            start = output.offset + aug_seed * t.num_rows * row_bytes
            end = start + (t.num_rows if num_rows is None else num_rows) * row_bytes
            for piece in range(start, end, _PIECE_BYTES):
                if is_over():
                    return
                # Not by madvise, during which Python holds its lock.
                os.posix_fadvise(file, piece, min(_PIECE_BYTES, end - piece), os.POSIX_FADV_WILLNEED)


def _reopened(path: str, fingerprint: str) -> LogitStore:
    """The store that another process had open.

    Raises:
        MismatchError: another one is there by now.
    """
    store = LogitStore(path)
    if store.tables.header.fingerprint != fingerprint:
        raise MismatchError(f"{path}: another store is there than when it was handed over")
    return store


def read_rows(
    source: str | Path, output: Output, records: np.ndarray, numbers: np.ndarray, ids: np.ndarray, aug_seed: int
) -> np.ndarray:
    """The values of some records of a store, all of them sound.

    Args:
        source: where they come from, for the message. records: as `StoreTables.map_records` gives them.
        numbers: int64 (n,), which of them. ids: int64 (n,), the samples that they are of.

    Returns:
        float32 (n, values of a row).

    Raises:
        CorruptError: a row that does not match its checksum; says which.
    """
    values, good = decode_rows(output.codec, records, numbers, output.salt)
    if not good.all():
        bad = ids[int(np.flatnonzero(~good)[0])]
        what = "row" if output.name == "logits" else "embedding"
        raise CorruptError(f"{source}: sample {bad}, aug_seed {aug_seed}: the {what} does not match its checksum")
    return values
