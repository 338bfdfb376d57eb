"""Where a walk by `SQP` is, explicitly."""

from __future__ import annotations

import math
from dataclasses import dataclass

from isoloss.methods.sqp.model import Model, Slopes
from isoloss.outcome import Ending
from isoloss.point import Point


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
        renewed_nearer: KKT residual below which it does so too.
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
    renewed_nearer: float = math.inf
    idle: int = 0
    nearest: float = math.inf
    ending: Ending | None = None
