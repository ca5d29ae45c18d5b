"""Row codecs: float32 logits of one sample to a self-contained record of bytes, and back.

A record is the codec's payload, CRC32C of that payload (little endian), and zeros up to a multiple of 64 B. All numbers
are little endian. Payloads for C classes:

- `fp16`: C float16 logits. Error: float16 rounding (relative 2^-11).
- `int8+top4`: C uint8 codes, float16 scale, float16 offset, then for the t = min(4, C) largest logits, largest first,
  (uint16 class, float16 logit). A class that is not among them decodes to offset + scale·code, a sum of float32; the
  codes span the range of these others, so the error is at most scale/2 and half a unit in the last place of that sum,
  with scale <= (largest - smallest of the others)/255·(1 + 2^-9).
  The class with the largest logit is the same after decoding, always.

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
from fastkd.hashing import crc32c, crc32c_of

RECORD_ALIGN = 64
TOP = 4
LARGEST_LOGIT = 65_000.0
"""Below float16's 65,504 by what rounding in a codec can add."""


@dataclass(frozen=True, slots=True)
class Codec:
    """A codec for rows of `num_classes` logits.

    payload_bytes: bytes before the checksum. row_bytes: bytes of a record. unpack: compiled (data uint8, starts int64 (B,)
    of records in it, out float32 (B, num_classes), good bool (B,)): fills `out`, and `good` with whether each record
    matches its checksum.
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
    payload = 2 * num_classes if name == "fp16" else num_classes + 4 + 4 * min(TOP, num_classes)
    row_bytes = -(-(payload + 4) // RECORD_ALIGN) * RECORD_ALIGN
    return Codec(name, num_classes, payload, row_bytes, CODECS[name][1])


def check_encodable(logits_BC: np.ndarray) -> np.ndarray:
    """Which rows no codec can hold: bool (B,), True where a logit is NaN, infinite or beyond ±65000."""
    return ~(np.abs(logits_BC) <= LARGEST_LOGIT).all(axis=1)


def encode_rows(codec: Codec, logits_BC: np.ndarray) -> np.ndarray:
    """Records of float32 logits.

    Args:
        logits_BC: float32 (B, num_classes), finite and within ±65000 (see `check_encodable`).

    Returns:
        uint8 (B, row_bytes).
    """
    assert logits_BC.shape[1] == codec.num_classes
    assert not check_encodable(logits_BC).any()
    out = np.zeros((len(logits_BC), codec.row_bytes), np.uint8)
    CODECS[codec.name][0](np.ascontiguousarray(logits_BC, np.float32), out[:, : codec.payload_bytes])
    _seal(out, codec.payload_bytes)
    return out


def decode_rows(codec: Codec, records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits of records.

    Args:
        records: uint8 (B, row_bytes).

    Returns:
        float32 (B, num_classes), and bool (B,): whether the record matches its checksum.
    """
    flat, starts = np.ascontiguousarray(records).reshape(-1), np.arange(len(records)) * codec.row_bytes
    logits_BC, good = np.empty((len(records), codec.num_classes), np.float32), np.empty(len(records), np.bool_)
    codec.unpack(flat, starts, logits_BC, good)
    return logits_BC, good


@njit(cache=True, nogil=True)
def _seal(records: np.ndarray, payload_bytes: int) -> None:
    """Writes the CRC32C of each record's payload behind it."""
    for b in range(len(records)):
        crc = crc32c(records[b, :payload_bytes])
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
    return crc == crc32c_of(data, start, end)


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
    num_rows, num_classes = logits_BC.shape
    top = min(TOP, num_classes)
    order_BT = np.argsort(-logits_BC, axis=1, kind="stable")[:, :top]
    top_BT = np.take_along_axis(logits_BC, order_BT, axis=1).astype(np.float16)
    rest_BC = logits_BC.copy()
    np.put_along_axis(rest_BC, order_BT, np.nan, axis=1)
    if num_classes > top:
        low, high = np.nanmin(rest_BC, axis=1), np.nanmax(rest_BC, axis=1)
    else:
        low = high = np.zeros(num_rows, np.float32)
    offset = -_round_up(-low)  # not above the smallest: codes start at 0
    scale = _round_up(np.maximum(high - offset, 0) / np.float32(255))
    step_B1 = np.where(scale > 0, scale, 1)[:, None].astype(
        np.float64
    )  # in float32 a wide row's codes err at their ties
    codes = (
        np.rint((np.nan_to_num(rest_BC) - offset[:, None].astype(np.float64)) / step_B1).clip(0, 255).astype(np.uint8)
    )
    # Rounding may lift another class to the level of the largest: the largest then goes up to the next float16.
    decoded = offset[:, None].astype(np.float32) + step_B1.astype(np.float32) * codes
    np.put_along_axis(decoded, order_BT, top_BT.astype(np.float32), axis=1)
    flipped = decoded.argmax(axis=1) != order_BT[:, 0]
    top_BT[flipped, 0] = _next_above(decoded.max(axis=1))[flipped]
    payload[:, :num_classes] = codes
    payload[:, num_classes : num_classes + 4] = np.stack([scale, offset], 1).astype("<f2").view(np.uint8)
    pairs = np.empty((num_rows, top), np.dtype([("index", "<u2"), ("logit", "<f2")]))
    pairs["index"], pairs["logit"] = order_BT, top_BT
    payload[:, num_classes + 4 :] = pairs.view(np.uint8)


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
    top = min(TOP, num_classes)
    for b in range(len(starts)):
        start = starts[b]
        tail = start + num_classes
        good[b] = _is_sealed(data, start, num_classes + 4 + 4 * top)
        scale, offset = _read_half(data, tail), _read_half(data, tail + 2)
        for i in range(num_classes):
            out[b, i] = offset + scale * np.float32(data[start + i])
        for t in range(top):
            at = tail + 4 + 4 * t
            index = np.int64(data[at]) | (np.int64(data[at + 1]) << 8)
            if index < num_classes:
                out[b, index] = _read_half(data, at + 2)
            else:
                good[b] = False


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
}
"""name → (encode rows into payloads, unpack one record)."""
