"""Beton + mask + store → batches: opens the three, checks that they belong together, and joins them in one loader."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from fastkd.arguments import as_ids, as_path
from fastkd.data.batch import Batch
from fastkd.data.beton.dataset import Dataset, open_dataset
from fastkd.data.beton.fields import AS_FOUND, Fields
from fastkd.data.identity import center_views
from fastkd.data.loader import ViewLoader
from fastkd.data.views.draw import NUM_CROP_FLIP_VIEWS, Views
from fastkd.data.views.mix import Mix
from fastkd.dist import World, read_world
from fastkd.errors import MismatchError, OptionError
from fastkd.feed.ahead import asking_ahead
from fastkd.feed.checks import check_store, views_of
from fastkd.feed.columns import store_columns, weights_by_id
from fastkd.models.norm import Norm, parse_norm
from fastkd.prune.masks.mask import Mask
from fastkd.store.logit_store import LogitStore


def kept_ids(dataset: Dataset, mask: Mask | None) -> np.ndarray:
    """The sample_ids that a mask keeps of a beton, in priority order; all of them without a mask.

    Raises:
        MismatchError: the mask was made for another beton, or this part of one lacks samples of it.
    """
    if mask is None:
        return dataset.beton.sample_ids
    mask.require_beton(dataset.fingerprint, dataset.beton.path)
    present = dataset.beton.present
    if present is not None and not present[mask.sample_ids].all():
        raise MismatchError(
            f"{dataset.beton.path}: a part without {np.count_nonzero(~present[mask.sample_ids]):,} of the {len(mask.sample_ids):,} "
            f"samples of {mask.path}; build it with this mask, or use the full beton"
        )
    return mask.sample_ids


def choose_views(
    dataset: Dataset,
    kind: str | None = None,
    size: int | None = None,
    num_seeds: int | None = None,
    *,
    store: LogitStore | None = None,
    num_epochs: int = 50,
    mix: str | None = None,
    mix_alpha: float | None = None,
    center_version: int | None = None,
) -> Views:
    """The views asked for; what is left open is the store's, or what suits the images.

    Without a store: `crop-flip` with all 162 seeds for images of one size up to 64 pixels, else `rrc` of 224 pixels with
    a seed for each epoch.

    Args:
        mix: `cutmix` or `mixup`. mix_alpha: of it; 1 where it is left open.
        center_version: of `center`, see `center_views`.

    Raises:
        OptionError: as `Views` and `Mix`; an alpha without a mix.
        MismatchError: another mix than the store's.
    """
    if store is not None:
        own = views_of(store.tables)
        if mix not in (None, own.mix and own.mix.kind) or mix_alpha not in (None, own.mix and own.mix.alpha):
            found = f"mixed by {own.mix.kind}, alpha {own.mix.alpha:g}" if own.mix else "not mixed"
            raise MismatchError(
                f"{store.tables.path}: its views are {found}; leave --mix and --mix-alpha out, or make a store of those asked for"
            )
        version = own.version if kind in (None, own.kind) else None
        size, num_seeds = size or own.size, num_seeds or own.num_seeds
        return replace(own, kind=kind or own.kind, size=size, num_seeds=num_seeds, version=version)
    ids = dataset.beton.sample_ids
    heights, widths = dataset.beton.heights[ids], dataset.beton.widths[ids]
    side = int(heights[0])
    small = side <= 64 and bool((heights == side).all() and (widths == side).all())
    kind = kind or ("crop-flip" if small else "rrc")
    size = size or (side if small or kind == "crop-flip" else 224)
    seeds = {"crop-flip": NUM_CROP_FLIP_VIEWS, "rrc": num_epochs, "center": 1}
    if mix is None and mix_alpha is not None:
        raise OptionError(f"--mix-alpha {mix_alpha:g} does nothing without --mix")
    mixed = None if mix is None else Mix(mix, 1.0 if mix_alpha is None else mix_alpha)
    version = center_views(dataset.beton, size, version=center_version).version if kind == "center" else None
    return Views(kind, size, num_seeds or seeds.get(kind, 1), mix=mixed, version=version)


class Loader(ViewLoader):
    """Batches of seeded views of a beton's images, with a teacher's stored logits of the same views where there is a store.

        loader = fastkd.Loader("train.beton", mask="m.h5", logits="l.h5", batch_size=64, shuffle=True)
        for epoch in range(50):
            for images, labels, logits in loader:  # uint8 (B, 3, H, W), int64 (B,), float32 (B, C)
                ...

    Each iteration is the next epoch e, whose views have aug_seed = e mod K (`views.num_seeds`): other crops and flips. Which
    one is next can be said by `set_epoch`, and kept by `state_dict` and `load_state_dict`, at any batch; `epoch(e)` gives one
    without counting it. Views, order and batches follow from the arguments and e alone, whatever the number of workers. A batch is
    a `Batch`: it also has `sample_ids`, `embeddings` and more. It never changes later. Leaving a loop stops the threads.

    Beton and store are mapped, and stay those that were opened, whatever is put in their place; paths may be relative. One
    that becomes shorter meanwhile is noticed when the next batch is begun; should it happen while one is made, or the disk
    fail, the system ends the process by SIGBUS, which no exception can stand for (commands say which file it was).

    Args:
        beton: path, or an open dataset.
        views: which views: `Views`, or a kind, `crop-flip`, `rrc` or `center`. None for the store's; without a store, or what
            a kind leaves open: crop-flip with K = 162 for images of one size up to 64 pixels, else rrc of 224 pixels, K = 50.
        normalize: None for bytes; `cifar`, `imagenet`, `none` (0 … 1), `M,M,M/S,S,S` or a `Norm` for float32 images.
        fields: of a path, which of the beton's fields hold the image and the label, where their names do not tell.
        mask: the kept samples: path of a mask, a `Mask`, or sample_ids (integers, one-dimensional); None for all. Batches
            have the `weights` of a mask that has some.
        logits: path of a store, or an open `LogitStore`, that was filled from these views of this beton; None for none.
        embeddings: whether batches have the store's embeddings, too.
        by_number: take the store's classes by their numbers, whatever their names.
        batch_size: samples a batch on each rank. global_batch: on all ranks together, shared out evenly; None for
            batch_size × ranks. The batches are the same samples for any number of ranks that share one global batch.
        shuffle, seed: the order of an epoch is a pure function of (seed, epoch); without shuffle it is that of the mask.
        order: how to shuffle: `shuffle`, uniformly, or `pages`, whole pages of the file in random order with the samples
            of some of them mixed, for betons that are larger than memory.
        drop_last: leave the last batch out where it is not full.
        num_workers: threads that make the batches; 0 for one a CPU of this process.
        prefetch: batches made ahead, at least; as many more as keep all workers busy. `most_bytes` says what that takes.
        device: where the batches end up: `cpu`, `cuda` or `cuda:N`.
        world: this process among those that share an epoch; None for what torchrun says, a single process without it.

    Raises:
        FastKDError: a file that is missing, damaged or unfinished, files that do not belong together, samples that the store
            does not hold, options out of range, a device that is not there; while batches are made, `CorruptError` for a
            sample that does not decode. The line says what was found, what was expected, and the way out.
    """

    def __init__(
        self,
        beton: str | Path | Dataset,
        views: Views | str | None = None,
        *,
        normalize: Norm | str | None = None,
        fields: Fields = AS_FOUND,
        mask: str | Path | Mask | np.ndarray | Sequence[int] | torch.Tensor | None = None,
        logits: str | Path | LogitStore | None = None,
        embeddings: bool = False,
        by_number: bool = False,
        batch_size: int = 64,
        global_batch: int | None = None,
        shuffle: bool = False,
        seed: int = 0,
        order: str = "shuffle",
        drop_last: bool = False,
        num_workers: int = 0,
        prefetch: int = 3,
        device: torch.device | str = "cpu",
        world: World | None = None,
    ) -> None:
        if isinstance(beton, Dataset) and fields != AS_FOUND:
            raise OptionError(
                f"fields do nothing with a dataset that is open already: open {beton.beton.path} with them"
            )
        self.dataset = beton if isinstance(beton, Dataset) else open_dataset(beton, fields)
        if isinstance(mask, str | os.PathLike):
            mask = Mask.load(mask)
        ids = kept_ids(self.dataset, mask) if isinstance(mask, Mask | None) else as_ids(mask, "the ids of a mask")
        store = (
            logits if isinstance(logits, LogitStore | None) else LogitStore(as_path(logits, "logits", "a LogitStore"))
        )
        if isinstance(views, str | None):
            views = choose_views(self.dataset, views, store=store)
        its_logits = its_embeddings = None
        self.store, self._num_rows = store, 0
        if embeddings and store is None:
            raise OptionError("embeddings come from a store: give logits too")
        if store is not None:
            check_store(store, self.dataset, views, by_number=by_number)
            its_logits, its_embeddings = store_columns(
                store, ids, self.dataset.beton.num_samples, is_mixed=views.mix is not None, embeddings=embeddings
            )
            self._num_rows = int(its_logits.rows.max()) + 1
        super().__init__(
            self.dataset.beton,
            views,
            ids=ids,
            logits=its_logits,
            embeddings=its_embeddings,
            batch_size=batch_size,
            global_batch=global_batch,
            shuffle=shuffle,
            seed=seed,
            order=order,
            drop_last=drop_last,
            num_workers=num_workers,
            prefetch=prefetch,
            device=device,
            world=read_world() if world is None else world,
        )
        self.weights = weights_by_id(mask, self.device)  # float32 (N,)
        self.norm = parse_norm(normalize, "normalize") if isinstance(normalize, str) else normalize
        if not isinstance(self.norm, Norm | None):
            raise OptionError(f"normalize is {normalize!r}, expected a Norm, or text such as cifar or imagenet")

    def __repr__(self) -> str:
        """The loader in a line."""
        store = "" if self.store is None else f", logits of {self.store.tables.path}"
        views = f"{self.views.kind} {self.views.size}, K = {self.views.num_seeds}"
        kept = f"{len(self.ids):,} of {self.dataset.beton.num_samples:,} samples"
        sizes = f"{len(self):,} batches of {self.global_batch}"
        return f"Loader({self.dataset.beton.path}: {kept}, {views}{store}; {sizes}; {self.device})"

    def epoch(self, epoch: int, *, start_batch: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, 0, 1, …, with aug_seed = epoch mod K; from any batch on, for a run that resumes. The place of
        `for batch in loader` stays. A store's rows for it and the next are meanwhile asked of the disk."""
        batches = super().epoch(epoch, start_batch=start_batch)
        if self.store is None:
            return batches
        planes = dict.fromkeys(one % self.views.num_seeds for one in (epoch, epoch + 1))
        return asking_ahead(batches, self.store, planes, self._num_rows, embeddings=self.embeddings is not None)

    def run(self, jobs: Iterable[tuple[np.ndarray, int]]) -> Iterator[Batch]:
        """Batches named one by one as (int64 sample_ids, aug_seed), in the order of the jobs.

        Raises:
            CorruptError: a sample that cannot be decoded, or whose row is damaged.
            FormatError: a beton or a store that became shorter since it was opened.
            OptionError: a sample_id that is not among the loader's ids, or an aug_seed that the views do not have.
        """
        batches = super().run(self._while_whole(jobs))
        if self.weights is None and self.norm is None:
            return batches
        return (self.finished(batch) for batch in batches)

    def _while_whole(self, jobs: Iterable[tuple[np.ndarray, int]]) -> Iterator[tuple[np.ndarray, int]]:
        for job in jobs:
            if self.store is not None:
                self.store.tables.require_length()
            yield job

    def finished(self, batch: Batch) -> Batch:
        """A batch with the mask's weights, and with float images where they are normalised."""
        images = batch.images if self.norm is None else self.norm(batch.images)
        return replace(batch, images=images, weights=None if self.weights is None else self.weights[batch.sample_ids])
