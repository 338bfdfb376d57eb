"""An orthonormal basis of the gradients seen, in which all of the method's algebra is small."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]

FIRST = 12
"""Rows whose part of a vector is taken off first: after a basis was turned, the stiffest."""
ORTHOGONAL = 0.2
"""Share of a vector that must be left for its remainder to count as orthogonal; less than that is
taken through the rows once more. The error of each row grows into the next by the inverse."""


@dataclass
class Rows:
    """Storage shared by the bases that grew from one another.

    Attributes:
        values: Shape (capacity, n).
        used: Rows written so far; a basis with fewer is an older one and copies before it grows.
    """

    values: Tensor
    used: int = 0


@dataclass(frozen=True)
class Basis:
    """Orthonormal rows; growing gives a new basis and leaves this one as it is.

    Attributes:
        rows: Where they are stored.
        size: Number of rows that belong to this basis.
    """

    rows: Rows
    size: int = 0

    @staticmethod
    def empty(capacity: int, like: Tensor) -> Basis:
        """A basis without rows, for vectors of a tensor's length, type and device."""
        return Basis(Rows(like.new_empty(capacity, len(like))))

    @property
    def room(self) -> int:
        """How many more rows there is storage for."""
        return len(self.rows.values) - self.size

    @property
    def _rows(self) -> Tensor:
        return self.rows.values[: self.size]

    def coordinates(self, vector: Tensor) -> tuple[Array, Basis]:
        """Coordinates of a vector, in this basis grown by what is new in it.

        Gram-Schmidt, repeated where digits cancel ("twice is enough", Giraud et al. 2005), which a
        first pass over few rows mostly saves.

        Args:
            vector: Shape (n,).

        Returns:
            The coordinates and the basis they refer to, with at most one more row.
        """
        q, found, rest = self._rows, np.zeros(self.size), vector
        whole = left = _norm(vector)
        part = torch.mv(q[:FIRST], rest)
        if _norm(part) > 0.9 * whole:  # a change of gradients is mostly along what is known
            rest = torch.addmv(rest, q[:FIRST].t(), part, alpha=-1)
            found[:FIRST] = _float64(part)
            left = _norm(rest)
            part = torch.mv(q, rest)
        else:
            part = torch.cat([part, torch.mv(q[FIRST:], rest)])
        for again in (True, False):
            rest = torch.addmv(rest, q.t(), part, alpha=-1)
            found += _float64(part)
            before, left = left, _norm(rest)
            if left > ORTHOGONAL * before or left == 0:
                break
            if again:
                part = torch.mv(q, rest)
        if left <= 100 * torch.finfo(vector.dtype).eps * whole:
            return found, self
        rows = self.rows
        if rows.used > self.size:
            rows = Rows(rows.values.clone())
        torch.mul(rest, 1 / left, out=rows.values[self.size])
        rows.used = self.size + 1
        return np.append(found, left), Basis(rows, self.size + 1)

    def combine(self, coordinates: Array) -> Tensor:
        """The vector of these coordinates, shape (n,)."""
        return torch.mv(self._rows.t(), self._like_rows(coordinates))

    def moved(self, place: Tensor, coordinates: Array) -> Tensor:
        """A place moved by the vector of these coordinates, shape (n,)."""
        return torch.addmv(place, self._rows.t(), self._like_rows(coordinates))

    def turned(self, columns: Array) -> Basis:
        """The basis of the combinations given by orthonormal columns, shape (size, fewer).

        In storage of its own, so that this basis stays as it is.
        """
        kept = columns.shape[1]
        rows = Rows(torch.empty_like(self.rows.values), kept)
        torch.mm(self._like_rows(columns).t(), self._rows, out=rows.values[:kept])
        return Basis(rows, kept)

    def _like_rows(self, array: Array) -> Tensor:
        values = self.rows.values
        return torch.from_numpy(array).to(values.device, values.dtype)


def _norm(vector: Tensor) -> float:
    return math.sqrt(vector.dot(vector).item())


def _float64(vector: Tensor) -> Array:
    return vector.to("cpu", torch.float64).numpy()


def padded(array: Array, size: int, diagonal: float = 0.0) -> Array:
    """A vector or square matrix grown to a size, with zeros and this diagonal.

    Args:
        array: Shape (k,) or (k, k) with k at most size.
        size: The size wanted.
        diagonal: Of the new part of a matrix.

    Returns:
        Shape (size,) or (size, size).
    """
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
    """Eigenvalues, ascending, and eigenvectors of a symmetric matrix, in torch's threads."""
    values, vectors = torch.linalg.eigh(torch.from_numpy(matrix))
    return values.numpy(), vectors.numpy()
