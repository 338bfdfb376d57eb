"""Several constraints: how far each is missed, and the step that the models of all agree on."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoloss.methods.sqp.basis import Array, eigh, padded
from isoloss.methods.sqp.model import CLIP, Model, Slopes, convexified, inverse_root
from isoloss.methods.sqp.subproblem import HEAVY, Trial

NEAREST = 0.5
"""Share of a bound below which log(value / bound) continues as a straight line, down to values of 0
and less: so far inside, an upper bound has no say."""
FARTHEST = 1e4
"""Multipliers at most, in those with which the gradients balance: where constraints contradict one
another there are none, and the step is the one that this price leads to."""
WIDEST = 10.0
"""Length of a step on the way in that no radius bounds, as a share of |theta|."""
GAP = 3e-3
"""What a step may miss the modeled constraints by, as a share of their tolerances."""
UNSETTLED = 0.3
"""Share of a tolerance by which a step misses them where no maximum was found."""
SINGULAR = 1e-7
"""Smallest pivot of a Hessian that is positive definite, as a share of the largest."""
ENOUGH = 1e-4
"""Least rise of the dual function, as a share of what its slope promises (Armijo)."""

Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Measure:
    """A constraint as the method sees it: phi = log(value / bound), or (value - bound) / scale."""

    bound: float
    upper: bool  # phi <= 0 rather than phi = 0
    tol: float  # how far phi may be off
    scale: float | None

    def phi(self, value: float) -> float:
        """How far a value is from the bound."""
        if self.scale is not None:
            return (value - self.bound) / self.scale
        near = NEAREST * self.bound
        if value < near:
            return math.log(NEAREST) + value / near - 1
        return math.log(value / self.bound)

    def unit(self, value: float) -> float:
        """The derivative of the value by phi."""
        return max(value, NEAREST * self.bound) if self.scale is None else self.scale


@dataclass(frozen=True)
class Rules:
    """What each constraint of a walk asks of its phi, the level's first."""

    free: Flags  # phi = 0, and a multiplier of either sign
    tols: Array

    @staticmethod
    def of(measures: Sequence[Measure]) -> Rules:
        """The rules of several measures."""
        upper = np.array([one.upper for one in measures])
        return Rules(~upper, np.array([one.tol for one in measures]))

    def missed(self, phis: Array) -> Array:
        """How far each constraint is missed, with its sign; 0 for an upper bound that is met."""
        return np.where(self.free, phis, np.maximum(phis, 0.0))

    def miss(self, phis: Array) -> float:
        """The largest miss."""
        return float(np.abs(self.missed(phis)).max())

    def out(self, phis: Array) -> float:
        """The largest miss as the level would have it, each by its tolerance over the level's."""
        return float((np.abs(self.missed(phis)) * (self.tols[0] / self.tols)).max())

    def priced(self, phis: Array) -> Array:
        """What a price is paid for: how far inside an upper bound a point is counts for nothing."""
        return np.where(self.free, phis, np.maximum(phis, -self.tols))


def shortest(slopes: Array, missed: Array) -> float:
    """Length of the shortest step that makes up for what is missed, to first order."""
    sizes = np.linalg.norm(slopes, axis=1)
    which = (missed != 0) & (sizes > 0)
    if not which.any():
        return 0.0
    rows, sizes = slopes[which], sizes[which]
    back = np.linalg.lstsq(rows / sizes[:, None], missed[which] / sizes, rcond=1e-3)[0]
    return float(np.linalg.norm(back))


def trial(
    model: Model, slopes: Slopes, phis: Array, rules: Rules, radius: float, start: Array
) -> Trial:
    """The best step within a radius that the model of all constraints knows of; see `solve`.

    `start` are multipliers to begin with.
    """
    r, (rows, bends) = slopes.r, _modeled(model, slopes)
    turn = None if model.curvature is None else inverse_root(model.curvature, model.outside)
    if turn is not None:
        r, rows, bends = turn @ r, rows @ turn, turn @ bends @ turn
    at = solve(r, rows, bends, model.outside, phis, rules, radius, start, model.least)
    step = at.step if turn is None else turn @ at.step
    return _trial(step, at)


def restoring(
    model: Model, slopes: Slopes, phis: Array, rules: Rules, radius: float, size: float
) -> tuple[Trial, float]:
    """The step within a radius after which the misses sum up to least, and that sum, as modeled.

    `size` is |theta|, far beyond which no step is wanted.
    """
    rows, bends = _modeled(model, slopes)
    kappa = max(float(np.linalg.norm(rows, axis=1).max()), 1e-300) / (WIDEST * size)
    nothing, price = np.zeros(len(slopes.r)), np.ones(len(phis))
    start = np.clip(kappa * _least(rows @ rows.T, rules.missed(phis)), -price, price)
    at = solve(nothing, rows, bends, kappa, phis, rules, radius, start, CLIP * kappa, price)
    return _trial(at.step, at), float(abs(rules.missed(at.misses)).sum())


