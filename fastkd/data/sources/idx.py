"""Reads IDX files, which is how MNIST and Fashion-MNIST come."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from fastkd.data.sources.files import reason
from fastkd.errors import FormatError, SourceError

_MAX_BYTES = 1 << 30  # of values; the largest known, MNIST's train split, has 47 MB


def read_idx(path: Path, num_axes: int) -> np.ndarray:
    """An IDX file of uint8, gzipped if its name ends in .gz, as a read-only array.

    The layout (after the MNIST page): two zero bytes, 8 for uint8, the number of axes, a big-endian uint32 an axis,
    then the values, the last axis fastest.

    Raises:
        FormatError: another magic number, a size that disagrees with the header, or a damaged gzip stream.
        SourceError: the file cannot be read.
    """
    header_bytes = 4 + 4 * num_axes
    magic = bytes((0, 0, 8, num_axes))
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            header = file.read(header_bytes)
            if header[:4] != magic:
                raise FormatError(
                    f"{path}: found the first bytes {header[:4].hex() or 'missing'}, expected {magic.hex()}: an IDX "
                    f"file of uint8 with {num_axes} axes"
                )
            if len(header) < header_bytes:
                raise FormatError(f"{path}: found {len(header)} bytes, expected an IDX header of {header_bytes}")
            shape = struct.unpack(f">{num_axes}I", header[4:])
            if math.prod(shape) > _MAX_BYTES:
                raise FormatError(f"{path}: found the sizes {shape}, expected at most {_MAX_BYTES} bytes of values")
            body = file.read(math.prod(shape) + 1)  # one more: what is too long shows, and gzip checks its CRC
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise FormatError(f"{path}: found a cut or damaged gzip file ({reason(error)}); download it again") from None
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error})") from None
    if len(body) != math.prod(shape):
        found = "more" if len(body) > math.prod(shape) else str(len(body))
        raise FormatError(
            f"{path}: found {found} bytes of values, expected {math.prod(shape)} for the sizes {shape}; "
            "download it again"
        )
    return np.frombuffer(body, np.uint8).reshape(shape)
