"""Arguments from Python: converted to what the code below works with, or refused with what was found and expected."""

import operator
import os
from numbers import Real
from pathlib import Path

import numpy as np

from fastkd.errors import OptionError


def as_ids(value: object, name: str = "ids") -> np.ndarray:
    """sample_ids as a contiguous int64 array (n,).

    Args:
        value: a one-dimensional array or torch tensor of integers, on any device, or a sequence of them.

    Raises:
        OptionError: anything else, booleans and floats among it.
    """
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    try:
        ids = np.asarray(value)
    except (ValueError, TypeError, RuntimeError):
        raise OptionError(
            f"{name} are {_told(value)}, expected a one-dimensional integer array of sample_ids"
        ) from None
    if isinstance(value, list | tuple) and not value:
        ids = ids.astype(np.int64)
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        hint = "; turn a boolean mask into ids with numpy.flatnonzero" if ids.dtype == bool else ""
        found = _told(value) if ids.dtype == object else f"{ids.dtype} of shape {ids.shape}"
        raise OptionError(f"{name} are {found}, expected a one-dimensional integer array of sample_ids{hint}")
    return np.ascontiguousarray(ids, dtype=np.int64)


def as_whole(value: object, name: str, least: int, most: int | None = None) -> int:
    """A whole number from least to most: of Python, numpy or torch.

    Raises:
        OptionError: a boolean, a float, text, or a number out of range.
    """
    expected = f"at least {least}" if most is None else f"{least} … {most}"
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise OptionError(f"{name} is {_told(value)}, expected a whole number, {expected}") from None
    if isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool"):
        raise OptionError(f"{name} is {_told(value)}, expected a whole number, {expected}")
    if number < least or (most is not None and number > most):
        raise OptionError(f"{name} is {number}, expected {expected}")
    return number


def as_number(value: object, name: str) -> float:
    """A number of any kind, as a float.

    Raises:
        OptionError: a boolean, text or anything else.
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise OptionError(f"{name} is {_told(value)}, expected a number")
    return float(value)


def as_flag(value: object, name: str) -> bool:
    """True or False.

    Raises:
        OptionError: anything else, which Python would take for one of them.
    """
    if not isinstance(value, bool | np.bool_):
        raise OptionError(f"{name} is {_told(value)}, expected True or False")
    return bool(value)


def as_path(value: object, name: str, other: str = "") -> Path:
    """A path.

    Args:
        other: what else could have been given.

    Raises:
        OptionError: neither text nor a path.
    """
    if not isinstance(value, str | os.PathLike):
        raise OptionError(f"{name} is {_told(value)}, expected a path{f' or {other}' if other else ''}")
    return Path(value)


def _told(value: object) -> str:
    """A value and its type in a few words."""
    words = " ".join(repr(value).split())
    return f"{words if len(words) <= 40 else words[:40] + '…'} ({type(value).__name__})"
