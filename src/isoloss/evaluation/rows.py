"""Rows of a matrix Z for which Z' Z is a part of a Hessian, factored or entry by entry."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isoloss.flat import gram

Array = NDArray[np.float64]


@dataclass(frozen=True)
class DenseRows:
    """Rows that are outer products in each of a network's dense layers: slopes_i inputs_i'.

    Attributes:
        sizes: Numbers of entries of the network's parameters, in the order of the flat vector.
        places: Of each layer, which of these is its weight, and which its bias, None for none.
        inputs: Of each layer, shape (m, features).
        slopes: Those of all layers side by side, shape (m, all outputs).
    """

    sizes: list[int]
    places: tuple[tuple[int, int | None], ...]
    inputs: tuple[Tensor, ...]
    slopes: Tensor

    @cached_property
    def widths(self) -> list[int]:
        """The number of each layer's outputs."""
        pairs = zip(self.places, self.inputs, strict=True)
        return [self.sizes[weight] // inputs.shape[1] for (weight, _), inputs in pairs]

    def scaled(self, root: float) -> DenseRows:
        """The rows times a number."""
        return replace(self, slopes=self.slopes * root)

    def products(self, vectors: Tensor) -> Tensor:
        """The rows' inner products with vectors, shape (k, m)."""
        many, pieces = len(vectors), vectors.split(self.sizes, 1)
        along = self.slopes.new_empty(many, *self.slopes.shape)
        places = along.split(self.widths, 2)
        for (weight, bias), inputs, out in zip(self.places, self.inputs, places, strict=True):
            matrices = pieces[weight].view(many, out.shape[2], inputs.shape[1])
            torch.bmm(inputs.expand(many, -1, -1), matrices.transpose(1, 2), out=out)
            if bias is not None:
                out += pieces[bias].unsqueeze(1)
        return torch.linalg.vecdot(along, self.slopes)

    def combined(self, shares: Tensor) -> Tensor:
        """A combination of the rows, shape (n,)."""
        slopes = self.slopes * shares.unsqueeze(1)
        sums = slopes.sum(0).split(self.widths)
        pieces = [sums[0]] * len(self.sizes)
        layers = zip(self.places, self.inputs, slopes.split(self.widths, 1), sums, strict=True)
        for (weight, bias), inputs, each, total in layers:
            pieces[weight] = torch.mm(each.t(), inputs).view(-1)
            if bias is not None:
                pieces[bias] = total
        return torch.cat(pieces)

    def gram(self) -> Tensor:
        """The inner products of the rows, shape (m, m)."""
        found = self.slopes.new_zeros(len(self.slopes), len(self.slopes))
        layers = zip(self.places, self.inputs, self.slopes.split(self.widths, 1), strict=True)
        for (_, bias), inputs, slopes in layers:
            found += (inputs @ inputs.t() + (bias is not None)) * (slopes @ slopes.t())
        return found


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

    def combined(self, shares: Tensor) -> Tensor:
        """A combination of the rows, shape (n,)."""
        return torch.mv(self.values.t(), shares)

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
        rows: The rows.
        gram: Z Z', shape (m, m).
    """

    rows: DenseRows | StoredRows
    gram: Array

    @staticmethod
    def of(rows: DenseRows | StoredRows) -> GaussNewton:
        """The rows with their inner products."""
        return GaussNewton(rows, rows.gram().double().numpy())

    @property
    def factored(self) -> bool:
        """Whether they are kept as outer products, and there are many."""
        return isinstance(self.rows, DenseRows)

    def scaled(self, factor: float) -> GaussNewton:
        """That of a multiple of the loss."""
        return GaussNewton(self.rows.scaled(factor**0.5), self.gram * factor)

    def products(self, vectors: Tensor) -> Array:
        """Z times each of vectors of shape (k, n), shape (k, m)."""
        return self.rows.products(vectors).double().numpy()

    def combined(self, shares: Array) -> Tensor:
        """Z' times a vector of shape (m,), shape (n,)."""
        like = self.rows.slopes if isinstance(self.rows, DenseRows) else self.rows.values
        return self.rows.combined(torch.from_numpy(shares).to(like.dtype))

    def inverse(self, shift: float) -> Array:
        """(shift I + Z Z')^-1, shape (m, m)."""
        matrix = torch.from_numpy(self.gram + shift * np.eye(len(self.gram)))
        return torch.cholesky_inverse(torch.linalg.cholesky_ex(matrix)[0]).numpy()
