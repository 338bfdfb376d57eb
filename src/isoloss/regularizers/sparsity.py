"""Regularizers that push entries, whole units or singular values toward zero."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import PositiveFloat
from torch import Tensor

from isoloss.arguments import checked
from isoloss.errors import InputError
from isoloss.flat import Layout
from isoloss.problem import Problem
from isoloss.regularizers.metric import Metric, diagonal, of_matrices
from isoloss.regularizers.regularizer import (
    Combinable,
    Differentiated,
    Parameters,
    Regularizer,
)
from isoloss.settings import Settings


def smooth_root(square: Tensor, smoothing: float) -> Tensor:
    """The hyperbola sqrt(x^2 + s^2) - s of x^2: |x| less s far out, and smooth at zero."""
    # the form without cancellation near zero
    return square / (_hyperbola(square, smoothing) + smoothing)


def _hyperbola(square: Tensor, smoothing: float) -> Tensor:
    return (square + smoothing * smoothing).sqrt()


class L1(Settings, Combinable):
    """R(theta) = sum of sqrt(theta^2 + s^2) - s, the sum of absolute values, smoothed at zero.

    Attributes:
        smoothing: s: entries well below it count quadratically, those above linearly.
    """

    name: ClassVar[str] = "l1"
    smoothing: PositiveFloat = 1e-2

    @checked
    def bind(self, problem: Problem) -> Regularizer:
        """The regularizer for a problem's parameters."""

        def value(parameters: Parameters) -> Tensor:
            return torch.stack(
                [smooth_root(p.square(), self.smoothing).sum() for p in parameters.values()]
            ).sum()

        def metric(parameters: Parameters, layout: Layout) -> Metric:
            sizes = {k: _hyperbola(p.square(), self.smoothing) for k, p in parameters.items()}
            return diagonal({k: size.reciprocal() for k, size in sizes.items()}, layout)

        return Differentiated(self.name, value, problem.shapes, metric)


class GroupLasso(Settings, Combinable):
    """Group lasso over the units: the sum of sqrt(size) |w| over the weights w into each unit.

    A group is a slice along the first axis of a parameter of two or more dimensions: the weights
    into a dense unit, or the kernel of an output channel (Yuan and Lin, J. R. Stat. Soc. B 68,
    2006). Parameters of one dimension (biases, scales) do not count.

    Attributes:
        smoothing: |w| is sqrt(|w|^2 + s^2) - s with this s.
    """

    name: ClassVar[str] = "group_lasso"
    smoothing: PositiveFloat = 1e-2

    @checked
    def bind(self, problem: Problem) -> Regularizer:
        """The regularizer for a problem's parameters."""
        names = _matrices(problem, self.name)

        def value(parameters: Parameters) -> Tensor:
            total: list[Tensor] = []
            for name in names:
                rows = parameters[name].flatten(1)
                size = smooth_root(rows.square().sum(1), self.smoothing)
                total.append(rows.shape[1] ** 0.5 * size.sum())
            return torch.stack(total).sum()

        def metric(parameters: Parameters, layout: Layout) -> Metric:
            weights: dict[str, Tensor] = {}
            for name in names:
                rows = parameters[name].flatten(1)
                sizes = _hyperbola(rows.square().sum(1), self.smoothing)
                shape = (-1, *[1] * (parameters[name].ndim - 1))
                weights[name] = (rows.shape[1] ** 0.5 / sizes).reshape(shape)
            return diagonal(weights, layout)

        return Differentiated(self.name, value, problem.shapes, metric)


class NuclearNorm(Settings, Combinable):
    """The sum of the singular values of every weight matrix, smoothed where they vanish.

    Kernels of convolutions count as matrices of output channels by the rest; parameters of one
    dimension do not count.

    Attributes:
        smoothing: A singular value sigma counts as sqrt(sigma^2 + s^2) - s with this s.
    """

    name: ClassVar[str] = "nuclear_norm"
    smoothing: PositiveFloat = 1e-2

    @checked
    def bind(self, problem: Problem) -> Regularizer:
        """The regularizer for a problem's parameters."""
        names = _matrices(problem, self.name)

        def value(parameters: Parameters) -> Tensor:
            spectra = [_singular_values(parameters[name].flatten(1)) for name in names]
            return torch.stack(
                [smooth_root(s.square(), self.smoothing).sum() for s in spectra]
            ).sum()

        def metric(parameters: Parameters, layout: Layout) -> Metric:
            return of_matrices({k: parameters[k] for k in names}, self.smoothing, layout)

        return Differentiated(self.name, value, problem.shapes, metric)


def _singular_values(matrix: Tensor) -> Tensor:
    if not torch.isfinite(matrix).all():  # a trial far out; LAPACK would raise
        return matrix.sum(0) * torch.nan
    return torch.linalg.svdvals(matrix)


def _matrices(problem: Problem, regularizer: str) -> list[str]:
    """Names of the parameters of two or more dimensions."""
    names = [name for name, shape in problem.shapes.items() if len(shape) >= 2]
    if not names:
        raise InputError(
            f"{regularizer} needs a weight matrix or kernel, and the problem's parameters "
            f"({', '.join(problem.shapes)}) have one dimension at most; use l1 or squared_norm"
        )
    return names