def _trial(step: Array, at: At) -> Trial:
    level, *held = at.multipliers.tolist()
    left = at.misses
    return Trial(step, level, at.length, float(left[0]), np.array(held), left[1:])


def _modeled(model: Model, slopes: Slopes) -> tuple[Array, Array]:
    """Slopes and bends of all constraints, shapes (constraints, size) and (..., size, size)."""
    size = model.basis.size
    bends = [padded(one, size) for one in (model.bend, *(b.hessian for b in model.beside))]
    return np.vstack([padded(one, size) for one in slopes.every[1:]]), np.stack(bends)


def solve(
    r: Array,
    slopes: Array,
    bends: Array,
    kappa: float,
    phis: Array,
    rules: Rules,
    radius: float,
    start: Array,
    least: float,
    most: Array | None = None,
) -> At:
    """Minimize <r, p> + kappa |p|^2 / 2 with all constraints to second order and |p| <= radius.

    The constraints are phi_j + <a_j, p> + <p, B_j p> / 2 = 0, or <= 0, with slopes a of the shape
    (constraints, size) and bends B (constraints, size, size). As with one of them, for each
    multiplier mu of the radius p = -(H + mu)^-1 (r + sum lambda_j a_j) with H = kappa +
    sum lambda_j B_j, and the lambda maximize the concave dual function, whose gradient are the
    constraints at p, by Newton's method. `start` are multipliers to begin with, about which H is
    kept above `least`; with `most` none is larger than that, which is then the price of a miss.
    """
    bends = _clipped(bends, kappa, least, start)
    dual = _Dual(r, slopes, bends, phis, rules, start, most)
    multipliers, mu, below, above = start, 0.0, 0.0, math.inf
    at = None
    for _ in range(20):
        found = dual.maximize(multipliers, kappa + mu)
        if found is None:
            mu = 4 * mu + kappa
            below = mu
            continue
        at, multipliers = found, found.multipliers
        if dual.worst(at) * GAP > UNSETTLED and mu <= HEAVY * kappa:  # near where H is singular
            mu = 4 * mu + kappa
            below = max(below, mu)
            continue
        length = at.length
        if (mu == 0 and length <= 1.05 * radius) or abs(length - radius) <= 0.1 * radius:
            break
        if mu > HEAVY * kappa:
            break  # not even the shortest step that meets the constraints is short enough
        below, above = (mu, above) if length > radius else (below, mu)
        shortening, change = at.by_radius(dual.moving(at))
        newton = mu
        if shortening < 0:
            newton += 2 * length**2 / shortening * (radius - length) / radius
            # no further: where all constraints are met |p| hardly depends on mu, until one is given
            # up
            newton = min(newton, 30 * (kappa + mu))
        if not below < newton < above:
            newton = (
                math.sqrt((kappa + below) * (kappa + above)) - kappa
                if above < math.inf
                else 4 * below + kappa
            )
        multipliers = multipliers + change * (newton - mu)
        mu = newton
    if at is None:  # nothing finite was found
        return At(start, 0.0, np.zeros_like(r), phis, slopes, Factor(np.eye(len(r))))
    return at


@dataclass(frozen=True)
class Factor:
    """Cholesky's factor of the Lagrangian's Hessian, in its lower triangle."""

    lower: Array

    @staticmethod
    def of(matrix: Array) -> Factor | None:
        """That of a symmetric matrix, which is overwritten; None where it is hardly positive."""
        lower, failed = _lapack()[0](matrix.T, lower=1, clean=0, overwrite_a=1)
        if failed:
            return None
        pivots = lower.diagonal()
        return Factor(lower) if pivots.min() > SINGULAR * pivots.max() else None

    def solve(self, columns: Array) -> Array:
        """The Hessian's inverse times a vector, or each column."""
        return _lapack()[1](self.lower, columns, lower=1)[0]


@functools.cache
def _lapack() -> Sequence[Any]:
    """LAPACK's own routines: numpy's wrappers cost several times what these matrices do."""
    from scipy.linalg import get_lapack_funcs

    return get_lapack_funcs(("potrf", "potrs"), dtype=np.float64)


@dataclass(frozen=True)
class At:
    """The dual function at some multipliers."""

    multipliers: Array
    value: float
    step: Array
    misses: Array  # the constraints at the step
    jacobian: Array  # their gradients there
    hessian: Factor

    @property
    def length(self) -> float:
        """|p|."""
        return math.sqrt(float(self.step @ self.step))

    def by_radius(self, moving: Flags) -> tuple[float, Array]:
        """Derivatives by mu of |p|^2 and of the multipliers that move."""
        across = self.jacobian[moving]
        images = self.hessian.solve(np.vstack([self.step, across]).T)
        along = across @ images[:, 0]
        change = np.zeros(len(self.multipliers))
        change[moving] = -_least(across @ images[:, 1:], along)
        shortening = -2 * float(self.step @ images[:, 0]) - 2 * float(along @ change[moving])
        return shortening, change


