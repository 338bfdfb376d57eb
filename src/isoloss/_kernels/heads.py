"""The loss at the outputs of a network, and its gradient with respect to them: the slope."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from isoloss.losses import Loss, NamedLoss, cross_entropy, mse

Head = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From outputs to the weighted sum of their losses, shape (), float64, and the slope of the mean
loss, a new tensor of their shape and type."""

Slope = Callable[[Tensor, Tensor], Tensor]
"""From outputs and targets of one network, or of many along a leading axis, to the slope of each
one's mean loss."""


def head_of(
    loss: Loss, shape: tuple[int, ...], targets: Any, dtype: torch.dtype, weight: float
) -> Head | None:
    """The head of the two losses of the paper; automatic differentiation costs five times as much.

    None for other losses, and for targets that do not fit outputs of this shape and type. `weight`
    is that of each example in the mean.
    """
    form = _form(loss, shape[1:], targets, dtype, 1)
    if form is mse:
        return _mse(targets, weight)
    # in float64 the loss takes more care to keep its digits near zero than is taken here
    return _cross_entropy(targets, weight) if form and dtype == torch.float32 else None


def slope_of(
    loss: Loss, shape: tuple[int, ...], targets: Tensor, dtype: torch.dtype, stacked: bool
) -> Slope:
    """The slope without the loss, in closed form for the same two, else by autograd.

    `shape` is that of one example's outputs; `targets` are those of all members and examples, of
    shape (members, examples, ...), of which outputs and their targets have the first axis if
    `stacked`, and else are one member's.
    """
    form = _form(loss, shape, targets, dtype, 2)
    axis = 1 if stacked else 0  # the examples'

    def of_classes(outputs: Tensor, targets: Tensor) -> Tensor:
        slope = torch.softmax(outputs, -1, dtype=torch.float64)
        index = targets.unsqueeze(-1)
        slope.scatter_add_(-1, index, slope.new_full((), -1.0).expand_as(index))
        return slope.div_(outputs.shape[axis]).to(outputs.dtype)

    def of_squares(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).mul_(2 / outputs.shape[axis:].numel())

    def automatic(outputs: Tensor, targets: Tensor) -> Tensor:
        flat = targets.flatten(0, axis)
        _, slope = differentiated(lambda z: loss(z.flatten(0, axis), flat).sum(), outputs)
        return slope.div_(outputs.shape[axis])

    if form is None:
        return automatic
    return of_squares if form is mse else of_classes


def differentiated(
    total_of: Callable[[Tensor], Tensor], outputs: Tensor, scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """A sum of losses and scale times its slope, by automatic differentiation."""
    leaf = outputs.detach().requires_grad_()
    with torch.enable_grad():
        total = total_of(leaf.clone())  # a loss may work in place
    (slope,) = torch.autograd.grad(total, leaf, scale, allow_unused=True, materialize_grads=True)
    return total.detach(), slope


def _form(
    loss: Loss, outputs: tuple[int, ...], targets: Any, dtype: torch.dtype, axes: int
) -> NamedLoss | None:
    """The loss whose closed form takes an example's outputs and these targets."""
    if not isinstance(targets, Tensor):
        return None
    each = tuple(targets.shape[axes:])
    if mse == loss:
        return mse if each == outputs and targets.dtype == dtype else None
    if cross_entropy != loss or len(outputs) != 1 or each or targets.dtype != torch.int64:
        return None
    return cross_entropy if int(targets.min()) >= 0 and int(targets.max()) < outputs[0] else None


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
