"""Tars of samples in WebDataset's form: which images they hold, what their classes are, and reading them by number.

The files of a sample lie one after the other and have one name up to the first dot; what follows it, in small letters, is what
they are: `n02/17.jpg` and `n02/17.cls` are the image and the class of the sample `n02/17`. The first pass reads headers and labels alone;
images are read where they lie.
"""

import io
import json
import os
import re
import tarfile
import threading
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastkd.data.sources.files import (
    MAX_MEMBER_BYTES,
    Stamp,
    is_hidden,
    reason,
    shortened,
    shown,
    stamp_of,
    without_dots,
)
from fastkd.data.sources.picture import IMAGE_SUFFIXES
from fastkd.data.sources.shards import Progress, class_numbers, one_by_one, paths_of
from fastkd.errors import FastKDError, FormatError, NotFoundError, OptionError, SourceError

_MAX_HEADER, _MAX_LABEL = 1 << 17, 1 << 20  # bytes; names and labels are far shorter
_MAX_TAIL = 1 << 24  # of zeros after the last member: archivers fill up a block of up to some megabytes
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
_META = re.compile(r"__[^/]*__(/|$)")  # of WebDataset itself, no samples


class Part(NamedTuple):
    """A file of a sample: where its bytes lie in the tar."""

    name: str
    start: int
    size: int


class TarFiles:
    """Reads the images of tars by number, from any number of processes and threads.

    Args:
        paths: the tars. names: of the N images, for messages.
        tars, starts, sizes: int64 (N,), the tar that each image lies in, where, and its bytes.
    """

    def __init__(
        self, paths: list[str], names: list[str], tars: np.ndarray, starts: np.ndarray, sizes: np.ndarray
    ) -> None:
        self.paths, self.names, self.tars, self.starts, self.sizes = paths, names, tars, starts, sizes
        self._local = threading.local()

    def __reduce__(self) -> tuple:
        return TarFiles, (self.paths, self.names, self.tars, self.starts, self.sizes)

    def read(self, i: int) -> bytes:
        """The bytes of image i, at most MAX_MEMBER_BYTES. Raises SourceError where it cannot be read."""
        size, path = int(self.sizes[i]), self.paths[self.tars[i]]
        if size > MAX_MEMBER_BYTES:
            raise SourceError(
                f"{self.names[i]}: {size} bytes in {path}, expected an image of at most {MAX_MEMBER_BYTES}"
            )
        try:
            if getattr(self._local, "path", None) != path:
                self._local.file, self._local.path = open(path, "rb"), path  # noqa: SIM115
            content = os.pread(self._local.file.fileno(), size, int(self.starts[i]))
        except OSError as error:
            raise SourceError(f"{path}: cannot be read ({error.strerror}); restore it") from None
        if len(content) < size:
            raise SourceError(f"{path}: became shorter while it was being read; call build-beton again")
        return content


def open_tars(
    patterns: str, *, classes: Path | None, image_field: str | None, label_field: str | None, progress: Progress
) -> tuple[list[str], np.ndarray, list[str], TarFiles, list[Stamp], Counter[str]]:
    """Finds the samples of tars, in the order in which they lie there.

    The image of a sample is the one file of it with the suffix of an image. Its class is the text of its `.cls`, else the entry "label"
    of its `.json`, the same in all samples; all of them whole numbers, or all of them names.

    Args:
        patterns, progress: as `paths_of` and `one_by_one` take them.
        classes: a file with a class name a line, in label order; None sorts the names, and calls numbers by themselves.
        image_field: what follows the first dot of the image's name, "jpg", where a sample has several.
        label_field: the same of the label's, "cls" or another file of text, or "json:ENTRY", of a file of JSON.

    Returns:
        class_names, labels (int64, shape (N,)), names (of the tar and the image in it), the reader, the stamps of the tars, and how many
        files were left aside, by suffix.

    Raises:
        NotFoundError: no such file, or no samples.
        OptionError: a file named twice, or an entry of what is no JSON.
        FormatError: no tar, a compressed, cut or malformed one; labels that are neither numbers alone nor names alone.
        SourceError: a sample without image or label, or with several; a class that is not listed.
    """
    where, paths = f"webdataset:{patterns}", paths_of("webdataset", patterns)
    image_field = image_field and image_field.lower()
    kind, colon, entry = (label_field or "").partition(":")
    label_field = label_field and kind.lower() + colon + entry
    if colon and not kind.lower().endswith("json"):
        raise OptionError(f"--label-field {label_field}: entries are those of a file of JSON, expected {kind} alone")
    stamps = [stamp_of(path) for path in paths]
    names: list[str] = []
    values: list[str] = []
    places, others = array("q"), Counter[str]()
    texts: dict[str, str] = {}
    for number, path, short in one_by_one(paths, progress):
        try:
            with _Headers(path) as file:
                for key, parts in _samples(file, others):
                    sample = f"{path}: sample {shortened(key)}"
                    image = _image_of(sample, parts, image_field)
                    if label_field is None:
                        label_field = next((kind for kind in ("cls", "json") if kind in parts), "cls")
                    kind = label_field.partition(":")[0]
                    if kind not in parts:
                        raise SourceError(
                            f"{sample}: found no .{kind} in it for its label, only {_kinds(parts)}; name another with --label-field"
                        )
                    content = os.pread(file.fileno(), min(parts[kind].size, _MAX_LABEL), parts[kind].start)
                    text = _label_of(sample, content, parts[kind].size, label_field)
                    others.update(f".{one.rpartition('.')[2]}" for one in parts if one not in (image, kind))
                    names.append(f"{short}/{parts[image].name}")
                    values.append(texts.setdefault(text, text))
                    places.extend((number, parts[image].start, parts[image].size))
        except FastKDError:
            raise
        except Exception as error:  # of a malformed header: tarfile's, ValueError, RecursionError ...
            raise FormatError(f"{path}: cannot be read as a tar ({reason(error)}); copy or download it again") from None
    if not names:
        raise NotFoundError(f"{where}: found no samples in {len(paths)} tars, expected <name>.jpg and <name>.cls")
    class_names, labels = class_numbers(where, values, names, classes)
    tars, starts, sizes = np.array(places, np.int64).reshape(-1, 3).T.copy()
    return class_names, labels, names, TarFiles(paths, names, tars, starts, sizes), stamps, others


