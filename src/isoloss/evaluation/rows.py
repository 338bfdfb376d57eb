"""Rows of a matrix Z for which Z' Z is a part of a Hessian, factored or entry by entry."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isoloss.flat import gram

Array = NDArray[np.float64]


@dataclass(frozen=True)
class DenseRows:
    """The entries of all rows that belong to one dense layer: of row i, slopes_i inputs_i'."""

    weight: int  # where the layer's weight begins in the flat vector
    bias: int  # likewise; -1 where it has none
    inputs: Tensor  # shape (m, features)
    slopes: Tensor  # shape (m, outputs)

    def split(self, vectors: Tensor) -> tuple[Tensor, Tensor | None]:
        """The part of flat vectors, shape (..., n), that is this layer's weight, and its bias's."""
        outputs, features = self.slopes.shape[1], self.inputs.shape[1]
        weight = vectors[..., self.weight : self.weight + outputs * features]
        bias = None if self.bias < 0 else vectors[..., self.bias : self.bias + outputs]
        return weight.unflatten(-1, (outputs, features)), bias

    def scaled(self, root: float) -> DenseRows:
        """The rows times a number."""
        return replace(self, slopes=self.slopes * root)

    def products(self, vectors: Tensor) -> Tensor:
        """What these entries add to the rows' inner products with vectors, shape (k, m)."""
        weight, bias = self.split(vectors)
        along = torch.mm(self.inputs, weight.reshape(-1, self.inputs.shape[1]).t())
        along = along.view(len(self.inputs), *weight.shape[:2])
        if bias is not None:
            along += bias
        return torch.linalg.vecdot(along, self.slopes.unsqueeze(1)).t()

    def combine(self, shares: Tensor, found: Tensor) -> None:
        """Write a combination of the rows into the part of a flat vector that they reach."""
        weight, bias = self.split(found)
        slopes = self.slopes * shares.unsqueeze(1)
        torch.mm(slopes.t(), self.inputs, out=weight)
        if bias is not None:
            torch.sum(slopes, 0, out=bias)

    def gram(self) -> Tensor:
        """What these entries add to the inner products of the rows, shape (m, m)."""
        return (self.inputs @ self.inputs.t() + (self.bias >= 0)) * (self.slopes @ self.slopes.t())


@dataclass(frozen=True)
class StoredRows:
    """All entries of all rows, for networks of other layers."""

    values: Tensor  # shape (m, n)

    def scaled(self, root: float) -> StoredRows:
        """The rows times a number."""
        return StoredRows(self.values * root)

    def products(self, vectors: Tensor) -> Tensor:
        """The rows' inner products with vectors, shape (k, m)."""
        return gram(vectors, self.values)

    def combine(self, shares: Tensor, found: Tensor) -> None:
        """Write a combination of the rows into a flat vector."""
        torch.mv(self.values.t(), shares, out=found)

    def gram(self) -> Tensor:
        """The inner products of the rows, shape (m, m)."""
        return gram(self.values, self.values)


@dataclass(frozen=True)
class GaussNewton:
    """A matrix Z of m rows for which Z' Z is a part of the Hessian of the mean loss.

    A row is the derivative of one example's outputs along one eigenvector of the Hessian of its
    loss by them, times the root of the eigenvalue (Schraudolph, Neural Computation 14, 2002). In a
    dense layer it is the outer product of a slope and an input, and is kept as these.

    Attributes:
        parts: The rows, layer by layer; all in one where they are stored.
        size: Number of parameters, n.
        gram: Z Z', shape (m, m).
        factored: Whether they are kept as outer products, and there are many.
    """

    parts: tuple[DenseRows, ...] | tuple[StoredRows]
    size: int
    gram: Array

    @staticmethod
    def of(parts: tuple[DenseRows, ...] | tuple[StoredRows], size: int) -> GaussNewton:
        """The rows with their inner products."""
        total = sum(part.gram() for part in parts)
        assert isinstance(total, Tensor)  # noqa: S101
        return GaussNewton(parts, size, total.double().numpy())

    @property
    def factored(self) -> bool:
        return isinstance(self.parts[0], DenseRows)

    def scaled(self, factor: float) -> GaussNewton:
        """That of a multiple of the loss."""
        parts = tuple(part.scaled(factor**0.5) for part in self.parts)
        return GaussNewton(cast("Any", parts), self.size, self.gram * factor)

    def products(self, vectors: Tensor) -> Array:
        """Z times each of vectors of shape (k, n), shape (k, m)."""
        total = sum(part.products(vectors) for part in self.parts)
        assert isinstance(total, Tensor)  # noqa: S101
        return total.double().numpy()

    def combined(self, shares: Array) -> Tensor:
        """Z' times a vector of shape (m,), shape (n,)."""
        first = self.parts[0]
        like = first.slopes if isinstance(first, DenseRows) else first.values
        found = like.new_empty(self.size)
        each = torch.from_numpy(shares).to(like.dtype)
        for part in self.parts:
            part.combine(each, found)
        return found

    def inverse(self, shift: float) -> Array:
        """(shift I + Z Z')^-1, shape (m, m)."""
        matrix = torch.from_numpy(self.gram + shift * np.eye(len(self.gram)))
        return torch.cholesky_inverse(torch.linalg.cholesky_ex(matrix)[0]).numpy()
