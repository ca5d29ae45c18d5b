"""What processors have and Numba has no name for: reads at any byte of an array, and fetching ahead of them."""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.cgutils import create_struct_proxy
from numba.extending import intrinsic


def _address(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Of data[i], for an intrinsic of (data, i)."""
    data = create_struct_proxy(signature.args[0])(context, builder, value=arguments[0]).data
    return builder.gep(data, [arguments[1]])


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
