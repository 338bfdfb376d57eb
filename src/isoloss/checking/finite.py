"""What is not finite at a point, and whose fault that is."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from isoloss.checking.exact import in_float64
from isoloss.errors import InputError
from isoloss.objective import Objective
from isoloss.point import Point, Tolerance
from isoloss.problem import Problem, inside

OVERFLOW = "Use dtype=torch.float64, whose numbers reach 1e308 where float32's reach 3e38."


def check_start(objective: Objective, point: Point, tolerance: Tolerance) -> None:
    """Insist on finite numbers at the start, and on a loss that the tolerance can hold."""
    problem = objective.problem
    own = inside(problem)
    where = "" if math.isfinite(point.loss) else own.chunks.infinite
    if where and own.ranks.count > 1:
        where += f" of rank {own.ranks.number}"
    infinite = next(filter(None, own.ranks.gather(where)), "")
    if infinite:
        raise InputError(
            f"the loss at the start is {point.loss}, and {infinite}; take such examples out "
            f"or fill them in, or, if that is meant (a mask), start from weights whose loss is "
            f"finite"
        )
    if not math.isfinite(point.loss):
        why = _sentence(why_not_finite(objective, point.theta))
        raise InputError(
            f"the loss at the start must be finite to have a level set, got {point.loss}"
            f"{why or '; start from other weights'}"
        )
    if tolerance.atol is None and point.loss <= 0:
        raise InputError(
            f"the loss at the start must be positive to be held by a relative tolerance, got "
            f"{point.loss}; hold it by an absolute one, traverse(method='sqp', atol=...)"
        )
    if not point.finite:
        why = _sentence(why_not_finite(objective, point.theta))
        raise InputError(
            f"the regularizer at the start is {point.regularizer:g}, and it or a gradient is "
            f"not finite{why}; start elsewhere or use another regularizer"
        )
    if point.grad_norm**2 < torch.finfo(problem.dtype).tiny and point.grad.any():
        kind = str(problem.dtype).removeprefix("torch.")
        raise InputError(
            f"the gradient of the loss at the start, of norm {point.grad.double().norm():.3g}, is "
            f"so small that {kind} cannot hold its square, and angles would be wrong; multiply the "
            f"loss by a constant, or give dtype=torch.float64"
        )


def why_not_finite(objective: Objective, theta: Tensor) -> tuple[str, str]:
    """What is not finite at a point, a part of a sentence, and the remedy; "" where not known."""
    problem, regularizer = objective.problem, objective.regularizer
    loss = problem.loss(theta)
    if not loss.isfinite():
        losses, ranks = problem.example_losses(theta), inside(problem).ranks
        bad = (~losses.isfinite()).nonzero().flatten().tolist()
        found = ranks.gather([(len(bad), bad[0], losses[bad[0]].item())] if bad else [])
        first = next((k for k, one in enumerate(found) if one), None)
        if first is None:
            return f"the loss is {loss.item()}, though that of no example is", ""
        count, which, value = sum(one[0][0] for one in found if one), *found[first][0][1:]
        which = f"{which} of rank {first}" if ranks.count > 1 else str(which)
        others = f", as those of {count - 1} more are" if count > 1 else ""
        what = f"the loss of example {which} is {value}{others}"
        exact = in_float64(problem, theta, Problem.loss)
        if exact is not None and exact.isfinite():
            return f"{what}; in float64 the mean is {exact.item():.6g}", OVERFLOW
        return what, (
            f"Look at example {which}, take it out of the data, or keep its loss finite, as by an "
            f"epsilon within a logarithm or a root."
        )
    grad = problem.loss_and_grad(theta)[1]
    if not grad.isfinite().all():
        exact = in_float64(problem, theta, Problem.loss_and_grad)
        what = f"the gradient of the loss is not finite in {_where(problem, grad)}"
        if exact is not None and exact[1].isfinite().all():
            return f"{what}; in float64 it is", OVERFLOW
        return f"{what}, though the loss is", (
            "Keep the derivative finite there: a root, a norm or a logarithm at 0 has none."
        )
    value, slope = regularizer.value_and_grad(theta)
    if not value.isfinite():
        return f"the regularizer {regularizer.name} is {value.item()}", ""
    if not slope.isfinite().all():
        where = _where(problem, slope)
        return f"the gradient of the regularizer {regularizer.name} is not finite in {where}", ""
    if theta.dtype == torch.float32:  # finite, but for their squares
        return "a gradient is too long for float32", OVERFLOW
    return "", ""


def _sentence(found: tuple[str, str]) -> str:
    what, remedy = found
    remedy = remedy.rstrip(".")
    return f": {what}" * bool(what) + f"; {remedy[:1].lower()}{remedy[1:]}" * bool(remedy)


def _where(problem: Problem, flat: Tensor) -> str:
    """The first parameter with an entry that is not finite."""
    named = inside(problem).network.layout.named(flat)
    return next(repr(name) for name, part in named.items() if not part.isfinite().all())
