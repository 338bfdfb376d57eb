"""Losses that compare each output with its own target, averaged over an example's outputs."""

from __future__ import annotations

import torch
from pydantic import PositiveFloat
from torch import Tensor
from torch.nn import functional

from isoloss.losses.shared import NamedLoss, check_range, check_same_shape, difference, per_example

LINEAR_FROM = 40.0
"""Above it log(1 + exp(x)) is x in float64 too; torch's own 20 is too soon."""


class MSE(NamedLoss):
    """Squared error, averaged over an example's outputs.

    Called with outputs of shape (n, ...) and targets of the same shape; gives shape (n,), of the
    outputs' type, in the square of the targets' unit.
    """

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each example."""
        return per_example(difference("mse", outputs, targets).square())


class Huber(NamedLoss):
    """Half the squared error where it is small, linear beyond (Huber, 1964), averaged over outputs.

    With e the error: e^2 / 2 where |e| is at most delta, else delta (|e| - delta / 2). Shapes are
    those of `MSE`.

    Attributes:
        delta: Where the linear part begins, in the targets' unit.
    """

    delta: PositiveFloat = 1.0

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each example."""
        error = difference("huber", outputs, targets)
        small = error.clamp(-self.delta, self.delta)
        return per_example(small * (error - small / 2))


class BCEWithLogits(NamedLoss):
    """Binary cross-entropy of logits, in nats, averaged over an example's outputs.

    Called with logits of shape (n, ...) and targets of the same shape, 0 or 1 of any type or
    probabilities between; gives shape (n,), float64, with full relative accuracy near zero:
    `y softplus(-z) + (1 - y) softplus(z)`, two terms that are not negative.
    """

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each example."""
        check_same_shape("bce_with_logits", outputs, targets)
        z, y = outputs.double(), targets.double()
        positive = functional.softplus(-z, threshold=LINEAR_FROM)
        negative = functional.softplus(z, threshold=LINEAR_FROM)
        return per_example(y * positive + (1 - y) * negative)

    def check_targets(self, targets: Tensor) -> None:
        """Refuse targets outside [0, 1]."""
        if targets.dtype != torch.bool:
            check_range("bce_with_logits", targets, 0, 1)
