"""Filling a logit store with a teacher's logits, on any number of ranks."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastkd.data.identity import choose_probes, probe_checksums
from fastkd.dist import World, barrier, even_split, sum_over_ranks
from fastkd.errors import CorruptError, MismatchError, OptionError
from fastkd.feed.loader import Loader, check_probes
from fastkd.store.codec import CODECS, check_encodable, encode_rows, make_codec
from fastkd.store.fidelity import codec_kl
from fastkd.store.filling import StoreFiller, create_store, fill_lock
from fastkd.store.reuse import OldRows, open_old, take_over
from fastkd.store.tables import StoreTables, count_rows, read_tables
from fastkd.teacher.network import LiveTeacher
from fastkd.teacher.recipe import StoreRecipe


def fill_store(
    path: str | Path,
    recipe: StoreRecipe,
    *,
    reuse: Sequence[str | Path] = (),
    shard: tuple[int, int] = (1, 1),
    num_workers: int = 0,
    world: World = World(),  # noqa: B008  (frozen)
    progress: Callable[[int, int], None] = lambda done, total: None,
    log: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Fills a logit store, or goes on filling the one that is there.

    A block of the store is a batch of the teacher, whatever the number of ranks and wherever a run resumes, each row at
    its own place in a batch of always the same size, so that the same floats come out.

    Args:
        reuse: older stores, whose rows are taken over where they have them.
        shard: (i, n): of n parts of the blocks, the i-th alone (1 … n), for `merge_stores`.
        progress: called with rows done and in all, of all ranks (as far as this one's tell).
        log: called with lines for people.

    Returns:
        rows_written (computed), rows_reused (found in the file or in an older store), rows_per_s.

    Raises:
        MismatchError: the file there is another store, says in what; or it is finished; or an older store does not fit.
        BusyError: another run fills it.
        CorruptError: the teacher gives NaN, infinity or a value beyond ±65000, names the sample; an older store is damaged.
        OptionError: options out of range; a codec that loses more than `max_kl`; no room on the disk.
        SpaceError: the disk was full after all; what is written stays valid.
    """
    path = Path(path)
    index, num_shards = shard
    if not 1 <= index <= num_shards:
        raise OptionError(f"--shard {index}/{num_shards}, expected I/N with I from 1 to N")
    olds = [_open_old(old, recipe) for old in reuse]
    for old in olds:
        if not old.records:
            log(f"--reuse {old.tables.path}: has no embeddings, so none of its rows is taken over")
    if world.is_main:
        _prepare(path, recipe, num_shards, num_workers)
    with _lock_for_all(path, world) as held:
        if not held:
            log(f"{path}: its file system has no locks; nothing keeps another run from filling it as well")
        tables = read_tables(path)
        mine = np.zeros(tables.done.size, bool)
        mine[slice(*even_split(tables.done.size, index - 1, num_shards))] = True
        pending = np.argwhere((tables.done != 1) & mine.reshape(tables.done.shape))
        barrier(world)  # all ranks have read the flags before the first of them writes one
        if not len(pending):
            raise MismatchError(
                f"{path}: this store is finished, nothing is left to compute; choose another --out for another one"
            )
        begin = time.perf_counter()
        mine_first, mine_end = even_split(len(pending), world.rank, world.size)
        blocks = pending[mine_first:mine_end]
        tell = _for_all_ranks(progress, count_rows(tables, pending), count_rows(tables, blocks))
        written = _fill_blocks(tables, recipe, blocks, olds, num_workers, tell)
        seconds = time.perf_counter() - begin
        total = np.array([written])
        sum_over_ranks(total, world, str(recipe.teacher.device))
        written = int(total[0])
    rows = count_rows(tables, np.argwhere(mine.reshape(tables.done.shape)))
    return {"rows_written": written, "rows_reused": rows - written, "rows_per_s": written / max(seconds, 1e-9)}


def _for_all_ranks(progress: Callable[[int, int], None], all_rows: int, rows: int) -> Callable[[int], None]:
    """Progress of one rank told as that of all: their parts are equal and of the same work."""
    return lambda done: progress(round(done * all_rows / rows), all_rows)


@contextmanager
def _lock_for_all(path: Path, world: World) -> Iterator[bool]:
    """The lock of the store: the first rank keeps other runs out, then the others join it."""
    barrier(world)
    with ExitStack() as stack:
        held = stack.enter_context(fill_lock(path)) if world.is_main else True
        barrier(world)
        if not world.is_main:
            held = stack.enter_context(fill_lock(path, is_first=False))
        yield held


def _open_old(path: str | Path, recipe: StoreRecipe) -> OldRows:
    old = open_old(path, recipe.row_codec, inputs=recipe.inputs, params=recipe.params)
    check_probes(old.tables, recipe.dataset)
    return old


def _prepare(path: Path, recipe: StoreRecipe, num_shards: int, num_workers: int) -> None:
    """Makes the empty store, or checks that the one there is this one."""
    codec, views = recipe.row_codec, recipe.views
    if not path.exists():
        ids = recipe.ids
        probes = choose_probes(ids, views.num_seeds)
        if recipe.max_kl is not None:
            check_codec(recipe, probes, num_workers)
        create_store(
            path,
            sample_ids=ids,
            num_seeds=views.num_seeds,
            codec=codec,
            block_rows=recipe.block_rows,
            inputs=recipe.inputs,
            params=recipe.params,
            about=recipe.about,
            probes=probes,
            probe_crc32c=probe_checksums(recipe.dataset.beton, views, probes, ids),
            num_shards=num_shards,
        )
        return
    tables = read_tables(path)
    wanted = {"embedding": None} | recipe.params
    wanted |= {"codec": codec.name, "num_seeds": views.num_seeds, "block_rows": recipe.block_rows}
    found = tables.header.params
    differs = [
        f"{name} {found.get(name)} (asked for {value})" for name, value in wanted.items() if found.get(name) != value
    ]
    inputs = recipe.inputs
    differs += [
        f"{name} {tables.header.inputs.get(name, 'none')[:12]} (asked for {inputs.get(name, 'none')[:12]})"
        for name in sorted({*inputs, *tables.header.inputs})
        if tables.header.inputs.get(name) != inputs.get(name)
    ]
    if differs:
        raise MismatchError(f"{path}: another store is there; it differs in {'; '.join(differs)}; choose another --out")
    check_probes(tables, recipe.dataset)


