"""Resume states on disk: what a run needs to go on.

A resume state is a torch file, read by torch's weights-only unpickler alone, and behind it magic and fingerprint.
"""

import io
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
