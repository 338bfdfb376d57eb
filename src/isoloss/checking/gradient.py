"""Whether the loss, on a few examples, and a user's own quantities change beside a point as their
gradients say."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from isoloss.checking.exact import in_float64
from isoloss.checking.words import listed
from isoloss.data import random_state_kept
from isoloss.errors import InputError
from isoloss.evaluation.differences import (
    CLEARLY,
    allowed_coarsely,
    random_direction,
    wrong_gradient,
)
from isoloss.flat import Layout
from isoloss.outcome import Ending
from isoloss.problem import Problem, alone, inside
from isoloss.regularizers import AnyRegularizer, get_regularizer, in_dtype, is_own

Loss = Callable[[Tensor], Tensor]

SAMPLE = 32
"""Examples on which the gradient is compared with differences."""

STEPS = {torch.float64: (1e-7, 1e-4), torch.float32: (1e-5, 1e-2)}
"""A short and a long step, as shares of |theta|: a change that does not grow with it is a jump."""

UNCHECKED = ", or give check=False if the walk is to follow that gradient all the same"
"""What else can be done about a wrong gradient, where there is such an argument."""

LEAST_JUMP = 1e-3
"""Smallest relative change of the loss that counts as a jump."""


def check_gradient(problem: Problem, theta: Tensor) -> None:
    """Insist that the loss does not jump, and that its gradient is that of its values; in float64
    if the model can be computed in it."""
    with alone(problem), inside(problem).ranks.together(), random_state_kept():
        own = inside(problem)
        few, at = own.autograd.sample(SAMPLE, theta)

        def loss(x: Tensor) -> Tensor:
            return few.loss(x if own.held is None else torch.where(own.held, at, x))

        _check_jump(loss, at, few.network.layout)
        beside = _beside(at, own.walked(random_direction(at, 1)))
        here = loss(beside).item()
        if not math.isfinite(here):
            return
        grad = own.walked(few.loss_and_grad(beside)[1])
        coarse = few.coarse(beside)
        allowed = allowed_coarsely(here, beside, grad) if coarse else CLEARLY[at.dtype]
        wrong = wrong_gradient(loss, beside, grad, few.network.layout, allowed)
        if wrong is None:
            return
        error, names = wrong
        raise InputError(
            f"the gradient of the loss is off by {error:.2g} of its length from the change of its "
            f"values, in {listed(names)}; look for a hook on a gradient, a straight-through or "
            f"detached operation, scale_grad_by_freq, a padding_idx of tied weights, or a backward "
            f"of your own{UNCHECKED}"
        )


def check_quantity(
    what: str, given: AnyRegularizer, problem: Problem, theta: Tensor, unless: str = UNCHECKED
) -> None:
    """Insist that the gradient of what a user wrote is that of its values; in float64 if it can be
    computed in it."""
    if not is_own(given):
        return
    with inside(problem).ranks.together(), random_state_kept():
        exact = in_float64(
            problem, theta, lambda judge, x: (_wrong(in_dtype(given, torch.float64), judge, x),)
        )
        wrong = _wrong(given, problem, theta) if exact is None else exact[0]
    if wrong is not None:
        error, names = wrong
        raise InputError(
            f"the gradient of {what} is off by {error:.2g} of its length from the change of its "
            f"values, in {listed(names)}; look for detach, no_grad, .data or a derivative of your "
            f"own{unless}"
        )


def _wrong(
    given: AnyRegularizer, problem: Problem, theta: Tensor
) -> tuple[float, list[str]] | None:
    own, quantity = inside(problem), get_regularizer(given, problem)

    def value(x: Tensor) -> Tensor:
        at = x if own.held is None else torch.where(own.held, theta, x)
        return quantity.value_and_grad(at)[0]

    beside = _beside(theta, own.walked(random_direction(theta, 1)))
    here, grad = quantity.value_and_grad(beside)
    if not here.isfinite():
        return None
    layout = Layout(problem.shapes)
    return wrong_gradient(value, beside, own.walked(grad), layout, CLEARLY[theta.dtype])


def _beside(at: Tensor, v: Tensor) -> Tensor:
    """A little beside a point, where a kink may lie: a bias of zero before a ReLU."""
    return at + 1e-3 * (at.norm() or 1.0) / v.norm() * v


def with_cause(ending: Ending, problem: Problem, theta: Tensor) -> Ending:
    """A stall at a point, with what is wrong with the gradient there in place of the remedy."""
    try:
        check_gradient(problem, theta)
    except InputError as error:
        said = str(error).partition(", or give check=False")[0]
        return replace(ending, remedy=f"{said[0].upper()}{said[1:]}.")
    return ending


def _check_jump(loss: Loss, at: Tensor, layout: Layout) -> None:
    jump = _jump(loss, at, random_direction(at, 2))
    if jump is None:
        return
    names: list[str] = []
    for name in layout.shapes:
        along = torch.zeros_like(at)
        mine = layout.named(along)[name]
        mine += random_direction(mine.reshape(-1), 2).view(mine.shape)
        if _jump(loss, at, along) is not None:
            names.append(name)
    raise InputError(
        f"the loss jumps at these weights: a change of {STEPS[at.dtype][0]:.0e} of their length "
        f"takes it from {loss(at).item():.6g} to {jump:.6g}, in {listed(names)}; look for "
        f"int(), round() or sign() of a parameter (torch's orthogonal has it for matrices that are "
        f"not square: give it orthogonal_map='matrix_exp'), or give check=False"
    )


def _jump(loss: Loss, at: Tensor, along: Tensor) -> float | None:
    """The loss beside a point where it jumps, along a direction or against it."""
    here, unit = loss(at).item(), along * ((at.norm() or 1.0) / along.norm())
    for sign in (1, -1):
        near, far = (loss(at + sign * step * unit).item() for step in STEPS[at.dtype])
        if abs(near - here) > max(LEAST_JUMP * abs(here), 0.5 * abs(far - here)):
            return near
    return None
