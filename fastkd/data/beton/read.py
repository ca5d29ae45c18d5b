"""Betons: FFCV's file format version 2, opened with every table checked, and the manifest beside it.

FFCV's own reader trusts what it reads (a killed writer's file opens, a wrong size ends in a segmentation fault), so the
tables are mapped and checked here before FFCV's pipeline sees them. This module needs neither ffcv nor torch.
"""

import hashlib
import io
import mmap
import os
import weakref
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastkd.data.beton.fields import AS_FOUND, Fields, choose_fields, first_fields
from fastkd.data.beton.manifest import (
    FIELDS_VERSION,
    MANIFEST_VERSION,
    manifest_text,
    parse_manifest,
    recorded_fields,
    require_manifest,
)
from fastkd.data.beton.tables import ALLOCATION, POINTER_FIELDS, check_rows, find_allocations, find_fields
from fastkd.data.modes import MAX_CLASSES
from fastkd.errors import FormatError, MismatchError, NotFoundError, cut_meanwhile
from fastkd.fingerprint import fingerprint
from fastkd.writing import atomic_path

HEADER_BYTES, FIELD_BYTES = 24, 1041


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Beton:
    """An opened beton whose tables are consistent; arrays are mapped or made once, all in sample order.

    metadata: the structured table as FFCV defines it, fields `f0`, `f1`, …
    place: the absolute path at which it was opened, for other processes. file: stays open as long as `mapping` is there.
    data: uint8, the whole file, mapped read-only. mapping: the same as the operating system's object.
    labels: int64 (N,). heights, widths: int64 (N,), pixels. modes: uint8 (N,), 0 JPEG, 1 raw.
    ptrs, sizes: int64 (N,), where the encoded image lies in `data`.
    present: None, or bool (N,) for a part that is numbered as the full beton (`part.py`): the samples that it has.
    """

    path: Path
    place: str
    file: io.BufferedReader
    num_samples: int
    page_size: int
    field_types: tuple[int, ...]
    field_names: tuple[str, ...]
    image_field: int
    label_field: int
    metadata: np.ndarray
    data: np.ndarray
    mapping: mmap.mmap
    labels: np.ndarray
    heights: np.ndarray
    widths: np.ndarray
    modes: np.ndarray
    ptrs: np.ndarray
    sizes: np.ndarray
    tables_crc32: int
    size_bytes: int
    present: np.ndarray | None = None

    @property
    def sample_ids(self) -> np.ndarray:
        """The samples that the beton has: int64, increasing; all but for a part of another beton."""
        return np.arange(self.num_samples) if self.present is None else np.flatnonzero(self.present)

    @property
    def used_fields(self) -> dict[str, str]:
        """Role, `image` or `label` → the name of its field."""
        return {"image": self.field_names[self.image_field], "label": self.field_names[self.label_field]}

    def payload(self, sample_id: int) -> np.ndarray:
        """The encoded bytes of one image: uint8, a view of the mapped file."""
        start = int(self.ptrs[sample_id])
        return self.data[start : start + int(self.sizes[sample_id])]

    def require_length(self) -> None:
        """Raises FormatError where the file became shorter since it was opened: to read behind its end ends the process."""
        if self.mapping.size() < self.size_bytes:
            raise cut_meanwhile(self.path, self.mapping.size(), self.size_bytes)


