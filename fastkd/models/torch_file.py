"""Torch files that anybody may have written, read without running their code and without taking more memory than they have bytes.

torch's weights-only unpickler runs no code of a file. But it makes buffers of any size that the file names, unpacks what is
compressed, and gives tensors of any shape that repeat one number; this is looked at here.
"""

import os
import pickletools
import re
import zipfile
from collections.abc import Iterator
from typing import Any, BinaryIO

import torch
from torch import Tensor

from fastkd.errors import FormatError

_GROWING = re.compile(r"(hex|base_?64|uu|quopri|quoted_?printable)(_codec)?", re.IGNORECASE)
"""Encodings that make bytes longer, and that can be nested."""


def load_torch(file: BinaryIO) -> Any:
    """What a torch file holds, tensors on the CPU.

    Its tensors together with all else take no more memory than some times the file's size: nothing in it is compressed, no
    tensor is larger than the numbers stored for it (none that are expanded), none has more numbers than the file.

    Args:
        file: open, at its start; it can be sought.

    Raises:
        FormatError: one that breaks these bounds; a line without the file's name. Whatever torch raises: malformed.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    for name, pickle in _pickles(file, size):
        _require_plain_calls(name, pickle)
    file.seek(0)
    found = torch.load(file, map_location="cpu", weights_only=True)
    for name, tensor in _tensors(found):
        _require_stored(name, tensor, size)
    return found


def _pickles(file: BinaryIO, size: int) -> Iterator[tuple[str, BinaryIO]]:
    """The pickles of a file by name, each to be read to its end before the next: torch's zip, or its five of old."""
    if file.read(2) != b"PK":
        file.seek(0)
        for number in range(5):
            yield f"pickle {number}", file
        return
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        said = sum(member.file_size for member in members)
        if said > size:
            raise FormatError(
                f"its members are said to hold {said:,} bytes, in a file of {size:,}: compressed or damaged; save it with torch.save"
            )
        for member in members:
            if member.filename.endswith(".pkl"):
                with archive.open(member) as pickle:
                    yield member.filename, pickle  # type: ignore[misc]  # a reader of bytes, as pickletools needs it


def _require_plain_calls(name: str, pickle: BinaryIO) -> None:
    """Refuses what makes much of little: buffers of a given size, and texts encoded again and again."""
    calls: set[str] = set()
    texts: set[str] = set()
    for _, argument, _ in pickletools.genops(pickle):
        if isinstance(argument, str):
            (calls if " " in argument else texts).add(argument)
    if {"builtins bytearray", "__builtin__ bytearray"} & calls:
        raise FormatError(f"holds a bytearray ({name}), which no weights need: save the state_dict alone")
    if "_codecs encode" in calls and any(map(_GROWING.fullmatch, texts)):
        raise FormatError(f"holds bytes encoded as text ({name}), which no weights need: save the state_dict alone")


def _tensors(found: Any) -> Iterator[tuple[str, Tensor]]:
    """All tensors in dicts, lists, tuples and sets, with the name of each; what holds itself is looked at once."""
    pending, seen = [("a tensor", found)], set()
    while pending:
        name, value = pending.pop()
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, dict | list | tuple | set) and id(value) not in seen:
            seen.add(id(value))
            pending += [
                (str(key)[:100], one) for key, one in (value.items() if isinstance(value, dict) else enumerate(value))
            ]


def _require_stored(name: str, tensor: Tensor, most: int) -> None:
    if tensor.device.type != "cpu":
        raise FormatError(f"{name} has no values, it is on {tensor.device}: save it from the CPU")
    if tensor.layout is not torch.strided:  # made of tensors that are stored; nothing here makes a dense one of it
        return
    stored, need = tensor.untyped_storage().nbytes(), tensor.numel() * tensor.element_size()
    if not need <= stored <= most:
        raise FormatError(
            f"{name} of shape {tuple(tensor.shape)} takes {need:,} bytes, the file of {most:,} has {stored:,} for it: save a "
            f"copy of it (contiguous().clone())"
        )
