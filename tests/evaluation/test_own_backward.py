"""Derivatives of derivatives through functions of the user's own: right, or refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.problems import F64, normal
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

import isoloss
from isoloss import Problem
from isoloss.evaluation import autograd
from isoloss.evaluation.differences import own_functions
from isoloss.regularizers import get_regularizer


class Cube(torch.autograd.Function):
    """x^3 / 3 with a backward that can be differentiated as often as one likes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3 / 3

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return grad * x**2


class Once(Cube):
    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        return Cube.backward(ctx, grad)


class Detached(Cube):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return grad * x.detach() ** 2


class ByNumPy(Cube):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return torch.from_numpy(np.square(x.detach().numpy())) * grad


class Square(torch.autograd.Function):
    """x^2, whose backward is right but ends there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return 2 * x * grad


class Twice(Cube):
    """Differentiable twice, not three times."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return grad * Square.apply(x)


WRONG = [Once, Detached, ByNumPy]
DATA = (normal(20, 3, seed=1), torch.arange(20) % 2)


class Net(nn.Module):
    def __init__(self, function: Any, relu: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)
        self.function, self.relu = function, relu

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.function.apply(self.first(x))
        return self.second(hidden.relu() if self.relu else hidden)


def problem(function: Any, dtype: torch.dtype = F64, **options: Any) -> Problem:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Problem(Net(function, **options), "cross_entropy", DATA, dtype=dtype)


def product(of: Problem) -> Tensor:
    return of.hvp(of.current(), normal(of.size, seed=2).to(of.dtype))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("function", WRONG)
def test_a_wrong_product_is_refused(refuses, function: Any, dtype: torch.dtype) -> None:
    made = problem(function, dtype)
    for _ in range(2):  # not only the first time
        with refuses(f"backward of {function.__name__} cannot", "ctx.saved_tensors"):
            product(made)
    made.loss_and_grad(made.current())  # the first derivatives are right


@pytest.mark.parametrize("function", [Cube, Twice])
@pytest.mark.parametrize("relu", [False, True])
def test_a_right_product_is_given(function: Any, relu: bool) -> None:
    made = problem(function, relu=relu)
    theta, v = made.current(), normal(made.size, seed=2)
    h = 1e-6
    ahead, behind = (made.loss_and_grad(theta + s * h * v)[1] for s in (1, -1))
    torch.testing.assert_close(product(made), (ahead - behind) / (2 * h), rtol=1e-6, atol=1e-8)
    single = problem(function, torch.float32, relu=relu)
    assert (product(single).double() - product(made)).norm() < 1e-4 * product(made).norm()


def test_a_model_that_is_float32_inside_and_the_loss_are_judged_too(refuses) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        own = torch.randn(4, 2)
        # a product of float64 with it raises
        models = [lambda p, x, f=f: f.apply(x @ p["w"]) @ own for f in (Cube, Once)]
        weights = {"w": torch.randn(3, 4)}
    inputs = (DATA[0].float(), DATA[1])
    right, wrong = (Problem(m, "cross_entropy", inputs, parameters=weights) for m in models)
    assert product(right).norm() > 0
    with refuses("backward of Once cannot"):
        product(wrong)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return Once.apply(outputs).square().sum(1)

    with refuses("backward of Once cannot"):
        product(Problem(nn.Sequential(nn.Linear(3, 2)).double(), loss, DATA))


@pytest.mark.parametrize("name", ["hessian_trace", "gradient_norm", "input_gradient"])
@pytest.mark.parametrize("function", WRONG)
def test_regularizers_made_of_derivatives_are_refused(refuses, name: str, function: Any) -> None:
    made = problem(function)
    with refuses(f"backward of {function.__name__} cannot"):
        isoloss.traverse(made, regularizer=name, progress=False)
    checked = isoloss.check(made, name)
    rows = {row.what: row for row in checked.findings}
    assert not checked.passed
    assert function.__name__ in rows["Hessian of L"].found
    (row,) = [row for what, row in rows.items() if what.startswith("regularizer R")]
    assert row.status == "FAILED"
    assert function.__name__ in row.found


def test_third_derivatives_are_looked_at_where_they_are_needed(refuses) -> None:
    made = problem(Twice)
    assert isoloss.check(made, "gradient_norm").passed
    with refuses("gradient of hessian_trace", "backward of Twice cannot"):
        get_regularizer("hessian_trace", made).value_and_grad(made.current())


@pytest.mark.parametrize("name", ["hessian_trace", "gradient_norm", "input_gradient"])
def test_one_look_is_enough(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[Tensor] = []
    monkeypatch.setattr(autograd, "own_functions", lambda t: looks.append(t) or own_functions(t))
    isoloss.traverse(
        problem(Cube), regularizer=name, stop=isoloss.Stop(evaluations=4), progress=False
    )
    assert len(looks) == 1
    checked = isoloss.check(problem(Cube), name)
    assert checked.passed, checked


def test_a_walk_by_the_norm_needs_no_second_derivatives() -> None:
    path = isoloss.traverse(problem(Once), stop=isoloss.Stop(steps=3), progress=False)
    assert path.steps["regularizer"].iloc[-1] < path.steps["regularizer"].iloc[0]
    assert isoloss.check(problem(Once)).passed  # the Hessian is a note there


def test_examples_that_belong_together_are_taken_together() -> None:
    packed = nn.utils.rnn.pack_sequence([normal(4, 3, seed=5), normal(2, 3, seed=6)])

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(3, 2)

        def forward(self, given: Any) -> Tensor:
            rows, _ = nn.utils.rnn.pad_packed_sequence(given, batch_first=True)
            return self.out(Cube.apply(rows).sum(1))

    made = Problem(Whole().double(), "cross_entropy", [(packed, torch.tensor([0, 1]))])
    assert product(made).norm() > 0
