"""Row codecs: float32 logits of one sample to a self-contained record of bytes, and back.

A record is the codec's payload, the CRC32C of payload and row number (uint64: which record of the store it is, so that
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

import numpy as np
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import njit, types
from numba.core.cgutils import create_struct_proxy
from numba.extending import intrinsic

from fastkd.errors import OptionError
from fastkd.hashing import crc32c, crc32c_of, crc32c_with

RECORD_ALIGN = 64
TOP_INT8, TOP_INT4 = 4, 8
LARGEST_LOGIT = 65_000.0
"""Below float16's 65,504 by what rounding in a codec can add."""


@dataclass(frozen=True, slots=True)
class Codec:
    """A codec for rows of `num_classes` logits.

    payload_bytes: bytes before the checksum. row_bytes: bytes of a record. unpack: compiled (data uint8, which begins with
    record 0, starts int64 (B,) of records in it, out float32 (B, num_classes), good bool (B,)): fills `out`, and `good`
    with whether each record matches its checksum.
    """

    name: str
    num_classes: int
    payload_bytes: int
    row_bytes: int
    unpack: Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], None]


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
    payload_bytes = _payload_bytes(name, num_classes)
    return Codec(name, num_classes, payload_bytes, _row_bytes(payload_bytes), CODECS[name][1])


def _payload_bytes(name: str, num_classes: int) -> int:
    if name == "fp16":
        return 2 * num_classes
    if name == "int8+top4":
        return num_classes + 4 + 4 * min(TOP_INT8, num_classes)
    return (num_classes + 1) // 2 + 4 + 4 * min(TOP_INT4, num_classes)


@njit(cache=True, nogil=True)
def _row_bytes(payload_bytes: int) -> int:
    return (payload_bytes + 4 + RECORD_ALIGN - 1) // RECORD_ALIGN * RECORD_ALIGN


def check_encodable(logits_BC: np.ndarray) -> np.ndarray:
    """Which rows no codec can hold: bool (B,), True where a logit is NaN, infinite or beyond ±65000."""
    return ~(np.abs(logits_BC) <= LARGEST_LOGIT).all(axis=1)


