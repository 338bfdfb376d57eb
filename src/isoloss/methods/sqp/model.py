"""What is known of R and phi about a point: gradients and learned Hessians in a small basis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from isoloss.evaluation import Ranks
from isoloss.methods.sqp.basis import Array, Basis, eigh, padded
from isoloss.methods.sqp.known import Known
from isoloss.methods.sqp.subproblem import NONE, RESTORING, Trial, solve
from isoloss.problem import ALONE
from isoloss.regularizers.metric import Metric

CAP = 3.0
"""Learnt curvature is believed up to this many times the largest that was seen of late."""
FLAT = 1e-2
"""Least curvature of R in the changed variables, as a share of that outside the basis."""
TINY = 1e-200
"""Curvature below which there is none."""
CLIP = 0.3
"""Smallest curvature of the Lagrangian, as a share of the regularizer's, that a trial is given
where the regularizer's is learned; and that of what is concave where R and L would both fall."""
SHARPER_CLIP = 0.03
"""The first where the regularizer's curvature is known."""
LEAST = 1e-3
"""Smallest curvature of the Lagrangian along the gradient of phi, where - a a' is known."""


@dataclass(frozen=True)
class Slopes:
    """Gradients at one point, in coordinates."""

    r: Array  # of the regularizer
    a: Array  # of phi
    beside: tuple[Array, ...] = ()  # of the phi of each that is held beside the level

    def padded(self, size: int) -> Slopes:
        """The same in a grown basis."""
        if size == len(self.r):
            return self
        beside = tuple(padded(one, size) for one in self.beside)
        return Slopes(padded(self.r, size), padded(self.a, size), beside)

    def turned(self, columns: Array) -> Slopes:
        """The same in the basis of orthonormal columns of this one."""
        beside = tuple(columns.T @ one for one in self.beside)
        return Slopes(columns.T @ self.r, columns.T @ self.a, beside)

    @property
    def every(self) -> tuple[Array, ...]:
        """All of them."""
        return (self.r, self.a, *self.beside)

    @cached_property
    def multiplier(self) -> float:
        """The least-squares lambda of r + lambda a = 0."""
        return float(-(self.r @ self.a) / (self.a @ self.a))


@dataclass(frozen=True)
class Bend:
    """What is learned of the phi of something that is held beside the level."""

    hessian: Array
    steepest: float = 0.0  # largest curvature that was seen of late

    def learn(self, size: int, step: Array, change: Array) -> Bend:
        """The same after the change of a gradient over a step, in a basis of a size."""
        change = padded(change, size)
        seen = math.sqrt(change @ change) / math.sqrt(step @ step)
        hessian = _sr1(padded(self.hessian, size), step, change)
        return Bend(hessian, max(0.97 * self.steepest, seen))

    def capped(self, size: int) -> Array:
        """The Hessian as far as it is believed, in a basis of a size."""
        values, vectors = eigh(padded(self.hessian, size))
        values = np.clip(values, -CAP * self.steepest, CAP * self.steepest)
        return (vectors * values) @ vectors.T