def open_beton(path: str | Path, fields: Fields = AS_FOUND, *, overrule: bool = False) -> Beton:
    """Opens a beton written by fastkd or by FFCV and checks its tables.

    Args:
        fields: which hold the image and the label. overrule: even where the manifest records others.

    Raises:
        NotFoundError: no such file.
        FormatError: not a beton, cut, unfinished, or with tables that contradict each other.
        FormatError, OptionError, MismatchError: which fields are image and label is not clear, see `choose_fields`.
    """
    path = Path(path)
    if not path.is_file():
        raise NotFoundError(f"{path}: no such file")
    file = path.open("rb")
    size_bytes = os.fstat(file.fileno()).st_size

    def need(condition: bool, what: str) -> None:
        if not condition:
            raise FormatError(f"{path}: not a whole beton: {what}")

    need(size_bytes >= HEADER_BYTES, f"{size_bytes} bytes, a header alone has {HEADER_BYTES}")
    mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    weakref.finalize(mapping, file.close)
    data = np.frombuffer(mapping, np.uint8)
    version, num_fields = (int(x) for x in data[:4].view("<u2"))
    page_size = int(data[4:8].view("<u4")[0])
    num_samples, table_ptr = (int(x) for x in data[8:24].view("<u8"))
    need(version == 2, f"format version {version}, expected FFCV's version 2")
    need(2**21 <= page_size < 2**32 and page_size & (page_size - 1) == 0, f"page size {page_size}")
    need(1 <= num_fields <= 64, f"{num_fields} fields")
    need(table_ptr != 0, "its writer was stopped before the end (no allocation table); build it again")
    fields_end = HEADER_BYTES + FIELD_BYTES * num_fields
    need(fields_end <= size_bytes, f"{size_bytes} bytes end inside the field table")

    types, names, row_type = find_fields(data[HEADER_BYTES:fields_end].reshape(num_fields, FIELD_BYTES), need)
    metadata_end = fields_end + num_samples * row_type.itemsize
    need(num_samples >= 1, "no samples")
    need(
        metadata_end <= table_ptr <= size_bytes,
        f"allocation table at byte {table_ptr:,}, the file has {size_bytes:,} (cut?)",
    )
    tables_crc32 = zlib.crc32(data[table_ptr:].data, zlib.crc32(data[:metadata_end].data))
    recorded = recorded_fields(manifest_path(path), num_samples, tables_crc32, size_bytes)
    if overrule:
        recorded = {role: name for role, name in recorded.items() if getattr(fields, role) is None}
    image_field, label_field = choose_fields(path, names, types, fields, recorded)
    num_pointers = num_samples * sum(kind in POINTER_FIELDS for kind in types)
    found, rest = divmod(size_bytes - table_ptr, ALLOCATION.itemsize)
    need((found, rest) == (num_pointers, 0), f"allocation table of {found:,} rows, {num_pointers:,} expected (cut?)")

    metadata = np.array(data[fields_end:metadata_end]).view(row_type)  # the file's rows are not aligned
    table = data[table_ptr:].view(ALLOCATION)
    image = metadata[f"f{image_field}"]
    ptrs, sizes = find_allocations(image["data_ptr"], table, num_samples, need)
    heights, widths, modes = image["height"].astype(np.int64), image["width"].astype(np.int64), image["mode"].copy()
    check_rows(ptrs, sizes, heights, widths, modes, metadata_end, table_ptr, page_size, need)
    mapping.madvise(mmap.MADV_DONTNEED)  # the tables have been read and need not stay in this process
    return Beton(
        path=path,
        place=os.path.abspath(path),
        file=file,
        num_samples=num_samples,
        page_size=page_size,
        field_types=types,
        field_names=names,
        image_field=image_field,
        label_field=label_field,
        metadata=metadata,
        data=data,
        mapping=mapping,
        labels=metadata[f"f{label_field}"].astype(np.int64),
        heights=heights,
        widths=widths,
        modes=modes,
        ptrs=ptrs,
        sizes=sizes,
        tables_crc32=tables_crc32,
        size_bytes=size_bytes,
    )


def digests(payload: np.ndarray) -> tuple[bytes, int]:
    """BLAKE2b-128 and CRC-32 of an encoded image."""
    return hashlib.blake2b(payload.data, digest_size=16).digest(), zlib.crc32(payload.data)


def payload_digests(beton: Beton) -> Iterator[tuple[bytes, int]]:
    """BLAKE2b-128 and CRC-32 of each encoded image, in sample order; reads the whole file."""
    return (digests(beton.payload(sample_id)) for sample_id in range(beton.num_samples))


def beton_fingerprint(beton: Beton, digests: bytes) -> str:
    """The fingerprint over content in sample order: labels, image sizes, modes, and the encoded bytes by their digests.

    Args:
        digests: the N BLAKE2b-128 digests of the encoded images, 16 bytes each, concatenated.
    """
    return fingerprint(["beton", beton.labels, beton.heights, beton.widths, beton.modes, beton.sizes, digests])


def manifest_path(path: str | Path) -> Path:
    """`X.beton` → `X.beton.json`."""
    return Path(path).with_name(Path(path).name + ".json")


