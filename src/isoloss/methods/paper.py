"""The predictor and corrector of Tahir and Katz (IJCNN 2021), as their code has it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from pydantic import PositiveFloat, model_validator
from torch import Tensor

from isoloss.errors import InputError
from isoloss.objective import Objective
from isoloss.outcome import Ending, Outcome
from isoloss.point import Point, Tolerance
from isoloss.settings import Count, Settings


@dataclass(frozen=True, slots=True)
class PaperState:
    """Where a walk by `Paper` is."""

    point: Point
    level: float
    on_level: bool  # |L - c| is inside the tolerance, and a predictor step comes next
    kind: str = "start"  # or predict, correct
    step_length: float = 0.0
    direction: Tensor | None = None  # of the last predictor step
    direction_norm: float = 1.0  # not divided by, to spare a pass over it
    predictor_length: float = 0.0
    corrections: int = 0  # since the last predictor step
    ending: Ending | None = None


class Paper(Settings):
    """Steps down the tangential part of grad R; corrects whenever the loss has left the band.

    Every step costs one evaluation. The tolerance is absolute, as in the reference; `rtol` of
    `traverse` is not used. A cap on corrections in a row replaces the reference's endless loop.

    Attributes:
        smallest_step: Smallest predictor length, also after a correction.
        largest_step: Largest predictor length.
        corrector_step: Length of every corrector step.
        tolerance: Largest |L - c| from which a predictor step is taken, in the loss's unit.
        max_corrections: Corrector steps in a row after which the walk ends.
    """

    name: ClassVar[str] = "paper"
    stride: ClassVar[int] = 50
    takes_all_steps: ClassVar[bool] = True

    smallest_step: PositiveFloat = 1e-5
    largest_step: PositiveFloat = 0.1
    corrector_step: PositiveFloat = 1e-6
    tolerance: PositiveFloat = 1e-5
    max_corrections: Count = 10_000

    @model_validator(mode="after")
    def _ordered(self) -> Paper:
        if self.smallest_step > self.largest_step:
            raise ValueError(
                f"smallest_step={self.smallest_step} must not exceed largest_step="
                f"{self.largest_step}"
            )
        return self

    def kept_tolerance(self, tolerance: Tolerance) -> Tolerance:
        """The method's own, which is absolute."""
        if tolerance.atol is not None:
            raise InputError(
                f"the method 'paper' has an absolute tolerance of its own; leave atol= out and "
                f"give method=isoloss.Paper(tolerance={tolerance.atol:g})"
            )
        return Tolerance(atol=self.tolerance)

    def init(
        self, objective: Objective, theta: Tensor, level: float | None, tolerance: Tolerance
    ) -> PaperState:
        """Evaluate the start."""
        del tolerance
        point = objective.evaluate(theta)
        level = point.loss if level is None else level
        state = PaperState(point, level, self._inside(point, level))
        return state if point.finite else replace(state, ending=Ending(Outcome.NON_FINITE))

    def step(self, objective: Objective, state: PaperState) -> PaperState:
        """One predictor step from the level set, or one corrector step towards it."""
        return (
            self._predict(objective, state) if state.on_level else self._correct(objective, state)
        )

    def _predict(self, objective: Objective, state: PaperState) -> PaperState:
        point = state.point
        # the reference does not project where the gradient's root mean square is below 1e-6
        flat = point.grad_norm < 1e-6 * math.sqrt(len(point.theta))
        ahead = point.regularizer_grad if flat else point.tangent
        norm = math.sqrt(ahead.dot(ahead).item()) if flat else point.tangent_norm
        if norm == 0:
            return replace(state, ending=Ending(Outcome.CONVERGED, "the tangent is zero"))
        s = self._next_length(state, ahead, norm)
        arrived = objective.evaluate(point.theta.sub(ahead, alpha=s / norm))
        if not arrived.finite:
            return _stranded(state, arrived, s)
        return PaperState(
            point=arrived,
            level=state.level,
            on_level=self._inside(arrived, state.level),
            kind="predict",
            step_length=s,
            direction=ahead,
            direction_norm=norm,
            predictor_length=s,
        )

    def _next_length(self, state: PaperState, ahead: Tensor, norm: float) -> float:
        if state.kind != "predict" or state.direction is None:
            return self.smallest_step
        cosine = ahead.dot(state.direction).item() / (norm * state.direction_norm)
        turned = math.degrees(math.acos(max(-1.0, min(1.0, cosine))))
        s = state.predictor_length
        s = min(1.1 * s, self.largest_step) if turned < 0.1 else max(0.1 * s, self.smallest_step)
        return round(s, 10)

    def _correct(self, objective: Objective, state: PaperState) -> PaperState:
        point = state.point
        if state.corrections >= self.max_corrections:
            detail = (
                f"|L - c| is {abs(point.loss - state.level):.3g} after {state.corrections} "
                f"corrections of {self.corrector_step:g}, the band is {self.tolerance:g}"
            )
            return replace(state, ending=Ending(Outcome.CORRECTION_LIMIT, detail))
        along = point.grad
        if state.direction is not None:
            share = along.dot(state.direction).item() / state.direction_norm**2
            along = along.sub(state.direction, alpha=share)
        norm = math.sqrt(along.dot(along).item())
        if norm == 0:
            return replace(state, ending=Ending(Outcome.GRADIENT_VANISHED))
        # grad (L - c)^2 = 2 (L - c) g: normalized, only the sign of L - c is left of the factor
        s = math.copysign(self.corrector_step, point.loss - state.level)
        arrived = objective.evaluate(point.theta.sub(along, alpha=s / norm))
        if not arrived.finite:
            return _stranded(state, arrived, s)
        return replace(
            state,
            point=arrived,
            on_level=self._inside(arrived, state.level),
            kind="correct",
            step_length=self.corrector_step,
            corrections=state.corrections + 1,
        )

    def _inside(self, point: Point, level: float) -> bool:
        return (point.loss - level) ** 2 <= self.tolerance * self.tolerance


def _stranded(state: PaperState, point: Point, length: float) -> PaperState:
    detail = f"loss {point.loss:g} after a step of {abs(length):.3g}"
    return replace(state, ending=Ending(Outcome.NON_FINITE, detail))
