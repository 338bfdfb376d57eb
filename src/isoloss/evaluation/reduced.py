"""The loss in full precision, its gradient in a reduced one, which is faster."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from isoloss.data import Chunk
from isoloss.evaluation.interface import Evaluation


class Reduced:
    """An `Evaluation` whose gradients alone are rounded: a level is held as exactly as ever."""

    def __init__(self, strict: Evaluation, rounded: Evaluation) -> None:
        self._strict, self.rounded = strict, rounded

    def outputs(self, theta: Tensor) -> Iterator[tuple[Chunk, Any]]:
        """Each chunk with what the model gives for it, in full precision."""
        return self._strict.outputs(theta)

    def loss(self, theta: Tensor) -> Tensor:
        """The mean loss in full precision."""
        return self._strict.loss(theta)

    def loss_and_grad(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """The mean loss in full precision and its flat gradient in the reduced one."""
        return self._strict.loss(theta), self.rounded.loss_and_grad(theta)[1]

    def hvp(self, theta: Tensor, vector: Tensor) -> Tensor:
        """The Hessian of the mean loss times a flat vector, in full precision."""
        return self._strict.hvp(theta, vector)
