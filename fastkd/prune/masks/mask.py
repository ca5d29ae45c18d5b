"""Masks: which samples are kept, as sample_ids in priority order.

A smaller mask of the same method and seed is a prefix of a larger one, so masks are nested across fractions, and a store
made for the larger one serves the smaller. A mask may carry a weight of each sample, for the loss.
"""

import os
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from fastkd.arguments import as_path
from fastkd.artefact import Header, read_artefact, require_input, write_artefact
from fastkd.errors import FormatError, MismatchError, OptionError
from fastkd.prune.masks.bitmap import Bitmap, bitmap_of, has_repeats_or_outside, pack_ids
from fastkd.prune.masks.weights import require_weights
from fastkd.prune.select.levels import select_level

KIND, FORMAT_VERSION, WEIGHTED_VERSION = "mask", 1, 2
MOST_SAMPLES = 2**33
"""What a mask may be of: a bitmap of so many samples takes 1 GiB, and a small file can say any number."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Mask:
    """The kept samples of one beton, as `fastkd prune` chose them.

        mask = fastkd.Mask.load("m.h5")
        len(mask), mask.fraction, 7 in mask, mask.sample_ids[:100]

    A `fastkd.Loader` takes it, or its path, as `mask`. The first n of a random or score mask are the mask of n samples.

    sample_ids: int64 (num_kept,), distinct, highest priority first. num_samples: N of the full beton.
    header: kind, fingerprint, inputs (`beton`, and `scores` or `features` where it was chosen by some) and params
    (method, seed, …) of the file it was read from. weights: float32 (num_kept,), positive and finite, of each sample in
    the loss; None where all weigh the same. path: of the file; place: the absolute one, for other processes.
    """

    sample_ids: np.ndarray
    num_samples: int
    header: Header
    path: Path | None = None
    place: str | None = None
    weights: np.ndarray | None = None

    def __len__(self) -> int:
        """The number of kept samples."""
        return len(self.sample_ids)

    def __contains__(self, sample_id: object) -> bool:
        """Whether a sample is kept; takes a look at all, for many at once use `bitmap`."""
        return isinstance(sample_id, Integral) and bool((self.sample_ids == int(sample_id)).any())

    def __repr__(self) -> str:
        """The mask in a line."""
        source = "" if self.path is None else f"{self.path}: "
        method = self.header.params.get("method")
        how = ([str(method)] if method else []) + ([] if self.weights is None else ["weighted"])
        return f"Mask({source}{', '.join([f'{len(self):,} of {self.num_samples:,} samples', *how])})"

    @property
    def fraction(self) -> float:
        """Kept samples over all, 0 < fraction <= 1."""
        return len(self.sample_ids) / self.num_samples

    def bitmap(self) -> Bitmap:
        """The kept samples as a set."""
        return pack_ids(self.sample_ids, self.num_samples)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process reads the same file again, where there is one."""
        if self.place is None:
            return _rebuilt, (self.sample_ids, self.num_samples, self.header, self.weights)
        return _reread, (self.place, self.header.fingerprint)

    @classmethod
    def load(cls, path: str | Path) -> "Mask":
        """Reads a mask and checks it; one of MOST_SAMPLES or more is refused.

        Raises:
            NotFoundError, FormatError, CorruptError: no file; not a mask; damaged.
        """

        path = as_path(path, "a mask")

        def datasets(header: Header) -> dict[str, tuple[str, int]]:
            return {"sample_ids": ("<i8", 1)} | ({"weights": ("<f4", 1)} if header.format_version > 1 else {})

        versions = (FORMAT_VERSION, WEIGHTED_VERSION)
        header, arrays = read_artefact(path, kind=KIND, format_version=versions, arrays=datasets)
        ids, num_samples = arrays["sample_ids"], header.params.get("num_samples")
        if (
            not isinstance(num_samples, int)
            or not 0 < len(ids) <= num_samples < MOST_SAMPLES
            or has_repeats_or_outside(ids, num_samples)
        ):
            raise FormatError(f"{path}: not a mask: its sample_ids are not distinct numbers below {num_samples}")
        weights = arrays.get("weights")
        if weights is not None:
            require_weights(weights, ids, path)
        place = os.path.abspath(path)
        return cls(sample_ids=ids, num_samples=num_samples, header=header, path=path, place=place, weights=weights)

    def require_beton(self, fingerprint: str, beton_path: str | Path) -> None:
        """Refuses a beton that the mask was not made for.

        Raises:
            MismatchError: the fingerprints differ.
        """
        require_input(self.header, self.path or "mask", "beton", fingerprint, beton_path)


def _rebuilt(ids: np.ndarray, num_samples: int, header: Header, weights: np.ndarray | None) -> Mask:
    return Mask(sample_ids=ids, num_samples=num_samples, header=header, weights=weights)


def _reread(path: str, fingerprint: str) -> Mask:
    """The mask that another process had read.

    Raises:
        MismatchError: another one is there by now.
    """
    mask = Mask.load(path)
    if mask.header.fingerprint != fingerprint:
        raise MismatchError(f"{path}: another mask is there than when it was handed over")
    return mask


