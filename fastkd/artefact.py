"""What all HDF5 files written by fastkd have in common: the header, and how small ones are written and read.

An HDF5 artefact names itself in five root attributes: `fastkd_kind`, `format_version`, `fingerprint` (of its content),
`inputs` (JSON: name → fingerprint of what it was made from) and `params` (JSON: how it was made).
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import h5py
import numpy as np

from fastkd.differences import differences, in_a_line
from fastkd.errors import CorruptError, DiskError, FastKDError, FormatError, MismatchError, NotFoundError
from fastkd.fingerprint import fingerprint
from fastkd.hdf5 import file_bytes, find_dataset, read_attribute, read_dataset, size_bytes
from fastkd.writing import atomic_path, claim, reading, require_replaceable

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
HDF5_VERSION = ("v110", "v110")
"""The form in which artefacts are written: HDF5 has checksums over its own tables from 1.10 on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """The common header of an artefact."""

    kind: str
    format_version: int
    fingerprint: str
    inputs: dict[str, str] = field(default_factory=dict)
    """Fingerprints of what the artefact was made from, by role: beton, mask, teacher, …"""
    params: dict[str, Any] = field(default_factory=dict)
    """How it was made; plain JSON values."""


def write_header(file: h5py.File, header: Header) -> None:
    """Writes the five root attributes.

    Texts have a fixed length: HDF5 keeps other strings in a heap without checksums, and loops or crashes where a byte of
    it is wrong.
    """
    inputs, params = (json.dumps(values, sort_keys=True) for values in (header.inputs, header.params))
    texts = {"fastkd_kind": header.kind, "fingerprint": header.fingerprint, "inputs": inputs, "params": params}
    for name, text in texts.items():
        file.attrs[name] = np.bytes_(text.encode())
    file.attrs["format_version"] = header.format_version


