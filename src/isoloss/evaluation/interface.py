"""What computes a loss and its derivatives; small classes of this kind wrap one another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor

from isoloss.data import Chunk


class Evaluation(Protocol):
    """The loss and its derivatives at a point."""

    def outputs(self, theta: Tensor) -> Iterator[tuple[Chunk, Any]]:
        """Each chunk with what the model gives for it, detached."""
        ...

    def loss(self, theta: Tensor) -> Tensor:
        """The mean loss, shape (), float64."""
        ...

    def loss_and_grad(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """The mean loss, shape (), float64, and its flat gradient, new tensors."""
        ...

    def hvp(self, theta: Tensor, vector: Tensor) -> Tensor:
        """The Hessian of the mean loss times a flat vector."""
        ...