@dataclass(frozen=True)
class Model:
    """Hessians in a basis of the gradients seen."""

    basis: Basis  # of all directions in which anything is known
    bend: Array  # Hessian of phi, learned by SR1 from every trial; zero outside the basis
    curvature: Array | None  # of R, by damped BFGS; None where it is exactly `outside` times I
    outside: float  # curvature of R outside the basis
    steepest: float = 0.0  # largest curvature of phi that was seen of late
    beside: tuple[Bend, ...] = ()  # of each that is held beside the level
    known: Known | None = None  # a part of phi's Hessian, of which `bend` then is the rest

    @property
    def whole(self) -> Array:
        """The Hessian of phi in the basis."""
        return self.bend if self.known is None else self.bend + self.known.bend

    def trial(
        self, slopes: Slopes, phi: float, radius: float, multiplier: float, gap: float
    ) -> Trial:
        """The best step within a radius that the model knows of, a longer one to restore phi; see
        `solve`."""
        r, a, bend = slopes.r, slopes.a, self.whole
        # a change of variables makes the regularizer's Hessian `outside` times I
        turn = None if self.curvature is None else inverse_root(self.curvature, self.outside)
        if turn is not None:
            r, a, bend = turn @ r, turn @ a, turn @ bend @ turn
        start = multiplier if multiplier * slopes.multiplier > 0 else slopes.multiplier
        reference = max(start, slopes.multiplier, key=abs)
        weights, steep = None, a
        if self.known is None or not reference > 0:  # then what is known makes it concave
            values, vectors = self._tamed(bend, reference)
        else:
            values, vectors, weights, back = self._tamed_in_metric(self.known, reference)
            steep = back @ slopes.a
        longest = max(radius, RESTORING * abs(phi) / math.sqrt(steep @ steep))
        r, a = vectors.T @ r, vectors.T @ a
        found = solve(r, a, values, self.outside, phi, longest, start, gap, weights)
        step = vectors @ found.step
        step = step if turn is None else turn @ step
        return Trial(step, found.multiplier, found.length, found.left)

    @property
    def least(self) -> float:
        """Smallest curvature of the Lagrangian in a trial."""
        return self.outside * (SHARPER_CLIP if self.curvature is None else CLIP)

    def _tamed(self, bend: Array, multiplier: float) -> tuple[Array, Array]:
        """Eigenvalues of a Hessian of phi and their vectors, the Lagrangian kept convex.

        That is, outside + multiplier * values.
        """
        values, vectors = eigh(bend)
        curved = self.outside + multiplier * values
        low = curved < self.least  # nowhere where the multiplier is 0
        if low.any():
            convex = convexified(curved[low], self.outside, self.least, multiplier > 0)
            values[low] = (convex - self.outside) / multiplier
        return values, vectors

    def _tamed_in_metric(
        self, known: Known, multiplier: float
    ) -> tuple[Array, Array, Array, Array]:
        """The same with what is known as it is and the rest tamed in its metric.

        The third is the weight of each vector in the square of a step's length. The fourth, times
        a gradient, is as long as the gradient is steep for steps of this length.
        """
        stiff = known.stiffness(multiplier / self.outside)
        root = np.linalg.cholesky(np.eye(len(stiff)) + stiff)
        back = np.asarray(np.linalg.inv(root), np.float64)
        values, vectors = self._tamed(back @ self.bend @ back.T, multiplier)
        turned = root @ vectors
        values, vectors = eigh((turned * values) @ turned.T + known.bend)
        # along the gradient, where phi decides, - a a' may leave it concave: no step would be short
        # enough for the multiplier that phi asks for
        values = np.maximum(values, -self.outside * (1 - LEAST) / multiplier)
        return values, vectors, 1 + ((stiff @ vectors) * vectors).sum(0), back

    def fall(self, slopes: Slopes, step: Array) -> float:
        """By how much R falls over a step, as modeled."""
        bent = self.outside * step if self.curvature is None else self.curvature @ step
        return float(-(slopes.r @ step + 0.5 * step @ bent))

    def learn(
        self,
        basis: Basis,
        step: Array,
        change_r: Array,
        change_a: Array,
        beside: Sequence[Array] = (),
        known: Known | None = None,
    ) -> Model:
        """The model after gradients at both ends of a step were seen."""
        size = basis.size
        step, change_a = padded(step, size), padded(change_a, size)
        rest = change_a if known is None else change_a - known.bent(step)
        bend = _sr1(padded(self.bend, size), step, rest)
        curvature = self.curvature
        if curvature is not None:
            grown = padded(curvature, size, self.outside)
            curvature = _bfgs(grown, step, padded(change_r, size))
        seen = math.sqrt(change_a @ change_a) / math.sqrt(step @ step)
        bends = (one.learn(size, step, c) for one, c in zip(self.beside, beside, strict=True))
        return Model(
            basis,
            bend,
            curvature,
            self.outside,
            max(0.97 * self.steepest, seen),
            tuple(bends),
            known,
        )

    def steered(self, slopes: Slopes, price: float) -> Model:
        """The model with the direction in which R + price phi falls most at a point of these
        slopes, where a part of the Hessian of phi is known."""
        if self.known is None or not price > 0:
            return self
        gradient = slopes.r + price * slopes.a
        known, basis = self.known.with_steepest(self.basis, gradient, price, self.outside)
        return replace(self, basis=basis, bend=padded(self.bend, basis.size), known=known)

    def measured(self, metric: Metric, slopes: Slopes) -> tuple[Model, Slopes]:
        """The model in a new metric of R, which R's Hessian is again; those of the constraints are
        the same."""
        found = self.basis.measured(metric)
        if found is None:
            return self, slopes
        basis, lower = found

        def turned(hessian: Array) -> Array:
            return lower.T @ padded(hessian, basis.size) @ lower

        beside = tuple(Bend(turned(one.hessian), one.steepest) for one in self.beside)
        model = Model(
            basis, turned(self.bend), np.eye(basis.size), self.outside, self.steepest, beside
        )
        new = tuple(lower.T @ one for one in slopes.beside)
        return model, Slopes(lower.T @ slopes.r, lower.T @ slopes.a, new)

    def forgotten(self) -> Model:
        """The model with no constraint's bend."""
        beside = tuple(Bend(np.zeros_like(one.hessian), one.steepest) for one in self.beside)
        return replace(self, bend=np.zeros_like(self.bend), beside=beside)

    def compressed(
        self, keep: int, held: Sequence[Slopes], prices: Array = NONE, ranks: Ranks = ALONE
    ) -> tuple[Model, list[Slopes]]:
        """A smaller model: what is needed exactly, and where phi and R bend most.

        Where more than a level is held, `prices` are what the bend of each constraint counts.
        """
        size = self.basis.size
        values, vectors = eigh(padded(self.bend, size))
        values = np.clip(values, -CAP * self.steepest, CAP * self.steepest)
        exact = np.column_stack([v for one in held for v in one.every])
        span, weights, _ = np.linalg.svd(exact, full_matrices=False)
        span = span[:, weights > 1e-9 * weights[0]]
        most = vectors[:, np.argsort(-np.abs(values))]
        if self.curvature is not None:  # what the Lagrangian loses without a direction
            off = padded(self.curvature, size, self.outside) - self.outside * np.eye(size)
            bent = held[0].multiplier ** 2 * (vectors * values**2) @ vectors.T
            most = eigh(bent + off @ off)[1][:, ::-1]
        bends = [one.capped(size) for one in self.beside]
        if len(prices):
            capped = [(vectors * values) @ vectors.T, *bends]
            bent = sum(price**2 * one @ one for price, one in zip(prices, capped, strict=True))
            if self.curvature is not None:
                off = padded(self.curvature, size, self.outside) - self.outside * np.eye(size)
                bent = bent + off @ off
            most = eigh(np.asarray(bent))[1][:, ::-1]
        columns = np.linalg.qr(np.column_stack([span, most[:, : keep - span.shape[1]]]))[0]
        rotated = columns.T @ vectors
        known = self.known
        if known is not None:
            known = known.turned(columns)
        smaller = Model(
            self.basis.turned(columns, ranks),
            (rotated * values) @ rotated.T,
            None if self.curvature is None else columns.T @ self.curvature @ columns,
            self.outside,
            self.steepest,
            tuple(
                Bend(columns.T @ bend @ columns, one.steepest)
                for bend, one in zip(bends, self.beside, strict=True)
            ),
            known,
        )
        return smaller, [one.turned(columns) for one in held]


