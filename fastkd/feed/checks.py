"""Whether a store belongs to a beton: its views, its classes, and the pixels that this machine decodes."""

import numpy as np

from fastkd.artefact import require_input
from fastkd.data.beton.dataset import Dataset
from fastkd.data.identity import probe_checksums, view_identity
from fastkd.data.views.draw import Views
from fastkd.data.views.mix import Mix
from fastkd.differences import differences, in_a_line
from fastkd.errors import FormatError, MismatchError, OptionError
from fastkd.models.classes import SAME_ORDER, require_same_names
from fastkd.store.logit_store import LogitStore
from fastkd.store.tables import StoreTables


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
    wanted = view_identity(views, store.sample_ids)
    differs = differences({name: header.params.get(name) for name in wanted}, wanted)
    if differs:
        raise MismatchError(f"{path}: made for {in_a_line(differs)}; its own are {_as_options(views_of(store.tables))}")
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


def _as_options(views: Views) -> str:
    mix = "" if views.mix is None else f" --mix {views.mix.kind} --mix-alpha {views.mix.alpha:g}"
    return f"--views {views.kind} --size {views.size}{mix}"


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
