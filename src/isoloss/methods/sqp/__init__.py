"""Sequential quadratic programming on the level set. The mathematics is in docs/method.md."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field, PositiveFloat
from torch import Tensor

from isoloss.constraints import RTOL
from isoloss.flat import inner
from isoloss.methods.sqp.advance import Center, advance, informed
from isoloss.methods.sqp.approach import step_towards
from isoloss.methods.sqp.basis import Array, Basis
from isoloss.methods.sqp.model import Bend, Model, Slopes
from isoloss.methods.sqp.restore import step_inside
from isoloss.methods.sqp.several import Measure
from isoloss.methods.sqp.state import SQPState
from isoloss.objective import Objective
from isoloss.outcome import Ending, Outcome
from isoloss.point import Tolerance
from isoloss.settings import Count, Settings

LEAST_MEMORY, MOST_MEMORY = 16, 10_000
"""Directions at least and at most: the algebra within them is dense."""
MEMORY, MORE, LEARNING = 40, 80, 120
"""Directions by default: where an evaluation takes hardly longer than the algebra within them, or
vectors take much room; elsewhere; and where each trial adds one for the Hessian of R too."""
MEDIUM = 2**22
"""Parameters up to which 80 vectors take little room."""
REACHES = 0.3, 0.1, 0.03
"""How far, in phi, a step towards another level goes by what was learned, until one lands."""
MOST_LANDINGS = 5
"""Trials of such a step."""
SPAN = 1000.0
"""Least scale of a loss that is held by an absolute tolerance, in such tolerances."""


class SQP(Settings):
    """Minimizes R on log(L / c) = 0 with a learned quadratic model of both.

    Where the tolerance is absolute, on (L - c) / scale = 0; the scale is |grad L| |theta| where the
    level is reached, or a thousand tolerances where that is more.

    A step is a trial that may leave the level set by a little, or several where they pay far from
    the end, and one or two that land in the band, however tight the band. Beside the points it
    holds `memory` vectors of the size of theta, and at most twice as many for a moment, when these
    are full, and on the way to a level that is not the start's, where L-BFGS leads.

    Attributes:
        memory: Largest number of directions in which curvature is known, at least 16; when they
            are full, the half in which it matters most is kept. None takes 120 where R's Hessian
            is learned too. Where it is known (the squared norm's), None takes 80, and 40 for small
            networks of dense layers or on a GPU (below 131,072 parameters), for more than 4,194,304
            parameters, and where more than a level is held.
        first_step: Longest first step, as a share of |theta|.
        max_trials: Evaluations in one step after which the walk has stalled; a stall is tried once
            more with a fresh model where R or the KKT residual has fallen since the last.
        max_approach: Steps towards another level after which the walk ends without it.
    """

    name: ClassVar[str] = "sqp"
    stride: ClassVar[int] = 1
    takes_all_steps: ClassVar[bool] = False
    holds: ClassVar[bool] = True

    memory: Annotated[int, Field(ge=LEAST_MEMORY, le=MOST_MEMORY)] | None = None
    first_step: PositiveFloat = 0.05
    max_trials: Count = 40
    max_approach: Count = 1000

    def directions(self, size: int, exact: bool, held: int = 0, light: bool = False) -> int:
        """Those in which curvature is known at most, and those of the gradients of all constraints.

        Of theta's `size`, where `exact` says that R's Hessian is known, `held` how many constraints
        there are beside the level, and `light` whether an evaluation takes little time.
        """
        usual = LEARNING
        if exact:
            usual = MORE if size <= MEDIUM and not held and not light else MEMORY
        return (self.memory or usual) + 4 * held

    def vectors(self, size: int, exact: bool, held: int = 0, light: bool = False) -> int:
        """Vectors of the size of theta that a walk holds at most, beside the points kept."""
        most = 2 * self.directions(size, exact, held, light)
        return most + (13 if exact else 17) + 5 * held

    def kept_tolerance(self, tolerance: Tolerance) -> Tolerance:
        """The tolerance asked for."""
        return tolerance

    def init(
        self, objective: Objective, theta: Tensor, level: float | None, tolerance: Tolerance
    ) -> SQPState:
        """Evaluate the start."""
        point = objective.evaluate(theta)
        held = point.loss if level is None else level
        upper = objective.upper is not None
        state = SQPState(point, held, math.log1p(tolerance.rtol), False, upper=upper)
        if tolerance.atol is not None:
            state = _scaled(state, tolerance.atol)
        if not state.admits(point):
            return replace(state, ending=Ending(Outcome.NON_FINITE))
        state = _measured(objective, state)
        return self._settled(objective, state)

    def step(self, objective: Objective, state: SQPState) -> SQPState:
        """One step along the level set, or one towards it."""
        trials = self.max_trials
        if not state.on_level and state.plain and state.model is not None:
            return self._follow(objective, state)
        if not state.on_level and state.plain:
            memory = self._directions(objective, state)
            first, steps = self.first_step, self.max_approach
            return step_towards(
                objective, state, memory=memory, first=first, trials=trials, steps=steps
            )
        model, slopes = state.model, state.slopes
        if model is None or slopes is None:  # only now: what led here is let go by now
            return self.step(objective, self._begun(objective, state))
        model, slopes = _at_point(objective, state, model, slopes)
        keep = model.basis.capacity // 2
        if not state.on_level:
            steps = self.max_approach
            moved = step_inside(
                objective, state, model, slopes, keep=keep, trials=trials, steps=steps
            )
            return self._inside(moved) if moved.on_level else moved
        moved = advance(objective, state, model, slopes, keep=keep, max_trials=trials)
        stalled = moved.ending is not None and moved.ending.outcome is Outcome.STALLED
        gained = state.point.regularizer < state.renewed_below
        if not (stalled and (gained or state.nearest < state.renewed_nearer)):
            return moved
        # rounding gathers in what is carried along: once more from what is exactly known here
        worth = 1e-6 * abs(state.point.regularizer)
        fresh = self._settled(objective, state)
        fresh = replace(
            fresh,
            radius=max(state.radius, 1e-3 * fresh.radius),
            renewed_below=state.point.regularizer - worth,
            renewed_nearer=0.8 * min(state.nearest, state.renewed_nearer),
            idle=0,
            nearest=math.inf,
        )
        return self.step(objective, fresh)

    def moved(self, state: SQPState, level: float) -> SQPState:
        """The state with another level to hold, which the next steps go to by what was learned."""
        # what led to a stall is of no use, and what leads into several bounds begins anew
        if state.ending is not None or not state.plain:
            state = _unlearned(state)
        fresh = replace(
            state,
            level=level,
            on_level=False,
            radius=max(state.radius, self.first_step * state.point.norm),
            kind="start",
            step_length=0.0,
            reached=0,
            pairs=(),
            renewed_below=math.inf,
            renewed_nearer=math.inf,
            idle=0,
            nearest=math.inf,
            ending=None,
        )
        return replace(fresh, on_level=fresh.met(state.point))

    def _follow(self, objective: Objective, state: SQPState) -> SQPState:
        """A step to another level, or part of the way there, by what was learned of R and L.

        Where none lands, one towards it by L-BFGS, which begins anew.
        """
        point, model, slopes = state.point, state.model, state.slopes
        away = state.phi(point.loss)
        for reach in REACHES if state.reached < self.max_approach else ():
            near = max(-reach, min(reach, away))
            level = point.loss * math.exp(-near)
            if state.scale is not None:
                level = point.loss - near * state.scale
            if near == away:
                level = state.level
            if model is None or slopes is None:
                break
            found = advance(
                objective,
                replace(state, level=level),
                *_at_point(objective, state, model, slopes),
                keep=model.basis.capacity // 2,
                max_trials=MOST_LANDINGS,
            )
            if found.ending is None:
                landed = abs(state.phi(found.point.loss)) <= state.rtol
                return replace(
                    found,
                    level=state.level,
                    on_level=landed,
                    kind="correct",
                    reached=state.reached + 1,
                )
        return self.step(objective, _unlearned(state))

    def _directions(self, objective: Objective, state: SQPState) -> int:
        exact = objective.curvature is not None
        problem = objective.problem
        return self.directions(problem.size, exact, len(state.beside), problem.light)

    def _settled(self, objective: Objective, state: SQPState) -> SQPState:
        """The state with a fresh model, once the level set is reached."""
        if not state.met(state.point):
            return state
        return replace(self._begun(objective, state), on_level=True)

    def _inside(self, state: SQPState) -> SQPState:
        """The state on arrival: with what was learned on the way, unless scales are to change."""
        scales = (state.scale, *(one.scale for one in state.beside))
        radius = self.first_step * (state.point.norm or 1.0)
        known = all(scale is None for scale in scales)
        return replace(state, radius=radius, idle=0, model=state.model if known else None)

    def _begun(self, objective: Objective, state: SQPState) -> SQPState:
        """The state with a fresh model."""
        point = state.point
        if state.scale is not None:
            state = _scaled(state, state.rtol * state.scale)
        state, ranks = _measured(objective, state), objective.ranks
        exact = objective.curvature
        metric = None if exact else objective.metric(point.theta)
        basis = Basis.empty(self._directions(objective, state), ranks.cut(point.theta), metric)
        r, basis = basis.coordinates(point.regularizer_grad, ranks=ranks)
        a, basis = basis.coordinates(point.grad / state.unit(point.loss), ranks=ranks)
        size = point.norm or 1.0
        beside: list[Array] = []
        held = () if point.held is None else point.held.grads
        for grad, unit in zip(held, state.units(point).tolist(), strict=True):
            found, basis = basis.coordinates(grad / unit)
            beside.append(found)
        outside = exact or max(float(np.linalg.norm(r)), 1e-300) / size
        if metric is not None:  # in which theta is as long as r, and R bends by 1 at most
            size, outside = max(float(np.linalg.norm(r)), 1e-300), 1.0
        model = Model(
            basis,
            np.zeros((basis.size, basis.size)),
            None if exact else outside * np.eye(basis.size),
            outside,
            beside=tuple(Bend(np.zeros((basis.size, basis.size))) for _ in beside),
        )
        slopes = Slopes(r, a, tuple(beside)).padded(basis.size)
        center = Center(point, 0.0, slopes, point.loss)
        price = slopes.multiplier if np.any(slopes.a) else 0.0
        model = informed(objective, state, model, center, price)
        slopes = slopes.padded(model.basis.size)
        radius = self.first_step * size
        return replace(state, slopes=slopes, model=model, radius=radius)


def _measured(objective: Objective, state: SQPState) -> SQPState:
    """The state with the phi of all that is held, in the scales that these have about its point."""
    held = state.point.held
    if held is None:
        return state
    found: list[Measure] = []
    for bound, value, grad in zip(objective.held, held.values, held.grads, strict=True):
        one, scale = bound.constraint, None
        tol = math.log1p(one.rtol or RTOL)
        if one.atol is not None:
            away = max(value - one.bound, 0.0) if one.upper else abs(value - one.bound)
            steep = math.sqrt(inner(grad, grad).item())
            scale = max(steep * (state.point.norm or 1.0), away, SPAN * one.atol)
            tol = one.atol / scale
        found.append(Measure(one.bound, one.upper, tol, scale))
    return replace(state, beside=tuple(found))


def _at_point(
    objective: Objective, state: SQPState, model: Model, slopes: Slopes
) -> tuple[Model, Slopes]:
    """Both in the metric of the point, where there is one: it is another at every point."""
    metric = None if model.basis.metric is None else objective.metric(state.point.theta)
    return (model, slopes) if metric is None else model.measured(metric, slopes)


def _unlearned(state: SQPState) -> SQPState:
    """The state without a model."""
    return replace(state, model=None, slopes=None, rough=None, multiplier=0.0, prices=())


def _scaled(state: SQPState, atol: float) -> SQPState:
    """The state with phi in the scale in which the loss changes about its point."""
    point = state.point
    away = abs(point.loss - state.level)
    scale = max(point.grad_norm * (point.norm or 1.0), away, SPAN * atol)
    return replace(state, scale=scale, rtol=atol / scale)