def content_fingerprint(
    kind: str, inputs: Mapping[str, str], params: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> str:
    """The fingerprint of an artefact: its kind, inputs, parameters and the bytes of its datasets."""
    head = json.dumps([kind, dict(inputs), dict(params)], sort_keys=True)
    return fingerprint([head, *(part for name in sorted(arrays) for part in (name, arrays[name]))])


def write_artefact(
    path: str | Path,
    *,
    kind: str,
    format_version: int,
    inputs: dict[str, str],
    params: dict[str, Any],
    arrays: dict[str, np.ndarray],
    attributes: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
    force: bool = False,
) -> Header:
    """Writes a small HDF5 artefact at once: header and datasets, atomically. One that is there already stays as it is.

    Args:
        attributes: texts to put on a dataset, for readers other than fastkd, which reads `params`.
        force: replace what is there, if it is another.

    Returns:
        The header of the artefact.

    Raises:
        MismatchError: something else is there.
        NotFoundError, OptionError, BusyError: as `claim`.
    """
    header = Header(
        kind=kind,
        format_version=format_version,
        fingerprint=content_fingerprint(kind, inputs, params, arrays),
        inputs=inputs,
        params=params,
    )
    with claim(path) as real:
        if not force and _is_there(real, header, arrays):
            return header
        found = found_artefact(real, kind, inputs, params, header.fingerprint)
        if found is not None:
            require_replaceable(Path(path), force, found)
        # In memory: a write that fails below HDF5 leaves a file that it cannot close, which now and then ends the process.
        with h5py.File("memory", "w", libver=HDF5_VERSION, driver="core", backing_store=False) as file:
            write_header(file, header)
            for name, array in arrays.items():
                dataset = file.create_dataset(name, data=array, track_times=False)
                for key, text in attributes.get(name, {}).items():
                    dataset.attrs[key] = np.bytes_(text.encode())
            file.flush()
            content = file.id.get_file_image()
        with atomic_path(real) as partial:
            partial.write_bytes(content)
    return header


def _is_there(path: Path, header: Header, arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether a file is the artefact of this header, and whole."""
    wanted = {name: (array.dtype.str, array.ndim) for name, array in arrays.items()}
    try:
        found, _ = read_artefact(path, kind=header.kind, format_version=header.format_version, arrays=wanted)
    except FastKDError:
        return False
    return found == header


def found_artefact(
    path: Path,
    kind: str,
    inputs: Mapping[str, str],
    params: Mapping[str, Any],
    digest: str | None = None,
    newer: tuple[str, ...] = (),
) -> str | None:
    """What another artefact than the one of this job is there, in words; None where there is none, or that of this job.

    Args:
        kind, inputs, params: those of the artefact that is to be written. digest: its fingerprint, where that is known.
        newer: params that one of both may lack, as earlier versions did, and that then do not count.
    """
    if not path.exists():
        return None
    try:
        with open_artefact(path, None) as (_, header):
            pass
    except FormatError:
        return "is there, and no artefact of fastkd's"
    if header.kind != kind:
        return f"is a {header.kind} that is there"
    unsaid = {name for name in newer if name not in params or name not in header.params}
    said, asked = ({name: of[name] for name in of if name not in unsaid} for of in (header.params, params))
    differs = differences(header.inputs, dict(inputs)) + differences(said, asked)
    if not differs and digest not in (None, header.fingerprint):
        differs = ["its content, which has other inputs or options than its header knows"]
    return f"another {kind} is there; it differs in {in_a_line(differs)}" if differs else None


def read_header(file: h5py.File, path: str | Path) -> Header:
    """Reads the five root attributes of an open HDF5 file.

    Raises:
        FormatError: the file is HDF5 but not one of fastkd's, or its header is damaged.
    """
    try:
        kind, digest, inputs, params = (
            bytes(read_attribute(file, name, "S")).decode()
            for name in ("fastkd_kind", "fingerprint", "inputs", "params")
        )
        return Header(
            kind=kind,
            format_version=int(read_attribute(file, "format_version", "i")),
            fingerprint=digest,
            inputs=_fingerprints(inputs),
            params=_json_object(params),
        )
    except KeyError as error:
        if "errno" in str(error):  # the disk, not the file, is the reason
            raise DiskError(f"{path}: cannot be read ({' '.join(str(error).split())})") from None
        raise FormatError(f"{path}: HDF5, but without fastkd's header; expected a file that fastkd wrote") from None
    except (TypeError, ValueError, OSError, RuntimeError, RecursionError) as error:
        raise FormatError(f"{path}: damaged header ({error})") from None


def _json_object(text: str) -> dict[str, Any]:
    def refuse(word: str) -> None:
        raise ValueError(f"{word} where a number belongs")

    value = json.loads(text, parse_constant=refuse)
    if not isinstance(value, dict):
        raise TypeError(f"{type(value).__name__} where a JSON object belongs")
    return value


def _fingerprints(text: str) -> dict[str, str]:
    value = _json_object(text)
    if not all(isinstance(one, str) for one in value.values()):
        raise TypeError("inputs that are no fingerprints")
    return value


@contextmanager
def open_artefact(
    path: str | Path, kind: str | None, format_version: int | tuple[int, ...] | None = None
) -> Iterator[tuple[h5py.File, Header]]:
    """Opens an HDF5 artefact for reading, without HDF5's file locks, and checks what it is.

    Args:
        path: the file.
        kind: the kind expected, or None for any.
        format_version: the version expected, or those that are; None for any.

    Raises:
        NotFoundError: no such file.
        FormatError: not HDF5, cut, damaged, of another kind or of another format version.
    """
    path = Path(path)
    if not path.is_file():
        raise NotFoundError(f"{path}: no such file")
    with reading(path), path.open("rb") as raw:
        magic = raw.read(8)
    if magic != HDF5_MAGIC:
        wanted = f"a {kind}" if kind else "an HDF5 artefact"
        raise FormatError(
            f"{path}: not an HDF5 file (first bytes {magic[:4].hex() or 'none'}); expected {wanted} that fastkd wrote"
        )
    try:
        file = _opened(path)
    except (OSError, RuntimeError, KeyError) as error:
        raise FormatError(f"{path}: cut or damaged HDF5 ({error})") from None
    with file:
        header = read_header(file, path)
        if kind is not None and header.kind != kind:
            raise FormatError(f"{path}: is a {header.kind}, expected a {kind}")
        known = (format_version,) if isinstance(format_version, int) else format_version
        if known is not None and header.format_version not in known:
            raise FormatError(
                f"{path}: {header.kind} of format version {header.format_version}, this fastkd reads version "
                f"{' and '.join(map(str, known))}"
            )
        yield file, header


def _opened(path: Path) -> h5py.File:
    """The file opened by HDF5, which does not try again itself where a signal came meanwhile."""
    while True:
        with suppress(InterruptedError):
            return h5py.File(path, "r", locking=False)


def read_artefact(
    path: str | Path,
    *,
    kind: str,
    format_version: int | tuple[int, ...],
    arrays: dict[str, tuple[str, int]] | Callable[[Header], dict[str, tuple[str, int]]],
) -> tuple[Header, dict[str, np.ndarray]]:
    """Reads a small artefact whole and checks its fingerprint. Its arrays take no more memory than the file has bytes.

    Args:
        arrays: name → (dtype, rank) of each dataset to be read; or a function of the header that says so.

    Raises:
        NotFoundError, FormatError: as `open_artefact`.
        CorruptError: the content does not match the fingerprint in the header.
    """
    with open_artefact(path, kind, format_version) as (file, header):
        wanted = arrays(header) if callable(arrays) else arrays
        sizes = [
            size_bytes(find_dataset(file, name, dtype=dtype, ndim=ndim, path=path))
            for name, (dtype, ndim) in wanted.items()
        ]
        if sum(sizes) > file_bytes(file):
            raise FormatError(
                f"{path}: datasets of {sum(sizes):,} bytes in a file of {file_bytes(file):,}: they overlap"
            )
        data = {
            name: read_dataset(file, name, dtype=dtype, ndim=ndim, path=path) for name, (dtype, ndim) in wanted.items()
        }
    found = content_fingerprint(header.kind, header.inputs, header.params, data)
    if found != header.fingerprint:
        raise CorruptError(
            f"{path}: content has fingerprint {found[:12]}…, its header says {header.fingerprint[:12]}…; the file is damaged"
        )
    return header, data


def require_input(header: Header, path: str | Path, role: str, expected: str, expected_path: str | Path) -> None:
    """Refuses an artefact that was made from something else.

    Raises:
        MismatchError: `header.inputs[role]` is not `expected`.
    """
    found = header.inputs.get(role)
    if found != expected:
        raise MismatchError(
            f"{path}: this {header.kind} was made for another {role} ({(found or 'none')[:12]}), "
            f"not for {expected_path} ({expected[:12]})"
        )
