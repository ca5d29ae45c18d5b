"""What compiled code needs and Numba lacks: a place to be kept on every machine, reads at any byte of an array, fetching ahead
of them, wide copies."""

import os
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.core.cgutils import create_struct_proxy
from numba.extending import intrinsic


def njit(**options: Any) -> Callable[[Callable], Any]:
    """As `numba.njit`. With cache=True the code is kept beside its source, else below the home folder, as Numba has it; else in
    a folder of the user's own below the one for temporary files; else nowhere, and every process compiles it anew. So it does
    where the code cannot be saved, the disk being full."""

    def compile_lazily(function: Callable) -> Any:
        try:
            return _saving_if_possible(numba.njit(**options)(function))
        except RuntimeError as error:
            if "cannot cache" not in str(error):
                raise
        folder = own_folder()
        if folder is None or str(folder) == numba.config.CACHE_DIR:
            return numba.njit(**{**options, "cache": False})(function)
        numba.config.CACHE_DIR = str(folder)
        return compile_lazily(function)

    return compile_lazily


def _saving_if_possible(dispatcher: Any) -> Any:
    """The same compiled function, which a disk that has no room for its code does not stop from being called."""
    cache: Any = getattr(dispatcher, "_cache", None)
    if not hasattr(cache, "_cache_file"):  # not kept at all
        return dispatcher
    save = cache.save_overload

    def save_if_possible(signature: Any, compiled: Any) -> None:
        try:
            save(signature, compiled)
        except OSError:
            # The index is written before the code: it would name what an older source left there.
            with suppress(OSError):
                os.unlink(cache._cache_file._index_path)

    cache.save_overload = save_if_possible
    return dispatcher


def own_folder() -> Path | None:
    """A folder that nobody else can write to: compiled code that another user left there would be run. None without one."""
    try:
        folder = Path(tempfile.gettempdir()) / f"fastkd-compiled-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return None
    is_own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022
    return folder if is_own else None


def _address(context: Any, builder: Any, signature: Any, arguments: Any, first: int = 0) -> Any:
    """Of data[i], for an intrinsic whose arguments have (data, i) from number `first` on."""
    data = create_struct_proxy(signature.args[first])(context, builder, value=arguments[first]).data
    return builder.gep(data, [arguments[first + 1]])


def _reader(kind: Any, result: Any, convert: Callable[[Any, Any], Any]) -> Callable:
    """An intrinsic of (data uint8, i) that loads a value of the type `kind` from data[i:], wherever that lies."""

    @intrinsic
    def read(typing_context, data, i):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            start = builder.bitcast(_address(context, builder, signature, arguments), kind.as_pointer())
            return convert(builder, builder.load(start, align=1))

        return result(data, types.int64), generate

    return read


word_at = _reader(ir.IntType(64), types.uint64, lambda builder, value: value)
word32_at = _reader(ir.IntType(32), types.uint32, lambda builder, value: value)
half_at = _reader(ir.HalfType(), types.float32, lambda builder, value: builder.fpext(value, ir.FloatType()))


@intrinsic
def prefetch(typing_context, data, i):  # type: ignore[no-untyped-def]
    """Asks the processor for the cache line of data[i], which is read soon."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        line = builder.bitcast(_address(context, builder, signature, arguments), ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        function = ir.FunctionType(ir.VoidType(), [line.type, number, number, number])
        instruction = builder.module.declare_intrinsic("llvm.prefetch", [line.type], function)
        builder.call(instruction, [line, number(0), number(3), number(1)])  # to read, near, data
        return context.get_dummy_value()

    return types.void(data, types.int64), generate


@intrinsic
def copy_line(typing_context, out, at, data, i):  # type: ignore[no-untyped-def]
    """out[at : at + 8] = data[i : i + 8] of uint64 arrays, by the widest loads there are.

    A loop over the words is left a word at a time, since the arrays could overlap, and fills the processor's window
    with so many instructions that fewer cache misses are under way at once.
    """

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        line = ir.VectorType(ir.IntType(64), 8).as_pointer()
        target, source = (
            builder.bitcast(_address(context, builder, signature, arguments, first), line) for first in (0, 2)
        )
        builder.store(builder.load(source, align=8), target, align=8)
        return context.get_dummy_value()

    return types.void(out, types.int64, data, types.int64), generate
