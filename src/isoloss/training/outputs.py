"""Gradient of the mean loss with respect to the outputs of a stack of networks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from isoloss.losses import Loss, cross_entropy, mse

OutputGradient = Callable[[Tensor, Tensor], Tensor]
"""A function of outputs (members, batch, ...) and targets (members, batch, ...)."""


def output_gradient(loss: Loss) -> OutputGradient:
    """The gradient of each member's mean loss over a batch with respect to its outputs.

    Args:
        loss: A function of (outputs, targets) giving one loss per example.

    Returns:
        In closed form for this package's own losses, else by automatic differentiation.
    """
    if loss is cross_entropy:
        return _cross_entropy
    if loss is mse:
        return _mse
    return lambda outputs, targets: _automatic(loss, outputs, targets)


def _cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Softmax less one at the target, over the batch size."""
    slope = torch.softmax(outputs, -1, dtype=torch.float64)
    index = targets.unsqueeze(-1)
    slope.scatter_add_(-1, index, slope.new_full((), -1.0).expand_as(index))
    return slope.div_(targets.shape[1]).to(outputs.dtype)


def _mse(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).mul_(2 / outputs[0].numel())


def _automatic(loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
    flat = outputs.detach().flatten(0, 1).requires_grad_()
    with torch.enable_grad():
        total = loss(flat, targets.flatten(0, 1)).sum()
    (slope,) = torch.autograd.grad(total, flat)
    return slope.div_(outputs.shape[1]).view_as(outputs)
