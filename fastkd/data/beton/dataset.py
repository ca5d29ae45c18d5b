"""A beton opened by what it holds: its fingerprint and classes, under the sample_ids of the full beton. No torch, no ffcv."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fastkd.arguments import as_path
from fastkd.data.beton.fields import AS_FOUND, Fields
from fastkd.data.beton.part import numbered_as_full
from fastkd.data.beton.read import Beton, identify, open_beton
from fastkd.errors import MismatchError, OptionError
from fastkd.models.classes import Classes


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Dataset:
    """An opened beton with its identity. fingerprint: over its content. class_names: one for each label.

    is_relabelled: whether the labels are others than the file's, see `relabelled`.
    """

    beton: Beton
    fingerprint: str
    class_names: list[str]
    is_relabelled: bool = False

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens the same file again."""
        labels = self.beton.labels if self.is_relabelled else None
        return _reopened, (self.beton.place, self.beton.used_fields, self.fingerprint, labels, self.class_names)

    def __repr__(self) -> str:
        """The dataset in a line."""
        num_there = len(self.beton.sample_ids)
        of_all = "" if num_there == self.beton.num_samples else f" of {self.beton.num_samples:,}"
        return f"Dataset({self.beton.path}: {num_there:,}{of_all} images of {self.num_classes:,} classes)"

    @property
    def num_classes(self) -> int:
        """C, the classes that labels are drawn from."""
        return len(self.class_names)

    @property
    def classes(self) -> Classes:
        """What its labels mean."""
        return Classes(where=str(self.beton.path), count=self.num_classes, names=self.class_names)


def open_dataset(path: str | Path, fields: Fields = AS_FOUND) -> Dataset:
    """Opens and identifies a beton; a part of one is read under the sample_ids of the full beton.

    Args:
        fields: which hold the image and the label, where names and kinds do not tell.

    Raises:
        NotFoundError, FormatError, OptionError, MismatchError: as `open_beton` and `identify`.
    """
    if not isinstance(fields, Fields):
        raise OptionError(f"fields are {fields!r}, expected Fields")
    beton = open_beton(as_path(path, "a beton"), fields)
    fingerprint, class_names = identify(beton)
    return Dataset(beton=numbered_as_full(beton), fingerprint=fingerprint, class_names=class_names)


def _reopened(
    path: str, fields: dict[str, str], fingerprint: str, labels: np.ndarray | None, class_names: list[str]
) -> Dataset:
    """The dataset that another process had open.

    Raises:
        MismatchError: another beton is there by now.
    """
    found = open_dataset(path, Fields(fields["image"], fields["label"]))
    if found.fingerprint != fingerprint:
        raise MismatchError(f"{path}: another beton is there than when it was handed over")
    if labels is None:
        return found
    return replace(found, beton=replace(found.beton, labels=labels), class_names=class_names, is_relabelled=True)


def relabelled(dataset: Dataset, outputs: np.ndarray | None, network: Classes) -> Dataset:
    """A dataset whose labels are the numbers that a network has for its classes.

    Args:
        outputs: int64 (num_classes,), as `match_classes` gives it; None for the dataset as it is. network: its classes.
    """
    if outputs is None:
        return dataset
    labels = dataset.beton.labels
    mapped = np.where(labels < 0, -1, outputs[labels])  # -1: samples that a part does not have
    names = network.names or [str(number) for number in range(network.count)]
    return replace(dataset, beton=replace(dataset.beton, labels=mapped), class_names=list(names), is_relabelled=True)


def require_whole(dataset: Dataset) -> None:
    """Refuses a part of a beton where all samples are needed.

    Raises:
        MismatchError: the dataset is a part.
    """
    if dataset.beton.present is not None:
        raise MismatchError(
            f"{dataset.beton.path}: holds {len(dataset.beton.sample_ids):,} of the {dataset.beton.num_samples:,} samples of a "
            f"beton, all of them are needed here; give the full beton"
        )
