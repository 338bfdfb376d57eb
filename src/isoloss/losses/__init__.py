"""Per-example losses and metrics, by name or as objects with options.

Every loss here keeps its relative accuracy near zero, in value and gradient.
"""

from __future__ import annotations

from isoloss.arguments import checked
from isoloss.errors import InputError, check_takes, unknown
from isoloss.losses.cross_entropy import CrossEntropy
from isoloss.losses.elementwise import MSE, BCEWithLogits, Huber
from isoloss.losses.shared import Loss, NamedLoss, accuracy, binary_accuracy, mae

__all__ = [
    "LOSSES",
    "METRICS",
    "MSE",
    "BCEWithLogits",
    "CrossEntropy",
    "Huber",
    "Loss",
    "NamedLoss",
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
METRIC_OF_LOSS: dict[type[NamedLoss], Loss] = {
    CrossEntropy: accuracy,
    MSE: mse,
    BCEWithLogits: binary_accuracy,
    Huber: mae,
}


@checked
def get_loss(loss: str | Loss) -> Loss:
    """The per-example loss of that name, or the function itself.

    Args:
        loss: One of `"cross_entropy"`, `"mse"`, `"bce_with_logits"`, `"huber"`, an object with
            options such as `CrossEntropy(label_smoothing=0.1)`, or a function of (outputs,
            targets).

    Returns:
        The function.

    Raises:
        InputError: There is no loss of that name, a class was given instead of an object, or a
            function takes something else.
    """
    if isinstance(loss, type):
        raise InputError(
            f"loss={loss.__name__} is a class; give an object of it, {loss.__name__}()"
        )
    if callable(loss):
        check_takes("the loss", loss, "outputs", "targets")
        return loss
    if loss not in LOSSES:
        raise unknown("loss", str(loss), LOSSES)
    return LOSSES[loss]


@checked
def get_metric(metric: str | Loss | None, loss: str | Loss) -> Loss | None:
    """The metric of that name, the function itself, or the one that goes with the loss.

    Args:
        metric: One of `"accuracy"`, `"binary_accuracy"`, `"mse"`, `"mae"`, a function, or None for
            the loss's own.
        loss: The loss as the user gave it; a loss function of the user's own has no metric.

    Returns:
        A function of (outputs, targets) giving one value per example, or None.

    Raises:
        InputError: There is no metric of that name, or a function takes something else.
    """
    if metric is None:
        named = get_loss(loss)
        return METRIC_OF_LOSS.get(type(named)) if isinstance(named, NamedLoss) else None
    if isinstance(metric, type):
        name = metric.__name__
        raise InputError(f"metric={name} is a class; give an object of it, {name}()")
    if callable(metric):
        check_takes("the metric", metric, "outputs", "targets")
        return metric
    if metric not in METRICS:
        raise unknown("metric", str(metric), METRICS)
    return METRICS[metric]
