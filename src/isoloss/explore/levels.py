"""The levels of a front, and where it starts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from isoloss.arguments import real, whole
from isoloss.errors import InputError
from isoloss.flat import vector
from isoloss.problem import Problem, inside

COUNT = 20
"""Levels where none are given."""
TOP = 0.9
"""The highest of them, as a share of the loss with all weights zero."""


def starts_of(problem: Problem, starts: Tensor | Sequence[Tensor] | None) -> list[Tensor]:
    """Flat vectors of the problem's type, at least one."""
    if starts is None:
        return [problem.current()]
    if isinstance(starts, Tensor) and starts.ndim == 1:
        starts = [starts]
    found = [vector("starts", one, problem.size).detach() for one in starts]
    if not found:
        raise InputError("starts must hold a vector of weights at least, got none")
    found = [one.to(problem.device, problem.dtype, copy=True) for one in found]
    for k, one in enumerate(found):
        if not one.isfinite().all():
            raise InputError(f"starts must be finite, got NaN or infinite entries in start {k}")
    return found


def given_levels(levels: Iterable[float]) -> tuple[float, ...]:
    """Levels in ascending order, once they are found to be some."""
    given = sorted(real("a level", level) for level in levels)
    for level in given:
        if not 0 < level < math.inf:
            raise InputError(f"levels must be positive, finite losses, got {level:g}")
    for low, high in pairwise(given):
        if low == high:
            raise InputError(f"the level {low:g} was given twice; give it once")
    if len(given) < 2:
        raise InputError(
            f"levels must be two at least, got {len(given)}; walk along a single one with traverse"
        )
    return tuple(given)


def spaced_levels(
    problem: Problem, starts: Sequence[Tensor], count: int = COUNT
) -> tuple[float, ...]:
    """Levels by equal factors, from the least loss of the starts to near that of no weights."""
    several = whole("count", count, 2)
    low = min(problem.loss(start).item() for start in starts)
    held, nothing = inside(problem).held, torch.zeros_like(starts[0])
    if held is not None:
        nothing = torch.where(held, starts[0], nothing)
    high = TOP * problem.loss(nothing).item()
    if not 0 < low < high < math.inf:
        raise InputError(
            f"no levels are to be had between the loss of the start, {low:.6g}, and {TOP} times "
            f"that with all weights zero, {high:.6g}; give levels"
        )
    return tuple(low * (high / low) ** (k / (several - 1)) for k in range(several))
