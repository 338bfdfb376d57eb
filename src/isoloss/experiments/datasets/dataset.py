"""What every data set looks like once it is read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from isoloss.experiments.datasets.scale import unit_pixels

Examples = NDArray[np.uint8] | NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test examples.

    Networks take `train_inputs` and `test_inputs`. They are made when they are first asked for:
    all of CIFAR-10's would take 600 MB where a draw needs 12.

    Attributes:
        name: The data set's name, as `names()` lists it.
        train_examples: uint8 pixels, shape (n, channels, height, width), or standardized float32
            features, shape (n, features).
        train_targets: int64 classes of shape (n,), or float32 values of shape (n, 1).
        test_examples: Like `train_examples`, for the test examples.
        test_targets: Like `train_targets`, for the test examples.
    """

    name: str
    train_examples: Examples
    train_targets: NDArray[np.int64] | NDArray[np.float32]
    test_examples: Examples
    test_targets: NDArray[np.int64] | NDArray[np.float32]

    @cached_property
    def train_inputs(self) -> NDArray[np.float32]:
        """The training examples as float32: pixels in [0, 1], features as they are."""
        return unit_pixels(self.train_examples)

    @cached_property
    def test_inputs(self) -> NDArray[np.float32]:
        """The test examples as float32: pixels in [0, 1], features as they are."""
        return unit_pixels(self.test_examples)
