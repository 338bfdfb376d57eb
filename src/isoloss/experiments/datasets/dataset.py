"""What every data set looks like once it is read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test examples as the networks take them.

    Attributes:
        name: The data set's name, as `names()` lists it.
        train_inputs: float32, shape (n, features), or (n, channels, height, width) in [0, 1].
        train_targets: int64 classes of shape (n,), or float32 values of shape (n, 1).
        test_inputs: Like `train_inputs`, for the test examples.
        test_targets: Like `train_targets`, for the test examples.
    """

    name: str
    train_inputs: NDArray[np.float32]
    train_targets: NDArray[np.int64] | NDArray[np.float32]
    test_inputs: NDArray[np.float32]
    test_targets: NDArray[np.int64] | NDArray[np.float32]
