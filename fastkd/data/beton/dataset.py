"""A beton opened by what it holds: its fingerprint and classes, under the sample_ids of the full beton. No torch, no ffcv."""

from dataclasses import dataclass
from pathlib import Path

from fastkd.data.beton.fields import AS_FOUND, Fields
from fastkd.data.beton.part import numbered_as_full
from fastkd.data.beton.read import Beton, identify, open_beton
from fastkd.errors import MismatchError


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Dataset:
    """An opened beton with its identity. fingerprint: over its content. class_names: one for each label."""

    beton: Beton
    fingerprint: str
    class_names: list[str]

    @property
    def num_classes(self) -> int:
        """C, the classes that labels are drawn from."""
        return len(self.class_names)


def open_dataset(path: str | Path, fields: Fields = AS_FOUND) -> Dataset:
    """Opens and identifies a beton; a part of one is read under the sample_ids of the full beton.

    Args:
        fields: which hold the image and the label, where names and kinds do not tell.

    Raises:
        NotFoundError, FormatError, OptionError, MismatchError: as `open_beton` and `identify`.
    """
    beton = open_beton(path, fields)
    fingerprint, class_names = identify(beton)
    return Dataset(beton=numbered_as_full(beton), fingerprint=fingerprint, class_names=class_names)


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
