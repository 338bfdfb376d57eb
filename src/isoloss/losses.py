"""Per-example losses that keep their relative accuracy near zero.

A level set of loss 2e-4 held to one part in a thousand needs the loss to seven digits after the
point. Cross-entropy as `logsumexp(z) - z_y` is the difference of two numbers of size 10 and has
lost them in float32; the forms here have not.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from isoloss.errors import InputError, unknown

Loss = Callable[[Tensor, Tensor], Tensor]
"""A function of (outputs, targets) that gives one loss, or one metric, per example: shape (n,)."""


NEVER = -(2**62)
"""torch skips targets of -100 silently unless another value is named to skip."""


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of integer class targets, in nats, exact near zero.

    Args:
        logits: Shape (n, classes), any floating type.
        targets: Class indices, shape (n,), int64.

    Returns:
        Shape (n,), float64. Float32 logits are converted first, which is exact and leaves an
        absolute error of some 1e-15, at the cost of one small copy. Float64 logits go through
        `softplus(logsumexp over j != y of (z_j - z_y))`, which keeps full relative accuracy.

    Raises:
        InputError: The shapes or the type of the targets do not fit, or a target is no class.
    """
    if logits.ndim != 2 or targets.ndim != 1 or targets.dtype != torch.int64:
        raise InputError(
            f"cross_entropy takes logits of shape (n, classes) and int64 class indices of shape "
            f"(n,), not {tuple(logits.shape)} and {targets.dtype} {tuple(targets.shape)}; convert "
            f"the targets with targets.long() or pass a loss function of your own"
        )
    try:
        if logits.dtype != torch.float64:
            return functional.cross_entropy(
                logits.double(), targets, reduction="none", ignore_index=NEVER
            )
        index = targets.unsqueeze(1)
        margins = logits - logits.gather(1, index)
        others = margins.scatter(1, index, -torch.inf)
        return functional.softplus(torch.logsumexp(others, dim=1), threshold=40.0)
    except (IndexError, RuntimeError) as error:
        outside = targets[(targets < 0) | (targets >= logits.shape[1])]
        if len(outside) == 0:
            raise
        raise InputError(
            f"target {outside[0].item()} is no class: the outputs have {logits.shape[1]} columns, "
            f"so targets go from 0 to {logits.shape[1] - 1}; relabel the data or widen the model"
        ) from error


def mse(outputs: Tensor, targets: Tensor) -> Tensor:
    """Squared error of each example, averaged over its outputs.

    Args:
        outputs: Shape (n, ...).
        targets: The same shape as outputs, in the targets' squared unit.

    Returns:
        Shape (n,), the type of outputs.

    Raises:
        InputError: The shapes differ, which would broadcast silently.
    """
    if outputs.shape != targets.shape:
        raise InputError(
            f"mse takes outputs and targets of one shape, not {tuple(outputs.shape)} and "
            f"{tuple(targets.shape)}; reshape the targets, for example with targets[:, None]"
        )
    return (outputs - targets).square().flatten(1).mean(1)


def accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """1 where the largest logit is the target's class, else 0.

    Args:
        logits: Shape (n, classes).
        targets: Class indices, shape (n,).

    Returns:
        Shape (n,), float64.
    """
    return (logits.argmax(1) == targets).double()


LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "mse": mse}
METRICS: dict[str, Loss] = {"accuracy": accuracy, "mse": mse}
METRIC_OF_LOSS = {"cross_entropy": "accuracy", "mse": "mse"}


def get_loss(loss: str | Loss) -> Loss:
    """The per-example loss of that name, or the function itself.

    Args:
        loss: One of `"cross_entropy"`, `"mse"`, or a function of (outputs, targets).

    Returns:
        The function.

    Raises:
        InputError: There is no loss of that name.
    """
    if callable(loss):
        return loss
    if loss not in LOSSES:
        raise unknown("loss", str(loss), LOSSES)
    return LOSSES[loss]


def get_metric(metric: str | Loss | None, loss: str | Loss) -> Loss | None:
    """The metric of that name, the function itself, or the one that goes with the loss.

    Args:
        metric: One of `"accuracy"`, `"mse"`, a function, or None for the loss's own.
        loss: The loss as the user gave it; a loss function of the user's own has no metric.

    Returns:
        A function of (outputs, targets) giving one value per example, or None.

    Raises:
        InputError: There is no metric of that name.
    """
    if metric is None:
        return METRICS[METRIC_OF_LOSS[loss]] if isinstance(loss, str) else None
    if callable(metric):
        return metric
    if metric not in METRICS:
        raise unknown("metric", str(metric), METRICS)
    return METRICS[metric]