def check_codec(recipe: StoreRecipe, probes: np.ndarray, num_workers: int = 0) -> None:
    """Computes the teacher's logits of some views and refuses a codec that moves them too far.

    Args:
        probes: int64 (P, 2), pairs (sample_id, aug_seed), ordered by seed.

    Raises:
        OptionError: KL(teacher ‖ stored) at temperature `tau`, the mean over these rows, is above `max_kl`.
    """
    loader = Loader(
        recipe.dataset, recipe.views, mask=recipe.ids, num_workers=num_workers, device=recipe.teacher.device
    )
    jobs = [(probes[probes[:, 1] == seed, 0], int(seed)) for seed in np.unique(probes[:, 1])]
    logits = np.concatenate(
        [_compute(recipe, batch.images, batch.sample_ids, batch.aug_seed)[0] for batch in loader.run(jobs)]
    )
    losses = {name: codec_kl(make_codec(name, recipe.dataset.num_classes), logits, recipe.tau) for name in CODECS}
    name, limit = recipe.row_codec.name, recipe.max_kl or 0.0
    if not losses[name] <= limit:
        told = ", ".join(f"{other} {loss:.1e}" for other, loss in losses.items())
        raise OptionError(
            f"codec {name}: KL {losses[name]:.1e} nats at temperature {recipe.tau:g} on {len(logits)} real rows, --max-kl {limit:g}; "
            f"the codecs have {told}"
        )


def _fill_blocks(
    tables: StoreTables,
    recipe: StoreRecipe,
    blocks: np.ndarray,
    olds: list[OldRows],
    num_workers: int,
    tell: Callable[[int], None],
) -> int:
    """Takes over or computes some blocks, see `count_rows`, and writes them; returns how many rows were computed."""
    filler = StoreFiller(tables)
    try:
        jobs = [(filler.block_ids(block), seed) for seed, block in blocks.tolist()]
        missing = [ids[~_have(olds, ids, seed)] for ids, seed in jobs]
        loader = Loader(
            recipe.dataset, recipe.views, mask=tables.sample_ids, num_workers=num_workers, device=recipe.teacher.device
        )
        batches = loader.run((ids, seed) for ids, (_, seed) in zip(missing, jobs, strict=True) if len(ids))
        done = written = 0
        for (seed, block), (ids, _), absent in zip(blocks.tolist(), jobs, missing, strict=True):
            numbers = filler.numbers(seed, block)
            records, logits, have = take_over(olds, tables, ids, seed, numbers)
            if len(absent):
                batch = next(batches)
                at = np.flatnonzero(~have)
                values = _compute(recipe, _in_place(batch.images, at, tables.block_rows), ids, seed, at)
                for output, made, rows in zip(tables.outputs, records, values, strict=True):
                    made[at] = encode_rows(output.codec, rows, numbers[at], output.salt)
                logits[at] = values[0]
            labels = recipe.dataset.beton.labels[ids]
            filler.write_records(seed, block, records, int(np.count_nonzero(logits.argmax(axis=1) == labels)))
            done, written = done + len(ids), written + len(absent)
            tell(done)
        filler.flush()
        return written
    finally:
        filler.close()


def _have(olds: list[OldRows], ids: np.ndarray, aug_seed: int) -> np.ndarray:
    return np.any([old.find(ids, aug_seed) >= 0 for old in olds], axis=0) if olds else np.zeros(len(ids), bool)


def _in_place(images: Tensor, at: np.ndarray, block_rows: int) -> Tensor:
    """A batch of block_rows images with the given ones at their places; the first of them stands at all others."""
    if len(at) == block_rows:
        return images
    source = np.zeros(block_rows, np.int64)
    source[at] = np.arange(len(at))
    return images[torch.from_numpy(source).to(images.device)].contiguous(memory_format=torch.channels_last)


def _compute(
    recipe: StoreRecipe, images: Tensor, ids: Any, aug_seed: int, at: np.ndarray | slice = slice(None)
) -> list[np.ndarray]:
    """The teacher's outputs at some places of a batch: its logits, float32 (n, C), and its embeddings, float32 (n, D),
    where they are stored too; all of which a codec can hold."""
    live = LiveTeacher(recipe.teacher, None) if recipe.embedding is None else recipe.embedding.live
    first, others = live(images)
    values = [tensor.cpu().numpy()[at] for tensor in (first, *others)]
    logits = values[0]
    num_classes = recipe.dataset.num_classes
    if logits.shape[1] != num_classes:
        raise MismatchError(f"the teacher has {logits.shape[1]} outputs, the data {num_classes} classes")
    for name, rows in zip(("logits", "embedding"), values, strict=False):
        bad = np.flatnonzero(check_encodable(rows))
        if len(bad):
            raise CorruptError(
                f"the teacher's {name} of sample {int(ids[at][bad[0]])}, aug_seed {aug_seed}: not all finite numbers within "
                f"±65000; check its weights, normalisation and precision"
            )
    return values
