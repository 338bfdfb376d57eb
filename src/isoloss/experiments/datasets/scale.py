"""From raw inputs to the numbers a network is given."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def unit_pixels(parts: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Pixels divided by 255, nothing else.

    Args:
        parts: Images of one shape, in parts that are joined along the first axis.

    Returns:
        All images, in [0, 1].
    """
    # Joined as float32 and divided in place: CIFAR-10's take 600 MB.
    scaled = np.concatenate(parts, dtype=np.float32)
    scaled /= np.float32(255)
    return scaled


def standardise(
    train: NDArray[np.float64], test: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Every column less its training mean, over its training sample standard deviation (n - 1).

    Args:
        train: Shape (n, features).
        test: Shape (m, features).

    Returns:
        Both, standardised in float64 and then rounded.
    """
    mean, deviation = train.mean(axis=0), train.std(axis=0, ddof=1)
    return (
        ((train - mean) / deviation).astype(np.float32),
        ((test - mean) / deviation).astype(np.float32),
    )
