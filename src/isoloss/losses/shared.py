"""What all named losses share, and the metrics: one value per example."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor

from isoloss.arguments import checked
from isoloss.errors import InputError, kind
from isoloss.settings import Settings

Loss = Callable[[Any, Any], Tensor]
"""A function of (outputs, targets) that gives one loss, or one metric, per example: shape (n,)."""


class ComparingLoss(ABC):
    """Base of what compares outputs with targets, of which something is known."""

    @abstractmethod
    def __call__(self, outputs: Any, targets: Any, /) -> Tensor:
        """The loss of each example, shape (n,)."""

    @property
    def title(self) -> str:
        """Its name for people."""
        return type(self).__name__

    def check_targets(self, targets: Tensor) -> None:
        """Refuse targets that can be seen to be wrong without the model's outputs."""
        del targets

    def counts(self, targets: Any) -> Tensor | None:
        """What each example adds to the loss's divisor, shape (n,), float64; None for 1 each."""
        if targets is None:
            raise InputError(
                f"{self.title} compares outputs with targets, and the data hold inputs alone; give "
                f"a pair of tensors, the tuple (inputs, targets), or a list of such pairs"
            )
        if not is_tensor(targets) or targets.is_complex():
            gave = f"{targets.dtype}" if is_tensor(targets) else kind(targets)
            raise InputError(
                f"{self.title} takes one tensor of real targets, got {gave}; pass a loss function "
                f"of your own that takes them"
            )
        self.check_targets(targets)
        return None


class NamedLoss(Settings, ComparingLoss):
    """Base of the losses that isoloss brings: immutable, with options, called like a function."""


@dataclass(frozen=True)
class ModelLoss:
    """A user's function of (model, batch), which calls the model itself.

    Attributes:
        function: Gives one loss per example, or one number for the whole data.
    """

    function: Callable[[Any, Any], Any]

    def __call__(self, outputs: Any, targets: Any) -> Tensor:
        """What there is in place of outputs: the losses."""
        del targets
        return outputs

    def measured(self, model: Any, batch: Any) -> Tensor:
        """The losses of a batch, shape (n,), or the number, shape ()."""
        values = self.function(model, batch)
        if not is_tensor(values) or values.ndim > 1:
            gave = f"shape {tuple(values.shape)}" if is_tensor(values) else kind(values)
            raise InputError(
                f"a function of (model, batch) must give one loss per example, a tensor of shape "
                f"(n,), or one number for the whole data, shape (), got {gave}"
            )
        return values


def per_example(values: Tensor) -> Tensor:
    """The mean of each example's values, shape (n,), of values of shape (n, ...)."""
    return values.flatten(1).mean(1) if values.ndim > 1 else values


def is_tensor(value: Any) -> TypeGuard[Tensor]:
    """Whether a value that a user's model or data gave is a tensor."""
    return isinstance(value, Tensor)


def check_same_shape(loss: str, outputs: Any, targets: Any) -> None:
    """Insist on outputs and targets of one shape, which else would broadcast silently."""
    if not is_tensor(outputs) or not is_tensor(targets):
        raise InputError(
            f"{loss} takes one tensor of outputs and one of targets, not "
            f"{type(outputs).__name__} and {type(targets).__name__}; pass a loss function of your "
            f"own that takes what the model gives"
        )
    if outputs.shape != targets.shape:
        raise InputError(
            f"{loss} takes outputs and targets of one shape, not {tuple(outputs.shape)} and "
            f"{tuple(targets.shape)}; reshape the targets, for example with targets[:, None]"
        )
    for part in (outputs, targets):
        if part.is_complex() or part.layout != torch.strided or part.is_meta:
            raise InputError(
                f"{loss} takes dense tensors of real numbers, not {part.dtype} of {part.layout} on "
                f"{part.device}; convert it, for example with torch.view_as_real"
            )


def difference(loss: str, outputs: Any, targets: Any) -> Tensor:
    """Outputs less targets, of one shape."""
    check_same_shape(loss, outputs, targets)
    for part in (outputs, targets):
        if part.dtype == torch.bool or not outputs.is_floating_point():
            raise InputError(f"{loss} takes numbers, not {part.dtype}; convert them with .float()")
    return outputs - targets


def check_range(loss: str, targets: Tensor, low: float, high: float) -> None:
    """Insist on targets within bounds."""
    outside = targets[(targets < low) | (targets > high)]
    if len(outside):
        value = outside.flatten()[0].to(torch.float64).item()
        raise InputError(
            f"{loss} takes targets from {low:g} to {high:g}, not {value:g}; scale or relabel them"
        )


def no_class(logits: Tensor, targets: Tensor, ignored: int | None = None) -> InputError | None:
    """An error, to be raised, for a target that is no class; None where all are."""
    if targets.is_floating_point() or logits.ndim < 2:
        return None
    outside = (targets < 0) | (targets >= logits.shape[1])
    if ignored is not None:
        outside &= targets != ignored
    if not outside.any():
        return None
    return InputError(
        f"target {targets[outside][0].item()} is no class: the outputs have {logits.shape[1]} "
        f"columns, so targets go from 0 to {logits.shape[1] - 1}; relabel the data or "
        f"widen the model"
    )


@checked
def accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """1 where the largest logit is the target's class, else 0; the mean over positions."""
    classes = targets
    if targets.is_floating_point() and targets.ndim > 1:
        classes = targets.argmax(1)
    fits = logits.ndim > 1 and logits.numel() > 0 and logits.dtype != torch.bool
    if not fits or logits.shape[:1] + logits.shape[2:] != classes.shape:
        raise InputError(
            f"accuracy takes logits of shape (n, classes, ...) with class indices of shape "
            f"(n, ...) or probabilities of the logits' shape, not {logits.dtype} "
            f"{tuple(logits.shape)} with {tuple(targets.shape)}"
        )
    return per_example((logits.argmax(1) == classes).double())


@checked
def binary_accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """1 where a logit's sign says what the target says, else 0; the mean over outputs."""
    check_same_shape("binary_accuracy", logits, targets)
    return per_example(((logits > 0) == (targets > 0.5)).double())


def mae(outputs: Tensor, targets: Tensor) -> Tensor:
    """Absolute error, averaged over an example's outputs."""
    return per_example(difference("mae", outputs, targets).abs())
