"""One file with what some runs need of the data sets: the examples they draw, and the test sets.

A safetensors file; for each data set it holds the arrays of `Dataset`, `rows`, which of the
`total` training examples they are, and in its metadata their SHA-256. Images are kept as
differences, packed by zlib.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from isoloss.errors import DataError, one_line
from isoloss.experiments.readers import Dataset, Rows
from isoloss.files import write_tensors

Bytes = NDArray[np.uint8]


class Packed(NamedTuple):
    """Some of a data set's training examples, and its test set."""

    dataset: Dataset
    rows: Rows  # which training examples, ascending
    total: int  # of how many


def write(file: Path, sets: Mapping[str, Packed]) -> dict[str, int]:
    """Write data sets by name, atomically; the bytes that each takes."""
    tensors: dict[str, Tensor] = {}
    about: dict[str, str] = {}
    sizes: dict[str, int] = {}
    for name, packed in sets.items():
        own = {"rows": packed.rows, "total": np.array(packed.total)}
        for key, array in packed.dataset._asdict().items():
            if array.ndim == 4:
                own[f"{key}.shape"], array = np.array(array.shape), _deflated(array)
            own[key] = array
        about[name] = _digest(own)
        sizes[name] = sum(array.nbytes for array in own.values())
        tensors |= {f"{name}.{key}": torch.from_numpy(array) for key, array in own.items()}
    write_tensors(file, tensors, about)
    return sizes


def holds(file: Path, name: str) -> bool:
    """Whether a file is a pack that holds a data set; no more than its header is read."""
    with _opened(file) as pack:
        return name in (pack.metadata() or {})


def read(file: Path, name: str) -> Packed:
    """A data set of a pack that holds it, compared with its checksum."""
    with _opened(file) as pack:
        every: list[str] = pack.keys()
        keys = [key for key in every if key.startswith(f"{name}.")]
        own = {key.removeprefix(f"{name}."): pack.get_tensor(key) for key in keys}
        if pack.metadata()[name] != _digest(own):
            raise DataError(f"{file} was changed after it was written; {_REMEDY}")
    for key in [key for key in own if f"{key}.shape" in own]:
        own[key] = _inflated(own[key], own.pop(f"{key}.shape"))
    rows, total = own.pop("rows"), int(own.pop("total"))
    return Packed(Dataset(**cast(Any, own)), rows, total)


_REMEDY = "pack it again with 'isoloss data pack', or set ISOLOSS_DATA to the official files"


class _opened:  # noqa: N801  # a context
    """A safetensors file; what is wrong with it becomes a DataError."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __enter__(self) -> Any:
        try:
            self._pack = safe_open(self._file, framework="np")
            return self._pack.__enter__()
        except (SafetensorError, OSError) as error:
            raise self._damaged(error) from error

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._pack.__exit__(kind, error, trace)
        if isinstance(error, SafetensorError):
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> DataError:
        return DataError(f"{self._file} cannot be read ({one_line(error)}); {_REMEDY}")


def _digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    """The SHA-256 of arrays with their names, types and shapes."""
    whole = hashlib.sha256()
    for key in sorted(arrays):
        array = np.ascontiguousarray(arrays[key])
        whole.update(f"{key} {array.dtype.str} {array.shape}\n".encode())
        whole.update(array.tobytes())
    return whole.hexdigest()


def _deflated(images: Bytes) -> Bytes:
    """Images in fewer bytes: of neighboring pixels and of colors the differences, modulo 256."""
    away = images.copy()
    away[:, ::2] -= images[:, 1:2] if images.shape[1] == 3 else np.uint8(0)
    for axis in (2, 3):
        away = np.diff(away, axis=axis, prepend=np.uint8(0))
    return np.frombuffer(zlib.compress(away.tobytes(), 9), np.uint8).copy()


def _inflated(packed: Bytes, shape: NDArray[np.int64]) -> Bytes:
    images = np.frombuffer(zlib.decompress(packed.tobytes()), np.uint8).reshape(tuple(shape))
    for axis in (2, 3):
        images = np.cumsum(images, axis=axis, dtype=np.uint8)
    if images.shape[1] == 3:
        images[:, ::2] += images[:, 1:2]
    return images