class _Headers(io.FileIO):
    """A tar as tarfile goes through it, which reads headers alone: none may claim more memory than _MAX_HEADER."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes, at most {_MAX_HEADER} are read")
        return super().read(size) or b""


def _samples(file: _Headers, others: Counter[str]) -> Iterator[tuple[str, dict[str, Part]]]:
    """Each sample's name, and its files by what follows the first dot of theirs; files that belong to none are counted.

    Raises:
        FormatError: no tar, a compressed or cut one, a member that is no plain file, or a sample of which there are two.
    """
    path, seen = file.name, set[str]()
    if os.pread(file.fileno(), 6, 0).startswith(_COMPRESSED):
        raise FormatError(
            f"{path}: found a compressed file, expected a plain tar, whose images can be read where they lie; unpack it (gunzip, zstd -d)"
        )
    key, parts, behind = "", dict[str, Part](), 0
    with tarfile.open(fileobj=file, mode="r:") as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # it keeps them all otherwise
            if member.size < 0 or archive.offset <= behind:  # where some versions of tarfile go round for ever
                raise tarfile.ReadError(f"a member of {member.size} bytes")
            behind = archive.offset
            name = without_dots(member.name)
            if member.isdir() or any(map(is_hidden, name.split("/"))) or _META.match(name):
                continue
            if not member.isreg() or member.issparse():
                raise FormatError(
                    f"{path}: found the member {shortened(name)}, a link or no plain file, expected files alone; make the tar again (tar -h)"
                )
            folder, slash, last = name.rpartition("/")
            stem, dot, kind = last.partition(".")
            if not dot:
                others[""] += 1
                continue
            if folder + slash + stem != key:
                if parts:
                    yield key, parts
                key, parts = folder + slash + stem, {}
                if key in seen:
                    raise FormatError(
                        f"{path}: found files of the sample {shortened(key)} in two places, expected them side by side"
                    )
                seen.add(key)
            if kind.lower() in parts:
                raise FormatError(f"{path}: found {shortened(name)} twice, expected each file once")
            parts[kind.lower()] = Part(name, member.offset_data, member.size)
        end = archive.offset
    tail = os.pread(file.fileno(), _MAX_TAIL + 1, end)
    if len(tail) < tarfile.BLOCKSIZE or len(tail) > _MAX_TAIL or tail.strip(b"\0"):
        raise FormatError(
            f"{path}: found {'more' if tail.strip(bytes(1)) else 'no end'} after its member {shortened(key)}, expected a whole tar; copy it again, or join "
            f"tars with tar -A"
        )
    if parts:
        yield key, parts


def _image_of(sample: str, parts: dict[str, Part], asked: str | None) -> str:
    """Which of a sample's files is the image. Raises SourceError where that is none, or not clear."""
    found = (
        [kind for kind in parts if f".{kind}".endswith(IMAGE_SUFFIXES)] if asked is None else [asked] * (asked in parts)
    )
    if len(found) != 1:
        what = f"{len(found)} images" if found else "no image" if asked is None else f"no .{asked}"
        way_out = "name one with --image-field" if found else "leave it out"
        raise SourceError(f"{sample}: found {what} in it, only {_kinds(parts)}; {way_out}")
    return found[0]


def _label_of(sample: str, content: bytes, size: int, field: str) -> str:
    """The class that a file of a sample says: its text, or an entry of its JSON.

    Raises:
        SourceError: no text, no such entry, or one that is neither a whole number nor text.
    """
    kind, _, entry = field.partition(":")
    try:
        text = content.decode("utf-8-sig").strip()
        if size > _MAX_LABEL:
            raise ValueError(f"of {size} bytes")
        if kind.endswith("json"):
            found = json.loads(text)
            entry = entry or "label"
            if not isinstance(found, dict) or entry not in found:
                has = f"only {shown(sorted(found))}" if isinstance(found, dict) else f"a {type(found).__name__}"
                raise SourceError(
                    f"{sample}: found no entry {shortened(entry)} in its .{kind}, {has}; name another with --label-field {kind}:ENTRY"
                )
            text = found[entry].strip() if isinstance(found[entry], str) else str(found[entry])
            if isinstance(found[entry], bool) or not isinstance(found[entry], str | int):
                raise ValueError(f"{entry} is {text[:40]}")
    except (ValueError, RecursionError) as error:
        raise SourceError(
            f"{sample}: found a .{kind} that says no class ({reason(error)}), expected a whole number or a name as text"
        ) from None
    if not text or not text.isprintable():
        raise SourceError(f"{sample}: found {text[:120]!r} in its .{kind}, expected a whole number or a name in a line")
    return text


def _kinds(parts: dict[str, Part]) -> str:
    return ", ".join(shortened(f".{kind}") for kind in sorted(parts)[:8]) or "nothing"