class _Dual:
    """The dual function of the subproblem for a weight of |p|^2 / 2."""

    def __init__(
        self,
        r: Array,
        slopes: Array,
        bends: Array,
        phis: Array,
        rules: Rules,
        start: Array,
        most: Array | None,
    ) -> None:
        self.r, self.slopes, self.bends, self.phis = r, slopes, bends, phis
        self.flat = bends.reshape(len(bends), -1)
        self.free, self.gaps = rules.free, GAP * rules.tols
        squares = np.einsum("ij,ij->i", slopes, slopes)
        self.squares = np.where(squares > 0, squares, 1.0)
        sizes = np.sqrt(self.squares)
        balance = max(float(np.linalg.norm(r)), float(np.abs(start * sizes).max()))
        self.far, self.most = FARTHEST * balance / sizes, most
        self.limits = self.far  # of the multipliers, at the weight of the last maximum

    def maximize(self, start: Array, weight: float) -> At | None:
        """The multipliers at the greatest value, None where nothing is finite."""
        # a short step asks for a large price: that of the way back, at this weight
        restoring = 10 * weight * np.maximum(np.abs(self.phis), self.gaps) / self.squares
        far = np.maximum(self.far, FARTHEST * restoring) if self.most is None else self.most
        self.limits = far
        at = None
        for _ in range(60):
            at = self._at(self._inside(start), weight)
            if at is not None:
                break
            start = 0.5 * start
        if at is None:
            return None
        for _ in range(40):
            moving = self.moving(at)
            if (np.abs(at.misses[moving]) <= self.gaps[moving]).all():
                break
            across = at.jacobian[moving]
            slope = across @ at.hessian.solve(across.T)
            ahead = np.zeros(len(moving))
            ahead[moving] = _least(slope, at.misses[moving])
            better = self._ahead(at, ahead, weight)
            if better is None:
                break
            at = better
        return at

    def moving(self, at: At) -> Flags:
        """The multipliers that are kept neither at 0 nor at their limit."""
        capped = (abs(at.multipliers) >= self.limits) & (at.multipliers * at.misses >= 0)
        return (self.free | (at.multipliers > 0) | (at.misses > self.gaps)) & ~capped

    def _ahead(self, at: At, ahead: Array, weight: float) -> At | None:
        """A point of a greater value along Newton's direction, or of smaller misses."""
        share = 1.0
        for _ in range(40):
            there = self._at(self._inside(at.multipliers + share * ahead), weight)
            if there is not None:
                promised = float(at.misses @ (there.multipliers - at.multipliers))
                if there.value >= at.value + ENOUGH * promised and promised > 0:
                    return there
                if self.worst(there) < 0.5 * self.worst(at):
                    return there
            share *= 0.4
        return None

    def worst(self, at: At) -> float:
        """The largest miss that the multipliers could make up for, in tolerances."""
        moving = self.moving(at)
        return float((np.abs(at.misses[moving]) / self.gaps[moving]).max(initial=0.0))

    def _inside(self, multipliers: Array) -> Array:
        return np.clip(multipliers, np.where(self.free, -self.limits, 0.0), self.limits)

    def _at(self, multipliers: Array, weight: float) -> At | None:
        size = len(self.r)
        hessian = (multipliers @ self.flat).reshape(size, size)
        hessian.ravel()[:: size + 1] += weight
        factor = Factor.of(hessian)
        if factor is None:
            return None
        lean = self.r + multipliers @ self.slopes
        step = -factor.solve(lean)
        bent = self.bends @ step
        misses = self.phis + self.slopes @ step + 0.5 * bent @ step
        value = float(multipliers @ self.phis + 0.5 * lean @ step)
        if not (math.isfinite(value) and np.isfinite(misses).all()):
            return None
        return At(multipliers, value, step, misses, self.slopes + bent, factor)


def _least(matrix: Array, vector: Array) -> Array:
    """The solution of a small system that may be singular: parallel gradients share a price."""
    if not len(vector):
        return vector
    size = np.sqrt(np.maximum(np.diag(matrix), 0.0))
    size[size == 0] = 1.0
    return np.linalg.lstsq(matrix / np.outer(size, size), vector / size, rcond=1e-13)[0] / size


def _clipped(bends: Array, kappa: float, least: float, multipliers: Array) -> Array:
    """Bends with which the Lagrangian's curvature is positive at these multipliers."""
    square = float(multipliers @ multipliers)
    if square == 0:
        return bends
    hessian = np.tensordot(multipliers, bends, 1)
    hessian[np.diag_indices_from(hessian)] += kappa
    values, vectors = eigh(hessian)
    low = values < least
    if not low.any():
        return bends
    # taken from each by its share of the price, as little in all as can be
    convex = convexified(values[low], kappa, least, multipliers.sum() > 0)
    lifted = (vectors[:, low] * (convex - values[low])) @ vectors[:, low].T
    return bends + (multipliers / square)[:, None, None] * lifted
