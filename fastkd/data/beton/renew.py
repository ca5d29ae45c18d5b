"""Writing the manifest of a beton anew, with what the checksums of the old one vouch for."""

import json
from pathlib import Path
from typing import Any

from fastkd.data.beton.fields import AS_FOUND, ROLES, SAMPLE_ID_FIELD, Fields, first_fields
from fastkd.data.beton.manifest import COLUMNS, KIND, MANIFEST_VERSION, json_crc32, require_version
from fastkd.data.beton.read import (
    beton_fingerprint,
    manifest_path,
    open_beton,
    payload_digests,
    read_manifest,
    write_manifest,
)
from fastkd.errors import CorruptError, FormatError, MismatchError, OptionError
from fastkd.writing import reading

_OF_THE_FILE = {
    *("fastkd_kind", "format_version", "fingerprint", "num_samples", "size_bytes", "tables_crc32"),
    *("fields", "names_crc32", "crc32"),
}
"""Entries that are made anew."""


def renew_manifest(beton_path: str | Path, fields: Fields = AS_FOUND) -> tuple[dict[str, Any], str]:
    """The manifest of a beton: the one there where it is whole, else a new one with what can be kept of the old one.

    Args:
        fields: which hold the image and the label from now on, whatever the manifest records.

    Returns:
        The manifest; and what became of it, in words.

    Raises:
        FormatError: a manifest of another version; or the damaged one of a part, which is nothing without it.
        CorruptError: the beton's content is not that of its manifest.
        OptionError: other fields for a part, which has those of its full beton; or as `open_beton`.
    """
    beton = open_beton(beton_path, fields, overrule=True)
    path = manifest_path(beton.path)
    if not path.is_file():
        return write_manifest(beton, beton.path), "made, with numbers for class names"
    manifest = None
    try:
        manifest = read_manifest(beton, columns=True)
        # Without a record of its fields the manifest of a beton that has others is of use only with the options.
        if manifest is not None and ("fields" in manifest or set(beton.field_names) <= {*ROLES, SAMPLE_ID_FIELD}):
            return manifest, "whole, left as it is"
    except (FormatError, MismatchError):
        pass
    head, names = _salvaged(path)
    is_whole = "crc32" in head
    is_own = (head.get("tables_crc32"), head.get("size_bytes")) == (beton.tables_crc32, beton.size_bytes)
    used = made_with = beton.used_fields
    if is_whole and is_own:
        made_with = head.get("fields") or first_fields(beton.field_names, beton.field_types)
    before = (
        beton
        if made_with == used
        else open_beton(beton.path, Fields(made_with["image"], made_with["label"]), overrule=True)
    )
    pairs = list(payload_digests(before))
    has_same_content = head.get("fingerprint") == beton_fingerprint(before, b"".join(digest for digest, _ in pairs))
    if is_whole and is_own and not has_same_content:
        raise CorruptError(
            f"{beton.path}: its content does not have the fingerprint in {path.name}, which cannot be renewed for it; build "
            f"it again, or move {path.name} away"
        )
    if is_whole and not is_own and not has_same_content:
        return write_manifest(
            beton, beton.path, pairs
        ), "made anew; the old one was another beton's, nothing of it is kept"
    if not is_whole and SAMPLE_ID_FIELD in beton.field_names:
        raise FormatError(
            f"{path}: damaged where it says what {beton.path.name} is a part of; build that again with its --mask, or move "
            f"{path.name} away"
        )
    other = [role for role in ROLES if made_with[role] != used[role]]
    if other and "part_of" in head:
        raise OptionError(
            f"{beton.path}: a part of a beton, which has that one's {other[0]}; leave --{other[0]}-field out"
        )
    kept = {name: value for name, value in head.items() if name not in _OF_THE_FILE} if is_whole else {}
    if names is not None and len(names) == beton.num_samples and (is_whole or is_own):
        kept["names"] = names
    without_classes = not is_whole or ("label" in other and kept.pop("class_names", None) is not None)
    lost = ["class names, which are numbers now"] if without_classes else []
    lost += [] if "names" in kept or (is_whole and "names_crc32" not in head) else ["file names"]
    why = "did not record its fields" if manifest is not None else "was damaged"
    if other:
        why = "was made with " + " and ".join(f"field {made_with[role]!r} as the {role}" for role in other)
    told = f"made anew; the old one {why}, lost: {' and '.join(reversed(lost)) or 'nothing'}"
    return write_manifest(beton, beton.path, None if "image" in other else pairs, **kept), told


def _salvaged(path: Path) -> tuple[dict[str, Any], list[str] | None]:
    """A manifest's entries but the columns, with `crc32` only where that is theirs; and its names, where their checksum is.

    Raises:
        FormatError: of another kind or version.
    """
    with reading(path):
        text = path.read_text(encoding="utf-8", errors="replace")
    found = _parsed(text)
    if not found:  # no JSON as a whole, but its lines may be
        for line in text.splitlines():
            entry = "{" + line.strip().removeprefix("{")
            found |= _parsed(entry.removesuffix(",") + "}") or _parsed(entry)
    require_version(path, found.get("fastkd_kind", KIND), found.get("format_version", MANIFEST_VERSION))
    head = {name: value for name, value in found.items() if name not in COLUMNS}
    if head.get("crc32") != json_crc32({name: value for name, value in head.items() if name != "crc32"}):
        head.pop("crc32", None)
    names = found.get("names")
    return head, names if isinstance(names, list) and head.get("names_crc32") == json_crc32(names) else None


def _parsed(text: str) -> dict[str, Any]:
    """A JSON object; an empty one where it is none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
