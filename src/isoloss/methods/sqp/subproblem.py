"""The step's subproblem: a quadratic regularizer on a quadratic model of the level set."""

from __future__ import annotations

import math
from dataclasses import dataclass

from isoloss.methods.sqp.basis import Array

FAR = 1e15
HEAVY = 1e6


@dataclass(frozen=True)
class Trial:
    """A step that the model proposes.

    Attributes:
        step: In coordinates.
        multiplier: Lambda of the constraint.
        length: Its norm, in the variables in which the regularizer's Hessian is a multiple of I.
    """

    step: Array
    multiplier: float
    length: float


def solve(
    r: Array,
    a: Array,
    b: Array,
    kappa: float,
    phi: float,
    radius: float,
    multiplier: float,
    gap: float,
) -> Trial:
    """Minimize <r, p> + kappa |p|^2 / 2 with phi + <a, p> + <p, b p> / 2 = 0 and |p| <= radius.

    With multipliers lambda of the constraint and mu of the radius, p is
    -(r + lambda a) / (kappa + mu + lambda b). For each mu the constraint falls monotonically in
    lambda wherever all denominators are positive; along its roots |p| falls in mu. Newton's method
    in both, one inside the other, kept inside brackets (compare More and Sorensen 1983 for the
    radius alone).
    """
    top, low = max(float(b.max()), 0.0), min(float(b.min()), 0.0)
    mu, mu_below, mu_above = 0.0, 0.0, math.inf
    back, length = r, 0.0  # back: the step reversed
    for _ in range(20):
        weight = kappa + mu
        below = -weight * (1 - 1e-10) / top if top > 0 else -FAR
        above = -weight * (1 - 1e-10) / low if low < 0 else FAR
        if not below < multiplier < above:
            multiplier = 0.9 * (above if multiplier >= above else below)
        lean = weight * a - b * r
        slope, sideways, inverse = -1.0, r, r
        for _ in range(40):
            inverse = 1 / (weight + multiplier * b)
            back = (r + multiplier * a) * inverse
            ahead = lean * inverse  # gradient of the constraint at the step, a + b p
            value = phi - 0.5 * float(back @ (a + ahead))
            sideways = ahead * inverse
            slope = -float(ahead @ sideways) - 1e-300
            if abs(value) <= gap:
                break
            below, above = (multiplier, above) if value > 0 else (below, multiplier)
            if above - below <= 1e-13 * max(abs(below), abs(above)):
                break
            newton = multiplier - value / slope
            multiplier = newton if below < newton < above else 0.5 * (below + above)
        length = math.sqrt(float(back @ back))
        if (mu == 0 and length <= 1.05 * radius) or abs(length - radius) <= 0.1 * radius:
            break
        if mu > HEAVY * kappa:
            break  # not even the shortest step that meets the constraint is short enough: take it
        mu_below, mu_above = (mu, mu_above) if length > radius else (mu_below, mu)
        across = float(sideways @ back)
        shortening = -2 * float(back @ (back * inverse)) - 2 * across * across / slope
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
    return Trial(-back, multiplier, length)
