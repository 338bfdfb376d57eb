"""The squared norm, plain, weighted, and as a distance."""

from __future__ import annotations

import math

import pytest
import torch
from tests.problems import classifier, vector_problem
from tests.regularizers.checks import grad_at, value_at
from torch import nn

from isoloss import Problem, SquaredNorm
from isoloss.regularizers import get_regularizer

X = torch.zeros(1, 3, dtype=torch.float64)


def vector(*values: float, dtype: torch.dtype = torch.float64) -> Problem:
    return vector_problem(lambda theta: theta.dot(theta), torch.tensor(values, dtype=dtype))


def test_squared_norm_is_the_sum_of_squares_of_the_parameters_that_count() -> None:
    net = classifier()
    problem, theta = net.problem(), net.theta
    for settings, name, weights in (
        ({}, "squared_norm", [1.0] * 44),
        (
            {"without_biases": True},
            "squared_norm_weights",
            [1.0] * 15 + [0] * 5 + [1] * 20 + [0] * 4,
        ),
        ({"weights": {"0.*": 3.0}}, "squared_norm", [3.0] * 20 + [1.0] * 24),
    ):
        regularizer, weight = SquaredNorm(**settings), torch.tensor(weights, dtype=torch.float64)
        assert regularizer.name == name
        expected = (weight * theta.square()).sum().item()
        assert value_at(regularizer, problem) == pytest.approx(expected, rel=1e-14)
        torch.testing.assert_close(grad_at(regularizer, problem), 2 * weight * theta)


def test_the_name_of_a_module_makes_no_bias() -> None:
    model = nn.ModuleDict({"unbiased": nn.LSTM(3, 2)})
    parameters = dict(model.named_parameters())
    problem = Problem(
        lambda p, x: x, lambda o, t: o, (torch.zeros(1), torch.zeros(1)), parameters=parameters
    )
    expected = sum(p.square().sum().item() for p in parameters.values() if p.ndim == 2)
    assert value_at(SquaredNorm(without_biases=True), problem) == pytest.approx(expected, rel=1e-6)


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
    bound = get_regularizer(regularizer, problem)
    center.zero_()  # the user's tensor is not kept
    assert value_at(bound, problem) == 5.0


BAD = {
    "pattern": ({"weights": {"1.wieght": 2.0}}, ["'1.wieght'", "did you mean"]),
    "negative weight": ({"weights": {"0.weight": -1.0}}, ["-1.0", "greater than or equal to 0"]),
    "setting": ({"without_bias": True}, ["'without_bias'", "did you mean without_biases"]),
    "nothing left": ({"weights": {"*": 0.0}}, ["no parameter is left"]),
    "center shape": ({"center": torch.ones(2)}, ["center", "(2,)", "44 finite"]),
    "center NaN": ({"center": torch.full((44,), math.nan)}, ["center", "44 finite"]),
    "center type": ({"center": [1.0] * 1000}, ["center of", "Tensor"]),
}


@pytest.mark.parametrize(("settings", "words"), BAD.values(), ids=BAD)
def test_what_cannot_be_is_refused(settings: dict, words: list[str], refuses) -> None:
    with refuses(*words):
        SquaredNorm(**settings).bind(classifier().problem())
