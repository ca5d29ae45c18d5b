"""Rows that an older store has already: taken over instead of computed again."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastkd.errors import MismatchError
from fastkd.models.classes import DIGEST_KEY
from fastkd.store.codec import Codec, encode_rows, seal_rows
from fastkd.store.logit_store import read_rows
from fastkd.store.tables import StoreTables, read_tables


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class OldRows:
    """The finished rows of an older store.

    records: of each output that a new store takes over, all of them; empty where the older store lacks one, so that none
    of its rows counts. ids: sorted sample_ids; rows: theirs.
    """

    tables: StoreTables
    records: list[np.ndarray]
    ids: np.ndarray
    rows: np.ndarray

    def find(self, ids: np.ndarray, aug_seed: int) -> np.ndarray:
        """Which of its records holds each sample in that view: int64 (n,), -1 where none does."""
        t = self.tables
        if aug_seed >= t.num_seeds or not self.records:
            return np.full(len(ids), -1)
        at = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        rows = self.rows[at]
        there = (self.ids[at] == ids) & (t.done[aug_seed, rows // t.block_rows] == 1)
        return np.where(there, aug_seed * t.num_rows + rows, -1)


def open_old(path: str | Path, codec: Codec, *, inputs: dict[str, str], params: dict[str, Any]) -> OldRows:
    """Opens an older store, finished or not, whose rows a new one with these inputs and params may take over.

    Of one without embeddings a store with them takes nothing over: its rows are computed.

    Args:
        codec: the new store's. The old one's must be the same, or fp16, which holds a teacher's logits exactly; from any
            other the rows would not be those that a new store has.

    Raises:
        NotFoundError, FormatError, CorruptError: as `read_tables`.
        MismatchError: another beton, teacher, view or number of classes, or a codec that lost too much.
    """
    tables = read_tables(path)
    wanted_params = params | {"num_classes": codec.num_classes}
    lacks_embeddings = "embedding" in params and tables.embeddings is None
    if lacks_embeddings:
        wanted_params.pop("embedding")
    for found, wanted, names in (
        (tables.header.inputs, inputs, ("beton", "teacher")),
        (tables.header.params, wanted_params, sorted(wanted_params, key=lambda name: (name == "kept", name))),
    ):
        for name in names:
            if name == DIGEST_KEY and name not in found:
                continue  # a store of before, or of data without names
            if found.get(name) != wanted.get(name) and name == "kept":
                raise MismatchError(
                    f"--reuse {path}: its views are mixed among other kept samples than the new store's, so that none of its "
                    f"rows fits; leave it out"
                )
            if found.get(name) != wanted.get(name):
                raise MismatchError(
                    f"--reuse {path}: its rows are of {name} {_short(found.get(name))}, the new store's of {_short(wanted.get(name))}"
                )
    if tables.codec.name not in (codec.name, "fp16"):
        raise MismatchError(
            f"--reuse {path}: its codec is {tables.codec.name}, from which no {codec.name} rows can be made; "
            f"choose --codec {tables.codec.name}, or reuse an fp16 store"
        )
    order = np.argsort(tables.sample_ids, kind="stable")
    outputs = () if lacks_embeddings else tables.outputs[: 1 + ("embedding" in params)]
    records = [tables.map_records(output) for output in outputs]
    return OldRows(tables=tables, records=records, ids=tables.sample_ids[order], rows=order)


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) else str(value)


def take_over(
    olds: list[OldRows], new_store: StoreTables, ids: np.ndarray, aug_seed: int, numbers: np.ndarray
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Records of a block of a new store, as far as older stores have them.

    Args:
        ids: int64 (n,), the samples of the block. numbers: int64 (n,), which records of the new store they are.

    Returns:
        Of each output of the new store, uint8 (n, row_bytes); float32 (n, C), the logits in them; bool (n,), which rows of
        all these are filled.

    Raises:
        CorruptError: a row of an old store that does not match its checksum.
        FormatError: an old store that became shorter since it was opened.
    """
    records = [np.zeros((len(ids), output.codec.row_bytes), np.uint8) for output in new_store.outputs]
    logits = np.zeros((len(ids), new_store.codec.num_classes), np.float32)
    have = np.zeros(len(ids), bool)
    for old in olds:
        at = old.find(ids, aug_seed)
        new = np.flatnonzero(~have & (at >= 0))
        if not len(new):
            continue
        old.tables.require_length()
        for made, output, found, its in zip(records, new_store.outputs, old.records, old.tables.outputs, strict=False):
            codec = output.codec
            values = read_rows(f"--reuse {old.tables.path}", its, found, at[new], ids[new], aug_seed)
            if its.codec.name == codec.name:
                copied = found.reshape(-1, codec.row_bytes)[at[new]]
                seal_rows(copied, codec.payload_bytes, numbers[new], output.salt)
                made[new] = copied
            else:
                made[new] = encode_rows(codec, values, numbers[new], output.salt)
            if output.name == "logits":
                logits[new] = values
        have[new] = True
    return records, logits, have
