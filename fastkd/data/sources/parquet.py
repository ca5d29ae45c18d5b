"""Parquet files of images as Hugging Face's data sets have them: which rows they hold, what their classes are, and reading them.

An image column is one of structs with `bytes` and `path`, or of bytes; what the schema's metadata `huggingface` says of a label
column is taken as its class names. Columns are read batch by batch: the first pass labels and paths, the second images.
"""

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from fastkd.data.sources.files import MAX_MEMBER_BYTES, Stamp, reason, shortened, stamp_of
from fastkd.data.sources.layout import read_class_list
from fastkd.data.sources.shards import Progress, class_numbers, named, numbered, one_by_one, paths_of
from fastkd.errors import (
    FastKDError,
    FormatError,
    MismatchError,
    MissingDependencyError,
    NotFoundError,
    OptionError,
    SourceError,
)

_ROWS = 16  # of images that are decoded at a time
_LABEL_ROWS, _MAX_TEXT = 4096, 4096  # of the first pass; characters of a class or a path
_BUFFER = 1 << 20  # bytes that are read of a file at a time


class Columns(NamedTuple):
    """What of a file is read: of the image column its bytes and, where it has them, its paths."""

    image: str
    has_path: bool | None
    """None: the column holds bytes alone, not structs."""
    label: str
    is_text: bool
    class_names: list[str] | None
    """Of a ClassLabel."""


class ParquetImages:
    """Reads the images of parquet files by number; going up, each row group is decoded once.

    Args:
        paths: the files. column: the leaf that holds the bytes. names: of the N images, for messages.
        groups: int64 (G, 3): each row group's first image, its file and its number there.
    """

    def __init__(self, paths: list[str], column: str, names: list[str], groups: np.ndarray) -> None:
        self.paths, self.column, self.names, self.groups = paths, column, names, groups
        self._local = threading.local()

    def __reduce__(self) -> tuple:
        return ParquetImages, (self.paths, self.column, self.names, self.groups)

    def read(self, i: int) -> bytes:
        """The bytes of image i, at most MAX_MEMBER_BYTES. Raises SourceError where it cannot be read."""
        group = int(np.searchsorted(self.groups[:, 0], i, side="right")) - 1
        first, number, at = self.groups[group].tolist()
        here, path = self._local, self.paths[number]
        if getattr(here, "place", None) != (os.getpid(), group) or i < here.first:
            here.place, here.batches = (os.getpid(), group), self._batches(path, at)
            here.first, here.images, here.error = first, [], None
        while i >= here.first + len(here.images) and here.error is None:
            try:
                here.first, here.images = here.first + len(here.images), next(here.batches)
            # Cut, malformed, of an unknown compression: pyarrow has many exceptions.
            except Exception as error:
                here.error = reason(error)
        if i >= here.first + len(here.images):
            raise SourceError(
                f"{self.names[i]}: its row group in {path} cannot be read ({here.error}); copy the file again"
            )
        found = here.images[i - here.first]
        if found is None or len(found) > MAX_MEMBER_BYTES:
            what = "no bytes, but at most a path" if found is None else f"{len(found)} bytes"
            raise SourceError(
                f"{self.names[i]}: found {what} in {path}, expected an image of at most {MAX_MEMBER_BYTES} bytes"
            )
        return found

    def _batches(self, path: str, at: int) -> Iterator[list[bytes | None]]:
        here = self._local
        if getattr(here, "opened", None) != (os.getpid(), path):  # a footer of many row groups takes a while
            here.file, here.opened = _opened(path), (os.getpid(), path)
        for batch in here.file.iter_batches(_ROWS, row_groups=[at], columns=[self.column], use_threads=False):
            yield [_bytes_of(row) for row in batch.column(0).to_pylist()]


