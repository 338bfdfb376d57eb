"""The IDX format of MNIST: big-endian arrays behind a header that gives their type and shape."""

from __future__ import annotations

import io
import math
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoloss.experiments.datasets.errors import DataError

_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_MOST_DIMENSIONS = 8
_MOST_BYTES = 2**30


def parse_idx(data: bytes, name: str) -> NDArray[Any]:
    """Read an IDX file, compressed by gzip or not.

    No more is decompressed than the header announces and one byte, and no more than 1 GiB.

    Args:
        data: All of the file.
        name: The file's name, for errors.

    Returns:
        The array, of the shape and type that the header gives, in native byte order; read-only
        where its elements are single bytes.

    Raises:
        DataError: The file is not exactly one IDX array.
    """
    source = _Gzip(data) if data.startswith(b"\x1f\x8b") else io.BytesIO(data)
    try:
        return _parse(source, name)
    except zlib.error as error:
        raise _broken(name, f"its compression is damaged ({error})") from error


class _Gzip:
    """One gzip stream, decompressed only as far as is asked for."""

    def __init__(self, data: bytes) -> None:
        self._inflate = zlib.decompressobj(wbits=31)
        self._input = data

    def read(self, count: int) -> bytes:
        out = bytearray()
        while len(out) < count and not self._inflate.eof:
            piece = self._inflate.decompress(self._input, count - len(out))
            self._input = self._inflate.unconsumed_tail
            if not piece:
                break
            out += piece
        return bytes(out)

    def at_end(self) -> bool:
        # Reading past the last byte makes zlib compare length and checksum.
        return not self.read(1) and self._inflate.eof and not self._inflate.unused_data


def _parse(source: _Gzip | io.BytesIO, name: str) -> NDArray[Any]:
    magic = source.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _TYPES:
        raise _broken(name, f"it starts with {magic.hex(' ') or 'nothing'}")
    dimensions = magic[3]
    if not 1 <= dimensions <= _MOST_DIMENSIONS:
        raise _broken(name, f"its header announces {dimensions} dimensions")
    header = source.read(4 * dimensions)
    if len(header) < 4 * dimensions:
        raise _broken(name, "it ends within its header")
    shape = struct.unpack(f">{dimensions}I", header)
    dtype = np.dtype(_TYPES[magic[2]])
    size = math.prod(shape) * dtype.itemsize
    if not 0 < size <= _MOST_BYTES:
        raise _broken(name, f"its header announces {size} bytes")
    payload = source.read(size)
    if len(payload) < size:
        raise _broken(name, f"it has {len(payload)} of the {size} bytes that its header announces")
    if not (source.at_end() if isinstance(source, _Gzip) else not source.read(1)):
        raise _broken(name, "it goes on after the array that its header announces, or is cut off")
    array = np.frombuffer(payload, dtype).reshape(shape)
    return array.astype(dtype.newbyteorder("="), copy=False)


def _broken(name: str, why: str) -> DataError:
    return DataError(f"{name} is not a whole IDX file: {why}; fetch it again")
