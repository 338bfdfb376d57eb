"""What is known at one point: angle, residual and multiplier, against NumPy."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.problems import (
    KNOWN,
    Known,
    LinearRegularizer,
    classifier,
    normal,
    regressor,
    vector_problem,
)
from torch import Tensor

from isoloss.point import Objective, Point
from isoloss.regularizers import SquaredNorm


def at(theta: Tensor, regularizer_slope: Tensor, loss_slope: Tensor) -> Point:
    """The point with loss 1 whose gradients g and r are the given ones."""
    problem = vector_problem(lambda t: 1 + loss_slope.dot(t - theta), theta)
    return Objective(problem, LinearRegularizer(regularizer_slope)).evaluate(theta)


def in_plane(degrees: float, dtype: torch.dtype = torch.float64) -> Point:
    """A point whose two gradients, of lengths 3 and 0.01, stand at an angle."""
    a = math.radians(degrees)
    r = torch.tensor([3.0, 0.0], dtype=dtype)
    g = torch.tensor([0.01 * math.cos(a), 0.01 * math.sin(a)], dtype=dtype)
    return at(torch.ones(2, dtype=dtype), r, g)


@given(seed=st.integers(0, 10**6))
def test_a_point_holds_what_numpy_finds(seed: int) -> None:
    net = classifier(seed=seed)
    problem = net.problem()
    point = Objective(problem, SquaredNorm()).evaluate(net.theta)
    theta = net.theta.numpy()
    loss, g = net.loss_and_grad(theta)
    r = 2 * theta
    cosine = r @ g / np.linalg.norm(r) / np.linalg.norm(g)
    tangent = r - (r @ g) / (g @ g) * g
    assert point.loss == pytest.approx(loss, rel=1e-11)
    assert point.regularizer == pytest.approx(theta @ theta, rel=1e-12)
    assert point.grad_norm == pytest.approx(np.linalg.norm(g), rel=1e-9)
    assert point.angle_degrees == pytest.approx(np.degrees(np.arccos(cosine)), abs=1e-6)
    assert point.kkt_residual == pytest.approx(
        np.linalg.norm(tangent) / np.linalg.norm(r), abs=1e-9
    )
    assert point.equivalent_penalty == pytest.approx(-(g @ g) / (r @ g), rel=1e-6)
    np.testing.assert_allclose(point.tangent.numpy(), tangent, rtol=0, atol=1e-8)


@pytest.mark.parametrize("seed", range(5))
def test_the_tangent_is_orthogonal_to_the_losss_gradient(seed: int) -> None:
    net = regressor(seed=seed)
    point = Objective(net.problem(), SquaredNorm()).evaluate(net.theta)
    product = point.tangent.dot(point.grad).item()
    assert abs(product) <= 1e-14 * point.tangent.norm().item() * point.grad_norm * net.theta.numel()


def test_the_tangent_is_the_regularizers_gradient_less_a_multiple_of_the_losss() -> None:
    point = in_plane(140.0)
    rest = point.regularizer_grad - point.tangent
    assert rest[0] * point.grad[1] == pytest.approx((rest[1] * point.grad[0]).item(), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("degrees", [0.5, 30.0, 89.0, 91.0, 150.0, 179.5])
def test_the_angle_is_that_between_the_gradients(degrees: float, dtype: torch.dtype) -> None:
    tolerance = 1e-4 if dtype == torch.float32 else 1e-9
    assert in_plane(degrees, dtype).angle_degrees == pytest.approx(degrees, abs=tolerance)


@pytest.mark.parametrize("off", [1e-3, 1e-5, 1e-7])
def test_angles_near_180_keep_their_digits(off: float) -> None:
    point = in_plane(180 - off)
    assert 180 - point.angle_degrees == pytest.approx(off, rel=1e-5)


@pytest.mark.parametrize("degrees", [10.0, 90.0, 135.0, 179.0])
def test_the_kkt_residual_is_the_sine_of_the_angle(degrees: float) -> None:
    assert in_plane(degrees).kkt_residual == pytest.approx(math.sin(math.radians(degrees)))


def test_the_penalty_is_positive_where_the_gradients_oppose() -> None:
    assert in_plane(180.0).equivalent_penalty == pytest.approx(0.01 / 3)
    assert in_plane(0.0).equivalent_penalty == pytest.approx(-0.01 / 3)


@pytest.mark.parametrize("make", KNOWN.values(), ids=KNOWN)
def test_the_known_ends_are_stationary_on_the_level(make: Any) -> None:
    known: Known = make()
    objective = Objective(known.problem, known.regularizer)
    point = objective.evaluate(known.end)
    assert point.loss == pytest.approx(known.level, rel=1e-12)
    assert point.regularizer == pytest.approx(known.value, rel=1e-10)
    assert point.kkt_residual < 1e-8
    assert point.equivalent_penalty == pytest.approx(known.penalty, rel=1e-9)
    assert known.gap(known.end) < 1e-12


@pytest.mark.parametrize("make", KNOWN.values(), ids=KNOWN)
def test_an_end_is_stationary_under_decay_of_the_equivalent_penalty(make: Any) -> None:
    known: Known = make()
    objective = Objective(known.problem, known.regularizer)
    point = objective.evaluate(known.end)
    slope = point.grad + point.equivalent_penalty * point.regularizer_grad
    assert slope.norm().item() < 1e-8 * point.grad_norm


@pytest.mark.parametrize("make", KNOWN.values(), ids=KNOWN)
def test_the_known_starts_are_on_the_level_and_not_at_the_end(make: Any) -> None:
    known: Known = make()
    objective = Objective(known.problem, known.regularizer)
    point = objective.evaluate(known.start)
    assert point.loss == pytest.approx(known.level, rel=1e-12)
    assert point.regularizer > known.value
    assert point.kkt_residual > 0.1
    assert known.gap(known.start) > 0.1


def test_where_the_losss_gradient_vanishes_the_tangent_is_the_regularizers() -> None:
    point = at(torch.ones(2), torch.tensor([3.0, 4.0]), torch.zeros(2))
    assert point.tangent.tolist() == [3.0, 4.0]
    assert point.kkt_residual == 1.0
    assert point.angle_degrees == 90.0
    assert math.isnan(point.equivalent_penalty)
    assert point.finite


def test_where_the_regularizers_gradient_vanishes_the_point_is_stationary() -> None:
    point = at(torch.ones(2), torch.zeros(2), torch.tensor([3.0, 4.0]))
    assert point.kkt_residual == 0.0
    assert math.isnan(point.equivalent_penalty)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["loss", "grad_norm", "regularizer", "kkt_residual"])
def test_a_point_with_an_undefined_part_is_not_finite(name: str, bad: float) -> None:
    assert in_plane(30.0).finite
    assert not dataclasses.replace(in_plane(30.0), **{name: bad}).finite


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_undefined_gradient_of_the_loss_is_not_finite(bad: float) -> None:
    assert not at(torch.ones(2), torch.ones(2), torch.tensor([bad, 1.0])).finite


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_undefined_gradient_of_the_regularizer_is_not_finite(bad: float) -> None:
    class Undefined:
        name = "undefined"

        def value_and_grad(self, theta: Tensor) -> tuple[Tensor, Tensor]:
            return torch.tensor(1.0), torch.full_like(theta, bad)

    problem = vector_problem(lambda t: t.dot(t), torch.ones(2))
    assert not Objective(problem, Undefined()).evaluate(torch.ones(2)).finite


def test_every_evaluation_is_counted() -> None:
    net = classifier()
    problem = net.problem()
    problem.loss_and_grad(net.theta)
    objective = Objective(problem, SquaredNorm())
    for _ in range(3):
        objective.evaluate(normal(problem.size, seed=1))
    assert objective.evaluations == 3
    assert problem.evaluations == 4
