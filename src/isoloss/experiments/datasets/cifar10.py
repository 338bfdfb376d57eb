"""CIFAR-10 from its official python batches, lying in a folder or in their archive."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from isoloss.experiments.datasets.archive import read_members
from isoloss.experiments.datasets.dataset import Dataset
from isoloss.experiments.datasets.errors import DataError
from isoloss.experiments.datasets.files import DataFile, forms
from isoloss.experiments.datasets.locate import check, complete_form, read
from isoloss.experiments.datasets.pickled import read_pickle

_PIXELS = 3 * 32 * 32
_KEYS = {b"batch_label", b"labels", b"data", b"filenames"}


def load() -> Dataset:
    """Read CIFAR-10: 50000 training and 10000 test images of shape (3, 32, 32), ten classes.

    Returns:
        The data set.

    Raises:
        DataError: A file is missing, damaged, or does not hold what it should.
    """
    batches, (archive,) = forms("cifar10")
    packed = complete_form("cifar10") == (archive,)
    contents = _from_archive(archive, batches) if packed else _from_folder(batches)
    parsed = {batch.path: parse_batch(data, name) for batch, data, name in contents}
    *train, test = (parsed[batch.path] for batch in batches)
    images = np.concatenate([pixels for pixels, _ in train])
    labels = np.concatenate([classes for _, classes in train])
    return Dataset("cifar10", images, labels, *test)


def parse_batch(data: bytes, name: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read one batch without running any of the code that a pickle can hold.

    Args:
        data: All of the file.
        name: The file's name, for errors.

    Returns:
        Images of shape (n, 3, 32, 32), planes red, green, blue, and their classes, shape (n,).

    Raises:
        DataError: The file is not exactly one batch.
    """
    batch = read_pickle(data, name)
    if set(batch) != _KEYS or type(batch[b"batch_label"]) is not bytes:
        raise _broken(name, "it has other entries")
    images = batch[b"data"]
    if not isinstance(images, np.ndarray) or images.shape[1:] != (_PIXELS,):
        raise _broken(name, f"its images do not have {_PIXELS} bytes each")
    pixels = cast(NDArray[np.uint8], images)
    labels = _listed(batch[b"labels"], int, len(pixels), name)
    if not all(0 <= label <= 9 for label in labels):
        raise _broken(name, "a class in it is not from 0 to 9")
    _listed(batch[b"filenames"], bytes, len(pixels), name)
    return pixels.reshape(-1, 3, 32, 32), np.array(labels, np.int64)


def _listed(value: object, kind: type, length: int, name: str) -> list[Any]:
    values = cast(list[Any], value) if type(value) is list else []
    if len(values) != length or not all(type(item) is kind for item in values):
        raise _broken(name, f"it does not list one class and file name for each of {length} images")
    return values


_Contents = Iterator[tuple[DataFile, bytes, str]]
"""Each batch with its content and, for errors, where that came from."""


def _from_folder(batches: tuple[DataFile, ...]) -> _Contents:
    for batch in batches:
        data, path = read(batch)
        yield batch, data, str(path)


def _from_archive(archive: DataFile, batches: tuple[DataFile, ...]) -> _Contents:
    # The folder's name within the archive.
    wanted = {f"cifar-10-batches-py/{PurePosixPath(batch.path).name}": batch for batch in batches}
    path = check(archive)
    with path.open("rb") as stream:
        for member, data in read_members(stream, wanted, str(path)):
            if hashlib.sha256(data).hexdigest() != wanted[member].sha256:
                raise DataError(
                    f"{member} in {path} is not the official file: its SHA-256 differs; "
                    "delete the archive and fetch it again"
                )
            yield wanted[member], data, f"{member} in {path}"


def _broken(name: str, why: str) -> DataError:
    return DataError(f"{name} is not a CIFAR-10 batch: {why}; fetch it again")