def open_parquet(
    patterns: str, *, classes: Path | None, image_field: str | None, label_field: str | None, progress: Progress
) -> tuple[list[str], np.ndarray, list[str], ParquetImages, list[Stamp]]:
    """Finds the rows of parquet files, in their order.

    The image column is the one called `image`, else the only one of images; the label column `label`, else the only one that is
    a ClassLabel, else, where there is none, the only one of whole numbers or texts. Numbers of a ClassLabel have its names; other
    labels are, all of them, numbers, or names.

    Args:
        patterns, progress: as `paths_of` and `one_by_one` take them.
        classes: a file with a class name a line, in label order; None takes a ClassLabel's order, sorts names, and calls numbers by
            themselves.
        image_field, label_field: the columns, where that is not clear.

    Returns:
        class_names, labels (int64, shape (N,)), names (of the file and the image's path, or its row where paths are not distinct), the
        reader, and the stamps of the files.

    Raises:
        NotFoundError: no such file, or no rows.
        OptionError: a file named twice, or a column that is asked for and not there.
        FormatError: no parquet file, a malformed one, one without clear columns, or a label that is none.
        MismatchError: files of other columns or classes than the first.
        SourceError: a class that is not listed.
        MissingDependencyError: pyarrow is not installed.
    """
    _pyarrow()
    where, paths = f"parquet:{patterns}", paths_of("parquet", patterns)
    stamps = [stamp_of(path) for path in paths]
    columns: Columns | None = None
    names: list[str] = []
    values: list[Any] = []
    groups: list[tuple[int, int, int]] = []
    for number, path, short in one_by_one(paths, progress):
        try:
            with _opened(path) as file:
                own = _columns_of(path, file.schema_arrow, image_field, label_field)
                if columns not in (None, own):
                    raise MismatchError(
                        f"{path}: its columns or classes are others than those of {paths[0]}, expected files of one data set"
                    )
                columns = own
                first = len(names)
                if file.metadata.num_rows > stamps[number].size:
                    raise FormatError(
                        f"{path}: found {file.metadata.num_rows} rows in {stamps[number].size} bytes, expected images"
                    )
                values += _labels_of(path, file, own)
                names += _names_of(short, file, own)
                for at in range(file.num_row_groups):
                    groups.append((first, number, at))
                    first += file.metadata.row_group(at).num_rows
                if not len(values) == len(names) == first:
                    raise FormatError(
                        f"{path}: found {len(values)} labels but {first} rows, expected one a row; copy it again"
                    )
        except FastKDError:
            raise
        except Exception as error:  # see above
            raise FormatError(
                f"{path}: cannot be read as a parquet file ({reason(error)}); copy or download it again"
            ) from None
    if columns is None or not names:
        raise NotFoundError(f"{where}: found no rows in {len(paths)} files, expected images")
    class_names, labels = _classes_of(where, values, names, columns, classes)
    leaf = columns.image if columns.has_path is None else f"{columns.image}.bytes"
    return class_names, labels, names, ParquetImages(paths, leaf, names, np.array(groups, np.int64)), stamps


def _pyarrow() -> ModuleType:
    try:
        import pyarrow.parquet
    except ImportError:
        raise MissingDependencyError(
            "parquet: needs pyarrow, which is not installed; pip install 'fastkd[parquet]'"
        ) from None
    return pyarrow


def _opened(path: str) -> Any:
    """The file, of which no more than a buffer is read ahead; pages that have a checksum are checked."""
    return _pyarrow().parquet.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False, page_checksum_verification=True)


def _columns_of(path: str, schema: Any, image_field: str | None, label_field: str | None) -> Columns:
    """What of a file's columns is read. Raises OptionError and FormatError where that is not clear."""
    features = _features_of(path, schema.metadata or {})
    kinds = {field.name: _kind_of(field.type, features.get(field.name)) for field in schema}
    if len(kinds) < len(schema):
        raise FormatError(f"{path}: found two columns of one name, expected distinct ones")
    image = _choose(path, "image", image_field, kinds, [("image",)])
    label = _choose(path, "label", label_field, kinds, [("class label",), ("whole number", "text")])
    types = _pyarrow().types
    image_type = schema.field(image).type
    has_path = None if not types.is_struct(image_type) else image_type.get_field_index("path") >= 0
    return Columns(image, has_path, label, kinds[label] == "text", _names_of_classes(path, label, features.get(label)))


