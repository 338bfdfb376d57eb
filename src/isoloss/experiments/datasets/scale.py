"""From raw inputs to the numbers a network is given."""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray


def unit_pixels(examples: NDArray[np.uint8] | NDArray[np.float32]) -> NDArray[np.float32]:
    """Pixels divided by 255, nothing else.

    Args:
        examples: Pixels as bytes, or features, which need no scaling any more.

    Returns:
        Pixels in [0, 1]; the very same array if it is one of features.
    """
    if examples.dtype == np.float32:
        return cast(NDArray[np.float32], examples)
    return np.divide(examples, np.float32(255), dtype=np.float32)


def standardize(
    train: NDArray[np.float64], test: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Every column less its training mean, over its training sample standard deviation (n - 1).

    Args:
        train: Shape (n, features).
        test: Shape (m, features).

    Returns:
        Both, standardized in float64 and then rounded.
    """
    mean, deviation = train.mean(axis=0), train.std(axis=0, ddof=1)
    return (
        ((train - mean) / deviation).astype(np.float32),
        ((test - mean) / deviation).astype(np.float32),
    )
