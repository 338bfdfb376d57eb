"""How flat the training loss is: trace of its Hessian, norm of its gradient."""

from __future__ import annotations

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from isoloss.evaluation.look import suspect
from isoloss.flat import flatten
from isoloss.problem import Problem
from isoloss.regularizers.higher import differentiating
from isoloss.regularizers.regularizer import Regularizer
from isoloss.settings import Settings

EXACT_UP_TO = 200
"""Parameters up to which the trace is computed exactly by default."""
PROBES = 10
"""Probe vectors by default where it is not."""
AT_ONCE = 25
"""Probe vectors that are differentiated together."""


class HessianTrace(Settings):
    """The trace of the Hessian of the training loss: how sharp the loss is, over all directions.

    Exactly, as the sum of all second derivatives, or by Hutchinson's estimate (Commun. Stat. 18,
    1989): the mean of <v, H v> over random vectors v of entries 1 and -1. These are drawn once, so
    that the estimate is a smooth function of theta, and the walk minimizes that function. Its
    relative error is some sqrt(2 / probes) times |H| / trace H. An evaluation costs some four of
    the loss for each probe and needs third derivatives, which cuDNN's layers do not have.

    Attributes:
        probes: Random vectors; None is exact up to 200 parameters and takes 10 beyond.
        seed: Determines the vectors.
    """

    probes: PositiveInt | None = None
    seed: NonNegativeInt = 0

    @property
    def name(self) -> str:
        """The name shown in tables and figures."""
        return "hessian_trace"

    def bind(self, problem: Problem) -> Regularizer:
        """The regularizer for a problem.

        Args:
            problem: The problem.

        Returns:
            The regularizer.

        Raises:
            DerivativeError: The model cannot be differentiated three times.
        """
        found = suspect(problem, problem.current())
        if found is not None:
            found.check_product()  # first: it names the lower derivative that is wrong
            found.check_gradient(self._trace)
        return self._trace(problem)

    def _trace(self, problem: Problem) -> _Trace:
        n = problem.size
        if self.probes is None and n <= EXACT_UP_TO:
            vectors, scale = torch.eye(n), 1.0
        else:
            source = torch.Generator().manual_seed(self.seed)
            count = self.probes or PROBES
            vectors = 2.0 * torch.randint(0, 2, (count, n), generator=source) - 1
            scale = 1 / count
        return _Trace(problem, vectors.to(problem.device, problem.dtype), scale)


class _Trace:
    """The sum of <v, H v> over given vectors, times a scale."""

    name = "hessian_trace"

    def __init__(self, problem: Problem, vectors: Tensor, scale: float) -> None:
        self._problem = problem
        self._blocks = vectors.split(AT_ONCE)
        self._scale = scale / problem.chunks.total_weight

    def value_and_grad(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """R, shape (), and its gradient, shape (n,)."""
        problem = self._problem
        value, grad = theta.new_zeros(()), theta.new_zeros(theta.shape)
        evaluation = problem.autograd(theta)
        with differentiating(problem, self.name):
            for chunk in problem.chunks:
                for block in self._blocks:
                    slopes = problem.network.gradients(evaluation.total(chunk), twice=True)
                    curved = (problem.network.products(slopes, block) * block).sum()
                    value += curved.detach()
                    if curved.requires_grad:  # the loss is not quadratic
                        grad += flatten(problem.network.gradients(curved))
        return self._scale * value, self._scale * grad


class GradientNorm(Settings):
    """The squared norm of the gradient of the training loss.

    Large where the loss is steep; what gradient descent of finite steps penalizes implicitly
    (Barrett and Dherin, ICLR 2021). Its gradient is 2 H g, one Hessian-vector product.
    """

    @property
    def name(self) -> str:
        """The name shown in tables and figures."""
        return "gradient_norm"

    def bind(self, problem: Problem) -> Regularizer:
        """The regularizer for a problem."""
        return _GradientNorm(problem)


class _GradientNorm:
    name = "gradient_norm"

    def __init__(self, problem: Problem) -> None:
        self._problem = problem

    def value_and_grad(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """R, shape (), and its gradient, shape (n,)."""
        _, g = self._problem.loss_and_grad(theta)
        return g.dot(g), 2 * self._problem.hvp(theta, g)
