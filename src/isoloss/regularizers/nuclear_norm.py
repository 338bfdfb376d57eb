"""The nuclear norm: low rank."""

from __future__ import annotations

import torch
from pydantic import PositiveFloat
from torch import Tensor

from isoloss.problem import Problem
from isoloss.regularizers.regularizer import Differentiated, Parameters, Regularizer
from isoloss.regularizers.sparsity import matrices, smooth_root
from isoloss.settings import Settings


class NuclearNorm(Settings):
    """The sum of the singular values of every weight matrix, smoothed where they vanish.

    Kernels of convolutions count as matrices of output channels by the rest; parameters of one
    dimension do not count.

    Attributes:
        smoothing: A singular value sigma counts as sqrt(sigma^2 + s^2) - s with this s.
    """

    smoothing: PositiveFloat = 1e-2

    @property
    def name(self) -> str:
        """The name shown in tables and figures."""
        return "nuclear_norm"

    def bind(self, problem: Problem) -> Regularizer:
        """The regularizer for a problem's parameters.

        Args:
            problem: The problem.

        Returns:
            The regularizer.
        """
        names = matrices(problem, self.name)

        def value(parameters: Parameters) -> Tensor:
            spectra = [_singular_values(parameters[name].flatten(1)) for name in names]
            return torch.stack(
                [smooth_root(s.square(), self.smoothing).sum() for s in spectra]
            ).sum()

        return Differentiated(self.name, value, problem.shapes)


def _singular_values(matrix: Tensor) -> Tensor:
    if not torch.isfinite(matrix).all():  # a trial far out; LAPACK would raise
        return matrix.sum(0) * torch.nan
    return torch.linalg.svdvals(matrix)
