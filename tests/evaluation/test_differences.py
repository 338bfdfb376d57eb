"""The one finite-difference checker tells right derivatives from wrong ones."""

from __future__ import annotations

import math

import pytest
import torch
from tests.problems import F64, normal
from torch import Tensor

from isoloss.evaluation.differences import mismatch, random_direction, wrong_gradient
from isoloss.flat import Layout


def cubic(x: Tensor) -> Tensor:
    return x.square().sum() + x.pow(3).sum()


X = normal(7, seed=0)
V = normal(7, seed=3)
RIGHT = (2 * X + 3 * X**2).dot(V)


def test_right_slopes_of_numbers_and_of_vectors_agree_to_many_digits() -> None:
    def slope(at: Tensor) -> Tensor:
        return 2 * at + 3 * at**2

    right = torch.diag(2 + 6 * X) @ V
    assert mismatch(cubic, RIGHT, X, V) < 1e-9
    assert mismatch(slope, right, X, V) < 1e-9
    assert mismatch(slope, right.index_fill(0, torch.tensor([2]), 0), X, V) > 1e-2
    # a constant is all rounding, and what is not finite agrees with nothing
    assert mismatch(lambda at: 0 * at.sum() + 1 / 3, torch.zeros((), dtype=F64), X, V) == 0
    assert math.isnan(mismatch(lambda at: at.sum() * math.nan, RIGHT, X, V))


@pytest.mark.parametrize("off", [1e-5, 1e-2, 1.0])
def test_a_wrong_slope_is_off_by_what_it_is_wrong(off: float) -> None:
    assert mismatch(cubic, RIGHT * (1 + off), X, V) == pytest.approx(
        off / (1 + off), rel=1e-3, abs=1e-7
    )


def test_a_small_wrong_slope_is_not_taken_for_rounding_by_the_shortest_steps() -> None:
    def nearly_flat(at: Tensor) -> Tensor:
        return 1 + 1e-6 * at.sum()

    assert mismatch(nearly_flat, 1e-6 * V.sum(), X, V) < 1e-2
    assert mismatch(nearly_flat, torch.zeros((), dtype=F64), X, V) > 0.9


def test_one_wrong_entry_of_many_is_found() -> None:
    x = normal(10_000, seed=1)
    grad = 2 * x
    v = random_direction(x)
    assert mismatch(lambda at: at.square().sum(), grad.dot(v), x, v) < 1e-9
    grad[77] = 0
    assert mismatch(lambda at: at.square().sum(), grad.dot(v), x, v) > 1e-6


@pytest.mark.parametrize("near", [1e-4, 3e-8])
def test_a_kink_within_the_longer_steps_does_not_matter(near: float) -> None:
    """A network of many ReLUs has some everywhere."""
    x = torch.tensor([1.0, near], dtype=F64)
    v = torch.tensor([0.3, -0.7], dtype=F64)
    slope = torch.tensor([2.0, 1.0], dtype=F64).dot(v)
    assert mismatch(lambda at: at[0] ** 2 + at[1].abs(), slope, x, v) < 1e-7


def test_a_wrong_gradient_is_wrong_somewhere() -> None:
    """Off by less in each parameter than is called wrong, it is wrong in the worst of them."""
    layout = Layout({"a": (3,), "b": (4,)})
    grad = 2 * X + 3 * X**2
    assert wrong_gradient(cubic, X, grad, layout, 1e-6) is None
    off = torch.where(torch.arange(7) < 3, 1.001, 1.004)
    wrong = wrong_gradient(cubic, X, grad * off, layout, 5e-4)
    assert wrong is not None
    assert 5e-4 < wrong[0] < 4e-3
    assert wrong[1] == ["b"]


@pytest.mark.parametrize("seed", range(5))
def test_float32_is_judged_too(seed: int) -> None:
    x, v = X.float(), random_direction(X.float(), seed)
    slope = (2 * x + 3 * x**2).dot(v)
    assert mismatch(cubic, slope, x, v) < 1e-2
    assert mismatch(cubic, 1.2 * slope, x, v) > 0.1
