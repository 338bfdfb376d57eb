"""What a trial solves where a level alone is held, in an eigenbasis of the Hessian of phi."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from isoloss.methods.sqp.basis import Array

RESTORING = 1.3
"""How much longer than the shortest step that restores phi one may be in any case."""
FAR = 1e15
"""A multiplier that nothing bounds is within so much."""
HEAVY = 1e6
"""Price of a step's length, beside R's curvature, at which it is the shortest there is."""
NONE = np.zeros(0)


@dataclass(frozen=True)
class Trial:
    """A step that the model proposes."""

    step: Array  # in coordinates
    multiplier: float
    length: float  # in the variables in which the regularizer's Hessian is a multiple of I
    left: float = 0.0  # phi at its end, as modeled: the constraint is met to a tolerance
    # multipliers of what is held beside the level, and its phi as modeled
    beside: Array = field(default_factory=lambda: NONE)
    left_beside: Array = field(default_factory=lambda: NONE)


def solve(
    r: Array,
    a: Array,
    b: Array,
    kappa: float,
    phi: float,
    radius: float,
    multiplier: float,
    gap: float,
    weights: Array | None = None,
) -> Trial:
    """Minimize <r, p> + kappa |p|^2 / 2 with phi + <a, p> + <p, b p> / 2 = 0 and |p| <= radius.

    The length is <p, w p>^1/2 with the weights w. With multipliers lambda of the constraint and mu
    of the radius, p is -(r + lambda a) / (kappa + mu w + lambda b). For each mu the constraint
    falls monotonically in lambda wherever all denominators are positive; along its roots |p| falls
    in mu. Newton's method in both, one inside the other, kept inside brackets (compare More and
    Sorensen 1983 for the radius alone).
    """
    weights = np.ones(len(r)) if weights is None else weights
    up, down, rates = b > 0, b < 0, np.where(b == 0, 1.0, b)
    some_up, some_down = bool(up.any()), bool(down.any())
    mu, mu_below, mu_above = 0.0, 0.0, math.inf
    back, length, value = r, 0.0, phi  # back: the step reversed
    for _ in range(20):
        weight = kappa + mu * weights
        limits = -weight * (1 - 1e-10) / rates
        below = float(limits[up].max()) if some_up else -FAR
        above = float(limits[down].min()) if some_down else FAR
        if not below < multiplier < above:
            multiplier = 0.9 * (above if multiplier >= above else below)
        lean = weight * a - b * r
        slope, sideways, inverse = -1.0, r, r
        for _ in range(40):
            inverse = 1 / (weight + multiplier * b)
            back = (r + multiplier * a) * inverse
            ahead = lean * inverse  # gradient of the constraint at the step, a + b p
            value = phi - 0.5 * float(back.dot(a + ahead))
            sideways = ahead * inverse
            slope = -float(ahead.dot(sideways)) - 1e-300
            if abs(value) <= gap:
                break
            below, above = (multiplier, above) if value > 0 else (below, multiplier)
            if above - below <= 1e-13 * max(abs(below), abs(above)):
                break
            newton = multiplier - value / slope
            multiplier = newton if below < newton < above else 0.5 * (below + above)
        weighted = weights * back
        length = math.sqrt(back.dot(weighted))
        if (mu == 0 and length <= 1.05 * radius) or abs(length - radius) <= 0.1 * radius:
            break
        if mu > HEAVY * kappa:
            break  # not even the shortest step that meets the constraint is short enough: take it
        mu_below, mu_above = (mu, mu_above) if length > radius else (mu_below, mu)
        across = float(sideways.dot(weighted))
        shortening = -2 * float(weighted.dot(weighted * inverse)) - 2 * across * across / slope
        newton = mu
        if shortening < 0:
            newton += 2 * length**2 / shortening * (radius - length) / radius
        if not mu_below < newton < mu_above:
            newton = (
                math.sqrt((kappa + mu_below) * (kappa + mu_above)) - kappa
                if mu_above < math.inf
                else 4 * mu_below + kappa
            )
        multiplier -= across / slope * (newton - mu)
        mu = newton
    return Trial(-back, multiplier, length, value)
