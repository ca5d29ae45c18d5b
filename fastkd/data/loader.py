"""Batches of seeded views out of a beton, through an FFCV pipeline.

FFCV compiles the pipeline; running it is done here, by threads that each make some views in one go (`flow.py`). An exception
in a thread is raised where the batch would have come; leaving a loop early stops the threads and frees their memory; a batch
has memory of its own, and as long as any of it is held it is not written to again.
"""

import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

import numpy as np
import torch

from fastkd.arguments import as_flag, as_ids, as_whole
from fastkd.data.batch import Batch
from fastkd.data.beton.part import where_from
from fastkd.data.beton.read import Beton
from fastkd.data.beton.read_ahead import is_cold, reading_ahead
from fastkd.data.beton.row_index import open_row_index
from fastkd.data.epochs import Epochs
from fastkd.data.flow import Block, Piece, default_num_workers, grouped, plan_flow
from fastkd.data.memory import BatchMemory
from fastkd.data.order import check_ids, check_order
from fastkd.data.upload import uploaded
from fastkd.data.views.decode import (
    OF_COLUMNS,
    OF_PARTNER,
    REASONS,
    Column,
    column_state,
    compiled_stage,
    first_outside,
    view_numbers,
)
from fastkd.data.views.draw import Views, check_sizes
from fastkd.data.views.mix import KeptSet, Mixes
from fastkd.dist import World, even_split, find_device
from fastkd.errors import CorruptError, OptionError

_READ_AHEAD = 4  # batches whose bytes are asked for before they are made, where the file is cold


