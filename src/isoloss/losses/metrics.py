"""What is measured beside the loss: one value per example."""

from __future__ import annotations

from torch import Tensor

from isoloss.losses.elementwise import MSE
from isoloss.losses.shared import check_same_shape, per_example

mse = MSE()


def accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """1 where the largest logit is the target's class, else 0; the mean over positions.

    Args:
        logits: Shape (n, classes, ...).
        targets: Class indices, shape (n, ...), or probabilities of the logits' shape.

    Returns:
        Shape (n,), float64.
    """
    classes = targets.argmax(1) if targets.is_floating_point() else targets
    return per_example((logits.argmax(1) == classes).double())


def binary_accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """1 where a logit's sign says what the target says, else 0; the mean over outputs.

    Args:
        logits: Shape (n, ...).
        targets: The same shape; above 1/2 counts as positive.

    Returns:
        Shape (n,), float64.
    """
    check_same_shape("binary_accuracy", logits, targets)
    return per_example(((logits > 0) == (targets > 0.5)).double())


def mae(outputs: Tensor, targets: Tensor) -> Tensor:
    """Absolute error, averaged over an example's outputs.

    Args:
        outputs: Shape (n, ...).
        targets: The same shape.

    Returns:
        Shape (n,), in the targets' unit.
    """
    check_same_shape("mae", outputs, targets)
    return per_example((outputs - targets).abs())
