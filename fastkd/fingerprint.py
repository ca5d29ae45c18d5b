"""Content fingerprints."""

import hashlib
from collections.abc import Iterable

import numpy as np


def fingerprint(parts: Iterable[bytes | str | np.ndarray]) -> str:
    """BLAKE2b-128 over the parts, each preceded by its length, so that no two lists of parts share an input.

    Args:
        parts: strings (as UTF-8; paths may have bytes that are none), bytes, or arrays (dtype, shape, then the bytes in C order).

    Returns:
        32 lower-case hexadecimal digits.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, np.ndarray):
            head = f"{part.dtype.str}{part.shape}".encode()
            digest.update((len(head) | 1 << 63).to_bytes(8, "little") + head)  # no string is so long
            digest.update(np.ascontiguousarray(part).tobytes())
        else:
            data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
            digest.update(len(data).to_bytes(8, "little"))
            digest.update(data)
    return digest.hexdigest()
