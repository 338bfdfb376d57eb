"""An orthonormal basis of the gradients seen, in which all of the method's algebra is small."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isoloss.errors import InputError
from isoloss.evaluation import GaussNewton, Ranks
from isoloss.evaluation.arithmetic import one_thread
from isoloss.flat import fetched, gram, inner, products
from isoloss.problem import ALONE
from isoloss.regularizers.metric import Metric

Array = NDArray[np.float64]

GROWTH = 10.0
"""How much larger than one an orthonormal row's share of a stored row may be: the rounding of inner
products grows by the product of two of these."""


@dataclass
class Rows:
    """Storage of vectors, such as the bases that grew from one another share; of each vector, this
    rank's part."""

    values: Tensor  # shape (capacity, n)
    used: int = 0  # rows written; a basis with fewer is an older one and copies before it grows


def row_of(vector: Tensor, ranks: Ranks) -> Rows:
    """A vector as the only row, in memory of its own."""
    part = ranks.cut(vector)
    return Rows((part if part is vector else part.clone())[None], 1)


@dataclass(frozen=True)
class Basis:
    """An orthonormal basis Q of some vectors; growing gives a new one and leaves this one as it is.

    The vectors are stored as they come, at unit length: making orthogonal rows of them would cost
    another pass over all. Q is known by the inner products of what is stored, `inverse` times it,
    as in a QR factorization by Cholesky's (Yamamoto et al. 2015 on its rounding).

    Attributes:
        rows: Where the vectors are stored.
        inverse: Shape (size, size), lower triangular.
        metric: Of which all inner products are, those of its inverse; None for the usual ones. Then
            coordinates are of gradients, and a step is the metric's inverse times a vector.
        newest: Coordinates of the vector that was stored last, where the basis grew by it.
    """

    rows: Rows
    inverse: Array
    metric: Metric | None = None
    newest: Array | None = None

    @staticmethod
    def empty(capacity: int, like: Tensor, metric: Metric | None = None) -> Basis:
        """A basis without rows, for vectors of a tensor's length, type and device."""
        try:
            rows = like.new_zeros(capacity, len(like))
        except (RuntimeError, MemoryError) as error:
            size = capacity * like.nbytes / 1e9
            raise InputError(
                f"memory={capacity} of SQP asks for {size:,.0f} GB for vectors of {len(like):,} "
                f"parameters, which there is not; lower it"
            ) from error
        return Basis(Rows(rows), np.zeros((0, 0)), metric)

    @property
    def size(self) -> int:
        """Number of rows."""
        return len(self.inverse)

    @property
    def capacity(self) -> int:
        """How many rows there is storage for."""
        return self.rows.values.shape[0]

    @property
    def room(self) -> int:
        """How many more there is storage for."""
        return self.capacity - self.size

    @property
    def _rows(self) -> Tensor:
        return self.rows.values[: self.size]

    def coordinates(
        self,
        vector: Tensor,
        seen: Sequence[tuple[Tensor, float, Array]] = (),
        ranks: Ranks = ALONE,
        nothing: float = 0.0,
    ) -> tuple[Array, Basis]:
        """Coordinates of a vector, in this basis grown by what is new in it.

        One pass over the rows, unless so much of the vector is known that rounding hides what is
        new: then what is known is taken off first ("twice is enough", Giraud et al. 2005). `seen`
        is the vector, then what is left of it, as far as these are at hand: each with its square
        and its coordinates by inner products. What is new and no longer than `nothing` is rounding.
        """
        found, rest, whole = np.zeros(self.size), ranks.cut(vector), 0.0
        for turn in range(3):
            if turn < len(seen):
                rest, square, part = seen[turn]
            else:
                dual = rest if self.metric is None else self.metric.solve(rest)
                several = ranks.sums(inner(rest, dual), products(self._rows, dual))
                square, known = fetched(*several)
                part = self.inverse @ known
            left = math.sqrt(square)
            whole = whole or left
            if left <= max(100 * torch.finfo(vector.dtype).eps * whole, nothing):
                break
            found += part
            shares = part @ self.inverse
            new = left * left - float(part @ part)
            if shares @ shares + left * left <= GROWTH**2 * new:
                length = math.sqrt(new)
                stored = np.append(part, length)
                return np.append(found, length), self._grown(rest, left, shares, stored)
            if turn + 1 >= len(seen):
                rest = torch.addmv(rest, self._rows.t(), self._like_rows(shares), alpha=-1)
        return found, self

    def projected(self, vector: Tensor) -> Array:
        """Coordinates of the part of a vector that lies in this basis."""
        return self.inverse @ fetched(products(self._rows, vector))[0]

    def _grown(self, vector: Tensor, norm: float, shares: Array, coordinates: Array) -> Basis:
        """The basis with a vector of this norm as its last row: of which so much of each row is
        known, and which has these coordinates in the new basis."""
        rows, size = self.rows, self.size
        if rows.used > size:
            rows = Rows(rows.values.clone())
        torch.mul(vector, 1 / norm, out=rows.values[size])
        rows.used = size + 1
        inverse = padded(self.inverse, size + 1)
        inverse[size, :size] = shares / -coordinates[-1]
        inverse[size, size] = norm / coordinates[-1]
        return Basis(rows, inverse, self.metric, coordinates / norm)

    def images(self, rows: GaussNewton) -> Array:
        """The vectors of the basis under a matrix, shape (size, m)."""
        return self.inverse @ rows.products(self._rows)

    def combine(self, coordinates: Array) -> Tensor:
        """The vector of these coordinates, shape (n,); of it, this rank's part."""
        return torch.mv(self._rows.t(), self._like_rows(coordinates @ self.inverse))

    def shares(self, coordinates: Array) -> Array:
        """How much of each stored row the vector of these coordinates is, shape (size,)."""
        return coordinates @ self.inverse

    def turned(self, columns: Array, ranks: Ranks = ALONE) -> Basis:
        """The basis of the combinations given by orthonormal columns, shape (size, fewer).

        In storage of its own, so that this basis stays as it is. The combinations are orthonormal
        only as far as this basis is: what is missing is measured, so that it cannot build up.
        """
        kept = columns.shape[1]
        rows = Rows(torch.empty_like(self.rows.values), kept)
        rows.values[kept:] = 0  # a trial may multiply all rows
        torch.mm(self._like_rows(columns.T @ self.inverse), self._rows, out=rows.values[:kept])
        made = rows.values[:kept]
        dual = made if self.metric is None else self.metric.solve(made)
        (square,) = fetched(*ranks.sums(gram(made, dual)))
        square = square.reshape(kept, kept)
        return Basis(rows, np.linalg.inv(np.linalg.cholesky(square)), self.metric)

    def measured(self, metric: Metric) -> tuple[Basis, Array] | None:
        """The basis of the same vectors in another metric, and the lower triangle that the old one
        is of the new; None where rounding hides how the vectors differ in it."""
        rows, dual = self._rows, metric.solve(self._rows)
        (square,) = fetched(gram(rows, dual))
        square = self.inverse @ square.reshape(self.size, self.size) @ self.inverse.T
        try:
            lower = np.linalg.cholesky(0.5 * (square + square.T))
        except np.linalg.LinAlgError:
            return None
        inverse = np.linalg.solve(lower, self.inverse)
        known = np.square(np.diag(lower)) / np.diag(square)
        if not known.min() > 1e3 * torch.finfo(rows.dtype).eps:
            return None
        return Basis(self.rows, inverse, metric), lower

    def _like_rows(self, array: Array) -> Tensor:
        values = self.rows.values
        return torch.from_numpy(array).to(values.dtype).to(values.device)


def padded(array: Array, size: int, diagonal: float = 0.0) -> Array:
    """A vector or square matrix grown to a size, with zeros and this diagonal."""
    old = len(array)
    if old == size:
        return array
    if array.ndim == 1:
        return np.concatenate([array, np.zeros(size - old)])
    grown = np.zeros((size, size))
    grown[:old, :old] = array
    if diagonal:
        np.fill_diagonal(grown[old:, old:], diagonal)
    return grown


def eigh(matrix: Array) -> tuple[Array, Array]:
    """Eigenvalues, ascending, and eigenvectors of a symmetric matrix too small for threads."""
    with one_thread():
        values, vectors = torch.linalg.eigh(torch.from_numpy(matrix))
    return values.numpy(), vectors.numpy()
