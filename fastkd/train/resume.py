"""Resume states on disk: what a run needs to go on.

A resume state is a torch file, read by torch's weights-only unpickler alone, and behind it magic and fingerprint.
"""

import io
import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastkd.errors import CorruptError, FormatError, NotFoundError
from fastkd.fingerprint import fingerprint
from fastkd.models.checkpoint import torch_reason
from fastkd.models.torch_file import load_torch
from fastkd.writing import atomic_path

RESUME_MAGIC = b"fastkd-resume-1\n"

_DIGEST_LENGTH = 32
_PLAIN_TYPES = (bool, int, float, str, bytes, type(None), Tensor)


def save_resume(path: str | Path, state: dict[str, Any]) -> None:
    """Writes what a run needs to go on, atomically: a torch file, followed by magic and fingerprint, 48 bytes.

    torch.load reads the file too; the tail is ours because torch checks no checksum of what it reads.

    Args:
        path: the file.
        state: dicts, lists and tuples of tensors, numbers, strings, bytes and None.

    Raises:
        TypeError: a value of another type (numpy's numbers too), which could be written but not be read back.
        NotFoundError: the folder does not exist.
    """
    _require_plain(state, "state")
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    with atomic_path(path) as partial:
        partial.write_bytes(content + RESUME_MAGIC + fingerprint([content]).encode())


def load_resume(path: str | Path) -> dict[str, Any]:
    """Reads what `save_resume` wrote, tensors on the CPU.

    Raises:
        NotFoundError: no such file.
        FormatError: not a resume file, cut, or of another format version.
        CorruptError: content that does not match its fingerprint.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise NotFoundError(f"{path}: no such file, expected the resume state of a run") from None
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror}), expected the resume state of a run") from None
    tail = len(content) - len(RESUME_MAGIC) - _DIGEST_LENGTH
    if tail < 0 or content[tail:-_DIGEST_LENGTH] != RESUME_MAGIC:
        raise FormatError(f"{path}: is not a whole resume state of this version of fastkd: start the run anew")
    if fingerprint([content[:tail]]).encode() != content[-_DIGEST_LENGTH:]:
        raise CorruptError(
            f"{path}: the content does not match its fingerprint, the file is damaged: start the run anew"
        )
    try:
        state = load_torch(io.BytesIO(content[:tail]))
    except Exception as error:
        raise FormatError(f"{path}: {torch_reason(error)}") from None
    if not isinstance(state, dict):
        raise FormatError(f"{path}: holds a {type(state).__name__}, expected the resume state of a run")
    return state


def require_position(state: dict[str, Any]) -> None:
    """Refuses a state whose entries beside the parts are not what `loop.py` writes, right checksums or not.

    Raises:
        KeyError, ValueError: an entry is missing, or of another type or range.
    """

    def is_count(value: Any) -> bool:
        return type(value) is int and 0 <= value < 2**53

    def is_place(value: Any) -> bool:  # of `metrics.Place`
        if not isinstance(value, dict):
            return value is None or is_count(value)
        copy, digest = value.get("copy"), value.get("blake2b")
        is_copy = copy is None or (isinstance(copy, list) and all(isinstance(part, bytes) for part in copy))
        return is_count(value["size_bytes"]) and is_copy and (digest is None or isinstance(digest, str))

    def is_row(value: Any) -> bool:
        return isinstance(value, list) and len(value) == 4 and all(isinstance(one, float) for one in value)

    def is_accuracy(value: Any) -> bool:
        numbers = isinstance(value, dict) and all(isinstance(one, int | float) for one in value.values())
        return numbers and (not value or {"top1", "top5"} <= value.keys())

    rows = state["rows"]
    num_written = state.get("num_written", 0)
    is_whole = isinstance(rows, list) and all(map(is_row, rows)) and is_accuracy(state["accuracy"])
    is_whole &= isinstance(state.get("run"), str | None)
    is_whole &= all(is_count(value) for value in (state["epoch"], state["step"], num_written))
    if not (is_whole and num_written <= len(rows) and is_place(state["jsonl"]) and is_place(state["csv"])):
        raise ValueError("no position of a run")


def is_result(result: dict[str, Any]) -> bool:
    """Whether what is read of a result.json is what a run can have written."""
    counts = [result.get(name) for name in ("epochs", "images_per_s")]
    percents = [result.get("data_wait_percent", 0.0)]
    percents += [result[name] for name in ("val_top1", "val_top5") if result.get(name) is not None]
    files = result.get("files", {})
    return (
        "val_top1" in result
        and all(isinstance(one, int | float) and 0 <= one < 2**53 for one in counts)
        and all(isinstance(one, int | float) and 0 <= one <= 100 for one in percents)
        and isinstance(files, dict)
        and all(isinstance(one, str) for one in (*files.values(), result.get("fingerprint", "")))
    )


def load_part(part: Any, state: Any) -> None:
    """Loads a state into a network, an optimiser or the like; of an optimiser it is looked at first, as torch does not.

    Raises:
        KeyError, ValueError, RuntimeError, TypeError, AttributeError: the state of another, or none.
    """
    if isinstance(part, torch.optim.Optimizer):
        own, saved = part.state_dict()["param_groups"], state["param_groups"]
        if len(own) != len(saved) or not all(map(_same_settings, own, saved)):
            raise ValueError("settings of another optimiser")
    part.load_state_dict(state)
    if isinstance(part, torch.optim.SGD | torch.optim.AdamW):  # others have moments of rows and columns, too
        for parameter, kept in part.state.items():
            for name, value in kept.items():
                is_moment = value is None or (isinstance(value, Tensor) and value.shape == parameter.shape)
                if not (isinstance(_plain(value), int | float) if name == "step" else is_moment):
                    raise ValueError("momentum of other parameters")


def _plain(value: Any) -> Any:
    """A scalar tensor as a number: counts of steps are some, and a learning rate where the update is part of a graph."""
    return value.item() if isinstance(value, Tensor) and value.ndim == 0 else value


def _same_settings(own: dict[str, Any], saved: dict[str, Any]) -> bool:
    """Whether numbers are numbers still, and all else is the same, or left to torch, which goes by the device."""

    def same(one: Any, other: Any) -> bool:
        one, other = _plain(one), _plain(other)
        if isinstance(one, int | float) and not isinstance(one, bool):
            return isinstance(other, int | float) and math.isfinite(other)
        return one == other or (one in (None, True, False) and other in (None, True, False))

    return all(name in saved and same(value, saved[name]) for name, value in own.items())


def _require_plain(value: Any, where: str) -> None:
    if type(value) in (dict, OrderedDict):
        for key, inner in value.items():
            _require_plain(key, where)
            _require_plain(inner, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for i, inner in enumerate(value):
            _require_plain(inner, f"{where}[{i}]")
    elif type(value) not in _PLAIN_TYPES:
        raise TypeError(f"{where} is a {type(value).__name__}, which a weights-only load would refuse")
