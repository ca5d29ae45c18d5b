"""One store from the shards that several nodes filled, each with blocks of its own."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from fastkd.artefact import found_artefact
from fastkd.errors import CorruptError, FastKDError, MismatchError, OptionError, UnfinishedError
from fastkd.store.codec import decode_rows
from fastkd.store.filling import StoreFiller, require_space
from fastkd.store.tables import KIND, StoreTables, is_sound_count, read_tables
from fastkd.writing import atomic_path, claim, require_replaceable


def merge_stores(
    shards: Sequence[str | Path],
    out: str | Path,
    *,
    force: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Writes the store whose blocks the shards hold; it has the bytes of one that was filled in one place.

    Args:
        shards: stores of one fingerprint, made by `cache-logits --shard I/N`; finished ones and ones that share blocks
            are taken as well. One that is there already stays as it is.
        force: replace what else is there.
        progress: called with blocks written and in all.

    Raises:
        NotFoundError, FormatError, CorruptError: as `read_tables`, and a row or a count that does not match its checksum.
        MismatchError: shards of different stores, or the same block with different rows; something else is there.
        UnfinishedError: blocks that no shard has.
        OptionError: no shard, or no room on the disk.
    """
    if not shards:
        raise OptionError("no shards to merge")
    tables = [read_tables(shard) for shard in shards]
    for one in tables:
        _require_same(tables[0], one)
        if one.path.stat().st_size != one.size_bytes:
            raise CorruptError(
                f"{one.path}: {one.path.stat().st_size:,} bytes, expected {one.size_bytes:,}; the file is damaged"
            )
    first = tables[0]
    done = np.stack([one.done == 1 for one in tables])  # (shards, K, num_blocks)
    missing = int(np.count_nonzero(~done.any(axis=0)))
    if missing:
        names = ", ".join(str(one.path) for one in tables)
        raise UnfinishedError(
            f"{missing} of {first.done.size} blocks are in none of the {len(tables)} shards ({names})"
        )
    require_space(Path(out), first.size_bytes)
    mapped = [[one.map_records(output) for output in one.outputs] for one in tables]
    with claim(out) as real:
        if real.exists() and _is_whole(real, first):
            return
        found = found_artefact(real, KIND, first.header.inputs, first.header.params)
        if real.exists():
            require_replaceable(Path(out), force, found or "an unfinished or damaged store of these shards is there")
        _write_merged(real, tables, done, mapped, progress)


def _is_whole(path: Path, wanted: StoreTables) -> bool:
    """Whether a file is the finished store already."""
    try:
        found = read_tables(path)
    except FastKDError:
        return False
    return found.header == wanted.header and bool((found.done == 1).all())


def _write_merged(
    out: Path,
    tables: list[StoreTables],
    done: np.ndarray,
    mapped: list[list[np.ndarray]],
    progress: Callable[[int, int], None],
) -> None:
    first = tables[0]
    with atomic_path(out) as partial:
        _copy_tables(first, partial)
        filler = StoreFiller(read_tables(partial), sync_s=math.inf)
        try:
            for written, (seed, block) in enumerate(np.argwhere(done.any(axis=0)).tolist(), 1):
                rows = first.block_rows_of(block)
                owners = np.flatnonzero(done[:, seed, block])
                for owner in owners:
                    tables[owner].require_length()
                records, numbers = [of[seed, rows] for of in mapped[owners[0]]], filler.numbers(seed, block)
                for at, output in enumerate(first.outputs):
                    for owner in owners[1:]:
                        if not np.array_equal(records[at], mapped[owner][at][seed, rows]):
                            raise MismatchError(
                                f"{tables[owner].path}: other {output.name} than {tables[owners[0]].path} has for aug_seed {seed}, "
                                f"rows {rows.start} … {rows.stop - 1}: the machines that filled them computed differently"
                            )
                    if not decode_rows(output.codec, mapped[owners[0]][at], numbers, output.salt)[1].all():
                        raise CorruptError(
                            f"{tables[owners[0]].path}: aug_seed {seed}, rows {rows.start} … {rows.stop - 1}: "
                            f"{'a row' if output.name == 'logits' else 'an embedding'} does not match its checksum"
                        )
                count = int(tables[owners[0]].top1[seed, block, 0])
                if not is_sound_count(tables[owners[0]], seed * first.num_blocks + block):
                    raise CorruptError(
                        f"{tables[owners[0]].path}: aug_seed {seed}, rows {rows.start} … {rows.stop - 1}: their count of top-1 hits "
                        f"does not match its checksum"
                    )
                filler.write_records(seed, block, records, count)
                progress(written, first.done.size)
        finally:
            filler.close()


def _copy_tables(store: StoreTables, path: Path) -> None:
    """Everything of a store but its rows."""
    rows = sorted((one.offset, store.num_seeds * store.num_rows * one.codec.row_bytes) for one in store.outputs)
    with path.open("wb") as target:
        start = 0
        for offset, num_bytes in rows:
            target.seek(start)
            target.write(store.mapping[start:offset])
            start = offset + num_bytes
        target.truncate(store.size_bytes)


def _require_same(first: StoreTables, other: StoreTables) -> None:
    if other.header.fingerprint == first.header.fingerprint:
        return
    ours, theirs = ({**one.header.params, **one.header.inputs} for one in (first, other))
    names = [name for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)]
    what = ", ".join(f"{name} {theirs.get(name)} instead of {ours.get(name)}" for name in names)
    raise MismatchError(
        f"{other.path}: a shard of another store than {first.path}: {what or 'other samples, or other pixels of its probe views'}"
    )
