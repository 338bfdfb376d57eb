"""The loss at the outputs of a network, and its gradient with respect to them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from isoloss.data import Chunk
from isoloss.evaluation.autograd import Autograd, differentiable, weighted_sum
from isoloss.losses import MSE, CrossEntropy, Loss

Head = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From outputs to the weighted sum of their losses, shape (), float64, and the gradient of the mean
loss with respect to the outputs, a new tensor of their shape and type."""


def by_hand(loss: Loss, chunk: Chunk, shape: tuple[int, ...], weight: Tensor) -> Head | None:
    """The head of the two losses of the paper; automatic differentiation costs five times as much.

    Args:
        loss: Gives one loss per example.
        chunk: The examples.
        shape: Of the outputs.
        weight: Of each example in the mean, shape (), float64.

    Returns:
        The head, or None for other losses, for weights and for targets that do not fit.
    """
    inputs, targets = chunk.inputs, chunk.targets
    if chunk.weights is not None or not isinstance(targets, Tensor):
        return None
    if isinstance(loss, MSE) and targets.shape == shape and targets.dtype == inputs.dtype:
        return _mse(targets, weight.item())
    usual = isinstance(loss, CrossEntropy) and loss.label_smoothing == 0
    if usual and inputs.dtype == torch.float32 and _are_classes(targets, shape):
        return _cross_entropy(targets, weight.item())
    return None


def differentiated(autograd: Autograd, chunk: Chunk, weight: Tensor) -> Head:
    """The head of any loss, by automatic differentiation.

    Args:
        autograd: Gives the losses.
        chunk: The examples.
        weight: Of an example of weight one in the mean, shape (), float64.

    Returns:
        The head.
    """

    def head(outputs: Tensor) -> tuple[Tensor, Tensor]:
        leaf = outputs.detach().requires_grad_()
        with torch.enable_grad():
            losses = autograd.losses(leaf.clone(), chunk)  # a loss may work in place
            total = differentiable(weighted_sum(losses, chunk))
        (grad,) = torch.autograd.grad(
            total, leaf, weight, allow_unused=True, materialize_grads=True
        )
        return total.detach(), grad

    return head


def _cross_entropy(targets: Tensor, weight: float) -> Head:
    index = targets.unsqueeze(1)
    minus_one = torch.full(index.shape, -1.0, dtype=torch.float64)

    def head(outputs: Tensor) -> tuple[Tensor, Tensor]:
        log = torch.log_softmax(outputs, 1, dtype=torch.float64)
        total = log.gather(1, index).sum().neg()
        grad = log.exp_().scatter_add_(1, index, minus_one).mul_(weight)
        return total, grad.to(outputs.dtype)

    return head


def _mse(targets: Tensor, weight: float) -> Head:
    each = targets[0].numel()

    def head(outputs: Tensor) -> tuple[Tensor, Tensor]:
        error = outputs - targets
        total = error.square().sum(dtype=torch.float64).div_(each)
        return total, error.mul_(2 * weight / each)

    return head


def _are_classes(targets: Tensor, shape: tuple[int, ...]) -> bool:
    if len(shape) != 2 or targets.ndim != 1 or targets.dtype != torch.int64:
        return False
    return int(targets.min()) >= 0 and int(targets.max()) < shape[1]
