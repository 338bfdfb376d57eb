"""Regularisers and their gradients."""

from __future__ import annotations

import pytest
import torch
from tests.problems import LinearRegularizer, normal

from isoloss.regularizers import SquaredNorm, get_regularizer


def test_squared_norm_is_the_sum_of_squares() -> None:
    value, _ = SquaredNorm().value_and_grad(torch.tensor([1.0, -2.0, 3.0]))
    assert value.item() == 14.0
    assert value.shape == ()


def test_gradient_of_the_squared_norm_is_that_of_autograd() -> None:
    theta = normal(7, seed=0).requires_grad_()
    expected = torch.autograd.grad(theta.square().sum(), theta)[0]
    _, grad = SquaredNorm().value_and_grad(theta.detach())
    assert torch.equal(grad, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_squared_norm_has_thetas_type(dtype: torch.dtype) -> None:
    value, grad = SquaredNorm().value_and_grad(torch.ones(3, dtype=dtype))
    assert value.dtype == grad.dtype == dtype


def test_squared_norm_leaves_theta_as_it_is() -> None:
    theta = torch.ones(3)
    _, grad = SquaredNorm().value_and_grad(theta)
    grad.zero_()
    assert theta.tolist() == [1.0, 1.0, 1.0]


def test_a_name_or_an_object_gives_a_regulariser() -> None:
    own = LinearRegularizer(torch.ones(3))
    assert isinstance(get_regularizer("squared_norm"), SquaredNorm)
    assert get_regularizer("squared_norm").name == "squared_norm"
    assert get_regularizer(own) is own


def test_an_unknown_name_is_answered_with_the_nearest(refuses) -> None:
    with refuses("regularizer", "'squared norm'", "did you mean squared_norm?"):
        get_regularizer("squared norm")
