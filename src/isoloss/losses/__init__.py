"""Per-example losses and metrics, by name or as objects with options.

Every loss here keeps its relative accuracy near zero, in value and gradient.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from isoloss.arguments import checked
from isoloss.errors import InputError, check_takes, unknown
from isoloss.losses.cross_entropy import CrossEntropy
from isoloss.losses.elementwise import MSE, BCEWithLogits, Huber
from isoloss.losses.shared import (
    ComparingLoss,
    Loss,
    ModelLoss,
    NamedLoss,
    accuracy,
    binary_accuracy,
    mae,
)
from isoloss.losses.torch_losses import OwnTensors, TorchLoss, module_loss

__all__ = [
    "LOSSES",
    "METRICS",
    "MSE",
    "BCEWithLogits",
    "ComparingLoss",
    "CrossEntropy",
    "Huber",
    "Loss",
    "ModelLoss",
    "NamedLoss",
    "OwnTensors",
    "TorchLoss",
    "accuracy",
    "bce_with_logits",
    "binary_accuracy",
    "cross_entropy",
    "get_loss",
    "get_metric",
    "huber",
    "mae",
    "mse",
]

cross_entropy = CrossEntropy()
mse = MSE()
bce_with_logits = BCEWithLogits()
huber = Huber()

LOSSES: dict[str, NamedLoss] = {
    "cross_entropy": cross_entropy,
    "mse": mse,
    "bce_with_logits": bce_with_logits,
    "huber": huber,
}
METRICS: dict[str, Loss] = {
    "accuracy": accuracy,
    "binary_accuracy": binary_accuracy,
    "mse": mse,
    "mae": mae,
}
METRIC_OF_LOSS: dict[type, Loss] = {
    CrossEntropy: accuracy,
    MSE: mse,
    BCEWithLogits: binary_accuracy,
    Huber: mae,
    nn.CrossEntropyLoss: accuracy,
    nn.NLLLoss: accuracy,
    nn.MSELoss: mse,
    nn.BCEWithLogitsLoss: binary_accuracy,
    nn.HuberLoss: mae,
    nn.SmoothL1Loss: mae,
    nn.L1Loss: mae,
}


@checked
def get_loss(loss: str | Loss) -> Loss:
    """The per-example loss of that name, or the function itself.

    Args:
        loss: One of `"cross_entropy"`, `"mse"`, `"bce_with_logits"`, `"huber"`, an object with
            options such as `CrossEntropy(label_smoothing=0.1)`, a loss object of torch's such as
            `torch.nn.CrossEntropyLoss(weight=w)`, a function of (outputs, targets), or one whose
            arguments are named `model` and `batch`.

    Returns:
        A function of (outputs, targets); of the arguments `model` and `batch`, a `ModelLoss`.

    Raises:
        InputError: There is no loss of that name, a class was given instead of an object, or a
            function takes something else.
    """
    if isinstance(loss, type):
        raise InputError(
            f"loss={loss.__name__} is a class; give an object of it, {loss.__name__}()"
        )
    if isinstance(loss, (ComparingLoss, ModelLoss, OwnTensors)):
        return loss
    if isinstance(loss, nn.Module):
        found = _of_function("the loss", loss)
        return found if isinstance(found, ModelLoss) else module_loss(loss)
    if callable(loss):
        return _of_function("the loss", loss)
    if loss not in LOSSES:
        raise unknown("loss", str(loss), LOSSES)
    return LOSSES[loss]


@checked
def get_metric(metric: str | Loss | None, loss: str | Loss) -> Loss | None:
    """The metric of that name, the function itself, or the one that goes with the loss.

    Args:
        metric: One of `"accuracy"`, `"binary_accuracy"`, `"mse"`, `"mae"`, a function, or None for
            the loss's own.
        loss: The loss as the user gave it; a loss function of the user's own has no metric, nor
            has a loss object of torch's with weights of classes, or once it has met a target that
            it ignores.

    Returns:
        A function of (outputs, targets) giving one value per example, or None.

    Raises:
        InputError: There is no metric of that name, or a function takes something else.
    """
    made = get_loss(loss)
    if metric is None:
        if isinstance(made, TorchLoss):
            plain = not made.ignores and getattr(made.module, "weight", None) is None
            return METRIC_OF_LOSS.get(type(made.module)) if plain else None
        return METRIC_OF_LOSS.get(type(made))
    if isinstance(metric, type):
        name = metric.__name__
        raise InputError(f"metric={name} is a class; give an object of it, {name}()")
    if callable(metric):
        found = _of_function("the metric", metric)
    elif metric in METRICS:
        found = METRICS[metric]
    else:
        raise unknown("metric", str(metric), METRICS)
    if isinstance(found, ModelLoss) != isinstance(made, ModelLoss):
        right = "(model, batch)" if isinstance(made, ModelLoss) else "(outputs, targets)"
        raise InputError(
            f"the metric must be a function of {right}, as the loss is, got "
            f"{getattr(metric, '__name__', metric)!r}"
        )
    return found


def _of_function(what: str, function: Callable[..., Any]) -> Loss:
    """A function of (outputs, targets) itself; one of (model, batch) as a `ModelLoss`."""
    called = function.forward if isinstance(function, nn.Module) else function
    try:
        names = list(inspect.signature(called).parameters)
    except (TypeError, ValueError):  # written in C, without a signature
        names = []
    if names[:1] == ["model"]:
        check_takes(what, called, "model", "batch")
        return ModelLoss(function)
    check_takes(what, called, "outputs", "targets")
    return function
