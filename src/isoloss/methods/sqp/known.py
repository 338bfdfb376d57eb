"""What is known of the Hessian of phi before a step: the Gauss-Newton part, of some examples."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from isoloss.evaluation import GaussNewton
from isoloss.methods.sqp.basis import GROWTH, Array, Basis, padded

STIFFEST = 1e10
"""Largest curvature, beside that of R, that the metric of a trial has."""
TINY = 1e-200
NEAR = 1.2
"""Ratio of prices up to which the steepest direction of one serves for the other."""


@dataclass(frozen=True)
class Known:
    """Z' Z - a a' of one point, without a a' where phi is no logarithm, in a basis."""

    rows: GaussNewton  # Z
    images: Array  # Z times each vector of the basis, shape (size, m)
    slope: Array  # a in the basis as it was at that point; zero where it is left out
    trials: int = 0  # since then
    price: float = math.nan
    inverse: Array | None = None  # (outside / price I + Z Z')^-1, shape (m, m)

    @cached_property
    def square(self) -> Array:
        """Z' Z in the basis."""
        return self.images @ self.images.T

    @cached_property
    def bend(self) -> Array:
        """The Hessian in the basis."""
        slope = padded(self.slope, len(self.images))
        return self.square - np.outer(slope, slope)

    def bent(self, step: Array) -> Array:
        """The Hessian times a step."""
        slope = padded(self.slope, len(self.images))
        return self.images @ (step @ self.images) - slope * float(slope @ step)

    def stiffness(self, price: float) -> Array:
        """Z' Z in the basis times a price, of which a negative one counts as none.

        It is kept within what floating point resolves.
        """
        most = STIFFEST / max(float(self.square.trace()), TINY)
        return min(max(price, 0.0), most) * self.square

    def grown(
        self, basis: Basis, coordinates: Array, image: Callable[[GaussNewton], Array]
    ) -> Known:
        """The same in a basis that may have grown by what is new in a vector.

        The vector has these coordinates, and `image` gives Z times it. Where little is new, the
        rounding of that would be magnified, from one such row to the next: then it is Z times what
        is stored.
        """
        if basis.size == len(self.images):
            return self
        if np.linalg.norm(coordinates) > GROWTH * coordinates[-1]:
            assert basis.newest is not None  # noqa: S101
            coordinates = basis.newest
            found = self.rows.products(basis.rows.values[basis.size - 1 : basis.size])[0]
        else:
            found = image(self.rows)
        found = (found - coordinates[:-1] @ self.images) / coordinates[-1]
        return replace(self, images=np.vstack([self.images, found]))

    def turned(self, columns: Array) -> Known:
        """The same in the basis of orthonormal columns of this one."""
        slope = padded(self.slope, len(columns))
        return replace(self, images=columns.T @ self.images, slope=columns.T @ slope)

    def with_steepest(
        self, basis: Basis, gradient: Array, price: float, outside: float
    ) -> tuple[Known, Basis]:
        """What is known, and the basis, with (outside I + price Z' Z)^-1 times a gradient.

        The gradient is a vector of the basis, of these coordinates. By Woodbury's formula what is
        new of the solution is Z' times a vector, of which all inner products are known; the matrix
        to invert has as many rows as Z, and is that of another price while that is near.
        """
        known, inverse = self, self.inverse
        if inverse is None or not 1 / NEAR < price / self.price < NEAR:
            inverse = self.rows.inverse(outside / price)
            known = replace(self, price=price, inverse=inverse)
        shares = gradient @ self.images @ inverse
        image: Array = self.rows.gram @ shares
        square = max(float(shares @ image), 0.0)  # rounding may say less
        steepest = self.rows.combined(shares)
        seen = [(steepest, square, self.images @ shares)]
        found, basis = basis.coordinates(steepest, seen)
        return known.grown(basis, found, lambda _: image), basis