def _features_of(path: str, metadata: dict[bytes, bytes]) -> dict[str, Any]:
    """What Hugging Face's library says of the columns; empty where it does not."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features") or {}
    except (ValueError, AttributeError, RecursionError):
        features = None
    if not isinstance(features, dict):
        raise FormatError(
            f"{path}: found metadata 'huggingface' that say nothing of features, expected those of its library"
        )
    return features


def _names_of_classes(path: str, column: str, feature: Any) -> list[str] | None:
    names = feature.get("names") if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else None
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise FormatError(f"{path}: found class names of column {column!r} that are no list of distinct texts")
    return names


def _kind_of(kind: Any, feature: Any) -> str:
    """What a column holds, in a word."""
    types = _pyarrow().types
    if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if types.is_binary(kind) or types.is_large_binary(kind):
        return "image"
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_integer(kind):
        return "class label" if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else "whole number"
    return "text" if types.is_string(kind) or types.is_large_string(kind) else str(kind)[:40]


def _choose(path: str, role: str, asked: str | None, kinds: dict[str, str], wanted: list[tuple[str, ...]]) -> str:
    """The column of a role: the one that is asked for, or called so, or the only one of the first kinds that are there."""
    listed = ", ".join(f"{shortened(name, 40)} ({kind})" for name, kind in list(kinds.items())[:20])
    if asked is not None and asked not in kinds:
        raise OptionError(f"{path}: has no column {asked!r} for --{role}-field, its columns are {listed}")
    name = asked or (role if role in kinds else None)
    if name is None:
        groups = ([one for one, kind in kinds.items() if kind in level] for level in wanted)
        own = next((group for group in groups if group), [])
        if len(own) == 1:
            return own[0]
        raise FormatError(
            f"{path}: found {len(own) or 'no'} columns that could be the {role} and none called {role!r} among {listed}; name it with "
            f"--{role}-field"
        )
    if not any(kinds[name] in level for level in wanted):
        expected = " or ".join(kind for level in wanted for kind in level)
        raise (FormatError if asked is None else OptionError)(
            f"{path}: found a column {name!r} ({kinds[name]}) for the {role}, expected {expected}; name another with --{role}-field"
        )
    return name


def _labels_of(path: str, file: Any, columns: Columns) -> list[Any]:
    """The labels of a file, each a number or a text. Raises FormatError where one is missing or empty."""
    found: list[Any] = []
    for batch in file.iter_batches(_LABEL_ROWS, columns=[columns.label], use_threads=False):
        column = batch.column(0)
        if _pyarrow().types.is_dictionary(column.type):
            column = column.dictionary_decode()
        rows = column.to_pylist() if columns.is_text or column.null_count else column.cast("int64").to_pylist()
        for row in rows:
            if row is None or (columns.is_text and not 0 < len(row.strip()) <= _MAX_TEXT):
                what = "no label" if row is None else f"a label of {len(row)} characters"
                raise FormatError(
                    f"{path}: found {what} in row {len(found)}, expected a number or a name in each; leave that row out"
                )
            found.append(row.strip() if columns.is_text else row)
    return found


def _names_of(short: str, file: Any, columns: Columns) -> list[str]:
    """The samples' names: those of the images' paths where these are there and distinct, else of the rows."""
    num_rows, paths = file.metadata.num_rows, list[str]()
    if columns.has_path:
        for batch in file.iter_batches(_LABEL_ROWS, columns=[f"{columns.image}.path"], use_threads=False):
            paths += [row and row.get("path") for row in batch.column(0).to_pylist()]
    is_clear = len(set(paths)) == num_rows and all(
        isinstance(path, str) and 0 < len(path) <= _MAX_TEXT for path in paths
    )
    return [f"{short}/{path}" for path in (paths if is_clear else range(num_rows))]


def _bytes_of(row: Any) -> bytes | None:
    return row.get("bytes") if isinstance(row, dict) else row


def _classes_of(
    where: str, values: list[Any], names: list[str], columns: Columns, classes: Path | None
) -> tuple[list[str], np.ndarray]:
    if columns.is_text:
        return class_numbers(where, values, names, classes)
    listed = None if classes is None else read_class_list(classes)
    labels = np.array(values, np.int64)
    if columns.class_names is None:
        return numbered(where, labels, names, listed)
    own, labels = numbered(where, labels, names, columns.class_names)
    return (own, labels) if listed is None else named(own, [own[label] for label in labels.tolist()], names, listed)
