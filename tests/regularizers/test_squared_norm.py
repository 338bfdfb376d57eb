"""The squared norm, plain, weighted, and as a distance."""

from __future__ import annotations

import math

import pytest
import torch
from tests.problems import classifier, normal, vector_problem
from tests.regularizers.checks import grad_at, value_at
from torch import nn

from isoloss import Problem, SquaredNorm
from isoloss.regularizers import get_regularizer

X = torch.zeros(1, 3, dtype=torch.float64)


def vector(*values: float, dtype: torch.dtype = torch.float64) -> Problem:
    return vector_problem(lambda theta: theta.dot(theta), torch.tensor(values, dtype=dtype))


def test_squared_norm_is_the_sum_of_squares() -> None:
    value, _ = SquaredNorm().bind(vector(0, 0, 0)).value_and_grad(torch.tensor([1.0, -2.0, 3.0]))
    assert value.item() == 14.0
    assert value.shape == ()


def test_its_gradient_is_that_of_autograd() -> None:
    theta = normal(7, seed=0).requires_grad_()
    expected = torch.autograd.grad(theta.square().sum(), theta)[0]
    _, grad = SquaredNorm().bind(vector(*range(7))).value_and_grad(theta.detach())
    assert torch.equal(grad, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("settings", [{}, {"weights": {"theta": 2.0}}, {"center": torch.ones(3)}])
def test_it_has_thetas_type(dtype: torch.dtype, settings: dict) -> None:
    bound = SquaredNorm(**settings).bind(vector(1, 1, 1, dtype=dtype))
    value, grad = bound.value_and_grad(torch.ones(3, dtype=dtype))
    assert value.dtype == grad.dtype == dtype


def test_it_leaves_theta_as_it_is() -> None:
    theta = torch.ones(3)
    _, grad = SquaredNorm().bind(vector(1, 1, 1)).value_and_grad(theta)
    grad.zero_()
    assert theta.tolist() == [1.0, 1.0, 1.0]


def test_without_biases_counts_the_weight_matrices_alone() -> None:
    net = classifier()
    matrices = [p for name, p in net.model.named_parameters() if name.endswith("weight")]
    expected = sum(p.square().sum().item() for p in matrices)
    regularizer = SquaredNorm(without_biases=True)
    assert regularizer.name == "squared_norm_weights"
    assert value_at(regularizer, net.problem()) == pytest.approx(expected, rel=1e-14)
    grads = grad_at(regularizer, net.problem())
    expected_grad = torch.cat(
        [
            (2 * p if name.endswith("weight") else 0 * p).detach().reshape(-1)
            for name, p in net.model.named_parameters()
        ]
    )
    assert torch.equal(grads, expected_grad)


def test_the_biases_of_a_recurrent_layer_are_biases_but_its_name_does_not_matter() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unbiased = nn.LSTM(3, 2, batch_first=True).double()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.unbiased(x)[0][:, -1]

    model = Model()
    data = (torch.zeros(4, 5, 3).double(), torch.zeros(4, 2).double())
    problem = Problem(model, "mse", data)
    expected = sum(p.square().sum().item() for p in model.parameters() if p.ndim == 2)
    assert value_at(SquaredNorm(without_biases=True), problem) == pytest.approx(expected, rel=1e-14)


def test_weights_go_by_the_first_pattern_that_matches() -> None:
    net = classifier()
    first, bias, *others = (p.square().sum().item() for p in net.model.parameters())
    weights = {"0.weight": 3.0, "0.*": 0.0}
    value = value_at(SquaredNorm(weights=weights), net.problem())
    assert value == pytest.approx(3 * first + 0 * bias + sum(others), rel=1e-14)


def test_center_makes_it_the_squared_distance() -> None:
    problem = vector(1, 2, 3)
    center = torch.tensor([1.0, 1.0, 1.0])
    regularizer = SquaredNorm(center=center)
    assert regularizer.name == "squared_distance"
    assert value_at(regularizer, problem) == 5.0
    assert grad_at(regularizer, problem).tolist() == [0.0, 2.0, 4.0]
    center.zero_()  # the user's tensor is not kept
    assert value_at(get_regularizer(regularizer, problem), problem) in (5.0, 14.0)


def test_curvature_is_said_only_where_the_hessian_is_a_multiple_of_the_identity() -> None:
    problem = vector(1, 2, 3)
    curvatures = [
        getattr(get_regularizer(one, problem), "curvature", None)
        for one in (
            SquaredNorm(),
            SquaredNorm(center=torch.ones(3)),
            SquaredNorm(weights={"theta": 3.0}),
        )
    ]
    assert curvatures == [2.0, 2.0, None]


BAD = {
    "pattern": ({"weights": {"1.wieght": 2.0}}, ["'1.wieght'", "did you mean"]),
    "negative weight": ({"weights": {"0.weight": -1.0}}, ["-1.0", "greater than or equal to 0"]),
    "setting": ({"without_bias": True}, ["'without_bias'", "did you mean without_biases"]),
    "nothing left": ({"weights": {"*": 0.0}}, ["no parameter is left"]),
    "center shape": ({"center": torch.ones(2)}, ["center", "(2,)", "44 finite"]),
    "center NaN": ({"center": torch.full((44,), math.nan)}, ["center", "44 finite"]),
    "center type": ({"center": [1.0] * 1000}, ["center=", "Tensor"]),
}


@pytest.mark.parametrize(("settings", "words"), BAD.values(), ids=BAD)
def test_what_cannot_be_is_refused(settings: dict, words: list[str], refuses) -> None:
    with refuses(*words):
        SquaredNorm(**settings).bind(classifier().problem())
