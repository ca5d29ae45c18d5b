"""Reads numeric arrays out of MATLAB 5 files, which is how SVHN comes.

scipy's `loadmat` reads far more of the format, but ends in a segmentation fault on some damaged files, and is a large
dependency for two arrays. The layout here is that of MathWorks' "MAT-File Format", level 5: a header of 128 bytes, then
elements of a tag (type, number of bytes) and data; a matrix is an element of elements, and may be wrapped in zlib.
"""

import math
import struct
import zlib

import numpy as np

from fastkd.data.sources.files import reason
from fastkd.errors import FormatError

_HEADER_BYTES = 128
_MATRIX, _COMPRESSED, _INT8, _INT32, _UINT32 = 14, 15, 1, 5, 6
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_NUMERIC_CLASSES = range(6, 16)  # double, single and the integers of 8 to 64 bits
_COMPLEX = 0x800
_MAX_INFLATED_BYTES = 1 << 30  # the largest known, SVHN's train split, has 225 MB


def read_mat(content: bytes, names: list[str], what: str) -> list[np.ndarray]:
    """The named arrays of a MATLAB 5 file (little-endian, compressed or not), read-only and in Fortran order.

    Args:
        content: the bytes of the file.
        names: the variables to read; others are skipped.
        what: the file's name in messages.

    Returns:
        One array a name, of the number type that the file stores.

    Raises:
        FormatError: another format, a cut or malformed file, or one without these variables as real numbers.
    """
    if content[124:_HEADER_BYTES] != b"\x00\x01IM":
        raise FormatError(f"{what}: found no MATLAB 5 header, expected a MATLAB 5 file; download it again")
    found: dict[str, np.ndarray] = {}
    try:
        rest = memoryview(content)[_HEADER_BYTES:]
        while rest and len(found) < len(names):
            kind, data, rest = _element(rest, is_padded=False)
            if kind == _COMPRESSED:
                kind, data, _ = _element(_inflated(data), is_padded=False)
            if kind != _MATRIX:
                raise ValueError(f"an element of type {kind} where a variable belongs")
            name, array = _matrix(data, names)
            if array is not None:
                found[name] = array
    except (ValueError, struct.error, zlib.error) as error:
        raise FormatError(
            f"{what}: found a cut or malformed MATLAB 5 file ({reason(error)}); download it again"
        ) from None
    if len(found) < len(names):
        raise FormatError(f"{what}: found no {' or no '.join(set(names) - set(found))}, expected {' and '.join(names)}")
    return [found[name] for name in names]


def _element(view: memoryview, *, is_padded: bool) -> tuple[int, memoryview, memoryview]:
    """Type and data of the first element, and what follows it; inside a matrix elements are padded to 8 bytes."""
    kind, size = struct.unpack_from("<II", view)
    if kind >> 16:  # the short form: both in one word, then at most 4 bytes of data
        kind, size, start, end = kind & 0xFFFF, kind >> 16, 4, 8
        if size > 4:
            raise ValueError(f"a short element of {size} bytes")
    else:
        start, end = 8, 8 + size
    if start + size > len(view):
        raise ValueError(f"an element of {size} bytes with {len(view) - start} left")
    return kind, view[start : start + size], view[end + (-end % 8 if is_padded else 0) :]


def _inflated(data: memoryview) -> memoryview:
    stream = zlib.decompressobj()
    content = stream.decompress(data, _MAX_INFLATED_BYTES)
    if not stream.eof:
        raise ValueError("a compressed variable that is cut or too large")
    return memoryview(content)


def _matrix(data: memoryview, names: list[str]) -> tuple[str, np.ndarray | None]:
    flags_kind, flags, rest = _element(data, is_padded=True)
    sizes_kind, sizes, rest = _element(rest, is_padded=True)
    name_kind, name_bytes, rest = _element(rest, is_padded=True)
    if (flags_kind, sizes_kind, name_kind) != (_UINT32, _INT32, _INT8) or len(flags) != 8:
        raise ValueError("a variable without flags, sizes or name")
    name = bytes(name_bytes).decode("latin-1")
    if name not in names:
        return name, None
    flag_word = struct.unpack_from("<I", flags)[0]
    kind, values, _ = _element(rest, is_padded=True)
    if flag_word & 0xFF not in _NUMERIC_CLASSES or flag_word & _COMPLEX or kind not in _NUMBERS:
        raise ValueError(f"{name} is no array of real numbers")
    shape = struct.unpack(f"<{len(sizes) // 4}i", sizes)
    array = np.frombuffer(values, np.dtype("<" + _NUMBERS[kind]))
    if not 2 <= len(shape) <= 8 or min(shape) < 0 or math.prod(shape) != len(array):
        raise ValueError(f"{name} has {len(array)} values for its sizes")
    return name, array.reshape(shape, order="F")