def save_mask(
    path: str | Path,
    sample_ids: np.ndarray,
    *,
    num_samples: int,
    beton_fingerprint: str,
    params: dict[str, Any],
    inputs: dict[str, str] | None = None,
    weights: np.ndarray | None = None,
    force: bool = False,
) -> Mask:
    """Writes a mask atomically and returns it.

    Args:
        sample_ids: int64 (num_kept,), priority order.
        params: how it was chosen: method, seed, keep, balance.
        inputs: fingerprints of what it was chosen by, besides the beton: scores, features, masks.
        weights: (num_kept,), of each sample in the loss. A file without them is of format version 1, one with them of 2.
        force: replace what is there.

    Raises:
        MismatchError: something else is there; and as `write_artefact`.
        FormatError: weights that are not positive, finite numbers, one of each sample.
    """
    ids = np.ascontiguousarray(sample_ids, np.int64)
    arrays = {"sample_ids": ids}
    if weights is not None:
        arrays["weights"] = np.ascontiguousarray(weights, np.float32)
        require_weights(arrays["weights"], ids, path)
    header = write_artefact(
        path,
        kind=KIND,
        format_version=FORMAT_VERSION if weights is None else WEIGHTED_VERSION,
        inputs={"beton": beton_fingerprint} | (inputs or {}),
        params=params | {"num_samples": num_samples},
        arrays=arrays,
        force=force,
    )
    return Mask(
        sample_ids=ids,
        num_samples=num_samples,
        header=header,
        path=Path(path),
        place=os.path.abspath(path),
        weights=arrays.get("weights"),
    )


def parse_keep(text: str, num_samples: int) -> int:
    """How many samples `--keep` asks for.

    Args:
        text: a fraction with a point in (0, 1] (`0.1`, `1.0`), or a count without one (`5000`).

    Returns:
        1 … num_samples; a fraction is rounded to the nearest count.

    Raises:
        OptionError: not a number, zero or less, above 1.0 or above the number of samples, or a fraction of less than
            half a sample.
    """
    try:
        value = _exact(text)
    except (ValueError, ArithmeticError):
        raise OptionError(
            f"--keep {text!r} is not a number; expected a fraction such as 0.1 or a count such as 5000"
        ) from None
    is_count = text.strip().lstrip("+").isdigit()
    if is_count and not 1 <= value <= num_samples:
        raise OptionError(f"--keep {text}: expected a count of 1 … {num_samples} samples, or a fraction with a point")
    if not is_count and not 0 < value <= 1:
        raise OptionError(f"--keep {text}: expected a fraction above 0 and up to 1.0, or a whole count of samples")
    count = int(value) if is_count else round(value * num_samples)
    if count < 1:
        raise OptionError(f"--keep {text} of {num_samples} samples keeps none")
    return count


def _exact(text: str) -> Fraction:
    """A number as it is written; one beyond 10^±30 as the power of ten there, since its own digits could fill the memory.

    Raises:
        ValueError, ArithmeticError: no finite number, or a ratio of no short whole numbers.
    """
    if "/" in text and len(text) <= 40:
        return Fraction(text)
    value = Decimal(text)
    if not value.is_finite():
        raise ValueError(text)
    far = value.adjusted()  # the power of ten of its first digit
    return Fraction(value) if abs(far) <= 30 else Fraction(10) ** (31 if far > 0 else -31) * (1 if value > 0 else -1)


def random_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """All samples in a random, class-balanced priority order.

    Each class is shuffled by hashes of its sample_ids; round r then takes the r-th sample of every class that still has
    one, the classes in an order drawn anew each round. Every prefix holds equal counts of all classes to within one
    sample, except for classes that are used up (water-filling).

    Args:
        labels: int64 (N,), the class of each sample. seed: 0 … 2^63-1.

    Returns:
        int64 (N,), a permutation of the sample_ids.
    """
    return select_level(labels, len(labels), seed=seed)


def class_counts(labels: np.ndarray, sample_ids: np.ndarray | slice, num_classes: int) -> np.ndarray:
    """Kept samples of each class: int64 (num_classes,)."""
    return np.bincount(labels[sample_ids], minlength=num_classes)


def combine_ids(operation: str, one: np.ndarray, other: np.ndarray, num_samples: int) -> np.ndarray:
    """Two masks' sample_ids as one, in priority order.

    Args:
        operation: `union`: those of `one`, then those that `other` adds; `intersection`, `difference`: those of `one`
            that are, or are not, in `other`.
        one, other: int64, distinct sample_ids in priority order.

    Returns:
        int64, distinct sample_ids.
    """
    if operation == "union":
        return np.concatenate([one, other[~pack_ids(one, num_samples).contains(other)]])
    inside = pack_ids(other, num_samples).contains(one)
    return one[inside if operation == "intersection" else ~inside]


def complement_ids(sample_ids: np.ndarray, num_samples: int) -> np.ndarray:
    """The samples that a mask leaves out: int64, increasing."""
    return bitmap_of(~pack_ids(sample_ids, num_samples).bits, num_samples).ids()
