"""The pickles that CIFAR-10's python batches are, read as data: nothing in them is ever run.

Python's unpickler builds whatever a file names. Here each operation of the file is looked at, the
two dozen that a batch consists of are carried out on a plain stack, and every other is refused.
What numpy pickled is checked part by part and the array made from its bytes; nothing is imported.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from isoloss.experiments.datasets.errors import DataError
from isoloss.experiments.datasets.opcodes import Refused, operations

_DTYPE_STATE = (3, b"|", None, None, None, -1, -1, 0)


class _Reconstruct:
    """Stands for the function that makes numpy's arrays."""


class _NdArray:
    """Stands for the type of those arrays."""


class _DType:
    """Stands for the function that makes their element types."""


class _Array:
    """An array that has not been given its content yet."""


class _UnsignedByte:
    """The element type of a batch's array."""


# All that a batch refers to; together they spell "an array of bytes".
_KNOWN = {
    "numpy.core.multiarray._reconstruct": _Reconstruct,
    "numpy.ndarray": _NdArray,
    "numpy.dtype": _DType,
}


def read_pickle(data: bytes, name: str) -> dict[bytes, object]:
    """Read the pickle of a CIFAR-10 batch.

    Args:
        data: All of the file: a pickle of protocol 2, as Python 2 wrote it.
        name: The file's name, for errors.

    Returns:
        Its dictionary; strings are bytes, arrays are two-dimensional, uint8 and read-only.

    Raises:
        DataError: The file is damaged or asks for anything that a batch does not need.
    """
    stack = _Stack()
    try:
        for operation, argument in operations(data):
            stack.carry_out(operation, argument)
        return stack.result()
    except Refused as error:
        raise DataError(f"{name} is not a CIFAR-10 batch: {error}; fetch it again") from error


class _Stack:
    """The values on the way to one dictionary."""

    def __init__(self) -> None:
        self._values: list[Any] = []
        self._outer: list[list[Any]] = []

    def carry_out(self, operation: str, argument: int | bytes | str | None) -> None:
        match operation:
            case "BINPUT" | "LONG_BINPUT" | "STOP":
                pass  # the first two note a value for later; a batch never asks for one again
            case "PROTO":
                if argument != 2:
                    raise Refused(f"it is a pickle of protocol {argument} instead of 2")
            case "SHORT_BINSTRING" | "BINSTRING" | "BININT" | "BININT1" | "BININT2" | "NONE":
                self._values.append(argument)
            case "NEWFALSE":
                self._values.append(False)
            case "EMPTY_DICT":
                self._values.append({})
            case "EMPTY_LIST":
                self._values.append([])
            case "MARK":
                self._outer.append(self._values)
                self._values = []
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self._values.append(tuple(self._pop(int(operation[-1]))))
            case "TUPLE":
                items = self._since_mark()
                self._values.append(tuple(items))
            case "APPENDS":
                items = self._since_mark()
                self._top(list).extend(items)
            case "SETITEMS":
                items = self._since_mark()
                _fill(self._top(dict), items)
            case "GLOBAL":
                self._values.append(_known(str(argument)))
            case "REDUCE":
                called, arguments = self._pop(2)
                self._values.append(_call(called, arguments))
            case "BUILD":
                target, state = self._pop(2)
                self._values.append(_build(target, state))
            case _:
                raise Refused(f"it uses the pickle operation {operation}, which no batch does")

    def result(self) -> dict[bytes, object]:
        [value] = self._pop(1)
        if self._values or self._outer or type(value) is not dict:
            raise Refused("it is not one dictionary")
        return value

    def _pop(self, count: int) -> list[Any]:
        if len(self._values) < count:
            raise Refused("an operation lacks its values")
        popped = self._values[-count:]
        del self._values[-count:]
        return popped

    def _since_mark(self) -> list[Any]:
        if not self._outer:
            raise Refused("an operation lacks its mark")
        items, self._values = self._values, self._outer.pop()
        return items

    def _top(self, kind: type) -> Any:
        if not self._values or type(self._values[-1]) is not kind:
            raise Refused(f"an operation lacks its {kind.__name__}")
        return self._values[-1]


def _fill(target: dict[bytes, Any], items: list[Any]) -> None:
    keys, values = items[::2], items[1::2]
    if len(keys) != len(values) or not all(type(key) is bytes for key in keys):
        raise Refused("its dictionary's keys are not strings")
    if len({*target, *keys}) != len(target) + len(keys):
        raise Refused("its dictionary has a key twice")
    target.update(zip(keys, values, strict=True))


def _known(name: str) -> type:
    if name not in _KNOWN:
        raise Refused(f"it asks for {name}, which no batch needs; nothing of it was run")
    return _KNOWN[name]


def _call(called: Any, arguments: Any) -> _Array | _UnsignedByte:
    if called is _Reconstruct and _same(arguments, (_NdArray, (0,), b"b")):
        return _Array()
    if called is _DType and _same(arguments, (b"u1", 0, 1)):
        return _UnsignedByte()
    raise Refused("it calls something other than the making of an array of bytes")


def _build(target: Any, state: Any) -> Any:
    if type(target) is _UnsignedByte and _same(state, _DTYPE_STATE):
        return target
    if type(target) is not _Array or type(state) is not tuple or len(state) != 5:
        raise Refused("it sets the state of something other than an array of bytes")
    version, shape, dtype, fortran, content = state
    if not _same((version, fortran), (1, False)) or type(dtype) is not _UnsignedByte:
        raise Refused("its array is not one of bytes in row-major order")
    if not (
        type(shape) is tuple
        and len(shape) == 2
        and all(type(length) is int and length > 0 for length in shape)
        and type(content) is bytes
        and shape[0] * shape[1] == len(content)
    ):
        raise Refused("its array's shape does not fit its content")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _same(found: Any, expected: tuple[Any, ...]) -> bool:
    # By type too (True equals 1), and no deeper than what is expected is nested.
    return (
        type(found) is tuple
        and len(found) == len(expected)
        and all(
            type(a) is type(b) and (_same(a, b) if type(b) is tuple else a == b)
            for a, b in zip(found, expected, strict=True)
        )
    )