def write_manifest(
    beton: Beton, path: str | Path, pairs: Iterable[tuple[bytes, int]] | None = None, **fields: Any
) -> dict[str, Any]:
    """Writes the manifest of the beton that stands (or will stand) at `path`.

    Args:
        pairs: the digests of all payloads (`digests`) where they are known; None reads the whole beton.
        fields: source, names (N strings), class_names, options, versions: what the beton itself does not say.

    Returns:
        The manifest.

    Raises:
        OptionError: a file of its name that is no manifest.
    """
    pairs = list(payload_digests(beton) if pairs is None else pairs)
    # Readers of the version before take the first field of each kind, and must not where that is another one.
    is_first = beton.used_fields == first_fields(beton.field_names, beton.field_types)
    manifest = {
        "fastkd_kind": "beton",
        "format_version": MANIFEST_VERSION if is_first else FIELDS_VERSION,
        "fingerprint": beton_fingerprint(beton, b"".join(digest for digest, _ in pairs)),
        "num_samples": beton.num_samples,
        "size_bytes": beton.size_bytes,
        "tables_crc32": beton.tables_crc32,
        "fields": beton.used_fields,
        **fields,
        "payload_crc32": [crc for _, crc in pairs],
    }
    require_manifest(manifest_path(path))
    with atomic_path(manifest_path(path)) as partial:
        partial.write_text(manifest_text(manifest), encoding="utf-8")
    return manifest


def read_manifest(beton: Beton, *, columns: bool = False) -> dict[str, Any] | None:
    """The manifest beside a beton, or None where there is none.

    Args:
        columns: read `names` and `payload_crc32` too, which take a second where there are a million samples.

    Raises:
        FormatError: the manifest is not one of fastkd's, of another format version, or damaged.
        MismatchError: it belongs to another beton, or was made with other fields as image and label.
    """
    path = manifest_path(beton.path)
    if not path.is_file():
        path = manifest_path(os.path.realpath(beton.path))  # a link may stand for a beton elsewhere
    if not path.is_file():
        return None
    manifest = parse_manifest(path, beton.num_samples, columns=columns)
    if (manifest.get("tables_crc32"), manifest.get("size_bytes")) != (beton.tables_crc32, beton.size_bytes):
        raise MismatchError(
            f"{path}: belongs to another beton than {beton.path.name} stands here; build it again, or `fastkd verify --write-manifest`"
        )
    made_with = manifest.get("fields") or first_fields(beton.field_names, beton.field_types)
    for role, name in beton.used_fields.items():
        if made_with[role] != name:
            raise MismatchError(
                f"{path}: was made with field {made_with[role]!r} as the {role}, which is {name!r} now; "
                f"`fastkd verify --write-manifest {beton.path} --{role}-field {name}` makes it anew"
            )
    return manifest


def check_labels(beton: Beton) -> int:
    """One more than the largest label; raises FormatError where the labels are no classes."""
    num_labels = int(beton.labels.max()) + 1
    if int(beton.labels.min()) < 0 or num_labels > MAX_CLASSES:
        raise FormatError(
            f"{beton.path}: labels run from {beton.labels.min()} to {num_labels - 1}, expected classes 0 … {MAX_CLASSES - 1} at most"
        )
    return num_labels


def identify(beton: Beton) -> tuple[str, list[str]]:
    """Fingerprint and class names of a beton: from its manifest, else by reading it whole.

    Returns:
        The fingerprint (a part's is that of the full beton: masks and stores belong to both), and num_classes names (`"0"`,
        `"1"`, … without a manifest).

    Raises:
        FormatError: labels that are no classes, or more of them than the manifest names; a damaged manifest.
        MismatchError: the manifest of another beton.
    """
    manifest = read_manifest(beton)
    num_labels = check_labels(beton)
    if manifest is None:
        digests = b"".join(digest for digest, _ in payload_digests(beton))
        return beton_fingerprint(beton, digests), [str(i) for i in range(num_labels)]
    digest = manifest["fingerprint"]
    if (part := manifest.get("part_of")) is not None:
        if not (isinstance(part, dict) and isinstance(part.get("fingerprint"), str)):
            raise FormatError(f"{manifest_path(beton.path)}: damaged: it does not say which beton this is a part of")
        digest = part["fingerprint"]
    names = manifest.get("class_names") or [str(i) for i in range(num_labels)]
    if num_labels > len(names):
        raise FormatError(
            f"{beton.path}: labels run from {beton.labels.min()} to {num_labels - 1}, the manifest names {len(names)} classes"
        )
    return digest, names
