"""Counter-based draws and CRC32C, compiled.

A draw is a pure function of what it is for (a sample, a seed, the number of the draw), never of what was drawn before:
no state, no order, and a new operation takes a new draw number without shifting anybody else's. `splitmix.draws` is the
same without Numba. Compiled without fastmath, so that integers and IEEE doubles come out the same on every machine.
"""

from collections.abc import Callable

import numpy as np
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import types, uint64
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic

from fastkd.intrinsics import njit, word32_at, word_at
from fastkd.splitmix import GOLDEN, MIX_1, MIX_2


@njit(cache=True, nogil=True)
def mix(value: int) -> int:
    """Finaliser of splitmix64: a bijection of uint64 in which every input bit moves every output bit."""
    z = uint64(value)
    z = (z ^ (z >> uint64(30))) * MIX_1
    z = (z ^ (z >> uint64(27))) * MIX_2
    return z ^ (z >> uint64(31))


@njit(cache=True, nogil=True)
def draw(a: int, b: int, number: int) -> int:
    """Draw `number` of the key (a, b), for instance (sample_id, aug_seed): a uint64."""
    h = mix(uint64(a) + GOLDEN)
    h = mix((h ^ uint64(b)) + GOLDEN)
    return mix((h ^ uint64(number)) + GOLDEN)


@njit(cache=True, nogil=True)
def draw_unit(a: int, b: int, number: int) -> float:
    """The same draw as a double in [0, 1), a multiple of 2**-53."""
    return float(draw(a, b, number) >> uint64(11)) * (1.0 / 9007199254740992.0)


@njit(cache=True, nogil=True)
def draw_below(a: int, b: int, number: int, bound: int) -> np.int64:
    """The same draw as an integer in [0, bound), for 1 <= bound <= 2**32 (bias at most bound / 2**32)."""
    return below(draw(a, b, number), bound)


@njit(cache=True, nogil=True)
def below(value: int, bound: int) -> np.int64:
    """A uint64 as an integer in [0, bound), for 1 <= bound <= 2**32."""
    return np.int64(((uint64(value) >> uint64(32)) * uint64(bound)) >> uint64(32))


def _crc32c_tables() -> np.ndarray:
    """The eight tables of slicing-by-8 for the Castagnoli polynomial (reflected 0x82F63B78), uint32 (8, 256)."""
    table = np.empty((8, 256), np.uint32)
    table[0] = np.arange(256)
    for _ in range(8):
        table[0] = (table[0] >> 1) ^ (table[0] & 1) * np.uint32(0x82F63B78)
    for k in range(1, 8):
        table[k] = table[0, table[k - 1] & 0xFF] ^ (table[k - 1] >> 8)
    return table


_CRC = _crc32c_tables()


@njit(nogil=True, inline="always")
def _step_8_by_table(crc: np.uint32, word: np.uint64) -> np.uint32:
    """The register after eight bytes, given as a little-endian uint64."""
    low = np.uint32(np.uint64(crc) ^ (word & np.uint64(0xFFFFFFFF)))
    high = np.uint32(word >> np.uint64(32))
    out = np.uint32(0)
    for i in range(4):
        shift, byte = np.uint32(8 * i), np.uint32(0xFF)
        out ^= _CRC[7 - i, (low >> shift) & byte] ^ _CRC[3 - i, (high >> shift) & byte]
    return out


@njit(nogil=True, inline="always")
def _step_4_by_table(crc: np.uint32, word: np.uint32) -> np.uint32:
    """The register after four bytes, given as a little-endian uint32."""
    low = np.uint32(crc ^ word)
    out = np.uint32(0)
    for i in range(4):
        out ^= _CRC[3 - i, (low >> np.uint32(8 * i)) & np.uint32(0xFF)]
    return out


@njit(nogil=True, inline="always")
def _step_1_by_table(crc: np.uint32, byte: np.uint8) -> np.uint32:
    """The register after one byte."""
    return np.uint32(_CRC[0, (crc ^ np.uint32(byte)) & np.uint32(0xFF)] ^ (crc >> np.uint32(8)))


def _step_by_instruction(name: str, register: int, word: int) -> Callable:
    """A step by one of SSE 4.2's instructions for this very polynomial, several times as fast as tables.

    Args:
        name: LLVM's, of the instruction. register, word: bits of its operands.
    """

    @intrinsic
    def step(typing_context, crc, data):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            kind = ir.FunctionType(ir.IntType(register), [ir.IntType(register), ir.IntType(word)])
            wide = arguments[0] if register == 32 else builder.zext(arguments[0], ir.IntType(register))
            result = builder.call(get_or_insert_function(builder.module, kind, name), [wide, arguments[1]])
            return result if register == 32 else builder.trunc(result, ir.IntType(32))

        return types.uint32(types.uint32, types.Integer.from_bitwidth(word, signed=False)), generate

    return step


if get_host_cpu_features().get("sse4.2"):
    _step_8 = _step_by_instruction("llvm.x86.sse42.crc32.64.64", 64, 64)
    _step_4 = _step_by_instruction("llvm.x86.sse42.crc32.32.32", 32, 32)
    _step_1 = _step_by_instruction("llvm.x86.sse42.crc32.32.8", 32, 8)
else:
    _step_8, _step_4, _step_1 = _step_8_by_table, _step_4_by_table, _step_1_by_table


@njit(cache=True, nogil=True)
def crc32c(data: np.ndarray) -> np.uint32:
    """CRC32C (RFC 3720, appendix B.4) of a contiguous uint8 array."""
    return crc32c_of(data, 0, len(data))


@njit(nogil=True, inline="always")
def crc32c_of(data: np.ndarray, start: int, end: int) -> np.uint32:
    """CRC32C of data[start:end], eight bytes a step and what remains in four and ones; without a slice or a call, which cost as much as twenty bytes do."""
    crc = np.uint32(0xFFFFFFFF)
    i = start
    while i + 8 <= end:
        crc = _step_8(crc, word_at(data, i))
        i += 8
    if i + 4 <= end:
        crc = _step_4(crc, word32_at(data, i))
        i += 4
    while i < end:
        crc = _step_1(crc, data[i])
        i += 1
    return np.uint32(crc ^ np.uint32(0xFFFFFFFF))


@njit(nogil=True, inline="always")
def crc32c_with(crc: int, number: int) -> np.uint32:
    """CRC32C of the bytes that `crc` is the checksum of with `number` behind them, as a little-endian uint64."""
    return np.uint32(
        _step_8(np.uint32(np.uint32(crc) ^ np.uint32(0xFFFFFFFF)), np.uint64(number)) ^ np.uint32(0xFFFFFFFF)
    )
