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
    vector_problem,
)
from torch import Tensor

from isoloss.objective import Objective
from isoloss.point import Point
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
    product = abs(point.tangent.dot(point.grad).item())
    assert product <= 1e-14 * point.tangent.norm().item() * point.grad_norm * len(theta)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("degrees", [0.5, 30.0, 89.0, 91.0, 150.0, 179.5])
def test_angle_and_residual_are_those_between_the_gradients(
    degrees: float, dtype: torch.dtype
) -> None:
    point, tolerance = in_plane(degrees, dtype), 1e-4 if dtype == torch.float32 else 1e-9
    assert point.angle_degrees == pytest.approx(degrees, abs=tolerance)
    assert point.kkt_residual == pytest.approx(math.sin(math.radians(degrees)), abs=tolerance)
    assert (point.equivalent_penalty > 0) == (degrees > 90)


@pytest.mark.parametrize("off", [1e-3, 1e-5, 1e-7])
def test_angles_near_180_keep_their_digits(off: float) -> None:
    assert 180 - in_plane(180 - off).angle_degrees == pytest.approx(off, rel=1e-5)


@pytest.mark.parametrize("make", KNOWN.values(), ids=KNOWN)
def test_the_known_ends_are_stationary_on_the_level_and_the_starts_are_not(make: Any) -> None:
    known: Known = make()
    objective = Objective(known.problem, known.regularizer)
    point = objective.evaluate(known.end)
    assert point.loss == pytest.approx(known.level, rel=1e-12)
    assert point.regularizer == pytest.approx(known.value, rel=1e-10)
    assert point.kkt_residual < 1e-8
    assert point.equivalent_penalty == pytest.approx(known.penalty, rel=1e-9)
    assert known.gap(known.end) < 1e-12
    slope = point.grad + point.equivalent_penalty * point.regularizer_grad
    assert slope.norm().item() < 1e-8 * point.grad_norm  # stationary under weight decay
    start = objective.evaluate(known.start)
    assert start.loss == pytest.approx(known.level, rel=1e-12)
    assert start.regularizer > known.value
    assert min(start.kkt_residual, known.gap(known.start)) > 0.1
    assert objective.evaluations == known.problem.evaluations == 2


def test_where_a_gradient_vanishes_there_is_no_penalty() -> None:
    point = at(torch.ones(2), torch.tensor([3.0, 4.0]), torch.zeros(2))
    assert point.tangent.tolist() == [3.0, 4.0]
    assert point.kkt_residual == 1.0
    assert point.angle_degrees == 90.0
    assert math.isnan(point.equivalent_penalty)
    assert point.finite
    stationary = at(torch.ones(2), torch.zeros(2), torch.tensor([3.0, 4.0]))
    assert stationary.kkt_residual == 0.0
    assert math.isnan(stationary.equivalent_penalty)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["loss", "grad_norm", "regularizer", "kkt_residual"])
def test_a_point_with_an_undefined_part_is_not_finite(name: str, bad: float) -> None:
    slope = torch.tensor([bad, 1.0])
    assert in_plane(30.0).finite
    assert not at(torch.ones(2), torch.ones(2), slope).finite
    assert not at(torch.ones(2), slope, torch.ones(2)).finite
    assert not dataclasses.replace(in_plane(30.0), **{name: bad}).finite
