"""An orthonormal basis of the gradients seen, in which all of the method's algebra is small."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]


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

    def coordinates(self, vector: Tensor) -> tuple[Array, Basis]:
        """Coordinates of a vector, in this basis grown by what is new in it.

        Gram-Schmidt, repeated where digits cancel ("twice is enough", Giraud et al. 2005).

        Args:
            vector: Shape (n,).

        Returns:
            The coordinates and the basis they refer to, with at most one more row.
        """
        q = self.rows.values[: self.size]
        resolution = 100 * torch.finfo(vector.dtype).eps
        whole = left = math.sqrt(vector.dot(vector).item())
        found = np.zeros(self.size)
        rest = vector
        for _ in range(2 if self.size and whole > 0 else 0):
            part = q @ rest
            rest = torch.addmv(rest, q.t(), part, alpha=-1)
            found += part.double().cpu().numpy()
            before, left = left, math.sqrt(rest.dot(rest).item())
            if left > 0.1 * before:
                break
        if left <= resolution * whole:
            return found, self
        rows = self.rows
        if rows.used > self.size:
            rows = Rows(rows.values.clone())
        torch.mul(rest, 1 / left, out=rows.values[self.size])
        rows.used = self.size + 1
        return np.append(found, left), Basis(rows, self.size + 1)

    def combine(self, coordinates: Array) -> Tensor:
        """The vector of these coordinates, shape (n,)."""
        q = self.rows.values[: self.size]
        return q.t() @ torch.as_tensor(coordinates, dtype=q.dtype, device=q.device)

    def turned(self, columns: Array) -> Basis:
        """The basis of the combinations given by orthonormal columns, shape (size, fewer).

        In storage of its own, so that this basis stays as it is.
        """
        q = self.rows.values
        turn = torch.as_tensor(columns.T.copy(), dtype=q.dtype, device=q.device)
        kept = len(turn)
        rows = Rows(torch.empty_like(q), kept)
        torch.mm(turn, q[: self.size], out=rows.values[:kept])
        return Basis(rows, kept)


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
    grown = np.diag(np.full(size, diagonal))
    grown[:old, :old] = array
    return grown


def eigh(matrix: Array) -> tuple[Array, Array]:
    """Eigenvalues, ascending, and eigenvectors of a symmetric matrix, in torch's threads."""
    values, vectors = torch.linalg.eigh(torch.from_numpy(matrix))
    return values.numpy(), vectors.numpy()
