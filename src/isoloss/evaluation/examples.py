"""One number per example, insisted on, and their weighted sum."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from isoloss.data import Chunk
from isoloss.errors import InputError


def per_example(what: str, values: Any, chunk: Chunk) -> Tensor:
    """Insist that a user's function gave one number per example.

    Args:
        what: What the numbers are, for the text.
        values: What it gave.
        chunk: What it was given.

    Returns:
        The values, shape (chunk.examples,).

    Raises:
        InputError: It gave something else.
    """
    shape = tuple(values.shape) if isinstance(values, Tensor) else None
    n = chunk.examples
    if shape != (n,):
        gave = f"shape {shape}" if shape is not None else f"a {type(values).__name__}"
        raise InputError(
            f"the {what} gave {gave} for {n} examples; it must give one value per example "
            f"(reduction='none'), a tensor of shape ({n},)"
        )
    return values


def weighted_sum(values: Tensor, chunk: Chunk) -> Tensor:
    """Sum of an example's number times its weight, shape (), float64."""
    if chunk.weights is None:
        return values.sum(dtype=torch.float64)
    return values.double().dot(chunk.weights)