def _sr1(matrix: Array, step: Array, change: Array) -> Array:
    """Symmetric rank one update (Nocedal and Wright, section 6.2), skipped where ill-defined."""
    missed = change - matrix @ step
    along, size = missed @ step, math.sqrt(missed @ missed)
    if abs(along) <= 1e-8 * size * math.sqrt(step @ step):
        return matrix
    return matrix + missed[:, None] * (missed / along)


def _bfgs(matrix: Array, step: Array, change: Array) -> Array:
    """BFGS with Powell's damping, which keeps it positive definite (there, procedure 18.2).

    Where R is concave along the step, it gets the least curvature there that damping leaves. The
    change of the gradient, which points back, would add curvature across the step, more each time.
    """
    image = matrix @ step
    curved, along = step @ image, step @ change
    if not curved > TINY:
        return matrix
    if along < 0:
        change = 0.2 * image
        along = 0.2 * curved
    elif along < 0.2 * curved:
        share = 0.8 * curved / (curved - along)
        change = share * change + (1 - share) * image
        along = step @ change
    return matrix - np.outer(image, image / curved) + np.outer(change, change / along)


def convexified(curved: Array, kappa: float, least: float, by_size: bool) -> Array:
    """Curvatures of the Lagrangian, kappa where nothing is known, as a trial takes those that are
    below the least.

    Where phi pulls against R, what is concave is mostly what SR1 left behind of steps long past,
    and is taken `by_size`, as Dauphin et al. (2014) do at saddles. Where both would fall, it is the
    curvature of phi itself, which no minimum has but along the gradient: there a step may be long.
    """
    concave = curved < 0
    return np.where(concave, 2 * kappa - curved if by_size else CLIP * kappa, least)


def inverse_root(matrix: Array, scale: float) -> Array:
    """What turns a Hessian into a multiple of the identity, its curvature bounded below."""
    values, vectors = eigh(matrix)
    return (vectors * np.sqrt(scale / np.maximum(values, FLAT * scale))) @ vectors.T
