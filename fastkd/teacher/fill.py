"""Filling a logit store with a teacher's logits, on any number of ranks."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fastkd.agree import agree, require_one_node, share
from fastkd.artefact import found_artefact
from fastkd.data.identity import choose_probes, probe_checksums
from fastkd.dist import World, even_split, sum_over_ranks
from fastkd.errors import OptionError
from fastkd.feed.checks import check_probes
from fastkd.feed.loader import Loader
from fastkd.models.classes import DIGEST_KEY
from fastkd.store.codec import CODECS, make_codec
from fastkd.store.fidelity import codec_kl
from fastkd.store.filling import create_store, fill_lock
from fastkd.store.reuse import OldRows, open_old
from fastkd.store.tables import KIND, count_rows, read_tables
from fastkd.teacher.blocks import fill_blocks, require_storable, start_teacher
from fastkd.teacher.recipe import StoreRecipe
from fastkd.writing import claim, require_replaceable


def fill_store(
    path: str | Path,
    recipe: StoreRecipe,
    *,
    reuse: Sequence[str | Path] = (),
    shard: tuple[int, int] = (1, 1),
    num_workers: int = 0,
    prefetch: int = 3,
    world: World = World(),  # noqa: B008  (frozen)
    progress: Callable[[int, int], None] = lambda done, total: None,
    log: Callable[[str], None] = lambda line: None,
    force: bool = False,
) -> dict[str, Any]:
    """Fills a logit store, or goes on filling the one that is there; a finished one stays as it is.

    A block of the store is a batch of the teacher, whatever the number of ranks and wherever a run resumes, each row at
    its own place in a batch of always the same size, so that the same floats come out. Blocks are handed out to the ranks
    one by one as they ask for them, so that a slow one does fewer and all end together.

    Args:
        reuse: older stores, whose rows are taken over where they have them.
        shard: (i, n): of n parts of the blocks, the i-th alone (1 … n), for `merge_stores`.
        progress: called with rows done and in all, of all ranks (as far as those done here tell).
        log: called with lines for people. force: replace what else is there.

    Returns:
        rows_written (computed), rows_reused (found in the file or in an older store), rows_per_s.

    Raises:
        MismatchError: something else is there, says in what it differs; an older store does not fit; ranks differ.
        BusyError: another run fills it.
        CorruptError: the teacher gives NaN, infinity or a value beyond ±65000, names the sample; an older store is damaged.
        OptionError: options out of range; a codec that loses more than `max_kl`; no room on the disk; ranks of several nodes.
        SpaceError: the disk was full after all; what is written stays valid.
    """
    path = Path(path)
    require_one_node(world, path)
    index, num_shards = shard
    if not 1 <= index <= num_shards:
        raise OptionError(f"--shard {index}/{num_shards}, expected I/N with I from 1 to N")
    olds = [_open_old(old, recipe) for old in reuse]
    for old in olds:
        if not old.records:
            log(f"--reuse {old.tables.path}: has no embeddings, so none of its rows is taken over")
    agree(world, _inputs_of(recipe, olds))
    with ExitStack() as stack:

        def begin() -> dict[str, Any]:
            """What rank 0 finds, on which all ranks go on."""
            stack.enter_context(claim(path, log=log))
            _prepare(path, recipe, num_shards, num_workers, force)
            tables = read_tables(path)
            mine = np.zeros(tables.done.size, bool)
            mine[slice(*even_split(tables.done.size, index - 1, num_shards))] = True
            pending = np.flatnonzero((tables.done.reshape(-1) != 1) & mine)
            return {"file": os.stat(path).st_ino, "pending": pending.tolist()}

        found = share(world, begin)
        agree(world, {"the file at --out": os.stat(path).st_ino if path.exists() else "no file"})
        tables = read_tables(path)
        stack.enter_context(_fill_lock_of_all(path, world))
        pending = np.stack(np.unravel_index(np.array(found["pending"], np.int64), tables.done.shape), axis=1)
        seconds, written = 0.0, 0
        if len(pending):
            begin_s = time.perf_counter()
            loader = Loader(
                recipe.dataset,
                recipe.views,
                mask=tables.sample_ids,
                batch_size=tables.block_rows,
                num_workers=num_workers,
                prefetch=prefetch,
                device=recipe.teacher.device,
                world=World(),  # a block is one rank's
            )
            log(f"cache-logits: {loader.describe()}")
            total = np.array([fill_blocks(tables, recipe, pending, olds, loader, world=world, progress=progress)])
            sum_over_ranks(total, world)
            written, seconds = int(total[0]), time.perf_counter() - begin_s
            progress(count_rows(tables, pending), count_rows(tables, pending))
        else:
            log(f"{path}: this store is finished, nothing is left to compute; its result follows")
    first, end = even_split(tables.done.size, index - 1, num_shards)
    part = np.stack(np.unravel_index(np.arange(first, end), tables.done.shape), axis=1)
    rows = count_rows(tables, part)
    return {"rows_written": written, "rows_reused": rows - written, "rows_per_s": written / max(seconds, 1e-9)}


def _inputs_of(recipe: StoreRecipe, olds: Sequence[OldRows]) -> dict[str, Any]:
    """What the ranks have to agree in before they fill a store: the inputs, as each of them sees them."""
    reused = {f"--reuse {i}": old.tables.header.fingerprint for i, old in enumerate(olds, start=1)}
    return {**recipe.inputs, **recipe.params["teacher"], **reused}


@contextmanager
def _fill_lock_of_all(path: Path, world: World) -> Iterator[None]:
    """Each rank's lock on the store itself, so that a new run is kept out while any rank of this one is still at it."""
    with ExitStack() as stack:
        share(world, lambda: stack.enter_context(fill_lock(path)))
        if not world.is_main:
            stack.enter_context(fill_lock(path, is_first=False))
        yield


def _open_old(path: str | Path, recipe: StoreRecipe) -> OldRows:
    old = open_old(path, recipe.row_codec, inputs=recipe.inputs, params=recipe.params)
    check_probes(old.tables, recipe.dataset)
    return old


def _prepare(path: Path, recipe: StoreRecipe, num_shards: int, num_workers: int, force: bool) -> None:
    """Makes the empty store, unless the one there is this one already."""
    codec, views = recipe.row_codec, recipe.views
    params = recipe.params | {"codec": codec.name, "num_seeds": views.num_seeds, "block_rows": recipe.block_rows}
    if path.exists():
        params |= {"num_classes": codec.num_classes}
        other = found_artefact(path, KIND, recipe.inputs, params, newer=(DIGEST_KEY,))
        if other is None:
            check_probes(read_tables(path), recipe.dataset)
            return
        require_replaceable(path, force, other)
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
    found = []
    for batch in loader.run(jobs):
        values = start_teacher(recipe, batch.images)()
        require_storable(recipe, values, batch.sample_ids, batch.aug_seed)
        found.append(values[0])
    logits = np.concatenate(found)
    losses = {name: codec_kl(make_codec(name, recipe.dataset.num_classes), logits, recipe.tau) for name in CODECS}
    name, limit = recipe.row_codec.name, recipe.max_kl or 0.0
    if not losses[name] <= limit:
        told = ", ".join(f"{other} {loss:.1e}" for other, loss in losses.items())
        raise OptionError(
            f"codec {name}: KL {losses[name]:.1e} nats at temperature {recipe.tau:g} on {len(logits)} real rows, --max-kl {limit:g}; "
            f"the codecs have {told}"
        )
