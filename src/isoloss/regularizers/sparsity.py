"""Regularizers that push entries, or whole units, towards zero."""

from __future__ import annotations

import torch
from pydantic import PositiveFloat
from torch import Tensor

from isoloss.errors import InputError
from isoloss.problem import Problem
from isoloss.regularizers.regularizer import Differentiated, Parameters, Regularizer
from isoloss.settings import Settings


def smooth_root(square: Tensor, smoothing: float) -> Tensor:
    """The hyperbola sqrt(x^2 + s^2) - s, which is |x| less s far out and smooth at zero.

    Args:
        square: x^2, of any shape.
        smoothing: s.

    Returns:
        The same shape.
    """
    # the form without cancellation near zero
    return square / ((square + smoothing**2).sqrt() + smoothing)


class L1(Settings):
    """R(theta) = sum of sqrt(theta^2 + s^2) - s, the sum of absolute values, smoothed at zero.

    Attributes:
        smoothing: s: entries well below it count quadratically, those above linearly.
    """

    smoothing: PositiveFloat = 1e-2

    @property
    def name(self) -> str:
        """The name shown in tables and figures."""
        return "l1"

    def bind(self, problem: Problem) -> Regularizer:
        """The regularizer for a problem's parameters."""

        def value(parameters: Parameters) -> Tensor:
            return torch.stack(
                [smooth_root(p.square(), self.smoothing).sum() for p in parameters.values()]
            ).sum()

        return Differentiated(self.name, value, problem.shapes)


class GroupLasso(Settings):
    """Group lasso over the units: the sum of sqrt(size) |w| over the weights w into each unit.

    A group is a slice along the first axis of a parameter of two or more dimensions: the weights
    into a dense unit, or the kernel of an output channel (Yuan and Lin, J. R. Stat. Soc. B 68,
    2006). Parameters of one dimension (biases, scales) do not count.

    Attributes:
        smoothing: |w| is sqrt(|w|^2 + s^2) - s with this s.
    """

    smoothing: PositiveFloat = 1e-2

    @property
    def name(self) -> str:
        """The name shown in tables and figures."""
        return "group_lasso"

    def bind(self, problem: Problem) -> Regularizer:
        """The regularizer for a problem's parameters.

        Args:
            problem: The problem.

        Returns:
            The regularizer.
        """
        names = matrices(problem, self.name)

        def value(parameters: Parameters) -> Tensor:
            total: list[Tensor] = []
            for name in names:
                rows = parameters[name].flatten(1)
                size = smooth_root(rows.square().sum(1), self.smoothing)
                total.append(rows.shape[1] ** 0.5 * size.sum())
            return torch.stack(total).sum()

        return Differentiated(self.name, value, problem.shapes)


def matrices(problem: Problem, regularizer: str) -> list[str]:
    """Names of the parameters of two or more dimensions.

    Args:
        problem: The problem.
        regularizer: Who asks, for the error.

    Returns:
        The names.

    Raises:
        InputError: There is none.
    """
    names = [name for name, shape in problem.shapes.items() if len(shape) >= 2]
    if not names:
        raise InputError(
            f"{regularizer} needs a weight matrix or kernel, and the problem's parameters "
            f"({', '.join(problem.shapes)}) have one dimension at most; use l1 or squared_norm"
        )
    return names
