"""The predictor and corrector of Tahir and Katz (IJCNN 2021), as their code has it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from isoloss.outcome import Ending, Outcome
from isoloss.point import Objective, Point
from isoloss.settings import Settings


@dataclass(frozen=True, slots=True)
class PaperState:
    """Where a walk by `Paper` is.

    Attributes:
        point: The current point.
        level: The loss held.
        on_level: Whether (L - c)^2 is inside the tolerance; a predictor step comes next.
        kind: start, predict or correct.
        step_length: Length of the last step.
        direction: Unit direction of the last predictor step, shape (n,); None before the first.
        predictor_length: Length of the last predictor step.
        corrections: Corrector steps since the last predictor step.
        ending: Why the walk can go no further.
    """

    point: Point
    level: float
    on_level: bool
    kind: str = "start"
    step_length: float = 0.0
    direction: Tensor | None = None
    predictor_length: float = 0.0
    corrections: int = 0
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

    smallest_step: PositiveFloat = 1e-5
    largest_step: PositiveFloat = 0.1
    corrector_step: PositiveFloat = 1e-6
    tolerance: PositiveFloat = 1e-5
    max_corrections: PositiveInt = Field(default=10_000)

    @property
    def name(self) -> str:
        """The name shown in tables and figures."""
        return "paper"

    @model_validator(mode="after")
    def _ordered(self) -> Paper:
        if self.smallest_step > self.largest_step:
            raise ValueError(f"smallest_step must not exceed largest_step={self.largest_step}")
        return self

    def init(
        self, objective: Objective, theta: Tensor, level: float | None, rtol: float
    ) -> PaperState:
        """Evaluate the start.

        Args:
            objective: Evaluates points.
            theta: The start, shape (n,).
            level: The loss to hold; None holds the start's.
            rtol: Not used: the reference's tolerance is absolute.

        Returns:
            The state at the start.
        """
        del rtol
        point = objective.evaluate(theta)
        level = point.loss if level is None else level
        state = PaperState(point, level, self._inside(point, level))
        return state if point.finite else replace(state, ending=Ending(Outcome.NON_FINITE))

    def step(self, objective: Objective, state: PaperState) -> PaperState:
        """One predictor step from the level set, or one corrector step towards it.

        Args:
            objective: Evaluates points.
            state: Where the walk is.

        Returns:
            The state after the step, or the same point with an ending.
        """
        return (
            self._predict(objective, state) if state.on_level else self._correct(objective, state)
        )

    def _predict(self, objective: Objective, state: PaperState) -> PaperState:
        point = state.point
        # the reference does not project where the gradient's root mean square is below 1e-6
        flat = point.grad_norm < 1e-6 * math.sqrt(len(point.theta))
        ahead = point.regularizer_grad if flat else point.tangent
        length = ahead.norm().item()
        if length == 0:
            return replace(state, ending=Ending(Outcome.CONVERGED, "the tangent is zero"))
        direction = ahead / length
        s = self._next_length(state, direction)
        return self._move(
            objective, state, direction, s, kind="predict", direction=direction, corrections=0
        )

    def _next_length(self, state: PaperState, direction: Tensor) -> float:
        if state.kind != "predict" or state.direction is None:
            return self.smallest_step
        chord = (direction - state.direction).norm().item()
        # from the chord, since arccos of a float32 product resolves 0.02 degrees at best
        turned = math.degrees(2 * math.asin(min(chord / 2, 1.0)))
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
        error = 2 * (point.loss - state.level) * point.grad
        if state.direction is not None:
            error = error.sub(state.direction, alpha=error.dot(state.direction).item())
        length = error.norm().item()
        if length == 0:
            return replace(state, ending=Ending(Outcome.GRADIENT_VANISHED))
        return self._move(
            objective,
            state,
            error / length,
            self.corrector_step,
            kind="correct",
            direction=state.direction,
            corrections=state.corrections + 1,
        )

    def _move(
        self,
        objective: Objective,
        state: PaperState,
        along: Tensor,
        length: float,
        *,
        kind: str,
        direction: Tensor | None,
        corrections: int,
    ) -> PaperState:
        point = objective.evaluate(state.point.theta.sub(along, alpha=length))
        if not point.finite:
            detail = f"loss {point.loss:g} after a step of {length:.3g}"
            return replace(state, ending=Ending(Outcome.NON_FINITE, detail))
        return PaperState(
            point=point,
            level=state.level,
            on_level=self._inside(point, state.level),
            kind=kind,
            step_length=length,
            direction=direction,
            predictor_length=length if kind == "predict" else state.predictor_length,
            corrections=corrections,
        )

    def _inside(self, point: Point, level: float) -> bool:
        return (point.loss - level) ** 2 <= self.tolerance**2
