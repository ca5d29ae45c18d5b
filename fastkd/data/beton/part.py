"""Parts: betons of some samples of another one, read under the numbers that the samples have there."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from fastkd.data.beton.fields import FIELD_INT, SAMPLE_ID_FIELD, listed
from fastkd.data.beton.read import Beton, manifest_path, read_manifest
from fastkd.errors import FastKDError, FormatError

MOST_ROWS, MOST_TIMES = 2**24, 1000
"""A part is read as rows of the full beton, some 100 bytes each: it may be of so many samples, or so many times its own."""


def require_rows(path: object, num_samples: int, num_full: int) -> None:
    """Refuses a part of far more samples than it has: a small file could name any number, and would be given memory for it.

    Args:
        path: for the message. num_samples, num_full: the samples in the part, and in the full beton.

    Raises:
        FormatError: the full beton has more than MOST_ROWS samples and more than MOST_TIMES those of the part.
    """
    most = max(MOST_ROWS, MOST_TIMES * num_samples)
    if num_full > most:
        raise FormatError(
            f"{path}: a part of {num_samples:,} of {num_full:,} samples, expected at most {most:,} in the full beton; make a larger part"
        )


def numbered_as_full(beton: Beton) -> Beton:
    """A part with the rows of the full beton, of which it has those in `present`; any other beton as it is.

    The views of a sample follow from its number, so a part must never be read under the numbers of its own rows.

    Raises:
        FormatError: a manifest or a field `sample_id` that is damaged; as `require_rows`.
    """
    part = (read_manifest(beton) or {}).get("part_of")
    if part is None:
        return beton
    num_samples = part.get("num_samples") if isinstance(part, dict) else None
    fields = dict(zip(beton.field_names, range(len(beton.field_names)), strict=True))
    field = fields.get(SAMPLE_ID_FIELD)
    if field is None or beton.field_types[field] != FIELD_INT:
        raise FormatError(f"{beton.path}: its manifest calls it a part, but it has no field {SAMPLE_ID_FIELD!r}")
    ids = beton.metadata[f"f{field}"].astype(np.int64)
    if not isinstance(num_samples, int) or not beton.num_samples <= num_samples < 2**31:
        raise FormatError(f"{manifest_path(beton.path)}: damaged: a part of {num_samples} samples")
    require_rows(beton.path, beton.num_samples, num_samples)
    if ids.min() < 0 or ids.max() >= num_samples or len(np.unique(ids)) != len(ids):
        raise FormatError(f"{beton.path}: its sample_ids are not distinct numbers below {num_samples}")

    def spread(rows: np.ndarray, fill: int = 0) -> np.ndarray:
        out = np.full(num_samples, fill, rows.dtype) if fill else np.zeros(num_samples, rows.dtype)
        out[ids] = rows
        return out

    return replace(
        beton,
        num_samples=num_samples,
        metadata=spread(beton.metadata),
        labels=spread(beton.labels, -1),
        heights=spread(beton.heights),
        widths=spread(beton.widths),
        modes=spread(beton.modes),
        ptrs=spread(beton.ptrs),
        sizes=spread(beton.sizes),
        present=spread(np.ones(len(ids), bool)),
    )


def where_from(beton: Beton, sample_id: int) -> str:
    """The name of the image that a sample was made of, " (in brackets)", for a message; empty where no whole manifest has it.

    It reads the manifest's names, which takes a second where there are a million.
    """
    ids = beton.sample_ids
    try:
        names = (read_manifest(replace(beton, path=Path(beton.place), num_samples=len(ids)), columns=True) or {}).get(
            "names", []
        )
    except FastKDError:
        return ""
    # Rows lie in the file in their order, which in a part is not that of the sample_ids.
    row = sample_id if beton.present is None else int(np.count_nonzero(beton.ptrs[ids] < beton.ptrs[sample_id]))
    return f" ({names[row]})" if len(names) == len(ids) else ""


def left_behind(beton: Beton) -> str:
    """The fields, with their kinds, that a part of a beton does not take over; empty where there are none."""
    taken = {beton.image_field, beton.label_field}
    left = [i for i in range(len(beton.field_names)) if i not in taken]
    if beton.present is not None:  # its numbers in the full beton, which a part of it has as well
        left = [i for i in left if beton.field_names[i] != SAMPLE_ID_FIELD]
    return listed([beton.field_names[i] for i in left], [beton.field_types[i] for i in left])
