"""Beton + mask + store → batches: opens the three, checks that they belong together, and joins them in one loader."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from fastkd.arguments import as_ids, as_path
from fastkd.artefact import require_input
from fastkd.data.batch import Batch
from fastkd.data.beton.dataset import Dataset, open_dataset
from fastkd.data.beton.fields import AS_FOUND, Fields
from fastkd.data.identity import center_views, probe_checksums, view_identity
from fastkd.data.loader import ViewLoader
from fastkd.data.views.decode import Column
from fastkd.data.views.draw import NUM_CROP_FLIP_VIEWS, Views
from fastkd.data.views.mix import Mix
from fastkd.dist import World, read_world
from fastkd.errors import FormatError, MismatchError, OptionError
from fastkd.models.classes import SAME_ORDER, require_same_names
from fastkd.prune.masks.mask import Mask
from fastkd.store.logit_store import LogitStore
from fastkd.store.tables import Output, StoreTables


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


def views_of(tables: StoreTables) -> Views:
    """The views that a store holds logits of, with its K.

    Raises:
        FormatError: its params name none.
    """
    try:
        spec = tables.header.params["views"]
        extra = {"crop_ratio": spec["crop_ratio"]} if "crop_ratio" in spec else {}
        mix = Mix(spec["mix"]["kind"], spec["mix"]["alpha"]) if "mix" in spec else None
        return Views(spec["kind"], spec["size"], tables.num_seeds, mix=mix, version=spec["version"], **extra)
    except (KeyError, TypeError, OptionError) as error:
        raise FormatError(
            f"{tables.path}: does not say which views its logits are of ({error}); fill it anew"
        ) from None


def check_store(store: LogitStore, dataset: Dataset, views: Views, *, by_number: bool = False) -> None:
    """Refuses a store whose logits were not made from these views of this beton, as this machine decodes them.

    Args:
        by_number: take classes by their numbers, whatever their names.

    Raises:
        MismatchError: another beton, other views, fewer seeds, other numbers of classes or names of them, or a machine that
            decodes some of the store's probe views to other pixels.
    """
    path, header = store.tables.path, store.tables.header
    require_input(header, path, "beton", dataset.fingerprint, dataset.beton.path)
    for name, wanted in view_identity(views, store.sample_ids).items():
        if header.params.get(name) != wanted:
            raise MismatchError(f"{path}: made for {name} {header.params.get(name)}, asked for {wanted}")
    if views.num_seeds > store.num_seeds:
        raise MismatchError(f"{path}: holds {store.num_seeds} seeds a sample, {views.num_seeds} are asked for")
    if store.num_classes != dataset.num_classes:
        raise MismatchError(
            f"{path}: rows of {store.num_classes} logits, {dataset.beton.path} has {dataset.num_classes} classes"
        )
    if not by_number:
        way_out = f"take the classes by their numbers with --class-map {SAME_ORDER}"
        require_same_names(header.params, path, dataset.class_names, dataset.beton.path, way_out)
    check_probes(store.tables, dataset)


def check_probes(tables: StoreTables, dataset: Dataset) -> None:
    """Refuses a store whose probe views have other pixels on this machine.

    Raises:
        MismatchError: says how many of them; or a part of a beton has no sample of theirs.
    """
    probes, sums = tables.probes, tables.probe_crc32c
    if dataset.beton.present is not None:
        here = dataset.beton.present[probes[:, 0]]
        if len(probes) and not here.any():
            raise MismatchError(
                f"{tables.path}: none of its {len(probes)} probe views is of a sample in {dataset.beton.path}; use the full beton"
            )
        probes, sums = probes[here], sums[here]
    found = probe_checksums(dataset.beton, views_of(tables), probes, tables.sample_ids)
    wrong = int(np.count_nonzero(found != sums))
    if wrong:
        raise MismatchError(
            f"{tables.path}: {wrong} of {len(probes)} probe views decode to other pixels here than where the store was filled; "
            f"use the same decoder libraries, or fill the store on this machine"
        )


def store_columns(
    store: LogitStore, ids: np.ndarray, num_samples: int, *, embeddings: bool = False
) -> tuple[Column, Column | None]:
    """A store's logits as the loader takes them, and its embeddings where they are asked for.

    Raises:
        MismatchError: samples among `ids` that the store does not hold, or embeddings that it does not; or that it has others
            too, which its views are mixed with.
    """
    rows = np.full(num_samples, -1, np.int32)
    rows[ids] = store.rows_of(ids)
    if views_of(store.tables).mix is not None and len(ids) != store.tables.num_rows:
        raise MismatchError(
            f"{store.tables.path}: its views are mixed among all {store.tables.num_rows:,} samples that it holds, {len(ids):,} are "
            f"kept here; use the mask that it was made for, or make a store for this one"
        )

    def column(output: Output, records: np.ndarray) -> Column:
        codec = output.codec
        return Column(records=records, rows=rows, width=codec.num_classes, unpack=codec.unpack, salt=output.salt)

    logits = column(store.tables.outputs[0], store.records)
    return logits, column(*store.require_embeddings()) if embeddings else None


class Loader(ViewLoader):
    """Batches of seeded views, with the teacher's logits of the same views where there is a store.

    Args:
        beton: path, or a `Dataset` that is open already. fields: of a path, which hold the image and the label.
        views: which views, or their kind, with what is left open as `choose_views` has it; None for those of the store.
        mask: path of a mask, a `Mask`, or sample_ids as `as_ids` takes them; None keeps all. Batches have its weights, where it has some.
        logits: path of a store or an open `LogitStore`; None for batches without logits. embeddings: whether batches have
            the store's embeddings, too. by_number: take its classes by their numbers, whatever their names.
        batch_size, global_batch, shuffle, seed, order, drop_last, num_workers, prefetch, device: as `ViewLoader`.
        world: this process among those that share an epoch; None for what torchrun says, a single process without it.

    Raises:
        FastKDError: a file that is missing, damaged or unfinished, files that do not belong together, options out of
            range; see `ViewLoader`, `check_store` and `kept_ids`.
    """

    def __init__(
        self,
        beton: str | Path | Dataset,
        views: Views | str | None = None,
        *,
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
        if views is None and store is None:
            raise OptionError("views are needed where there is no store to take them from")
        if isinstance(views, str | None):
            views = choose_views(self.dataset, views, store=store)
        self.weights: torch.Tensor | None = None  # float32 (N,), by sample_id
        if isinstance(mask, Mask) and mask.weights is not None:
            of_all = torch.ones(mask.num_samples)
            of_all[torch.from_numpy(mask.sample_ids)] = torch.from_numpy(mask.weights)
            self.weights = of_all.to(device)
        its_logits = its_embeddings = None
        self.store, self._num_rows = store, 0
        if embeddings and store is None:
            raise OptionError("embeddings come from a store: give logits too")
        if store is not None:
            check_store(store, self.dataset, views, by_number=by_number)
            its_logits, its_embeddings = store_columns(
                store, ids, self.dataset.beton.num_samples, embeddings=embeddings
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

    def epoch(self, epoch: int, *, start_batch: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, see `ViewLoader`; the rows of it and of the next are asked of the disk beforehand."""
        if self.store is not None:
            for one in (epoch, epoch + 1):
                embeddings = self.embeddings is not None
                self.store.prefetch(one % self.views.num_seeds, self._num_rows, embeddings=embeddings)
        return super().epoch(epoch, start_batch=start_batch)

    def run(self, jobs: Iterable[tuple[np.ndarray, int]]) -> Iterator[Batch]:
        """Batches named one by one, see `ViewLoader`; with the mask's weights."""
        batches, weights = super().run(jobs), self.weights
        return batches if weights is None else (replace(batch, weights=weights[batch.sample_ids]) for batch in batches)
