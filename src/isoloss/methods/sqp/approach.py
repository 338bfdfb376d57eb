"""The way to a level that is not the start's: L-BFGS on the loss, ended on the level."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from isoloss.evaluation import Ranks
from isoloss.flat import inner
from isoloss.methods.sqp.basis import Rows, row_of
from isoloss.methods.sqp.state import SQPState
from isoloss.objective import Objective
from isoloss.outcome import Ending, Outcome
from isoloss.point import Point

Pair = tuple[Rows, Rows]
"""A step and the change of the gradient over it, a row each."""

ENOUGH = 1e-4
"""Least change of the loss, as a share of what its slope at the beginning promises (Armijo)."""
FLATTER = 0.9
"""Largest slope at the end, as a share of that at the beginning (Wolfe)."""
MOST_ASKED = 1.0
"""Largest change of phi that a trial along the gradient asks for."""
CAREFUL = 0.1
"""Share of the fall that the first such trial asks for: in a narrow valley, where the gradient
points across, the loss falls by far less than its slope promises."""


def step_towards(
    objective: Objective, state: SQPState, *, memory: int, first: float, trials: int, steps: int
) -> SQPState:
    """One step towards the level, or onto it.

    Args:
        objective: Evaluates points.
        state: Where the walk is, off the level set.
        memory: Most steps to remember, two vectors of the size of theta each.
        first: Longest first trial along the gradient, as a share of |theta|.
        trials: Most evaluations of this step.
        steps: Most steps.

    Returns:
        The state nearer to the level; or the same point, with an ending where none was found.
    """
    point = state.point
    if point.grad_norm == 0 and state.reached == 0:
        return replace(state, ending=Ending(Outcome.GRADIENT_VANISHED))
    if state.reached >= steps:
        return replace(state, ending=_short_of(state, f"To go on, raise SQP(max_approach={steps})"))
    found, pairs = point, state.pairs
    while found is point:
        line = _Line(objective, state, pairs)
        found = line.search(first, trials)
        if found is point and not pairs:
            return replace(state, ending=line.ending())
        pairs = pairs if found is not point else ()  # once more, along the gradient
    ranks = objective.ranks
    step, change = found.theta - point.theta, found.grad - point.grad
    landed = abs(state.phi(found.loss)) <= state.rtol
    return replace(
        state,
        point=found,
        on_level=landed,
        kind="correct",
        step_length=math.sqrt(inner(step, step).item()),
        reached=state.reached + 1,
        pairs=() if landed else (*pairs, (row_of(step, ranks), row_of(change, ranks)))[-memory:],
    )


def _short_of(state: SQPState, remedy: str, why: str = "") -> Ending:
    why = f", {why}" if why else ""
    detail = (
        f"loss {state.point.loss:.6g} after {state.reached} steps towards {state.level:.6g}{why}"
    )
    return Ending(Outcome.LEVEL_UNREACHABLE, detail, f"{remedy}.")


def _newton(grad: Tensor, pairs: Sequence[Pair], sign: float, ranks: Ranks) -> tuple[Tensor, bool]:
    """Minus the inverse Hessian of sign * L times its gradient (Nocedal and Wright, algorithm 7.4).

    Pairs along which sign * L is not convex are left out; and whether any is left.
    """

    def dot(a: Tensor, b: Tensor) -> float:
        return ranks.sums(inner(a, b))[0].item()

    ahead = ranks.cut(grad).mul(-sign)
    used: list[tuple[Tensor, Tensor, float, float]] = []
    scale = 1.0
    for one, other in reversed(pairs):
        step, change = one.values[0], other.values[0]
        bent = sign * dot(step, change)
        size = dot(change, change)
        if size == 0 or not bent > 1e-10 * math.sqrt(size * dot(step, step)):
            continue
        scale = scale if used else bent / size
        share = dot(step, ahead) / bent
        ahead = ahead.sub(change, alpha=sign * share)
        used.append((step, change, bent, share))
    ahead = ahead.mul(scale)
    for step, change, bent, share in reversed(used):
        back = sign * dot(change, ahead) / bent
        ahead = ahead.add(step, alpha=share - back)
    return ranks.whole(ahead, len(grad)), bool(used)


@dataclass(frozen=True, slots=True)
class _Mark:
    """A point of a line; the loss less the level and its slope, turned so that they fall."""

    along: float
    point: Point
    left: float  # negative beyond the level
    slope: float


class _Line:
    """The points theta + t * ahead, t >= 0, and the search among them."""

    def __init__(self, objective: Objective, state: SQPState, pairs: Sequence[Pair]) -> None:
        self.objective, self.state = objective, state
        self.sign = math.copysign(1.0, state.point.loss - state.level)
        self.ahead, self.learned = _newton(state.point.grad, pairs, self.sign, objective.ranks)
        self.beyond = math.nan  # the loss where the level was last crossed
        self.start = self._mark(0.0, state.point)
        self.slope = self.start.slope
        self.rounding = torch.finfo(self.ahead.dtype).eps * state.unit(state.point.loss)

    def _first(self, share: float) -> float:
        """The first trial: to the level as modeled, or as far as the model is trusted."""
        left, fall = self.start.left, -self.slope
        if self.learned:  # the loss falls by fall * (t - t^2 / 2)
            return 1 - math.sqrt(1 - 2 * left / fall) if 2 * left < fall else 1.0
        point = self.start.point
        asked = min(left, MOST_ASKED * self.state.unit(point.loss)) * (
            CAREFUL if self.sign > 0 else 1.0
        )
        return min(asked / fall, share * (point.norm or 1.0) / point.grad_norm)

    def search(self, share: float, trials: int) -> Point:
        """A point on the level, or nearer by Wolfe's conditions, or the nearest on this side."""
        low, high, top = self.start, None, math.inf
        if not self.slope < 0:
            return low.point
        along = self._first(share)
        for _ in range(trials):
            width = top - low.along
            point = self.objective.evaluate(self.start.point.theta.add(self.ahead, alpha=along))
            if not self.state.admits(point):
                high, top = None, along
            elif abs(self.state.phi(point.loss)) <= self.state.rtol:
                return point
            else:
                mark, promised = self._mark(along, point), -along * self.slope
                fallen = self.sign * (self.start.point.loss - point.loss)
                if mark.left < 0:
                    high, top, self.beyond = mark, along, point.loss
                elif not fallen > ENOUGH * promised:
                    if promised < self.rounding:
                        break
                    high, top = mark, along
                else:
                    low = mark
                    crossed = high is not None and high.left < 0
                    if not crossed and mark.slope >= FLATTER * self.slope:
                        return point
            halved = top - low.along <= 0.5 * width
            along = self._next(low, high, top, halved)
            if not low.along < along < top:
                break
        return low.point

    def ending(self) -> Ending:
        """Why a search along the gradient found nothing."""
        if not math.isnan(self.beyond):
            exact = self.ahead.dtype == torch.float64
            why = f"from where it jumps over it, to {self.beyond:.6g}"
            remedy = "Hold a level that it takes, or give a larger rtol"
            return _short_of(self.state, remedy + ("" if exact else " or dtype=torch.float64"), why)
        if self.sign > 0:
            why = "which is the least that was found"
            remedy = "Hold a level above that, or train further or start elsewhere"
            return _short_of(self.state, remedy, why)
        return _short_of(self.state, "Hold a level nearer to the start's loss")

    def _next(self, low: _Mark, high: _Mark | None, top: float, halved: bool) -> float:
        """Where to try next, between two points or further than one."""
        if math.isinf(top):
            bend = (low.slope - self.slope) / low.along
            least = -low.slope / bend if bend > 0 else math.inf  # to the least loss ahead
            level = -low.left / low.slope
            return low.along + min(9 * low.along, max(low.along, least), level)
        share = 0.2
        if high is not None:
            share = _share(low, high) if halved else 0.5
        return low.along + share * (top - low.along)

    def _mark(self, along: float, point: Point) -> _Mark:
        left = self.sign * (point.loss - self.state.level)
        return _Mark(along, point, left, self.sign * inner(point.grad, self.ahead).item())


def _share(low: _Mark, high: _Mark) -> float:
    """Where, from 0 to 1, the cubic between two points has the level, or is least."""
    width = high.along - low.along
    c, end = width * low.slope, width * high.slope
    rise = high.left - low.left
    a, b = c + end - 2 * rise, 3 * rise - 2 * c - end
    if high.left < 0:
        roots = np.roots([a, b, c, low.left])
        inside = [z.real for z in roots if abs(z.imag) < 1e-9 and 0 < z.real < 1]
        return float(min(inside, default=0.5))
    square = b * b - 3 * a * c
    least = -c / (b + math.sqrt(square)) if square > 0 and b + math.sqrt(square) > 0 else 0.5
    return min(0.9, max(0.1, least))
