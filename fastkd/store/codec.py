"""Row codecs: float32 logits of one sample to a self-contained record of bytes, and back.

A record is the codec's payload, the CRC32C of payload and number (uint64: which record it is, and of which store, so that
a record in another's place is noticed), and zeros up to a multiple of 64 B. All numbers are little endian. Payloads for
C classes:

- `fp16`: C float16 logits. Error: float16 rounding (relative 2^-11).
- `int8+top4`: C uint8 codes, float16 scale, float16 offset, then for the t = min(4, C) largest logits, largest first,
  (uint16 class, float16 logit).
- `int4+top8`: the same with codes of four bits (ceil(C / 2) bytes, the even class in the low half) and the eight largest.

A class that is not among the largest decodes to offset + scale·code, a sum of float32. offset is the largest float16 that
is not above the smallest of these others, scale the smallest float16 that is not below (their largest - offset)/n with
n = 255 or 15, so the error is at most scale/2 and half a unit in the last place of that sum. The largest logits are
rounded to float16. The class with the largest logit is the same after decoding, always: where rounding lifts another to
its level, it goes up to the next float16. The codes of the largest are 0; constant rows have scale 0.
Logits that are NaN, infinite or beyond ±65000 have no code (`check_encodable`).

Plain Numba and numpy on arrays; nothing here knows of files.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fastkd.errors import OptionError
from fastkd.hashing import crc32c, crc32c_with
from fastkd.intrinsics import njit
from fastkd.store.unpack import (
    TOP_INT4,
    TOP_INT8,
    int4_top8_bytes,
    int8_top4_bytes,
    row_bytes_of,
    unpack_fp16,
    unpack_int4_top8,
    unpack_int8_top4,
)

LARGEST_LOGIT = 65_000.0
"""Below float16's 65,504 by what rounding in a codec can add."""


@dataclass(frozen=True, slots=True)
class Codec:
    """A codec for rows of `num_classes` logits.

    payload_bytes: bytes before the checksum. row_bytes: bytes of a record. unpack: compiled (data uint8, which begins with
    record 0, numbers int64 (B,) of records in it, salt uint64, out float32 (B, num_classes), good bool (B,)): fills `out`,
    and `good` with whether each record matches its checksum.
    """

    name: str
    num_classes: int
    payload_bytes: int
    row_bytes: int
    unpack: Callable[[np.ndarray, np.ndarray, np.uint64, np.ndarray, np.ndarray], None]


def make_codec(name: str, num_classes: int) -> Codec:
    """The codec called `name`; `auto` is fp16 up to 64 classes (a record has 64 B at least), else int8+top4.

    Raises:
        OptionError: an unknown name, or more classes than the codec can number.
    """
    if name == "auto":
        name = "fp16" if num_classes <= 64 else "int8+top4"
    if name not in CODECS:
        raise OptionError(f"codec {name!r}, expected one of auto, {', '.join(CODECS)}")
    if not 1 <= num_classes <= 65_536:
        raise OptionError(f"{num_classes} classes, expected 1 … 65536")
    payload_bytes = CODECS[name].payload_bytes(num_classes)
    return Codec(name, num_classes, payload_bytes, row_bytes_of(payload_bytes), CODECS[name].unpack)


def check_encodable(logits_BC: np.ndarray) -> np.ndarray:
    """Which rows no codec can hold: bool (B,), True where a logit is NaN, infinite or beyond ±65000."""
    return ~(np.abs(logits_BC) <= LARGEST_LOGIT).all(axis=1)


def encode_rows(codec: Codec, logits_BC: np.ndarray, numbers: np.ndarray, salt: int) -> np.ndarray:
    """Records of float32 logits.

    Args:
        logits_BC: float32 (B, num_classes), finite and within ±65000 (see `check_encodable`).
        numbers: int64 (B,), which records of the store they are: aug_seed · R + row.
        salt: of the store, a uint64; checksums are over number + salt, modulo 2^64.

    Returns:
        uint8 (B, row_bytes).
    """
    assert logits_BC.shape == (len(numbers), codec.num_classes)
    assert not check_encodable(logits_BC).any()
    out = np.zeros((len(logits_BC), codec.row_bytes), np.uint8)
    CODECS[codec.name].encode(np.ascontiguousarray(logits_BC, np.float32), out[:, : codec.payload_bytes])
    seal_rows(out, codec.payload_bytes, numbers, salt)
    return out


