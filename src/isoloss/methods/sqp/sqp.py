"""Sequential quadratic programming on the level set. The mathematics is in docs/method.md."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from isoloss.methods.sqp.basis import Basis, padded
from isoloss.methods.sqp.model import Model, Slopes
from isoloss.outcome import Ending, Outcome
from isoloss.point import Objective, Point
from isoloss.settings import Settings

LOOSE = 0.05
"""|phi| up to which a trial outside the band becomes the centre from which the step lands in it."""
LANDING = 0.3
"""A landing step is as long as the last would have had to be to end at this share of the band."""
ROUGH = 6
"""Rejections after which a step begins anew from the last point, with a tenth of the radius; after
as many again, what was learnt of the bend is forgotten too."""
MOST_IDLE = 100
"""Steps without gain after which the walk has stalled."""
MOST_NEWTON = 1.0
"""Largest change of log L that one step towards another level asks for."""


@dataclass(frozen=True, slots=True)
class SQPState:
    """Where a walk by `SQP` is.

    Attributes:
        point: The current point.
        level: The loss held.
        rtol: Largest |log(L / c)| of a point on the level set, log(1 + the tolerance asked for).
        on_level: Whether the point is on it.
        slopes: Gradients of R and phi at the point, in the model's basis; None off the level set.
        model: What is known of R and phi; None before the level set is reached.
        radius: Longest step that the model is trusted for.
        multiplier: Lambda of the last trial.
        kind: start, correct (towards another level) or sqp.
        step_length: Length of the last step.
        reached: Steps taken towards another level.
        renewed_below: R below which a stall leads to a fresh model instead of the end.
        idle: Steps in a row that gained next to nothing.
        nearest: Smallest KKT residual up to the last step that gained.
        ending: Why the walk can go no further.
    """

    point: Point
    level: float
    rtol: float
    on_level: bool
    slopes: Slopes | None = None
    model: Model | None = None
    radius: float = 0.0
    multiplier: float = 0.0
    kind: str = "start"
    step_length: float = 0.0
    reached: int = 0
    renewed_below: float = math.inf
    idle: int = 0
    nearest: float = math.inf
    ending: Ending | None = None


@dataclass(frozen=True, slots=True)
class _Centre:
    """A point about which the model is expanded, inside the band or near it."""

    point: Point
    phi: float
    slopes: Slopes


class SQP(Settings):
    """Minimises R on log(L / c) = 0 with a learnt quadratic model of both.

    A step is one trial that may leave the level set by a little and a second one that lands in the
    band, some two evaluations, however tight the band. Beside the points it holds `2 memory`
    vectors of the size of theta, and for a moment twice as many whenever these are full.

    Attributes:
        memory: Half the largest number of directions in which curvature is known.
        first_step: Longest first step, as a share of |theta|.
        max_trials: Evaluations in one step after which the walk has stalled; a stall is tried once
            more with a fresh model where R has fallen since the last.
        max_approach: Steps towards another level after which it counts as not reachable.
    """

    memory: Annotated[int, Field(ge=8)] = 40
    first_step: PositiveFloat = 0.05
    max_trials: PositiveInt = 40
    max_approach: PositiveInt = 500

    @property
    def name(self) -> str:
        """The name shown in tables and figures."""
        return "sqp"

    def relative_tolerance(self, level: float, rtol: float) -> float:
        """The tolerance asked for.

        Args:
            level: Not used.
            rtol: Relative tolerance.

        Returns:
            `rtol`.
        """
        del level
        return rtol

    def init(
        self, objective: Objective, theta: Tensor, level: float | None, rtol: float
    ) -> SQPState:
        """Evaluate the start.

        Args:
            objective: Evaluates points.
            theta: The start, shape (n,).
            level: The loss to hold; None holds the start's.
            rtol: Relative tolerance of the level.

        Returns:
            The state at the start.
        """
        point = objective.evaluate(theta)
        held = point.loss if level is None else level
        state = SQPState(point, held, math.log1p(rtol), False)
        if not (point.finite and point.loss > 0):
            return replace(state, ending=Ending(Outcome.NON_FINITE))
        return self._settled(objective, state)

    def step(self, objective: Objective, state: SQPState) -> SQPState:
        """One step along the level set, or one towards it.

        Args:
            objective: Evaluates points.
            state: Where the walk is.

        Returns:
            The state after the step, or the same point with an ending.
        """
        if state.model is None or state.slopes is None:
            return self._approach(objective, state)
        moved = self._advance(objective, state, state.model, state.slopes)
        stalled = moved.ending is not None and moved.ending.outcome is Outcome.STALLED
        if not (stalled and state.point.regularizer < state.renewed_below):
            return moved
        # rounding gathers in what is carried along: once more from what is exactly known here
        worth = 1e-4 * abs(state.point.regularizer)
        fresh = self._settled(objective, state)
        fresh = replace(
            fresh,
            radius=max(state.radius, 1e-3 * fresh.radius),
            renewed_below=state.point.regularizer - worth,
            idle=0,
            nearest=math.inf,
        )
        return self.step(objective, fresh)

    def _settled(self, objective: Objective, state: SQPState) -> SQPState:
        """The state with a fresh model, once the level set is reached."""
        point = state.point
        if abs(math.log(point.loss / state.level)) > state.rtol:
            return state
        basis = Basis.empty(2 * self.memory, point.theta)
        r, basis = basis.coordinates(point.regularizer_grad)
        a, basis = basis.coordinates(point.grad / point.loss)
        size = math.sqrt(point.theta.dot(point.theta).item()) or 1.0
        exact = objective.curvature
        outside = exact or max(float(np.linalg.norm(r)), 1e-300) / size
        model = Model(
            basis,
            np.zeros((basis.size, basis.size)),
            None if exact else outside * np.eye(basis.size),
            outside,
        )
        slopes = Slopes(r, a).padded(basis.size)
        radius = self.first_step * size
        return replace(state, on_level=True, slopes=slopes, model=model, radius=radius)

    def _approach(self, objective: Objective, state: SQPState) -> SQPState:
        """A Newton step of log L along its gradient, shortened until it brings the level nearer."""
        point = state.point
        phi = math.log(point.loss / state.level)
        if point.grad_norm == 0:
            return replace(state, ending=Ending(Outcome.GRADIENT_VANISHED))
        if state.reached >= self.max_approach:
            return replace(state, ending=self._unreachable(state))
        wanted = max(-MOST_NEWTON, min(MOST_NEWTON, phi))
        share = wanted * point.loss / point.grad_norm**2
        for _ in range(self.max_trials):
            trial = objective.evaluate(point.theta.sub(point.grad, alpha=share))
            if trial.finite and trial.loss > 0:
                left = math.log(trial.loss / state.level)
                if abs(left) < abs(phi):
                    moved = replace(
                        state,
                        point=trial,
                        kind="correct",
                        step_length=abs(share) * point.grad_norm,
                        reached=state.reached + 1,
                    )
                    return self._settled(objective, moved)
            share *= 0.3
        return replace(state, ending=self._unreachable(state))

    def _unreachable(self, state: SQPState) -> Ending:
        detail = (
            f"loss {state.point.loss:.6g} after {state.reached} steps towards {state.level:.6g}"
        )
        return Ending(Outcome.LEVEL_UNREACHABLE, detail)

    def _advance(
        self, objective: Objective, state: SQPState, model: Model, slopes: Slopes
    ) -> SQPState:
        """Trials until one is accepted inside the band."""
        rtol, radius, multiplier = state.rtol, state.radius, state.multiplier
        loose = max(LOOSE, 2 * rtol)
        home = here = _Centre(state.point, math.log(state.point.loss / state.level), slopes)
        if state.idle >= MOST_IDLE:
            return replace(state, ending=_stalled(True, f"{MOST_IDLE} steps without gain"))
        if not np.any(slopes.a):
            return replace(state, ending=Ending(Outcome.GRADIENT_VANISHED))
        price = slopes.multiplier  # of phi in units of R
        landing, rejected, finite = math.inf, 0, True
        eps = torch.finfo(state.point.theta.dtype).eps

        for _ in range(self.max_trials):
            if model.basis.room < 2:
                model, held = model.compressed(self.memory, [here.slopes, home.slopes])
                here, home = replace(here, slopes=held[0]), replace(home, slopes=held[1])
            steep = float(np.linalg.norm(here.slopes.a))
            if steep == 0:
                return replace(state, ending=Ending(Outcome.GRADIENT_VANISHED))
            room = max(min(radius, landing), 1.3 * abs(here.phi) / steep)
            trial = model.trial(here.slopes, here.phi, room, multiplier, 0.003 * rtol)
            multiplier = _sane(trial.multiplier, here.slopes.multiplier)
            if not trial.length > 4 * eps * float(here.point.theta.norm()):
                return replace(state, ending=_stalled(finite, "the step is below rounding"))
            there = objective.evaluate(here.point.theta + model.basis.combine(trial.step))
            finite = there.finite and there.loss > 0
            if not finite:
                radius, rejected = 0.25 * trial.length, rejected + 1
                continue

            phi = math.log(there.loss / state.level)
            modelled = model.fall(here.slopes, trial.step) + multiplier * here.phi
            model, new = _learnt(model, here, there, trial.step)
            home = replace(home, slopes=home.slopes.padded(model.basis.size))
            here = replace(here, slopes=here.slopes.padded(model.basis.size))
            fallen = here.point.regularizer - there.regularizer + multiplier * (here.phi - phi)
            ratio = fallen / modelled if modelled > 0 else -1.0
            factor = _growth(abs(phi) / loose, ratio)
            if factor < 1:
                radius = min(radius, trial.length * factor)
            elif landing == math.inf and trial.length > 0.8 * radius:
                radius = trial.length * factor

            noise = 30 * eps * (abs(there.regularizer) + abs(multiplier))
            lower = fallen > (-noise if trial.length < 1e-3 * radius else 0)
            nearer = landing < math.inf and abs(phi) < 0.5 * abs(here.phi)
            if abs(phi) <= max(loose, 0.5 * abs(here.phi)) and (lower or nearer):
                here = _Centre(there, phi, new)
                risen = there.regularizer - home.point.regularizer
                gone = phi - home.phi
                # nearer to the level itself, the price there counts as well
                closer = abs(phi) < 0.5 * abs(home.phi) and risen + new.multiplier * gone <= noise
                if abs(phi) <= rtol and (risen + price * gone <= noise or closer):
                    worth = max(noise, 1e-8 * (abs(there.regularizer) + abs(multiplier)))
                    nearest = min(state.nearest, there.kkt_residual)
                    idle = risen + price * gone > -worth and nearest > 0.9 * state.nearest
                    return replace(
                        state,
                        idle=state.idle + 1 if idle else 0,
                        nearest=nearest if not idle else state.nearest,
                        point=there,
                        slopes=new,
                        model=model,
                        radius=radius,
                        multiplier=multiplier,
                        kind="sqp",
                        step_length=float((there.theta - state.point.theta).norm()),
                    )
                if abs(phi) > rtol:
                    landing = trial.length * math.sqrt(LANDING * rtol / abs(phi))
            else:
                rejected += 1
                landing *= 0.3
                if rejected % ROUGH == 0:
                    here, radius, landing = home, 0.1 * radius, math.inf
                if rejected % (2 * ROUGH) == 0:
                    model = replace(model, bend=np.zeros_like(model.bend))
        return replace(state, ending=_stalled(finite, f"{self.max_trials} trials in one step"))


def _learnt(model: Model, here: _Centre, there: Point, step: np.ndarray) -> tuple[Model, Slopes]:
    """The model after a trial, and the gradients at the trial in its basis."""
    change_phi = there.grad / there.loss - here.point.grad / here.point.loss
    change_a, basis = model.basis.coordinates(change_phi)
    if model.curvature is None:
        change_r = model.outside * padded(step, basis.size)
    else:
        change = there.regularizer_grad - here.point.regularizer_grad
        change_r, basis = basis.coordinates(change)
    known = here.slopes.padded(basis.size)
    grown = model.learn(basis, step, change_r, change_a)
    r = known.r + padded(change_r, basis.size)
    return grown, Slopes(r, known.a + padded(change_a, basis.size))


def _sane(multiplier: float, estimate: float) -> float:
    """The trial's multiplier, or the least-squares one where a step meant only to land has none."""
    return multiplier if abs(multiplier) <= 1e3 * abs(estimate) else estimate


def _growth(error: float, ratio: float) -> float:
    """Factor of the radius, from |phi| over what is allowed and actual over modelled fall."""
    worst = max(error, (1 - ratio) / 0.9, 1e-9)
    if worst > 1:
        return max(0.15, 0.7 / math.sqrt(worst))
    return min(2.0, max(1.0, 0.6 / math.sqrt(worst)))


def _stalled(finite: bool, detail: str) -> Ending:
    return Ending(Outcome.STALLED if finite else Outcome.NON_FINITE, detail)
