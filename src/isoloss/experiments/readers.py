"""From the files of a data set, whose hashes were compared before, to arrays.

A reader takes each file's name and content. It need not expect damage: it is given the official
bytes and no others.
"""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import tarfile
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from isoloss.errors import DataError, require_extra

Files = Iterable[tuple[str, bytes]]
Examples = NDArray[np.uint8] | NDArray[np.float32]
Targets = NDArray[np.int64] | NDArray[np.float32]
Rows = NDArray[np.int64]


class Dataset(NamedTuple):
    """Training and test examples."""

    train_examples: Examples  # uint8 pixels (n, channels, height, width), or float32 (n, features)
    train_targets: Targets  # int64 classes (n,), or float32 values (n, 1)
    test_examples: Examples
    test_targets: Targets


# Rows of scikit-learn's table, in the order of TensorFlow's iris_training.csv and iris_test.csv.
# fmt: off
IRIS_TRAIN = (
    132, 93, 106, 9, 18, 42, 31, 141, 65, 21, 59, 52, 14, 5, 117, 56, 143, 105, 115, 15, 124, 128,
    16, 134, 129, 27, 92, 149, 84, 77, 87, 98, 51, 112, 126, 120, 110, 114, 19, 45, 131, 101, 145,
    44, 29, 119, 11, 118, 22, 125, 49, 75, 71, 35, 50, 138, 130, 142, 148, 60, 69, 140, 146, 137,
    68, 107, 38, 109, 116, 7, 2, 58, 36, 135, 127, 34, 80, 96, 78, 111, 10, 63, 54, 94, 136, 37,
    76, 55, 83, 40, 147, 73, 17, 3, 104, 6, 47, 122, 70, 46, 1, 57, 41, 67, 26, 28, 48, 4, 64, 30,
    123, 99, 25, 100, 43, 90, 95, 8, 12, 81,
)
IRIS_TEST = (
    61, 139, 23, 85, 89, 97, 33, 133, 88, 108, 102, 13, 121, 53, 62, 0, 79, 24, 39, 113, 20, 66,
    103, 72, 82, 91, 32, 86, 144, 74,
)
# fmt: on


def iris(files: Files) -> Dataset:
    """Iris from scikit-learn: 120 and 30 flowers, four standardized features, three classes."""
    del files
    table = require_extra("sklearn.datasets", "experiments").load_iris()
    features, classes = np.array(table.data, np.float64), np.array(table.target, np.int64)
    if features.shape != (150, 4) or not np.array_equal(classes, np.repeat([0, 1, 2], 50)):
        raise DataError(
            "scikit-learn's load_iris() is not three classes of 50 flowers; install a version "
            "that requirements.lock names"
        )
    # TensorFlow's files keep an error of the UCI file that scikit-learn has corrected here.
    features[[34, 37]] = (4.9, 3.1, 1.5, 0.1)
    return _standardized(features, classes, np.array(IRIS_TRAIN), np.array(IRIS_TEST))


def auto_mpg(files: Files) -> Dataset:
    """Auto MPG: miles per gallon from nine standardized columns, 314 and 78 cars."""
    [(_, text)] = files
    rows = [line.split(b"\t")[0].split() for line in text.splitlines()]
    table = np.array([[float(field) for field in row] for row in rows if b"?" not in row])
    usa, europe, japan = 1, 2, 3
    origin = (table[:, [7]] == [europe, japan, usa]).astype(np.float64)
    features, targets = np.hstack([table[:, 1:7], origin]), table[:, [0]].astype(np.float32)
    # What pandas' sample(frac=0.8, random_state=0), the reference's split, does; the rows left
    # over stay in the file's order.
    train = np.random.RandomState(0).choice(len(table), round(0.8 * len(table)), replace=False)
    test = np.setdiff1d(np.arange(len(table)), train)
    return _standardized(features, targets, train, test)


def mnist(files: Files) -> Dataset:
    """MNIST: 60000 and 10000 images of shape (1, 28, 28), ten classes."""
    arrays = {name: _idx(gzip.decompress(content)) for name, content in files}
    images, test_images = (arrays[f"{part}-images-idx3-ubyte.gz"] for part in ("train", "t10k"))
    classes, test_classes = (
        arrays[f"{part}-labels-idx1-ubyte.gz"].astype(np.int64) for part in ("train", "t10k")
    )
    return Dataset(images[:, np.newaxis], classes, test_images[:, np.newaxis], test_classes)


def cifar10(files: Files) -> Dataset:
    """CIFAR-10, batches or their tar.gz: 50000 and 10000 images (3, 32, 32), ten classes."""
    parts = {name: batch(content) for name, content in _unpacked(files)}
    train = [parts[f"data_batch_{number}"] for number in range(1, 6)]
    images = np.concatenate([pixels for pixels, _ in train])
    classes = np.concatenate([classes for _, classes in train])
    return Dataset(images, classes, *parts["test_batch"])


READERS = {reader.__name__: reader for reader in (iris, auto_mpg, mnist, cifar10)}


def _standardized(
    features: NDArray[np.float64], targets: Targets, train: Rows, test: Rows
) -> Dataset:
    """Columns less their training mean, over their training sample standard deviation (n - 1)."""
    mean, deviation = features[train].mean(axis=0), features[train].std(axis=0, ddof=1)
    scaled = [((features[rows] - mean) / deviation).astype(np.float32) for rows in (train, test)]
    return Dataset(scaled[0], targets[train], scaled[1], targets[test])


def _idx(content: bytes) -> NDArray[np.uint8]:
    """An array of bytes in the IDX format: number of dimensions, their lengths, the elements."""
    dimensions = content[3]
    shape = struct.unpack_from(f">{dimensions}I", content, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def _unpacked(files: Files) -> Iterator[tuple[str, bytes]]:
    for name, content in files:
        if not name.endswith(".tar.gz"):
            yield name, content
            continue
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
            for member in archive:  # in its own order: going back would decompress it again
                _, _, inner = member.name.rpartition("/")
                if inner.startswith(("data_batch_", "test_batch")):
                    yield inner, cast(io.BufferedReader, archive.extractfile(member)).read()


_RECONSTRUCT = cast(Any, np.empty(0).__reduce__()[0])  # from wherever this numpy keeps it
_NEEDED = {
    "numpy.core.multiarray._reconstruct": _RECONSTRUCT,
    "numpy._core.multiarray._reconstruct": _RECONSTRUCT,
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
}


class _Unpickler(pickle.Unpickler):  # noqa: S301
    """Finds what a batch consists of, an array of bytes, and imports nothing else."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        wanted = f"{module_name}.{global_name}"
        if wanted not in _NEEDED:
            raise DataError(
                f"a batch of CIFAR-10 asks for {wanted!a}, which none needs; nothing of it was "
                "run: delete the file, then run `isoloss data fetch cifar10`"
            )
        return _NEEDED[wanted]


def batch(content: bytes) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images and classes of one batch, a pickle written by Python 2."""
    entries = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    return entries[b"data"].reshape(-1, 3, 32, 32), np.array(entries[b"labels"], np.int64)