def encode_rows(codec: Codec, logits_BC: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Records of float32 logits.

    Args:
        logits_BC: float32 (B, num_classes), finite and within ±65000 (see `check_encodable`).
        numbers: int64 (B,), which records of the store they are: aug_seed · R + row.

    Returns:
        uint8 (B, row_bytes).
    """
    assert logits_BC.shape == (len(numbers), codec.num_classes)
    assert not check_encodable(logits_BC).any()
    out = np.zeros((len(logits_BC), codec.row_bytes), np.uint8)
    CODECS[codec.name][0](np.ascontiguousarray(logits_BC, np.float32), out[:, : codec.payload_bytes])
    seal_rows(out, codec.payload_bytes, numbers)
    return out


def decode_rows(codec: Codec, records: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits of records.

    Args:
        records: uint8 (n, row_bytes), all of a store from its first on; contiguous.
        numbers: int64 (B,), which of them, each 0 … n-1.

    Returns:
        float32 (B, num_classes), and bool (B,): whether the record matches its checksum.
    """
    logits_BC, good = np.empty((len(numbers), codec.num_classes), np.float32), np.empty(len(numbers), np.bool_)
    codec.unpack(records.reshape(-1), numbers * codec.row_bytes, logits_BC, good)
    return logits_BC, good


@njit(cache=True, nogil=True)
def seal_rows(records: np.ndarray, payload_bytes: int, numbers: np.ndarray) -> None:
    """Writes the checksum of each record, uint8 (B, row_bytes), behind its payload."""
    for b in range(len(records)):
        crc = crc32c_with(crc32c(records[b, :payload_bytes]), numbers[b])
        for i in range(4):
            records[b, payload_bytes + i] = (crc >> (8 * i)) & 0xFF


# What follows is inlined: a compiled function that takes arrays counts references with atomic additions, which wait for
# all stores before them, and so cost more than decoding a row of ten logits does.


@njit(nogil=True, inline="always")
def _is_sealed(data: np.ndarray, start: int, payload_bytes: int) -> bool:
    """Whether the record that starts at `start` matches its checksum."""
    end = start + payload_bytes
    crc = np.uint32(0)
    for i in range(4):
        crc |= np.uint32(data[end + i]) << np.uint32(8 * i)
    return crc == crc32c_with(crc32c_of(data, start, end), start // _row_bytes(payload_bytes))


def _encode_fp16(logits_BC: np.ndarray, payload: np.ndarray) -> None:
    payload[:] = logits_BC.astype("<f2").view(np.uint8)


@njit(cache=True, nogil=True)
def unpack_fp16(data: np.ndarray, starts: np.ndarray, out: np.ndarray, good: np.ndarray) -> None:
    """Decodes the `fp16` records at `starts`; see `Codec`."""
    num_classes = out.shape[1]
    for b in range(len(starts)):
        start = starts[b]
        good[b] = _is_sealed(data, start, 2 * num_classes)
        for i in range(num_classes):
            out[b, i] = _read_half(data, start + 2 * i)


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


@njit(cache=True, nogil=True)
def unpack_int8_top4(data: np.ndarray, starts: np.ndarray, out: np.ndarray, good: np.ndarray) -> None:
    """Decodes the `int8+top4` records at `starts`; see `Codec`."""
    num_classes = out.shape[1]
    top = min(TOP_INT8, num_classes)
    for b in range(len(starts)):
        start = starts[b]
        tail = start + num_classes
        good[b] = _is_sealed(data, start, num_classes + 4 + 4 * top)
        scale, offset = _read_half(data, tail), _read_half(data, tail + 2)
        for i in range(num_classes):
            out[b, i] = offset + scale * np.float32(data[start + i])
        good[b] &= _unpack_top(data, tail + 4, top, out, b)


@njit(cache=True, nogil=True)
def unpack_int4_top8(data: np.ndarray, starts: np.ndarray, out: np.ndarray, good: np.ndarray) -> None:
    """Decodes the `int4+top8` records at `starts`; see `Codec`."""
    num_classes = out.shape[1]
    top = min(TOP_INT4, num_classes)
    for b in range(len(starts)):
        start = starts[b]
        tail = start + (num_classes + 1) // 2
        good[b] = _is_sealed(data, start, tail - start + 4 + 4 * top)
        scale, offset = _read_half(data, tail), _read_half(data, tail + 2)
        for i in range(num_classes // 2):
            byte = data[start + i]
            out[b, 2 * i] = offset + scale * np.float32(byte & 15)
            out[b, 2 * i + 1] = offset + scale * np.float32(byte >> 4)
        if num_classes % 2:
            out[b, num_classes - 1] = offset + scale * np.float32(data[tail - 1] & 15)
        good[b] &= _unpack_top(data, tail + 4, top, out, b)


@njit(nogil=True, inline="always")
def _unpack_top(data: np.ndarray, start: int, top: int, out: np.ndarray, b: int) -> bool:
    """Puts the largest logits in their places; False where one is no class."""
    sound = True
    for at in range(start, start + 4 * top, 4):
        index = np.int64(data[at]) | (np.int64(data[at + 1]) << 8)
        if index < out.shape[1]:
            out[b, index] = _read_half(data, at + 2)
        else:
            sound = False
    return sound


@njit(nogil=True, inline="always")
def _half_by_integers(data: np.ndarray, at: int) -> np.float32:
    """The finite float16 at data[at:], exactly and without branches.

    Numba makes 64-bit integers of unsigned operands, and their conversion to float costs four times the whole function:
    hence int32.
    """
    half = np.int32(data[at]) | np.int32(data[at + 1]) << np.int32(8)
    sign = np.int32((half & np.int32(0x8000)) << np.int32(16))
    magnitude = np.int32((half & np.int32(0x7FFF)) << np.int32(13))
    normal = np.int32(magnitude + np.int32(112 << 23))  # the exponent's bias is 127 instead of 15
    small = np.float32(np.float32(np.int32(half & np.int32(0x3FF))) * np.float32(2.0**-24))
    bits = normal if magnitude >= np.int32(1 << 23) else small.view(np.int32)
    return np.int32(sign | bits).view(np.float32)


@intrinsic
def _half_by_instruction(typing_context, data, at):  # type: ignore[no-untyped-def]
    """The same by the processor; Numba has no float16 of its own."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        start = builder.gep(create_struct_proxy(data)(context, builder, value=arguments[0]).data, [arguments[1]])
        half = builder.load(builder.bitcast(start, ir.HalfType().as_pointer()), align=1)
        return builder.fpext(half, ir.FloatType())

    return types.float32(data, types.int64), generate


_read_half = _half_by_instruction if get_host_cpu_features().get("f16c") else _half_by_integers


CODECS: dict[str, tuple[Callable, Callable]] = {
    "fp16": (_encode_fp16, unpack_fp16),
    "int8+top4": (_encode_int8_top4, unpack_int8_top4),
    "int4+top8": (_encode_int4_top8, unpack_int4_top8),
}
"""name → (encode rows into payloads, unpack records), the most exact first."""
