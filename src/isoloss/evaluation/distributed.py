"""The loss and its derivatives over the examples of several processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from isoloss.data import Chunk
from isoloss.evaluation.interface import Evaluation
from isoloss.evaluation.ranks import Ranks


class Distributed:
    """An `Evaluation` that adds up what another one gives for each rank's share of the examples.

    That has to be each share's part of the whole: weighted sums over the divisor of all examples.
    """

    def __init__(self, other: Evaluation, ranks: Ranks) -> None:
        self.other = other
        self.ranks = ranks

    def outputs(self, theta: Tensor) -> Iterator[tuple[Chunk, Any]]:
        """Each chunk of this rank's examples with what the model gives for it."""
        return self.other.outputs(theta)

    def loss(self, theta: Tensor) -> Tensor:
        """The mean loss over all examples, shape (), float64."""

        def own() -> list[float]:
            value = self.other.loss(theta).item()
            self.ranks.note(theta)
            return [value]

        (total,) = self.ranks.total(own)
        return theta.new_tensor(total, dtype=torch.float64)

    def loss_and_grad(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """The mean loss over all examples, shape (), float64, and its flat gradient."""
        return self.ranks.add(theta, lambda: self.other.loss_and_grad(theta))

    def hvp(self, theta: Tensor, vector: Tensor) -> Tensor:
        """The Hessian of the mean loss over all examples times a flat vector."""
        nothing = theta.new_zeros(())
        return self.ranks.add(theta, lambda: (nothing, self.other.hvp(theta, vector)))[1]
