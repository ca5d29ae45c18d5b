"""The text of a manifest: JSON on a few lines, whose checksums tell damage from what was written."""

import json
import re
import zlib
from pathlib import Path
from typing import Any

from fastkd.errors import FormatError, OptionError
from fastkd.writing import reading

KIND, MANIFEST_VERSION, FIELDS_VERSION = "beton", 1, 2
"""FIELDS_VERSION: of a manifest whose `fields` a reader must follow, since they are not the first of their kinds."""
COLUMNS = ("names", "payload_crc32")  # one value a sample
_SURROGATE = re.compile("[\ud800-\udfff]")  # which UTF-8 cannot say


_SIGNS = (b'"fastkd_kind": "beton"', b'"tables_crc32"', b'"payload_crc32"')
"""What no other file has; a damaged manifest has some of it."""


def manifest_text(manifest: dict[str, Any]) -> str:
    """A manifest as JSON: what opening a beton needs on the first line, its columns of a value a sample on the next ones.

    The first line has checksums: `names_crc32` of the names, `crc32` of all the other entries of that line. A byte 0xNN of a
    name that is no UTF-8 is there what Python reads it as, the lone surrogate U+DCNN, in JSON's escape `\\udcNN`.
    """
    head = {name: value for name, value in manifest.items() if name not in (*COLUMNS, "crc32")}
    if "names" in manifest:
        head["names_crc32"] = json_crc32(manifest["names"])
    head["crc32"] = json_crc32(head)
    columns = [
        f"{json.dumps(name)}: {json.dumps(manifest[name], ensure_ascii=False)}" for name in COLUMNS if name in manifest
    ]
    text = ",\n".join([json.dumps(head, ensure_ascii=False)[:-1], *columns]) + "}\n"
    return _SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def require_manifest(path: Path) -> None:
    """Refuses to write a manifest over a file that is none of fastkd's, whole or damaged.

    Raises:
        OptionError: the file is somebody's.
    """
    with reading(path):
        content = path.read_bytes() if path.exists() else None
    if content is not None and not any(sign in content for sign in _SIGNS):
        raise OptionError(
            f"{path}: is there, and no manifest of fastkd's, which a beton of this name would put in its place; choose another "
            f"name for the beton, or move the file away"
        )


def json_crc32(value: Any) -> int:
    """CRC-32 of a value, however the JSON that it came from was laid out."""
    return zlib.crc32(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


def parse_manifest(path: Path, num_samples: int, *, columns: bool) -> dict[str, Any]:
    """The manifest in a file, checked; without its columns unless they are asked for.

    Raises:
        FormatError: not one of fastkd's, of another format version, or damaged.
    """
    try:
        with reading(path), path.open(encoding="utf-8") as file:
            head = file.readline()
            # A manifest that something else has laid out anew is read whole.
            whole = columns or not head.endswith(",\n")
            manifest = json.loads(head + file.read() if whole else head[:-2] + "}")
        kind, version = (manifest[key] for key in ("fastkd_kind", "format_version"))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(path, error) from None
    require_version(path, kind, version)
    try:
        _check_manifest(manifest, num_samples)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(path, error) from None
    return manifest


def recorded_fields(path: Path, num_samples: int, tables_crc32: int, size_bytes: int) -> dict[str, str]:
    """Role → field that a beton's manifest records; empty where it records none, is not there, damaged or another beton's."""
    if not path.is_file():
        return {}
    try:
        manifest = parse_manifest(path, num_samples, columns=False)
    except FormatError:  # told where the manifest is read
        return {}
    is_own = (manifest.get("tables_crc32"), manifest.get("size_bytes")) == (tables_crc32, size_bytes)
    return manifest.get("fields", {}) if is_own else {}


def require_version(path: Path, kind: object, version: object) -> None:
    """Raises FormatError for a manifest of another kind or format version."""
    if kind != KIND or version not in (MANIFEST_VERSION, FIELDS_VERSION):
        raise FormatError(
            f"{path}: {kind} manifest of version {version}, this fastkd reads {KIND} manifests of versions {MANIFEST_VERSION} and "
            f"{FIELDS_VERSION}"
        )


def _damaged(path: Path, error: Exception) -> FormatError:
    reason = f"no {error}" if isinstance(error, KeyError) else error
    return FormatError(
        f"{path}: not a manifest of fastkd's ({reason}); `fastkd verify --write-manifest` makes it again"
    )


def _check_manifest(manifest: dict[str, Any], num_samples: int) -> None:
    """Raises ValueError, KeyError or TypeError where a manifest, with its columns or without, is not as it was written."""
    head = {name: value for name, value in manifest.items() if name not in (*COLUMNS, "crc32")}
    if manifest["crc32"] != json_crc32(head):
        raise ValueError("it does not match its checksum")
    if "names" in manifest and manifest["names_crc32"] != json_crc32(manifest["names"]):
        raise ValueError("its names do not match their checksum")
    names, sums = manifest.get("class_names", []), manifest.get("payload_crc32", [])
    if not isinstance(manifest["fingerprint"], str):
        raise TypeError("the fingerprint is not a string")
    if not (isinstance(names, list) and all(map(_is_text, names))):
        raise TypeError("class_names is not a list of strings")
    fields = manifest["fields"] if manifest["format_version"] == FIELDS_VERSION else manifest.get("fields")
    if fields is not None and (
        not isinstance(fields, dict) or set(fields) != {"image", "label"} or not all(map(_is_text, fields.values()))
    ):
        raise TypeError("fields does not name those of image and label")
    if not (isinstance(sums, list) and len(sums) in (0, num_samples)):
        raise TypeError(f"payload_crc32 is not a list of {num_samples} checksums")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
