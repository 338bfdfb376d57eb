"""A training set as pairs of (inputs, targets)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from isoloss.errors import InputError


def pairs(data: Any) -> list[tuple[Any, Tensor]]:
    """The pairs that a user's data consists of, in order.

    Args:
        data: One pair of (inputs, targets), or an iterable of such pairs.

    Returns:
        The pairs, each with as many inputs as targets.

    Raises:
        InputError: It is neither, or numbers of inputs and targets differ.
    """
    if isinstance(data, tuple) and len(data) == 2 and isinstance(data[1], Tensor):
        chunks: list[Any] = [data]
    elif isinstance(data, Iterable):
        chunks = list(data)
    else:
        chunks = [data]
    for chunk in chunks:
        if not _is_pair(chunk):
            raise InputError(
                "data must be a pair of tensors (inputs, targets) with the examples along the "
                "first axis, or an iterable of such pairs"
            )
        inputs, targets = chunk
        if isinstance(inputs, Tensor) and len(inputs) != len(targets):
            raise InputError(
                f"data has {len(inputs)} inputs and {len(targets)} targets; give one each"
            )
    return chunks


def _is_pair(chunk: Any) -> bool:
    if not isinstance(chunk, (tuple, list)):
        return False
    if len(chunk) != 2 or not isinstance(chunk[1], Tensor) or chunk[1].ndim == 0:
        return False
    return not isinstance(chunk[0], Tensor) or chunk[0].ndim > 0
