"""Sharpness that does not change where a network is rescaled."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from isoloss.arguments import checked
from isoloss.errors import MOST
from isoloss.flat import inner
from isoloss.problem import Problem, inside
from isoloss.regularizers.derivatives import MOST_PROBES
from isoloss.regularizers.regularizer import Combinable, Regularizer
from isoloss.settings import Settings


class AdaptiveSharpness(Settings, Combinable):
    """By how much the training loss rises where each weight changes by a share of its size.

    Unlike `HessianTrace`, it is the same for all networks that differ by a positive rescaling of
    ReLU units: what moves is theta times something, and what it moves with is rescaled too.

    `"worst"` is the objective of Kwon et al. (ASAM, ICML 2021) less the loss: one step uphill,
    L(theta + e) - L(theta), with e = radius theta^2 g / |theta g|, for which |e / theta| is the
    radius. Its exact gradient takes a product with the Hessian; both count four evaluations.
    `"average"` is the mean of L(theta + radius theta v) - L(theta) over random normal vectors v
    and their negatives (Andriushchenko et al., ICML 2023), drawn once, so that it is a fixed smooth
    function; it counts two evaluations for each vector, and one. A walk can exploit what is
    fixed: evaluate its end with another `seed`.

    Attributes:
        kind: `"worst"` or `"average"`.
        radius: Norm of the relative change of all weights, of each weight's in `"average"`.
        probes: Random vectors of `"average"`.
        seed: Determines them.
    """

    name: ClassVar[str] = "adaptive_sharpness"
    kind: Literal["worst", "average"] = "worst"
    radius: PositiveFloat = 0.1
    probes: Annotated[int, Field(ge=1, le=MOST_PROBES)] = 5
    seed: Annotated[int, Field(ge=0, le=MOST)] = 0

    @checked
    def bind(self, problem: Problem) -> Regularizer:
        """The regularizer for a problem."""
        if self.kind == "worst":
            return _Worst(problem, self.radius)
        source = torch.Generator().manual_seed(self.seed)
        vectors = torch.randn(
            self.probes, problem.size, generator=source, dtype=torch.float64, device="cpu"
        )
        return _Average(problem, self.radius * vectors)


class _Worst:
    """L(theta + e) - L(theta) after one step uphill."""

    name = AdaptiveSharpness.name

    def __init__(self, problem: Problem, radius: float) -> None:
        self._problem = problem
        self._radius = radius

    def value_and_grad(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """R, shape (), and its gradient, shape (n,)."""
        loss, g = self._problem.loss_and_grad(theta)
        uphill = theta * g
        steepness = inner(uphill, uphill).sqrt().clamp_min(torch.finfo(g.dtype).tiny)
        scale = (self._radius / steepness).to(g.dtype)
        step = scale * theta * uphill
        above, ahead = self._problem.loss_and_grad(theta + step)
        along = (inner(ahead, step) / steepness / steepness).to(g.dtype)
        # of the step, d e / d theta transposed, times the gradient ahead
        direct = 2 * scale * uphill * ahead - along * uphill * g
        by_gradient = scale * theta.square() * ahead - along * theta * uphill
        grad = ahead - g + direct + self._problem.hvp(theta, by_gradient)
        return above - loss, grad


class _Average:
    """The mean of L(theta + theta d) - L(theta) over given relative changes d and -d."""

    name = AdaptiveSharpness.name

    def __init__(self, problem: Problem, changes: Tensor) -> None:
        self._problem = problem
        self._changes = changes

    def value_and_grad(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """R, shape (), and its gradient, shape (n,)."""
        loss, g = self._problem.loss_and_grad(theta)
        total, whole = torch.zeros_like(loss), torch.zeros_like(g)
        for change in self._changes:
            change = inside(self._problem).walked(change.to(theta))
            for factor in (1 + change, 1 - change):
                value, slope = self._problem.loss_and_grad(theta * factor)
                total += value
                whole.addcmul_(factor, slope)
        count = 2 * len(self._changes)
        return total / count - loss, whole / count - g
