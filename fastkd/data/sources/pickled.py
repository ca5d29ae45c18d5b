"""Reads the pickles that CIFAR ships as data, without unpickling: nothing named in the file is imported or called.

`pickletools.genops` splits the file into opcodes, and the machine below runs the few of them that build dictionaries,
lists, strings, numbers and byte arrays. A global is kept as its name; those that numpy writes are known, any other is
refused. So a hostile file can neither run code nor have this process hash or allocate much more than the file's size:
`pickle.Unpickler`, whatever its `find_class` lets through, ends in a segmentation fault on a key of deeply nested tuples
and takes gigabytes for a file of 20 bytes with a far memo number.
"""

import math
import pickletools
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastkd.data.sources.files import reason, shortened
from fastkd.errors import FormatError

_ARRAY_MAKERS = {"numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct"}
_GLOBALS = {*_ARRAY_MAKERS, "numpy ndarray", "numpy dtype", "_codecs encode"}
_VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLE_SIZES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MARK = object()


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass
class _Object:
    """An array or a dtype, as the arguments and the state that the file gives for it."""

    kind: str
    args: tuple
    state: object = None


def read_plain_pickle(content: bytes, what: str) -> dict[str, Any]:
    """The dictionary that a pickle of plain data describes (protocols 0 to 4, as Python 2 or 3 writes them).

    Args:
        content: the bytes of the file.
        what: the file's name in messages.

    Returns:
        The dictionary with str keys; its arrays wait for `uint8_array`. Byte strings are read as Latin-1 text.

    Raises:
        FormatError: a cut or malformed pickle, one that names any other global, or one of something else.
    """
    try:
        value = _run(content, what)
    # The opcodes of a malformed file may find an empty stack, an unknown memo number or an operand of another type.
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise FormatError(
            f"{what}: found a cut or malformed pickle ({reason(error)}), expected a pickled dictionary "
            "of arrays and lists; download the file again"
        ) from None
    if not isinstance(value, dict):
        raise FormatError(f"{what}: found a pickled {type(value).__name__}, expected a pickled dictionary")
    return value


def uint8_array(value: object, what: str) -> np.ndarray:
    """One array out of `read_plain_pickle`'s dictionary: uint8, of the shape that the file gives, read-only.

    Raises:
        FormatError: not an array, not of uint8, or a shape that disagrees with the number of bytes.
    """
    if not (isinstance(value, _Object) and value.kind == "array" and isinstance(value.state, tuple)):
        raise FormatError(f"{what}: found a {type(value).__name__}, expected a numpy array of uint8")
    if len(value.state) != 5:
        raise FormatError(f"{what}: found an array state of {len(value.state)} parts, expected 5")
    _, shape, dtype, is_fortran, text = value.state
    if not (isinstance(dtype, _Object) and dtype.kind == "dtype" and dtype.args[:1] == ("u1",)):
        raise FormatError(f"{what}: found an array of another type, expected uint8")
    if not (isinstance(shape, tuple) and len(shape) <= 4 and all(type(n) is int and 0 <= n < 2**40 for n in shape)):
        raise FormatError(f"{what}: found an array without a valid shape, expected at most 4 sizes")
    try:
        raw = _expect(text, str).encode("latin-1")
    except ValueError:
        raise FormatError(f"{what}: found an array whose content is not bytes, expected uint8") from None
    if math.prod(shape) != len(raw):
        raise FormatError(f"{what}: found {len(raw)} bytes in an array, expected {math.prod(shape)} for shape {shape}")
    return np.frombuffer(raw, np.uint8).reshape(shape, order="F" if is_fortran else "C")


def _run(content: bytes, what: str) -> object:
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    arg: Any
    for opcode, arg, _ in pickletools.genops(content):
        name = opcode.name
        if name in _VALUES:
            stack.append(arg)
        elif name in ("BINBYTES", "SHORT_BINBYTES"):
            stack.append(arg.decode("latin-1"))
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            memo[arg] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memo[arg])
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "MARK":
            stack.append(_MARK)
        elif name in ("EMPTY_LIST", "EMPTY_DICT", "EMPTY_TUPLE"):
            stack.append({"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}[name]())
        elif name in _TUPLE_SIZES:
            stack.append(_pop(stack, _TUPLE_SIZES[name]))
        elif name == "TUPLE":
            stack.append(_pop_to_mark(stack))
        elif name == "LIST":
            stack.append(list(_pop_to_mark(stack)))
        elif name == "DICT":
            stack.append(_with_items({}, _pop_to_mark(stack)))
        elif name in ("APPEND", "APPENDS"):
            items = _pop(stack, 1) if name == "APPEND" else _pop_to_mark(stack)
            _expect(stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = _pop(stack, 2) if name == "SETITEM" else _pop_to_mark(stack)
            _with_items(_expect(stack[-1], dict), items)
        elif name == "GLOBAL":
            stack.append(_known_global(arg, what))
        elif name == "STACK_GLOBAL":
            stack.append(_known_global(" ".join(_pop(stack, 2)), what))
        elif name == "REDUCE":
            maker, args = _pop(stack, 2)
            stack.append(_made(_expect(maker, _Global).name, _expect(args, tuple), what))
        elif name == "BUILD":
            (state,) = _pop(stack, 1)
            _expect(stack[-1], _Object).state = state
        elif name == "STOP":
            return stack[-1]
        elif name not in ("PROTO", "FRAME"):
            raise FormatError(f"{what}: found the pickle opcode {name}, expected plain data: refused, nothing was run")
    raise ValueError("no STOP opcode")


def _made(maker: str, args: tuple, what: str) -> object:
    if maker in _ARRAY_MAKERS:
        return _Object("array", args)
    if maker == "numpy dtype":
        return _Object("dtype", args)
    # Python 3 writes bytes at protocol 2 as Latin-1 text and this call to turn it back; the text serves as well.
    if maker == "_codecs encode" and len(args) == 2 and args[1] == "latin1":
        return _expect(args[0], str)
    raise FormatError(
        f"{what}: found a call of {maker.replace(' ', '.')!r}, expected plain data: refused, nothing was run"
    )


def _known_global(name: str, what: str) -> _Global:
    if name not in _GLOBALS:
        raise FormatError(
            f"{what}: found the global {shortened(name.replace(' ', '.'))} in a pickle, expected only numpy arrays of plain "
            "data: refused, nothing was run"
        )
    return _Global(name)


def _pop(stack: list, count: int) -> tuple:
    items = tuple(stack[-count:])
    if len(items) < count or any(item is _MARK for item in items):
        raise ValueError("an opcode with too few operands")
    del stack[-count:]
    return items


def _pop_to_mark(stack: list) -> tuple:
    for position in range(len(stack) - 1, -1, -1):
        if stack[position] is _MARK:
            items = tuple(stack[position + 1 :])
            del stack[position:]
            return items
    raise ValueError("no mark on the stack")


def _with_items(target: dict, items: tuple) -> dict:
    if len(items) % 2:
        raise ValueError("a key without a value")
    for key, value in zip(items[::2], items[1::2], strict=True):
        # Only strings are hashed: a nested tuple of the file's making could take for ever or exhaust the C stack.
        target[_expect(key, str)] = value
    return target


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"a {type(value).__name__} where a {kind.__name__} belongs")
    return value
