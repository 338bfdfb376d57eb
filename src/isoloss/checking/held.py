"""Whether what is held beside the level can be held from a start."""

from __future__ import annotations

import math

from isoloss.checking.function import check_function, check_tolerance
from isoloss.checking.gradient import check_gradient, check_quantity
from isoloss.constraints import RTOL, Bound
from isoloss.errors import InputError
from isoloss.objective import Objective
from isoloss.point import Point, Tolerance
from isoloss.problem import Problem


def check_held(objective: Objective, point: Point, *, gradient: bool) -> None:
    """Insist on finite quantities with a slope at the start; of losses, on all that the training
    loss has to be."""
    if point.held is None:
        return
    for bound, value, grad in zip(objective.held, point.held.values, point.held.grads, strict=True):
        where = f"hold[{bound.name!r}]"
        if not (math.isfinite(value) and grad.isfinite().all()):
            what = "it" if not math.isfinite(value) else "its gradient"
            raise InputError(
                f"{where} is {value:g} at the start, and {what} is not finite; start elsewhere or "
                f"hold another quantity"
            )
        needed = not bound.constraint.upper or not bound.constraint.meets(value)
        if needed and not grad.any():
            raise InputError(
                f"{where} has no slope at the start, where it is {value:.6g}: it is constant, does "
                f"not depend on the parameters, or is least or greatest there; start elsewhere, or "
                f"hold a quantity that changes with the parameters"
            )
        if isinstance(bound.constraint.quantity, Problem):
            _check_loss(where, bound, point, gradient)
        elif gradient:
            check_quantity(where, bound.constraint.quantity, objective.problem, point.theta)


def _check_loss(where: str, bound: Bound, point: Point, gradient: bool) -> None:
    problem, one = bound.constraint.quantity, bound.constraint
    tolerance = Tolerance(one.rtol or RTOL, one.atol)
    try:
        check_function(problem, point.theta, tolerance)
        check_tolerance(problem, point.theta, tolerance, one.bound)
        if gradient:
            check_gradient(problem, point.theta)
    except InputError as error:
        raise InputError(f"{where} cannot be held: {error}") from error