class ViewLoader(Epochs):
    """Seeded views of some samples of a beton, in batches.

    Args:
        beton: an opened beton.
        views: which views; their `num_seeds` is the K of `aug_seed = epoch mod K`. Mixed ones have partners among `ids`.
        ids: int64 (n,), distinct sample_ids in any order; None for all.
        logits: rows that accompany the samples; embeddings: others of the same samples, in the same order.
        batch_size: samples a batch on each rank. global_batch: on all ranks together, shared out evenly; None for
            batch_size × ranks. The batches are the same samples for any number of ranks that share one global batch.
        shuffle, seed: the order of an epoch is a pure function of (seed, epoch), or `ids` as they are.
        order: how to shuffle: `shuffle`, uniformly, or `pages`, whole pages of the file in random order with the samples
            of some of them mixed (at least 16 global batches), for betons that are larger than memory.
        drop_last: leave the last batch out where it is not full.
        num_workers: threads that make the batches; 0 for one a CPU of this process, see `default_num_workers`.
        prefetch: batches made ahead of the one that is asked for; where the workers need more to be busy, as many more as
            they make in one and a half goes each, of about 4 MiB of pixels. `most_bytes` says what that takes.
        device: where the batches end up; copies to a GPU have a stream of their own there.
        world: this process among torchrun's; every rank sees its own part of each global batch.

    Raises:
        OptionError: ids out of range, repeated, none, or fewer than a batch that is never filled; images of another
            size than `crop-flip` is for; an option out of range; a device that is not there.
    """

    def __init__(
        self,
        beton: Beton,
        views: Views,
        *,
        ids: np.ndarray | None = None,
        logits: Column | None = None,
        embeddings: Column | None = None,
        batch_size: int = 64,
        global_batch: int | None = None,
        shuffle: bool = False,
        seed: int = 0,
        order: str = "shuffle",
        drop_last: bool = False,
        num_workers: int = 0,
        prefetch: int = 3,
        device: torch.device | str = "cpu",
        world: World = World(),  # noqa: B008  (frozen)
    ) -> None:
        batch_size, prefetch = as_whole(batch_size, "batch_size", 1), as_whole(prefetch, "prefetch", 1)
        num_workers, seed = as_whole(num_workers, "num_workers", 0), as_whole(seed, "seed", 0, 2**63 - 1)
        global_batch = batch_size * world.size if global_batch is None else as_whole(global_batch, "global_batch", 1)
        shuffle, drop_last = as_flag(shuffle, "shuffle"), as_flag(drop_last, "drop_last")
        if not isinstance(views, Views):
            raise OptionError(f"views are {views!r}, expected Views")
        check_order(order)
        self.beton, self.views, self.logits, self.embeddings = beton, views, logits, embeddings
        self.ids = check_ids(beton.sample_ids if ids is None else as_ids(ids).copy(), beton.num_samples)
        if beton.present is not None and not beton.present[self.ids].all():
            missing = self.ids[~beton.present[self.ids]]
            raise OptionError(f"{beton.path}: a part without {len(missing)} of the ids, sample {missing[0]} among them")
        self.global_batch = global_batch
        self.shuffle, self.seed, self.drop_last = shuffle, seed, drop_last
        self.num_workers = num_workers or default_num_workers()
        self.prefetch, self.device, self.world = prefetch, find_device(device), world
        if drop_last and not len(self):
            raise OptionError(
                f"{len(self.ids)} samples are fewer than one batch of {self.global_batch} on {world.size} ranks; lower the batch size"
            )
        self.pages = None
        if shuffle and order == "pages":
            self.ids = np.sort(self.ids)  # so that each epoch finds a page's samples side by side
            self.pages = (beton.ptrs[self.ids] // beton.page_size).astype(np.int32)
        self._mine = np.zeros(beton.num_samples, bool)
        self._mine[self.ids] = True
        check_sizes(views, self.ids, beton.heights, beton.widths, beton.path)
        self._data, self._rows = beton.data.view(np.ndarray), open_row_index(beton)
        layout: dict[str, tuple[tuple[int, ...], np.dtype]] = {
            "images": ((views.size, views.size, 3), np.dtype("u1")),
            "labels": ((), np.dtype("i8")),
            "sample_ids": ((), np.dtype("i8")),
        }
        columns = [one for one in (logits, embeddings) if one is not None]
        layout |= {
            name: ((one.width,), np.dtype("f4")) for name, one in zip(("logits", "embeddings"), columns, strict=False)
        }
        self._numbers, self._columns = view_numbers(views), column_state(columns)
        self._kept = None
        if views.mix is not None:
            self._kept = KeptSet(self.ids, beton.num_samples)
            layout |= {"partner_labels": ((), np.dtype("i8")), "lam": ((), np.dtype("f4"))}
        # torch knows pinned memory by where a block begins, and waits for copies to the GPU only there: a batch, a block.
        is_pinned = self.device.type == "cuda"
        self._flow = plan_flow(len(self.ids), 3 * views.size**2, self.num_workers, prefetch, is_alone=is_pinned)
        of_rank = min(-(-self.global_batch // world.size), len(self.ids))
        num_blocks, in_block = self._flow.num_blocks(of_rank)
        self._memory = BatchMemory(layout, num_kept=num_blocks, is_pinned=is_pinned)
        self.most_bytes = num_blocks * self._memory.block_bytes(in_block * of_rank)
        """Memory of the batches of an epoch: those under way, and the one in the caller's hands. More that the caller keeps come
        on top; on a GPU this is the host's."""
        unpacks = (one.unpack for one in columns)
        self._stage, self._node = compiled_stage(beton.image_field, views.mix is not None, *unpacks)

    def describe(self) -> str:
        """Who makes the batches, and the memory that takes, in words."""
        threads = "1 loader thread" if self.num_workers == 1 else f"{self.num_workers} loader threads"
        return f"{threads}, at most {self.most_bytes / 1e6:,.1f} MB of batches"

    def epoch(self, epoch: int, *, start_batch: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, with aug_seed = epoch mod num_seeds; from any batch on, for a run that resumes."""
        return self.run(self.jobs(epoch, start_batch=start_batch))

    def run(self, jobs: Iterable[tuple[np.ndarray, int]]) -> Iterator[Batch]:
        """Batches named one by one as (int64 sample_ids, aug_seed); they come in the order of the jobs.

        Raises:
            CorruptError: a sample that cannot be decoded, or whose row is damaged.
            FormatError: a beton that became shorter since it was opened.
            OptionError: a sample_id that is not among the loader's ids, or an aug_seed that the views do not have; or
                a process that was forked since, where nobody makes the batches.
        """
        batches = self._batches(jobs)
        return batches if self.device.type == "cpu" else uploaded(batches, self.device)

    def _batches(self, jobs: Iterable[tuple[np.ndarray, int]]) -> Generator[Batch]:
        """The batches in the host's memory. As many blocks are under way as `Flow` says, beyond the one that is waited for."""
        process, flow = os.getpid(), self._flow
        waiting: deque[Block] = deque()
        num_batches = num_goes = 0
        pool = ThreadPoolExecutor(self.num_workers, thread_name_prefix="fastkd-loader")
        jobs = self._checked(jobs)
        if is_cold(self.beton, self.ids):
            jobs = reading_ahead(self.beton, jobs, _READ_AHEAD, self._decoded)
        try:
            for number, (parts, aug_seed) in enumerate(grouped(jobs, flow.group)):
                block = self._begin(pool, parts, aug_seed, is_first=number == 0)
                waiting.append(block)
                num_batches, num_goes = num_batches + len(block.sizes), num_goes + len(block.goes)
                while (
                    num_batches - len(waiting[0].sizes) >= flow.prefetch
                    and num_goes - len(waiting[0].goes) >= flow.goes_ahead
                ):
                    block = waiting.popleft()
                    num_batches, num_goes = num_batches - len(block.sizes), num_goes - len(block.goes)
                    yield from self._hand_over(block, process)
            while waiting:
                yield from self._hand_over(waiting.popleft(), process)
        finally:
            pool.shutdown(cancel_futures=True)

    def mixes(self, ids: np.ndarray, aug_seed: int) -> Mixes | None:
        """What the views of some of the loader's samples are mixed with, int64 (B,); None where they are not."""
        if self.views.mix is None or self._kept is None:
            return None
        return self._kept.draw(self.views.mix, self.views.size, ids, aug_seed)

    def _decoded(self, ids: np.ndarray, aug_seed: int) -> np.ndarray:
        """All samples that go into the views of some."""
        mixes = self.mixes(ids, aug_seed)
        return ids if mixes is None else np.concatenate([ids, mixes.partners])

    def _checked(self, jobs: Iterable[tuple[np.ndarray, int]]) -> Iterator[tuple[np.ndarray, int]]:
        for ids, aug_seed in jobs:
            if not 0 <= aug_seed < self.views.num_seeds:
                raise OptionError(f"aug_seed {aug_seed}, expected 0 … {self.views.num_seeds - 1}")
            outside = first_outside(np.asarray(ids), self._mine)
            if outside >= 0:
                raise OptionError(f"sample {ids[outside]} is not among the {len(self.ids)} ids of this loader")
            self.beton.require_length()
            yield ids, aug_seed

    def _begin(self, pool: ThreadPoolExecutor, parts: list[np.ndarray], aug_seed: int, *, is_first: bool) -> Block:
        """Has some batches made, one after the other in memory of their own."""
        ids = np.ascontiguousarray(parts[0] if len(parts) == 1 else np.concatenate(parts), np.int64)
        whole = Piece(ids, self._memory.arrays(len(ids)), np.zeros(len(ids), np.int32))
        num_goes = self._flow.num_goes(len(ids), is_first=is_first)
        pieces = (whole.cut(*even_split(len(ids), go, num_goes)) for go in range(num_goes))
        goes = [pool.submit(self._make, piece, aug_seed) for piece in pieces]
        return Block(whole, goes, [len(part) for part in parts], aug_seed)

    def _hand_over(self, block: Block, process: int) -> Iterator[Batch]:
        """The batches as tensors. Made here and not by the workers, which would hold Python's lock for it while the
        caller waits: 4 % of the rate with raw 32-pixel images."""
        if os.getpid() != process:  # a fork takes no threads along: the batch would never come
            raise OptionError("a loop goes on in the process that began it; begin the epoch anew in the forked one")
        for go in block.goes:
            go.result()
        aug_seed, status, start = block.aug_seed, block.whole.status, 0
        is_good = not status.any()
        for size in block.sizes:
            made = {name: array[start : start + size] for name, array in block.whole.arrays.items()}
            if not is_good and status[start : start + size].any():
                bad = int(np.flatnonzero(status[start : start + size])[0])
                self._fail(int(made["sample_ids"][bad]), int(status[start + bad]), aug_seed)
            start += size
            tensors = {name: torch.from_numpy(array) for name, array in made.items()}
            yield Batch(
                images=tensors["images"].permute(0, 3, 1, 2),
                labels=tensors["labels"],
                sample_ids=tensors["sample_ids"],
                logits=tensors.get("logits"),
                aug_seed=aug_seed,
                embeddings=tensors.get("embeddings"),
                partner_labels=tensors.get("partner_labels"),
                lam=tensors.get("lam"),
            )

    def _fail(self, sample_id: int, status: int, aug_seed: int) -> NoReturn:
        mixes = self.mixes(np.array([sample_id]), aug_seed)
        if mixes is not None and status not in REASONS:
            sample_id, status = int(mixes.partners[0]), status - OF_PARTNER
        source = self.logits.source if self.logits is not None and status in OF_COLUMNS else self.beton.path
        raise CorruptError(
            f"{source}: sample {sample_id}: {REASONS[status]}{where_from(self.beton, sample_id)}; `fastkd verify` "
            f"lists all that is damaged"
        )

    def _make(self, piece: Piece, aug_seed: int) -> None:
        """Runs the compiled pipeline for some views, into the arrays of the piece."""
        ids, arrays, status = piece
        np.take(self.beton.labels, ids, out=arrays["labels"])
        arrays["sample_ids"][:] = ids
        outputs = [arrays[name] for name in ("images", "logits", "embeddings") if name in arrays]
        mixes = self.mixes(ids, aug_seed)
        if mixes is not None:
            np.take(self.beton.labels, mixes.partners, out=arrays["partner_labels"])
            arrays["lam"][:] = mixes.lam
        self._stage(
            batch_indices=ids,
            metadata=self.beton.metadata,
            storage_state=(
                self._data,
                self.beton.sizes,
                self._rows,
                aug_seed,
                status,
                self._numbers,
                self._columns,
                None if mixes is None else (mixes.partners, mixes.regions),
            ),
            **{f"memory_{self._node}": tuple(outputs), f"shared_memory_{self._node}": None},
        )
