"""MNIST from its four official IDX files."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from isoloss.experiments.datasets.dataset import Dataset
from isoloss.experiments.datasets.errors import DataError
from isoloss.experiments.datasets.files import DataFile, forms
from isoloss.experiments.datasets.idx import parse_idx
from isoloss.experiments.datasets.locate import read


def load() -> Dataset:
    """Read MNIST: 60000 training and 10000 test images of shape (1, 28, 28), ten classes.

    Returns:
        The data set.

    Raises:
        DataError: A file is missing, damaged, or does not hold what it should.
    """
    train_images, train_labels, test_images, test_labels = forms("mnist")[0]
    return Dataset("mnist", *_pair(train_images, train_labels), *_pair(test_images, test_labels))


def _pair(
    image_file: DataFile, label_file: DataFile
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    (image_data, image_path), (label_data, label_path) = read(image_file), read(label_file)
    images = parse_idx(image_data, str(image_path))
    labels = parse_idx(label_data, str(label_path))
    if images.dtype != np.uint8 or images.shape[1:] != (28, 28):
        raise DataError(
            f"{image_path} holds {images.dtype} of shape {images.shape} and not images of "
            "28 x 28 bytes; fetch it again"
        )
    if labels.dtype != np.uint8 or labels.shape != images.shape[:1] or labels.max() > 9:
        raise DataError(
            f"{label_path} does not hold one class from 0 to 9 for each of {len(images)} "
            "images; fetch it again"
        )
    return images[:, np.newaxis], labels.astype(np.int64)
