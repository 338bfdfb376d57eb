"""What every regularizer is checked against: finite differences in float64."""

from __future__ import annotations

from typing import Any

import torch
from tests.problems import normal
from torch import Tensor

from isoloss import Problem
from isoloss.regularizers import get_regularizer


def value_at(regularizer: Any, problem: Problem, theta: Tensor | None = None) -> float:
    point = problem.current() if theta is None else theta
    return get_regularizer(regularizer, problem).value_and_grad(point)[0].item()


def grad_at(regularizer: Any, problem: Problem) -> Tensor:
    return get_regularizer(regularizer, problem).value_and_grad(problem.current())[1]


def assert_gradient_is_the_slope(regularizer: Any, problem: Problem, h: float = 1e-5) -> None:
    """Central differences along every coordinate and along random directions."""
    bound = get_regularizer(regularizer, problem)
    theta = problem.current()
    _, grad = bound.value_and_grad(theta)
    assert grad.shape == theta.shape
    assert grad.dtype == theta.dtype == torch.float64
    directions = [*torch.eye(problem.size, dtype=torch.float64), *normal(3, problem.size, seed=9)]
    for v in directions:
        slope = (
            bound.value_and_grad(theta + h * v)[0] - bound.value_and_grad(theta - h * v)[0]
        ) / (2 * h)
        assert abs(slope - grad @ v) <= 1e-7 * (1 + grad.norm()) * v.norm()
