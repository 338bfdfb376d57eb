"""A point of a walk with everything that was evaluated there, so that nothing is paid twice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from isoloss.regularizers.metric import Metric

NUMBERS = 7
"""Numbers of a point that a device computes."""

Array = NDArray[np.float64]
Seen = tuple[Tensor, float, Array]
"""A vector, its square, and its inner products with the rows of a basis."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far the loss L of a point on the level set may be from the level c.

    Attributes:
        rtol: Largest |L - c| / c, where there is no `atol`.
        atol: Largest |L - c|, in the loss's unit, for losses and levels of any sign; None for none.
    """

    rtol: float = 1e-3
    atol: float | None = None

    def relative(self, size: float) -> float:
        """The tolerance as a share of a loss, or level, of some size."""
        if self.atol is None:
            return self.rtol
        return self.atol / abs(size) if size else math.inf

    def error(self, loss: float, level: float) -> float:
        """How far a loss is from the level, in the tolerance's unit: (L - c) / c, or L - c."""
        return (loss - level) / level if self.atol is None else loss - level


@dataclass(frozen=True, slots=True)
class Held:
    """What a walk holds beside the level, at a point, and how it stands there with r and g.

    Attributes:
        values: Of each quantity that is held.
        grads: Their gradients, shape (n,) each.
        multipliers: Of the level, then of each of these: the m for which r + sum of m times the
            gradients is shortest, not negative for upper bounds, 0 for one that is not reached.
        active: Whether each, the level first, is at its bound.
        steepest: |r| at the start of the walk.
    """

    values: tuple[float, ...]
    grads: tuple[Tensor, ...]
    multipliers: tuple[float, ...]
    active: tuple[bool, ...]
    steepest: float


@dataclass(frozen=True, slots=True)
class Point:
    """A point with loss L, regularizer R, their gradients g and r, and how these stand together.

    A stationary point of R on the level set has r + lambda g / L = 0 with the multiplier lambda of
    log(L / c) = 0: there it is also a stationary point of weight decay, L + (L / lambda) R.

    Attributes:
        theta: Flat parameters, shape (n,).
        norm: |theta|.
        loss: L.
        grad: g, shape (n,).
        regularizer: R.
        regularizer_grad: r, shape (n,).
        tangent: r less its part along g: the direction in the level set in which R rises fastest,
            shape (n,). Equal to r where g vanishes.
        grad_norm: |g|.
        tangent_norm: |tangent|.
        angle_degrees: Angle between r and g, 0 to 180; 180 at a constrained minimum.
        kkt_residual: |tangent| / |r|, the sine of that angle; 0 at a stationary point. Where more
            than a level is held, |r + the sum of multipliers times gradients| / |r| over all.
        equivalent_penalty: L / lambda with the least-squares lambda, -|g|^2 / <r, g>: the weight
            of R in the weight decay that is stationary at a converged point. Negative where R
            falls as L falls; NaN where either gradient vanishes or both are orthogonal.
    """

    theta: Tensor
    norm: float
    loss: float
    grad: Tensor
    regularizer: float
    regularizer_grad: Tensor
    tangent: Tensor
    grad_norm: float
    tangent_norm: float
    angle_degrees: float
    kkt_residual: float
    equivalent_penalty: float
    held: Held | None = None  # None where nothing but a level is held

    @property
    def finite(self) -> bool:
        """Whether loss, regularizer and both gradients are finite."""
        return math.isfinite(self.loss + self.regularizer + self.grad_norm + self.kkt_residual)


@dataclass(frozen=True, slots=True)
class Origin:
    """From where a trial starts, and what it is compared with."""

    point: Point
    home: Tensor  # from where the distance is measured, shape (n,)
    rows: Tensor  # vectors of which the step is made, shape (capacity, n), zeros where unused;
    # with several ranks, of each vector this one's part
    inverse: Array  # makes orthonormal ones of those used, shape (capacity used, capacity used)
    loss: float | None  # at the point, where gradients of log L are compared; None for those of L
    metric: Metric | None = None  # whose inverse makes steps of rows, and measures changes


@dataclass(frozen=True, slots=True)
class Change:
    """What is different at a trial."""

    vector: Tensor  # g - g_0, or of the gradients of log L, times L: g - (L / L_0) g_0; shape (n,)
    distance: float  # from home
    # this rank's part of the vector, and where it is at hand what is left of that without its part
    # in the span of the rows: each, its square, and its products with the rows used
    seen: Sequence[Seen]


def point_of(vectors: Sequence[Tensor], found: Sequence[Any]) -> Point:
    """The point of theta, g, r and the tangent t, and of what a device computes of them.

    That is L, R, <g, g>, <r, r>, <r, g>, <t, t> and <theta, theta>.
    """
    theta, g, r, tangent, *_ = vectors
    loss, value, gg, rr, rg, tt, size = found[:NUMBERS]
    along = rg / gg if gg > 0 else 0.0
    g_norm, r_norm, t_norm = (math.sqrt(x) for x in (gg, rr, tt))
    return Point(
        theta=theta,
        norm=math.sqrt(size),
        loss=loss,
        grad=g,
        regularizer=value,
        regularizer_grad=r,
        tangent=tangent,
        grad_norm=g_norm,
        tangent_norm=t_norm,
        # atan2 keeps the angle's digits near 0 and 180 degrees, where arccos loses half of them
        angle_degrees=math.degrees(math.atan2(t_norm, along * g_norm)),
        kkt_residual=t_norm / r_norm if r_norm != 0 else 0.0,
        equivalent_penalty=-1 / along if along else math.nan,
    )
