"""The input side of `fastkd build-beton SOURCE`: numbered, labelled images from folders, zips and data sets."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fastkd.data.sources.arrays import READERS, ArrayImages, open_arrays
from fastkd.data.sources.files import FolderFiles, Stamp, ZipFiles, stamp_of
from fastkd.data.sources.layout import open_tree
from fastkd.data.sources.parquet import ParquetImages, open_parquet
from fastkd.data.sources.shards import Progress
from fastkd.data.sources.spooled import Sample, SpooledImages, spooled
from fastkd.data.sources.tars import TarFiles, open_tars
from fastkd.errors import NotFoundError, OptionError, SourceError

# One letter before a colon is a drive, and a slash before it makes it part of a path.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+_-]+):(.*)", re.DOTALL)
SHARDED = ("webdataset", "parquet")
"""Schemes of sources of many files, whose names and labels take a while to be read."""
_SCHEMES = (*READERS, *SHARDED)
_SOURCES_OF = {
    "--root": ("path",),
    "--classes": ("path", *SHARDED),
    "--split": tuple(READERS),
    "--image-field": SHARDED,
    "--label-field": SHARDED,
}
"""Options → the sources that they go with."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Source:
    """Images by number. It pickles to its lists, without pixels or open files, and reads in any process or thread."""

    spec: str
    """The source as the user gave it."""
    class_names: list[str]
    """The classes in label order."""
    labels: np.ndarray
    """int64, shape (N,), in [0, len(class_names))."""
    names: list[str]
    """Each sample's name: a path below the root such as "frog/0000.jpg", "train/17" for row 17 of an array, "0.tar/a.jpg"."""
    reader: FolderFiles | ZipFiles | ArrayImages | SpooledImages | TarFiles | ParquetImages
    """What gets the content of a sample."""
    stamps: list[Stamp] = field(default_factory=list)
    """Of files that hold many samples each, before they were read: a zip, or those of a known data set."""
    left_aside: Counter[str] = field(default_factory=Counter)
    """Files of a folder, zip or tar that are neither image nor label: suffix → how many."""

    def __len__(self) -> int:
        return len(self.names)

    def stamp(self, i: int) -> tuple[int, int]:
        """Size and mtime_ns of the file that sample i alone comes from; (0, 0) where a file holds many."""
        return self.reader.stamp(i)[1:] if isinstance(self.reader, FolderFiles) else (0, 0)

    def first_changed(self, items: range, stamps: np.ndarray) -> int | None:
        """The first of these samples whose file has another stamp than then, int64 (n, 2); None where there is none."""
        pairs = zip(items, stamps.tolist(), strict=True)
        return next((i for i, then in pairs if self.stamp(i) != tuple(then)), None)

    def require_unchanged(self) -> None:
        """Raises SourceError where a file of many samples changed while it was read."""
        for stamp in self.stamps:
            if stamp_of(stamp.path) != stamp:
                raise SourceError(f"{stamp.path}: changed while it was being read; call build-beton again")

    def read(self, i: int) -> bytes | np.ndarray:
        """The content of sample i, 0 <= i < len(self).

        Returns:
            The bytes of an image file, not decoded and not checked; or, from an array source, uint8 of shape (H, W, 3).

        Raises:
            SourceError: the file or zip member cannot be read or does not match its CRC; the message names it.
        """
        if not 0 <= i < len(self.names):
            raise IndexError(f"sample {i} of {len(self.names)}")
        return self.reader.read(i)