def decode_rows(codec: Codec, records: np.ndarray, numbers: np.ndarray, salt: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits of records.

    Args:
        records: uint8 (n, row_bytes), all of a store from its first on; contiguous.
        numbers: int64 (B,), which of them, each 0 … n-1. salt: as `encode_rows`.

    Returns:
        float32 (B, num_classes), and bool (B,): whether the record matches its checksum.
    """
    logits_BC, good = np.empty((len(numbers), codec.num_classes), np.float32), np.empty(len(numbers), np.bool_)
    codec.unpack(records.reshape(-1), numbers, np.uint64(salt), logits_BC, good)
    return logits_BC, good


def seal_rows(records: np.ndarray, payload_bytes: int, numbers: np.ndarray, salt: int) -> None:
    """Writes the checksum of each record, uint8 (B, row_bytes), behind its payload."""
    _seal_rows(records, payload_bytes, numbers, np.uint64(salt))


@njit(cache=True, nogil=True)
def _seal_rows(records: np.ndarray, payload_bytes: int, numbers: np.ndarray, salt: np.uint64) -> None:
    for b in range(len(records)):
        crc = crc32c_with(crc32c(records[b, :payload_bytes]), np.uint64(numbers[b]) + salt)
        for i in range(4):
            records[b, payload_bytes + i] = (crc >> (8 * i)) & 0xFF


def _encode_fp16(logits_BC: np.ndarray, payload: np.ndarray) -> None:
    payload[:] = logits_BC.astype("<f2").view(np.uint8)


def _encode_int8_top4(logits_BC: np.ndarray, payload: np.ndarray) -> None:
    num_classes = logits_BC.shape[1]
    codes, tail = _quantise(logits_BC, TOP_INT8, 255)
    payload[:, :num_classes] = codes
    payload[:, num_classes:] = tail


def _encode_int4_top8(logits_BC: np.ndarray, payload: np.ndarray) -> None:
    num_codes = (logits_BC.shape[1] + 1) // 2
    codes, tail = _quantise(logits_BC, TOP_INT4, 15)
    payload[:, :num_codes] = codes[:, ::2]
    payload[:, : codes.shape[1] // 2] |= codes[:, 1::2] << 4
    payload[:, num_codes:] = tail


def _quantise(logits_BC: np.ndarray, num_top: int, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes 0 … levels of all classes, uint8 (B, C), and what follows them in a payload: row parameters and the largest."""
    num_rows, num_classes = logits_BC.shape
    top = min(num_top, num_classes)
    order_BT = np.argsort(-logits_BC, axis=1, kind="stable")[:, :top]
    top_BT = np.take_along_axis(logits_BC, order_BT, axis=1).astype(np.float16)
    rest_BC = logits_BC.astype(np.float64)  # in float32 a wide row's codes err at their ties
    np.put_along_axis(rest_BC, order_BT, np.nan, axis=1)
    if num_classes > top:
        low, high = np.nanmin(rest_BC, axis=1), np.nanmax(rest_BC, axis=1)
    else:
        low = high = np.zeros(num_rows)
    offset = -_round_up(-low)  # not above the smallest: codes start at 0
    scale = _round_up(np.maximum(high - offset, 0) / levels)
    step_B1 = np.where(scale > 0, scale, 1)[:, None].astype(np.float64)
    codes = np.rint((rest_BC - offset[:, None]) / step_B1)
    np.put_along_axis(codes, order_BT, 0, axis=1)
    codes = codes.clip(0, levels).astype(np.uint8)
    decoded = offset[:, None].astype(np.float32) + step_B1.astype(np.float32) * codes
    np.put_along_axis(decoded, order_BT, top_BT.astype(np.float32), axis=1)
    flipped = decoded.argmax(axis=1) != order_BT[:, 0]
    top_BT[flipped, 0] = _next_above(decoded.max(axis=1))[flipped]
    pairs = np.empty((num_rows, top), np.dtype([("index", "<u2"), ("logit", "<f2")]))
    pairs["index"], pairs["logit"] = order_BT, top_BT
    return codes, np.hstack([np.stack([scale, offset], 1).astype("<f2").view(np.uint8), pairs.view(np.uint8)])


def _round_up(x: np.ndarray) -> np.ndarray:
    """The smallest float16 that is not below x."""
    near = x.astype(np.float16)
    return np.where(near < x, np.nextafter(near, np.float16(np.inf)), near)


def _next_above(x: np.ndarray) -> np.ndarray:
    """The smallest float16 above x."""
    near = x.astype(np.float16)
    return np.where(near > x, near, np.nextafter(near, np.float16(np.inf)))


class Form(NamedTuple):
    """A way to write a row. payload_bytes: of a number of classes. encode: (logits float32 (B, C), payload uint8 (B,
    payload_bytes)), fills the payload. unpack: as of `Codec`."""

    payload_bytes: Callable[[int], int]
    encode: Callable[[np.ndarray, np.ndarray], None]
    unpack: Callable[[np.ndarray, np.ndarray, np.uint64, np.ndarray, np.ndarray], None]


CODECS = {
    "fp16": Form(lambda num_classes: 2 * num_classes, _encode_fp16, unpack_fp16),
    "int8+top4": Form(int8_top4_bytes, _encode_int8_top4, unpack_int8_top4),
    "int4+top8": Form(int4_top8_bytes, _encode_int4_top8, unpack_int4_top8),
}
"""By name, the most exact first."""
