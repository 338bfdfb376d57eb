"""The operations that a CIFAR-10 batch's pickle consists of, read one by one and not run."""

from __future__ import annotations

import pickletools
from collections.abc import Iterator

# None of Python's own readers is used on the arguments: they also accept, and some warn about or
# set memory aside for, arguments of operations that no batch has.
_NAMES = {operation.code.encode("latin-1"): operation.name for operation in pickletools.opcodes}
_BARE = {
    "APPENDS",
    "BUILD",
    "EMPTY_DICT",
    "EMPTY_LIST",
    "MARK",
    "NEWFALSE",
    "NONE",
    "REDUCE",
    "SETITEMS",
    "STOP",
    "TUPLE",
    "TUPLE1",
    "TUPLE2",
    "TUPLE3",
}
_UNSIGNED = {"PROTO": 1, "BINPUT": 1, "LONG_BINPUT": 4, "BININT1": 1, "BININT2": 2}


class Refused(Exception):  # noqa: N818
    """Why a pickle is not a batch, as part of a sentence."""


def operations(data: bytes) -> Iterator[tuple[str, int | bytes | str | None]]:
    """Read a pickle's operations up to the one that ends it.

    Args:
        data: The pickle.

    Yields:
        An operation's name, as `pickletools` has it, and its argument; the last is `STOP`. The
        argument of `GLOBAL` is `module.name`.

    Raises:
        Refused: An operation is cut off, is none that a batch has, or the pickle goes on after
            its end.
    """
    reader = _Reader(data)
    while True:
        name = _NAMES.get(reader.take(1), "unknown")
        yield name, reader.argument(name)
        if name == "STOP":
            break
    if not reader.at_end():
        raise Refused("it goes on after its end")


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def take(self, count: int) -> bytes:
        end = self._position + count
        if not self._position <= end <= len(self._data):
            raise Refused(f"it is cut off at byte {self._position}")
        taken = self._data[self._position : end]
        self._position = end
        return taken

    def argument(self, name: str) -> int | bytes | str | None:
        if name in _BARE:
            return None
        if size := _UNSIGNED.get(name):
            return int.from_bytes(self.take(size), "little")
        match name:
            case "BININT":
                return int.from_bytes(self.take(4), "little", signed=True)
            case "SHORT_BINSTRING":
                return self.take(self.take(1)[0])
            case "BINSTRING":
                return self.take(int.from_bytes(self.take(4), "little", signed=True))
            case "GLOBAL":
                return self._dotted_name()
            case "INST":  # as dangerous as GLOBAL: say what it wanted
                name = f"INST of {self._dotted_name()}"
            case _:
                pass
        raise Refused(f"it uses the pickle operation {name}, which no batch does")

    def at_end(self) -> bool:
        return self._position == len(self._data)

    def _dotted_name(self) -> str:
        name = self._line() + b"." + self._line()
        return ascii(name.decode("latin-1"))[1:-1]  # it is shown to the user: no control characters

    def _line(self) -> bytes:
        end = self._data.find(b"\n", self._position, self._position + 80)
        if end < 0:
            raise Refused(f"it is cut off at byte {self._position}")
        return self.take(end + 1 - self._position)[:-1]
