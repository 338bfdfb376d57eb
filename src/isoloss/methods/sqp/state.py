"""Where a walk by `SQP` is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from isoloss.methods.sqp.basis import Array, Rows
from isoloss.methods.sqp.model import Model, Slopes
from isoloss.methods.sqp.several import Measure, Rules
from isoloss.outcome import Ending
from isoloss.point import Point


@dataclass(frozen=True, slots=True)
class SQPState:
    """Where a walk by `SQP` is."""

    point: Point
    level: float
    rtol: float  # largest |phi| on the level set: log(1 + the tolerance asked for), or atol / scale
    on_level: bool
    slopes: Slopes | None = None  # at the point, in the model's basis; None off the level set
    model: Model | None = None  # None before the level set is reached
    radius: float = 0.0  # longest step that the model is trusted for
    multiplier: float = 0.0  # of the last trial
    kind: str = "start"  # or correct (towards another level), sqp
    step_length: float = 0.0
    rough: float | None = None  # the point's loss as trials compute it, where that is known
    scale: float | None = None  # phi is (L - c) / scale; None: log(L / c)
    upper: bool = False  # the level is an upper bound
    beside: tuple[Measure, ...] = ()  # what is held beside the level
    prices: tuple[float, ...] = ()  # multipliers of the last trial, of these
    reached: int = 0  # steps taken towards another level
    pairs: tuple[tuple[Rows, Rows], ...] = ()  # those steps, changes of gradient
    renewed_below: float = math.inf  # R below which a stall leads to a fresh model
    renewed_nearer: float = math.inf  # KKT residual below which it does so too
    idle: int = 0  # steps in a row that gained next to nothing
    nearest: float = math.inf  # KKT residual up to the last step that gained
    ending: Ending | None = None

    def phi(self, loss: float) -> float:
        """How far a loss is from the level: the constraint is phi = 0."""
        if self.upper:
            return self.measure.phi(loss)
        if self.scale is None:
            return math.log(loss / self.level)
        return (loss - self.level) / self.scale

    def unit(self, loss: float) -> float:
        """The derivative of L by phi: grad phi is grad L over it."""
        if self.upper:
            return self.measure.unit(loss)
        return loss if self.scale is None else self.scale

    def admits(self, point: Point) -> bool:
        """Whether all is finite at a point, and phi too."""
        return point.finite and (self.upper or self.scale is not None or point.loss > 0)

    @property
    def plain(self) -> bool:
        """Whether a level is held and nothing else."""
        return not (self.upper or self.beside)

    @property
    def measure(self) -> Measure:
        """The level as one of several constraints."""
        return Measure(self.level, self.upper, self.rtol, self.scale)

    @property
    def rules(self) -> Rules:
        """What all constraints ask for, the level first."""
        return Rules.of((self.measure, *self.beside))

    def phis(self, point: Point, phi: float | None = None) -> Array:
        """The phi of all constraints, the level's first, which may be known better."""
        held = () if point.held is None else point.held.values
        values = (one.phi(value) for one, value in zip(self.beside, held, strict=True))
        return np.array([self.phi(point.loss) if phi is None else phi, *values])

    def units(self, point: Point) -> Array:
        """The derivative of each quantity that is held beside the level by its phi."""
        held = () if point.held is None else point.held.values
        return np.array([one.unit(v) for one, v in zip(self.beside, held, strict=True)])

    def multipliers(self, point: Point) -> Array:
        """Those of all phi, the level's first, with which the gradients balance best."""
        assert point.held is not None  # noqa: S101
        units = np.append(self.unit(point.loss), self.units(point))
        return np.array(point.held.multipliers) * units

    def met(self, point: Point) -> bool:
        """Whether a point is within the tolerance of the level, and of all that is held."""
        if self.plain:
            return abs(self.phi(point.loss)) <= self.rtol
        return self.rules.out(self.phis(point)) <= self.rtol
