"""Unpacking the records of `codec.py`: compiled, without the GIL, straight from a mapping."""

import numpy as np
from llvmlite.binding import get_host_cpu_features

from fastkd.hashing import crc32c_of, crc32c_with
from fastkd.intrinsics import half_at, njit, word32_at

RECORD_ALIGN = 64
TOP_INT8, TOP_INT4 = 4, 8


@njit(cache=True, nogil=True)
def row_bytes_of(payload_bytes: int) -> int:
    """Bytes of a record."""
    return (payload_bytes + 4 + RECORD_ALIGN - 1) // RECORD_ALIGN * RECORD_ALIGN


@njit(cache=True, nogil=True)
def int8_top4_bytes(num_classes: int) -> int:
    """Bytes of a payload of `int8+top4`."""
    return num_classes + 4 + 4 * min(TOP_INT8, num_classes)


@njit(cache=True, nogil=True)
def int4_top8_bytes(num_classes: int) -> int:
    """Bytes of a payload of `int4+top8`."""
    return (num_classes + 1) // 2 + 4 + 4 * min(TOP_INT4, num_classes)


# What follows is inlined: a compiled function that takes arrays counts references with atomic additions, which wait for
# all stores before them, and so cost more than decoding a row of ten logits does.


@njit(nogil=True, inline="always")
def _is_sealed(data: np.ndarray, start: int, payload_bytes: int, number: np.uint64) -> bool:
    """Whether the record that starts at `start` matches its checksum; `number` is its own, the salt added."""
    end = start + payload_bytes
    return word32_at(data, end) == crc32c_with(crc32c_of(data, start, end), number)


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


_read_half = half_at if get_host_cpu_features().get("f16c") else _half_by_integers


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


@njit(cache=True, nogil=True)
def unpack_fp16(data: np.ndarray, numbers: np.ndarray, salt: np.uint64, out: np.ndarray, good: np.ndarray) -> None:
    """Decodes the `fp16` records `numbers`; see `Codec`."""
    num_classes = out.shape[1]
    row_bytes = row_bytes_of(2 * num_classes)
    for b in range(len(numbers)):
        start = numbers[b] * row_bytes
        good[b] = _is_sealed(data, start, 2 * num_classes, np.uint64(numbers[b]) + salt)
        for i in range(num_classes):
            out[b, i] = _read_half(data, start + 2 * i)


@njit(cache=True, nogil=True)
def unpack_int8_top4(data: np.ndarray, numbers: np.ndarray, salt: np.uint64, out: np.ndarray, good: np.ndarray) -> None:
    """Decodes the `int8+top4` records `numbers`; see `Codec`."""
    num_classes = out.shape[1]
    top = min(TOP_INT8, num_classes)
    payload_bytes = int8_top4_bytes(num_classes)
    row_bytes = row_bytes_of(payload_bytes)
    for b in range(len(numbers)):
        start = numbers[b] * row_bytes
        tail = start + num_classes
        good[b] = _is_sealed(data, start, payload_bytes, np.uint64(numbers[b]) + salt)
        scale, offset = _read_half(data, tail), _read_half(data, tail + 2)
        for i in range(num_classes):
            out[b, i] = offset + scale * np.float32(data[start + i])
        good[b] &= _unpack_top(data, tail + 4, top, out, b)


@njit(cache=True, nogil=True)
def unpack_int4_top8(data: np.ndarray, numbers: np.ndarray, salt: np.uint64, out: np.ndarray, good: np.ndarray) -> None:
    """Decodes the `int4+top8` records `numbers`; see `Codec`."""
    num_classes = out.shape[1]
    top = min(TOP_INT4, num_classes)
    payload_bytes = int4_top8_bytes(num_classes)
    row_bytes = row_bytes_of(payload_bytes)
    for b in range(len(numbers)):
        start = numbers[b] * row_bytes
        tail = start + (num_classes + 1) // 2
        good[b] = _is_sealed(data, start, payload_bytes, np.uint64(numbers[b]) + salt)
        scale, offset = _read_half(data, tail), _read_half(data, tail + 2)
        for i in range(num_classes // 2):
            byte = data[start + i]
            out[b, 2 * i] = offset + scale * np.float32(byte & 15)
            out[b, 2 * i + 1] = offset + scale * np.float32(byte >> 4)
        if num_classes % 2:
            out[b, num_classes - 1] = offset + scale * np.float32(data[tail - 1] & 15)
        good[b] &= _unpack_top(data, tail + 4, top, out, b)
