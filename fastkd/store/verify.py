"""Checking a logit store as a whole, without what it was made from."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from fastkd.store.codec import decode_rows
from fastkd.store.tables import Output, StoreTables, is_sound_count, read_tables

_STEP_ROWS = 16_384


def verify_store(path: str | Path, progress: Callable[[int, int], None] = lambda done, total: None) -> list[str]:
    """Reads every row, flag and count of a store and checks them; of one that is being filled, the rows that are done.

    Args:
        progress: called with rows read and in all.

    Returns:
        One line for each problem; none for a whole store.

    Raises:
        NotFoundError, FormatError, CorruptError: as `read_tables`.
    """
    tables = read_tables(path)
    problems = []
    if len(np.unique(tables.sample_ids)) != len(tables.sample_ids):
        problems.append("sample_ids are not distinct")
    size = tables.mapping.size()
    if size != tables.size_bytes:
        problems.append(f"{size:,} bytes, expected {tables.size_bytes:,}")
    missing = int(np.count_nonzero(tables.done == 0))
    if missing:
        problems.append(f"{missing} of {tables.done.size} blocks are not filled yet")
    strange = int(np.count_nonzero(tables.done > 1))
    if strange:
        problems.append(f"{strange} of {tables.done.size} flags are neither 0 nor 1")
    counts = _bad_counts(tables)
    if counts:
        problems.append(f"{counts} of {tables.done.size} counts of top-1 hits do not match their checksum")
    total, count = len(tables.outputs) * tables.num_seeds * tables.num_rows, 0
    for output in tables.outputs:
        for found, num_rows in _row_problems(tables, output):
            problems += found
            count += num_rows
            progress(count, total)
    return problems


def _bad_counts(tables: StoreTables) -> int:
    return sum(not is_sound_count(tables, number) for number in np.flatnonzero(tables.done == 1).tolist())


def _row_problems(tables: StoreTables, output: Output) -> Iterator[tuple[list[str], int]]:
    """Problems in the rows of one output, and how many rows were read for them, as they are read."""
    records, codec = tables.map_records(output), output.codec
    rows_of = "rows" if output.name == "logits" else output.name
    for seed in range(tables.num_seeds):
        is_done = np.repeat(tables.done[seed] == 1, tables.block_rows)[: tables.num_rows]
        num_bad = num_padded = 0
        for start in range(0, tables.num_rows, _STEP_ROWS):
            rows = start + np.flatnonzero(is_done[start : start + _STEP_ROWS])
            tables.require_length()
            values, good = decode_rows(codec, records, seed * tables.num_rows + rows, output.salt)
            num_bad += int(np.count_nonzero(~(good & np.isfinite(values).all(axis=1))))
            num_padded += int(np.count_nonzero(records[seed, rows, codec.payload_bytes + 4 :].any(axis=1)))
            yield [], min(_STEP_ROWS, tables.num_rows - start)
        for number, what in (
            (num_bad, "do not match their checksum"),
            (num_padded, "have other bytes than 0 behind it"),
        ):
            if number:
                yield [f"aug_seed {seed}: {number} of {tables.num_rows} {rows_of} {what}"], 0