def open_source(
    spec: str,
    *,
    root: str | None = None,
    classes: Path | None = None,
    split: str | None = None,
    image_field: str | None = None,
    label_field: str | None = None,
    progress: Progress = lambda done, total: None,
) -> Source:
    """Opens a source: finds its samples, their labels and their order, which never depends on the file system.

    Args:
        spec: a folder or zip in ImageFolder layout; `cifar10:DIR`, `cifar100:DIR`, `svhn:DIR`, `mnist:DIR`,
            `fashion-mnist:DIR` (DIR may be left out where Debian's package is installed) or `digits:`; `webdataset:GLOB` or
            `parquet:GLOB`, see `open_tars` and `open_parquet`. What exists as a path is taken as a path.
        root: the folder inside a folder or zip that holds the class folders; None searches for it.
        classes: a file that fixes the classes of all but an array source and their order, one name a line.
        split: "train" or "test" of an array source; None for train.
        image_field, label_field: which file of a tar's samples, or column of parquet files, is the image and the label.
        progress: called with files gone through and in all, of tars and parquet files.

    Returns:
        The source; samples of folders and zips are sorted by class, then as torchvision's ImageFolder does, those of tars and parquet
        files lie as there.

    Raises:
        NotFoundError: no such path, or no images in it.
        OptionError: an unknown scheme or split, or an option that does not go with this kind of source.
        FormatError: a file of another kind, or a cut or malformed one.
        SourceError: a layout that is not ImageFolder's, or files that cannot be read.
        MismatchError: parquet files of several data sets.
        MissingDependencyError: the package that reads this source is not installed.
    """
    scheme, place = _split_scheme(spec)
    options = {"--root": root, "--classes": classes, "--split": split}
    options |= {"--image-field": image_field, "--label-field": label_field}
    for option, value in options.items():
        if value is not None and (scheme or "path") not in _SOURCES_OF[option]:
            kinds = [f"{kind}:" for kind in _SOURCES_OF[option] if kind != "path"]
            kinds = [*(["folders, zips"] if "path" in _SOURCES_OF[option] else []), *kinds]
            betons = " and betons with --mask" if option.endswith("field") else ""
            raise OptionError(
                f"{option} {value}: is for {', '.join(kinds)}{betons}, but the source is {spec!r}; leave it out"
            )
    reader: FolderFiles | ZipFiles | ArrayImages | TarFiles | ParquetImages
    left_aside: Counter[str] = Counter()
    if scheme is None:
        stamps = [stamp_of(os.path.abspath(spec))] if os.path.isfile(spec) else []
        class_names, labels, names, reader, left_aside = open_tree(spec, root=root, classes=classes)
    elif scheme == "webdataset":
        class_names, labels, names, reader, stamps, left_aside = open_tars(
            place, classes=classes, image_field=image_field, label_field=label_field, progress=progress
        )
    elif scheme == "parquet":
        class_names, labels, names, reader, stamps = open_parquet(
            place, classes=classes, image_field=image_field, label_field=label_field, progress=progress
        )
    else:
        class_names, labels, names, reader, stamps = open_arrays(scheme, place, split or "train")
    return Source(
        spec=spec,
        class_names=class_names,
        labels=labels,
        names=names,
        reader=reader,
        stamps=stamps,
        left_aside=left_aside,
    )


@contextmanager
def source_of(samples: Iterable[Sample], class_names: Sequence[str], folder: Path) -> Iterator[Source]:
    """Samples that a program hands over, once each, as a source; see `spooled`."""
    with spooled(samples, class_names, folder) as (digest, labels, names, reader):
        yield Source(spec=f"python:{digest}", class_names=list(class_names), labels=labels, names=names, reader=reader)


def _split_scheme(spec: str) -> tuple[str | None, str]:
    """The scheme of a spec and what follows it; (None, "") for a path that exists."""
    if os.path.isdir(spec) or os.path.isfile(spec):
        return None, ""
    if os.path.exists(spec):
        raise NotFoundError(f"{spec}: found neither a folder nor a regular file, expected a folder or a zip of images")
    match = _SCHEME.fullmatch(spec)
    schemes = ", ".join(f"{name}:" for name in _SCHEMES)
    if match is None:
        raise NotFoundError(
            f"{spec!r}: no such folder or zip, expected a path that exists, or one of {schemes} and a folder or pattern"
        )
    if match[1] not in _SCHEMES:
        raise OptionError(
            f"{spec!r}: found the unknown scheme {match[1]!r} and no path of that name, expected a folder or zip that "
            f"exists, or one of {schemes}"
        )
    return match[1], match[2]
