"""A random part of the training examples."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from isoloss.errors import InputError
from isoloss.experiments.datasets.dataset import Dataset


def draw(dataset: Dataset, count: int, seed: int) -> tuple[Dataset, NDArray[np.int64]]:
    """Training examples chosen at random without replacement; the test examples stay.

    Args:
        dataset: Where to draw from; it is left as it is.
        count: How many training examples.
        seed: Seed of numpy's PCG64 generator, 0 or more; the same seed gives the same draw.

    Returns:
        The data set with the drawn training examples in the order of the draw, copied, and their
        row numbers in `dataset`, shape (count,).

    Raises:
        InputError: `count` or `seed` is not possible.
    """
    examples = len(dataset.train_targets)
    if not 1 <= count <= examples:
        raise InputError(
            f"count={count} examples cannot be drawn from {dataset.name}; "
            f"give a number from 1 to {examples}"
        )
    if seed < 0:
        raise InputError(f"seed={seed} is not possible; give 0 or a larger whole number")
    generator = np.random.Generator(np.random.PCG64(seed))
    rows = generator.choice(examples, size=count, replace=False).astype(np.int64)
    part = dataclasses.replace(
        dataset,
        train_examples=dataset.train_examples[rows],
        train_targets=dataset.train_targets[rows],
    )
    return part, rows
