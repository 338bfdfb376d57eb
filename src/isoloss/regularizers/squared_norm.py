"""The squared norm, plain, weighted, or as a distance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from isoloss.arguments import checked
from isoloss.errors import InputError, unknown
from isoloss.flat import flatten, inner
from isoloss.problem import Problem
from isoloss.regularizers.regularizer import Combinable, Regularizer
from isoloss.settings import Settings


class SquaredNorm(Settings, Combinable):
    """R(theta) = sum of w (theta - center)^2; by default the plain squared norm, as in the paper.

    Attributes:
        without_biases: Leave out the parameters in whose own name "bias" occurs, as weight decay
            does in the paper.
        weights: Weight w of groups of parameters, by a pattern of their names such as
            `{"0.*": 10.0, "*.bias": 0.0}`; the first that matches counts, and 1 where none does.
        center: Weights from which the distance is measured, shape (n,), as `problem.current()`
            gives; None measures from zero.
    """

    without_biases: bool = False
    weights: Mapping[str, NonNegativeFloat] = {}
    center: Tensor | None = None

    @property
    def name(self) -> str:
        """The name shown in tables and figures."""
        what = "squared_norm" if self.center is None else "squared_distance"
        return f"{what}_weights" if self.without_biases else what

    @checked
    def bind(self, problem: Problem) -> Regularizer:
        """The regularizer for a problem's parameters.

        Raises:
            InputError: A pattern matches no parameter, no parameter is left, or `center` is not
                one finite weight for each parameter.
        """
        center = self.center
        if center is not None:
            real = center.is_floating_point() and center.layout == torch.strided
            whole = center.shape == (problem.size,) and real and not center.is_meta
            if not whole or not torch.isfinite(center).all():
                raise InputError(
                    f"center of SquaredNorm must be one flat vector of {problem.size} finite "
                    f"weights, as problem.current() gives, got {center.dtype} of shape "
                    f"{tuple(center.shape)}"
                )
            center = center.detach().to(problem.device, problem.dtype, copy=True)
        return _Quadratic(self.name, self._vector(problem), center)

    def _vector(self, problem: Problem) -> Tensor | None:
        """The weight of each entry; None where all are 1."""
        each = self._weights(problem.shapes)
        if all(weight == 1 for weight in each.values()):
            return None
        pieces = [
            torch.full(shape, each[name], dtype=torch.float64, device="cpu")
            for name, shape in problem.shapes.items()
        ]
        return flatten(pieces).to(problem.device, problem.dtype)

    def _weights(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, float]:
        for pattern in self.weights:
            if not any(fnmatchcase(name, pattern) for name in shapes):
                raise unknown("pattern of parameter names", pattern, shapes)
        each: dict[str, float] = {}
        for name in shapes:
            found = [weight for key, weight in self.weights.items() if fnmatchcase(name, key)]
            left_out = self.without_biases and "bias" in name.rpartition(".")[2]
            each[name] = 0.0 if left_out else (found or [1.0])[0]
        if not any(each.values()):
            raise InputError(
                f"no parameter is left in {self.name!r}: every weight of {', '.join(shapes)} is 0; "
                f"leave some in"
            )
        return each


@dataclass(frozen=True)
class _Quadratic:
    """Sum of weight (theta - center)^2."""

    name: str
    weight: Tensor | None
    center: Tensor | None

    @property
    def curvature(self) -> float | None:
        """The Hessian is this times the identity, where it is."""
        return 2.0 if self.weight is None else None

    def value_and_grad(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """R, shape (), and its gradient, shape (n,)."""
        away = theta if self.center is None else theta - self.center
        weighted = away if self.weight is None else self.weight * away
        return inner(away, weighted), 2 * weighted
