"""Where a walk begins that has nowhere to go from a stationary point."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from isoloss.constraints import bind, level_of
from isoloss.errors import InputError
from isoloss.evaluation.differences import random_direction
from isoloss.objective import Objective
from isoloss.point import Point
from isoloss.problem import Problem, inside
from isoloss.regularizers import AnyRegularizer, Regularizer

ASIDE = 1e-3
"""How far aside is looked first, as a share of |theta|; then twice as far, and so on."""
FARTHEST = 1.0
"""How far at most, as a share of |theta|."""
CLEAR = 3.0
"""KKT residual from which on a walk has somewhere to go, over that at which it has converged."""


def beside(
    problem: Problem,
    regularizer: AnyRegularizer,
    theta: Tensor,
    *,
    level: Any,
    hold: Any,
    kkt_residual: float,
) -> Tensor:
    """Where to begin instead of a stationary point: a step aside, along all that is held.

    A point can be stationary as an optimum of the other kind, or as a saddle: of the squared norm
    all networks that weight decay has led to are. A walk from beside it leaves these, and comes
    back to an optimum of its own.

    Args:
        problem: The training loss.
        regularizer: What is made small.
        theta: A start, shape (n,).
        level: As for `traverse`.
        hold: As for `traverse`.
        kkt_residual: At or below which the start is stationary.

    Returns:
        Theta itself where it is not stationary, or where all points around are as well.
    """
    upper = level_of(level, problem)
    upper = upper if upper is not None and upper.upper else None
    objective = Objective(problem, regularizer, bind(hold, problem), upper)
    here = objective.evaluate(theta)
    if not here.kkt_residual <= kkt_residual:
        return theta
    along, share = _along(here, inside(problem).walked(random_direction(theta))), ASIDE
    while share <= FARTHEST:
        there = objective.evaluate(_moved(theta, along, share))
        if there.finite and there.kkt_residual > CLEAR * kkt_residual:
            return there.theta
        share *= 2
    return theta


def check_varies(quantity: Regularizer, problem: Problem, theta: Tensor) -> None:
    """Refuse a quantity without a value at the start, or without a gradient around it."""
    walked = inside(problem).walked
    value, grad = quantity.value_and_grad(theta)
    if not math.isfinite(value.item()):
        raise InputError(
            f"the quantity {quantity.name!r} must be finite at the start, got {value.item()}"
        )
    if walked(grad).any():
        return
    aside = _moved(theta, walked(random_direction(theta)), ASIDE)
    if not walked(quantity.value_and_grad(aside)[1]).any():
        raise InputError(
            f"the quantity {quantity.name!r} is constant or has no derivative: its gradient is 0 "
            f"at the start and beside it; use a smooth one, for example a probability in place of "
            f"a class"
        )


def _moved(theta: Tensor, v: Tensor, share: float) -> Tensor:
    return theta + share * (theta.norm() or 1.0) * v / (v.norm() or 1.0)


def _along(point: Point, v: Tensor) -> Tensor:
    """What is left of a direction within all that is held and reached at a point."""
    slopes, active = [point.grad], (True,)
    if point.held is not None:
        slopes, active = [point.grad, *point.held.grads], point.held.active
    reached = [slope for slope, there in zip(slopes, active, strict=True) if there and slope.any()]
    if not reached:
        return v
    across = torch.linalg.qr(torch.stack(reached, 1)).Q
    return v - across @ (across.t() @ v)
