"""Blocks of a store, one after the other: views, the teacher, the codec, the disk, each at work while the next one is.

The teacher is started on a block before those in front of it are encoded; one thread encodes and writes them in turn.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastkd.dist import World, take_turns
from fastkd.errors import CorruptError, MismatchError
from fastkd.feed.loader import Loader
from fastkd.store.codec import check_encodable, encode_rows
from fastkd.store.filling import StoreFiller
from fastkd.store.reuse import OldRows, take_over
from fastkd.store.tables import StoreTables
from fastkd.teacher.network import LiveTeacher
from fastkd.teacher.recipe import StoreRecipe

AHEAD = 4
"""Blocks that the teacher may be ahead of the disk, which now and then takes as long as some blocks."""

Outputs = Callable[[], list[np.ndarray]]
"""Waits for the teacher's outputs of a batch: logits, float32 (B, C), and embeddings, float32 (B, D), where they are stored."""


def start_teacher(recipe: StoreRecipe, images: Tensor) -> Outputs:
    """Starts the teacher on a batch, and the way of its outputs to the CPU; on a GPU nobody waits for either."""
    live = LiveTeacher(recipe.teacher, None) if recipe.embedding is None else recipe.embedding.live
    logits, others = live(images)
    copies = [tensor.to("cpu", non_blocking=True) for tensor in (logits, *others)]
    if logits.device.type != "cuda":
        return lambda: [copy.numpy() for copy in copies]
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(logits.device))

    def wait() -> list[np.ndarray]:
        arrived.synchronize()
        return [copy.numpy() for copy in copies]

    return wait


def require_storable(recipe: StoreRecipe, values: list[np.ndarray], ids: Any, aug_seed: int) -> None:
    """Refuses outputs of some samples that are of other classes than the data's, or that no codec can hold.

    Raises:
        MismatchError, CorruptError: see `fill_store`.
    """
    num_classes = recipe.dataset.num_classes
    if values[0].shape[1] != num_classes:
        raise MismatchError(f"the teacher has {values[0].shape[1]} outputs, the data {num_classes} classes")
    for name, rows in zip(("logits", "embedding"), values, strict=False):
        bad = np.flatnonzero(check_encodable(rows))
        if len(bad):
            raise CorruptError(
                f"the teacher's {name} of sample {int(ids[bad[0]])}, aug_seed {aug_seed}: not all finite numbers within "
                f"±65000; check its weights, normalisation and precision"
            )


def fill_blocks(
    tables: StoreTables,
    recipe: StoreRecipe,
    blocks: np.ndarray,
    olds: list[OldRows],
    loader: Loader,
    *,
    world: World,
    progress: Callable[[int, int], None],
) -> int:
    """Takes over or computes blocks, and writes them, in turns with the other ranks; returns how many rows were computed here.

    Args:
        blocks: int64 (n, 2), aug_seed and number of each, the same on all ranks.
        loader: of the store's samples; makes the views of blocks of this rank.
        progress: called with rows done and in all, of all ranks: the blocks up to the last one that was done here.
    """
    ends = np.minimum(tables.block_rows, tables.num_rows - blocks[:, 1] * tables.block_rows).cumsum()
    num_rows = min(tables.block_rows, tables.num_rows)  # of each batch, so that bits are the same in all
    turns = take_turns(world, len(blocks))
    taken: deque[int] = deque()  # turns whose views are being made
    written = 0
    with closing(StoreFiller(tables)) as filler, _one_thread() as writer:

        def missing() -> Iterator[tuple[np.ndarray, int]]:
            for turn in turns:
                seed, block = blocks[turn].tolist()
                ids = filler.block_ids(block)
                taken.append(turn)
                yield ids[~_have(olds, ids, seed)], seed

        waiting: deque[tuple[int, Future[int]]] = deque()

        def finish() -> None:
            nonlocal written
            turn, future = waiting.popleft()
            written += future.result()
            progress(int(ends[turn]), int(ends[-1]))

        for batch in loader.run(missing()):
            turn = taken.popleft()
            seed, block = blocks[turn].tolist()
            at = np.flatnonzero(~_have(olds, filler.block_ids(block), seed))
            outputs = start_teacher(recipe, _in_place(batch.images, at, num_rows)) if len(at) else None
            waiting.append((turn, writer.submit(_write, filler, recipe, olds, seed, block, outputs)))
            while waiting and (len(waiting) > AHEAD or waiting[0][1].done()):
                finish()
        while waiting:
            finish()
    return written


@contextmanager
def _one_thread() -> Iterator[ThreadPoolExecutor]:
    """A thread for the length of the block, which ends after what it is at."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="fastkd-writer")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _write(
    filler: StoreFiller, recipe: StoreRecipe, olds: list[OldRows], seed: int, block: int, outputs: Outputs | None
) -> int:
    """Writes a block of rows of older stores and of the teacher's outputs; returns how many are of the latter."""
    tables, ids, numbers = filler.tables, filler.block_ids(block), filler.numbers(seed, block)
    records, logits, have = take_over(olds, tables, ids, seed, numbers)
    at = np.flatnonzero(~have)
    if outputs is not None:
        values = [rows[at] for rows in outputs()]
        require_storable(recipe, values, ids[at], seed)
        for output, made, rows in zip(tables.outputs, records, values, strict=True):
            made[at] = encode_rows(output.codec, rows, numbers[at], output.salt)
        logits[at] = values[0]
    labels = recipe.dataset.beton.labels[ids]
    filler.write_records(seed, block, records, int(np.count_nonzero(logits.argmax(axis=1) == labels)))
    return len(at)


def _have(olds: list[OldRows], ids: np.ndarray, aug_seed: int) -> np.ndarray:
    return np.any([old.find(ids, aug_seed) >= 0 for old in olds], axis=0) if olds else np.zeros(len(ids), bool)


def _in_place(images: Tensor, at: np.ndarray, num_rows: int) -> Tensor:
    """A batch of num_rows images with the given ones at their places; the first of them stands at all others."""
    if len(at) == num_rows:
        return images
    source = np.zeros(num_rows, np.int64)
    source[at] = np.arange(len(at))
    return images[torch.from_numpy(source).to(images.device)].contiguous(memory_format=torch.channels_last)
