"""A point of a walk with everything that was evaluated there, so that nothing is paid twice."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from isoloss.flat import fetched, inner, less
from isoloss.problem import Problem
from isoloss.regularizers import AnyRegularizer, get_regularizer

Beside = Callable[[Tensor, Tensor], Sequence[Tensor]]
"""Gives, for a point's loss and gradient, numbers and vectors to be fetched with it."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far the loss L of a point on the level set may be from the level c.

    Attributes:
        rtol: Largest |L - c| / c, where there is no `atol`.
        atol: Largest |L - c|, in the loss's unit, for losses and levels of any sign; None for none.
    """

    rtol: float = 1e-3
    atol: float | None = None

    def relative(self, size: float) -> float:
        """The tolerance as a share of a loss, or level, of some size."""
        if self.atol is None:
            return self.rtol
        return self.atol / abs(size) if size else math.inf

    def error(self, loss: float, level: float) -> float:
        """How far a loss is from the level, in the tolerance's unit: (L - c) / c, or L - c."""
        return (loss - level) / level if self.atol is None else loss - level


@dataclass(frozen=True, slots=True)
class Point:
    """A point with loss L, regularizer R, their gradients g and r, and how these stand together.

    A stationary point of R on the level set has r + lambda g / L = 0 with the multiplier lambda of
    log(L / c) = 0: there it is also a stationary point of weight decay, L + (L / lambda) R.

    Attributes:
        theta: Flat parameters, shape (n,).
        norm: |theta|.
        loss: L.
        grad: g, shape (n,).
        regularizer: R.
        regularizer_grad: r, shape (n,).
        tangent: r less its part along g: the direction in the level set in which R rises fastest,
            shape (n,). Equal to r where g vanishes.
        grad_norm: |g|.
        tangent_norm: |tangent|.
        angle_degrees: Angle between r and g, 0 to 180; 180 at a constrained minimum.
        kkt_residual: |tangent| / |r|, the sine of that angle; 0 at a stationary point.
        equivalent_penalty: L / lambda with the least-squares lambda, -|g|^2 / <r, g>: the weight
            of R in the weight decay that is stationary at a converged point. Negative where R
            falls as L falls; NaN where either gradient vanishes or both are orthogonal.
    """

    theta: Tensor
    norm: float
    loss: float
    grad: Tensor
    regularizer: float
    regularizer_grad: Tensor
    tangent: Tensor
    grad_norm: float
    tangent_norm: float
    angle_degrees: float
    kkt_residual: float
    equivalent_penalty: float

    @property
    def finite(self) -> bool:
        """Whether loss, regularizer and both gradients are finite."""
        return math.isfinite(self.loss + self.regularizer + self.grad_norm + self.kkt_residual)


class Objective:
    """Evaluates points: the problem's loss and a regularizer, with a count of evaluations.

    Attributes:
        evaluations: Evaluations made through this object, the regularizer's included.
    """

    def __init__(self, problem: Problem, regularizer: AnyRegularizer) -> None:
        self.problem = problem
        self.regularizer = get_regularizer(regularizer, problem)
        self.evaluations = 0

    @property
    def curvature(self) -> float | None:
        """The number c for which the regularizer's Hessian is c I; None where it is no such."""
        return getattr(self.regularizer, "curvature", None)

    def evaluate(self, theta: Tensor) -> Point:
        """Loss, regularizer and gradients at theta, shape (n,).

        One evaluation, and more where the regularizer is made of derivatives of the loss.
        """
        return self.measure(theta)[0]

    def measure(
        self, theta: Tensor, beside: Beside | None = None
    ) -> tuple[Point, list[NDArray[np.float64]]]:
        """The same, with further numbers that are fetched from the device in the same copy."""
        before = self.problem.evaluations
        loss, g = self.problem.loss_and_grad(theta)
        value, r = self.regularizer.value_and_grad(theta)
        self.evaluations += self.problem.evaluations - before
        gg, rr, rg = (inner(a, b).double() for a, b in ((g, g), (r, r), (r, g)))
        tangent = less(r, g, rg / gg)
        more = () if beside is None else beside(loss, g)
        several = (loss, value, gg, rr, rg, inner(tangent, tangent), inner(theta, theta))
        found = fetched(*several, *more)
        loss, value, gg, rr, rg, tt, size = (number.item() for number in found[: len(several)])
        along = rg / gg if gg > 0 else 0.0
        g_norm, r_norm, t_norm = (math.sqrt(x) for x in (gg, rr, tt))
        point = Point(
            theta=theta,
            norm=math.sqrt(size),
            loss=loss,
            grad=g,
            regularizer=value,
            regularizer_grad=r,
            tangent=tangent,
            grad_norm=g_norm,
            tangent_norm=t_norm,
            # atan2 keeps the angle's digits near 0 and 180 degrees, where arccos loses half of them
            angle_degrees=math.degrees(math.atan2(t_norm, along * g_norm)),
            kkt_residual=t_norm / r_norm if r_norm != 0 else 0.0,
            equivalent_penalty=-1 / along if along else math.nan,
        )
        return point, found[len(several) :]
