"""Cross-entropy that keeps its relative accuracy near zero.

A level set of loss 2e-4 held to one part in a thousand needs the loss to seven digits after the
point. Cross-entropy as `logsumexp(z) - z_y` is the difference of two numbers of size 10 and has
lost them in float32; the forms here have not.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from isoloss.errors import InputError
from isoloss.losses.shared import NamedLoss, check_range, is_tensor, no_class, per_example

NEVER = -(2**62)
"""torch skips targets of -100 silently unless another value is named to skip."""


class CrossEntropy(NamedLoss):
    """Cross-entropy in nats, exact near zero.

    Called with logits of shape (n, classes) or (n, classes, positions ...) of any floating type and
    targets that are class indices, int64, of the logits' shape without the classes, or class
    probabilities of the logits' shape. Gives the mean over an example's positions, shape (n,),
    float64. Float32 logits are converted first, which is exact and leaves an absolute error of some
    1e-15; float64 logits go through `log1p(sum over j != m of exp(z_j - z_m)) + (z_m - z_y)`, m the
    largest, which keeps full relative accuracy.

    Attributes:
        label_smoothing: Share of each target that is spread evenly over all classes, in [0, 1)
            (Szegedy et al., CVPR 2016).
    """

    label_smoothing: float = Field(default=0.0, ge=0, lt=1)

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss of each example."""
        _check(logits, targets)
        try:
            return per_example(self._losses(logits, targets))
        except (IndexError, RuntimeError) as error:
            wrong = no_class(logits, targets)
            if wrong is None:
                raise
            raise wrong from error

    def check_targets(self, targets: Tensor) -> None:
        """Refuse probabilities that are none."""
        if not targets.is_floating_point() or targets.ndim < 2:
            return
        check_range("cross_entropy", targets, 0, 1)
        sums = targets.sum(1, dtype=torch.float64)
        wrong = sums[(sums - 1).abs() > 1e-3]
        if len(wrong):
            raise InputError(
                f"cross_entropy takes probabilities that sum to 1 over the classes, not to "
                f"{wrong.flatten()[0].item():.6g}; divide the targets by their sum"
            )

    def _losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        smoothing = self.label_smoothing
        if logits.dtype != torch.float64:
            return functional.cross_entropy(
                logits.double(),
                targets.double() if targets.is_floating_point() else targets,
                reduction="none",
                ignore_index=NEVER,
                label_smoothing=smoothing,
            )
        surprise = _negative_log_softmax(logits)
        if targets.is_floating_point():
            losses = (surprise * targets).sum(1)
        else:
            losses = surprise.gather(1, targets.unsqueeze(1)).squeeze(1)
        if smoothing:
            losses = (1 - smoothing) * losses + smoothing * surprise.mean(1)
        return losses


def _negative_log_softmax(logits: Tensor) -> Tensor:
    """-log softmax along axis 1: a sum of two terms that are not negative, so no digit is lost.

    The largest logit is masked in both, not subtracted from itself: its gradient would be the
    difference of two ones.
    """
    top = logits.argmax(1, keepdim=True)
    shifted = logits - logits.gather(1, top)
    others = shifted.scatter(1, top, -torch.inf).exp().sum(1, keepdim=True)
    return others.log1p() - shifted.scatter(1, top, 0.0)


def _check(logits: Any, targets: Any) -> None:
    if not is_tensor(logits) or not is_tensor(targets):
        raise InputError(
            f"cross_entropy takes one tensor of logits and one of targets, not "
            f"{type(logits).__name__} and {type(targets).__name__}; pass a loss function of your "
            f"own that takes what the model gives"
        )
    shape = tuple(logits.shape)
    both = (logits, targets)
    real = not any(t.is_complex() or t.is_meta or t.layout != torch.strided for t in both)
    if real and logits.ndim >= 2 and targets.is_floating_point() and targets.shape == logits.shape:
        return
    positions = shape[:1] + shape[2:]
    if real and logits.ndim >= 2 and targets.dtype == torch.int64 and targets.shape == positions:
        return
    raise InputError(
        f"cross_entropy takes logits of shape (n, classes) or (n, classes, ...) with int64 class "
        f"indices of shape (n,) or (n, ...), or probabilities of the logits' shape, not "
        f"{logits.dtype} {shape} with {targets.dtype} {tuple(targets.shape)}; convert "
        f"indices with targets.long(), and move the classes to axis 1, as outputs.transpose(1, 2)"
    )
