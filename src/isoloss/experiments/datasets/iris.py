"""Iris from scikit-learn, split as TensorFlow's `iris_training.csv` and `iris_test.csv`."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from isoloss.experiments.datasets.dataset import Dataset
from isoloss.experiments.datasets.errors import DataError
from isoloss.experiments.datasets.scale import standardize

# Rows of scikit-learn's table, in the order of TensorFlow's files.
# fmt: off
TRAIN_ROWS = (
    132, 93, 106, 9, 18, 42, 31, 141, 65, 21, 59, 52, 14, 5, 117, 56, 143, 105, 115, 15, 124, 128,
    16, 134, 129, 27, 92, 149, 84, 77, 87, 98, 51, 112, 126, 120, 110, 114, 19, 45, 131, 101, 145,
    44, 29, 119, 11, 118, 22, 125, 49, 75, 71, 35, 50, 138, 130, 142, 148, 60, 69, 140, 146, 137,
    68, 107, 38, 109, 116, 7, 2, 58, 36, 135, 127, 34, 80, 96, 78, 111, 10, 63, 54, 94, 136, 37,
    76, 55, 83, 40, 147, 73, 17, 3, 104, 6, 47, 122, 70, 46, 1, 57, 41, 67, 26, 28, 48, 4, 64, 30,
    123, 99, 25, 100, 43, 90, 95, 8, 12, 81,
)
TEST_ROWS = (
    61, 139, 23, 85, 89, 97, 33, 133, 88, 108, 102, 13, 121, 53, 62, 0, 79, 24, 39, 113, 20, 66,
    103, 72, 82, 91, 32, 86, 144, 74,
)
# fmt: on

# TensorFlow's files keep two errors of the UCI file that scikit-learn has corrected.
UNCORRECTED = {34: (4.9, 3.1, 1.5, 0.1), 37: (4.9, 3.1, 1.5, 0.1)}


def load() -> Dataset:
    """Read Iris: 120 training and 30 test flowers, four standardized features, three classes.

    Returns:
        The data set.

    Raises:
        DataError: scikit-learn's table is not the one that the split was made for.
    """
    features, classes = raw()
    train, test = list(TRAIN_ROWS), list(TEST_ROWS)
    train_inputs, test_inputs = standardize(features[train], features[test])
    return Dataset("iris", train_inputs, classes[train], test_inputs, classes[test])


def raw() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The table that the split is taken from, before standardizing.

    Returns:
        Sepal length and width, petal length and width in cm, shape (150, 4), and the classes
        0 setosa, 1 versicolor, 2 virginica, shape (150,).

    Raises:
        DataError: scikit-learn's table is not the one that the split was made for.
    """
    from sklearn.datasets import load_iris  # slow to import

    table = cast(Any, load_iris())
    features = np.array(table.data, np.float64)
    classes = np.array(table.target, np.int64)
    if features.shape != (150, 4) or not np.array_equal(classes, np.repeat([0, 1, 2], 50)):
        raise DataError(
            "scikit-learn's load_iris() is not three classes of 50 flowers; install a version "
            "that requirements.lock names"
        )
    for row, values in UNCORRECTED.items():
        features[row] = values
    return features, classes
