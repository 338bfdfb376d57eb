"""Functions, sums, `maximize`, and everything else that may be given as a regularizer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.problems import LinearRegularizer, classifier, normal, sphere
from tests.regularizers.checks import assert_gradient_is_the_slope, grad_at, value_at

import isoloss
from isoloss import L1, Outcome, SquaredNorm, Stop, at_most, maximize, traverse, weighted_sum
from isoloss.regularizers import get_regularizer


def quartic(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
    return sum((p**4).sum() for p in parameters.values())


def test_a_function_gets_the_parameters_by_name_in_their_shapes() -> None:
    net = classifier()
    seen: list[dict[str, torch.Tensor]] = []

    def last(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        seen.append(parameters)
        return parameters["2.weight"].square().sum()

    value = value_at(last, net.problem())
    assert value == pytest.approx(net.model[2].weight.square().sum().item(), rel=1e-14)
    assert {k: v.shape for k, v in seen[0].items()} == {
        k: v.shape for k, v in net.model.named_parameters()
    }
    for name, parameter in net.model.named_parameters():
        assert torch.equal(seen[0][name], parameter)


def test_a_functions_gradient_is_its_slope_and_its_name_its_own() -> None:
    problem = classifier().problem()
    assert_gradient_is_the_slope(quartic, problem)
    assert get_regularizer(quartic, problem).name == "quartic"
    assert get_regularizer(lambda p: p["0.bias"].sum(), problem).name == "function"


@pytest.mark.parametrize("sign", [1, -1])
def test_a_walk_with_a_function_ends_where_the_closed_form_does(sign: int) -> None:
    known = sphere()
    slope = known.regularizer.slope

    def own(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        return parameters["theta"] @ slope

    path = traverse(
        known.problem,
        start=known.start,
        regularizer=own if sign > 0 else maximize(own),
        stop=Stop(kkt_residual=1e-6),
        progress=False,
    )
    assert path.outcome is Outcome.CONVERGED
    assert known.gap(sign * path.points[-1]) < 2e-3


BAD: dict[str, tuple[Callable[..., Any], list[str]]] = {
    "a vector": (lambda p: p["0.bias"].square(), ["shape (5,)", ".sum()"]),
    "one number in brackets": (lambda p: p["0.bias"].sum().reshape(1), ["shape (1,)"]),
    "integers": (lambda p: (p["0.bias"] > 0).sum(), ["int64"]),
    "a number": (lambda p: 3.0, ["got a float"]),
    "nothing": (lambda p: None, ["got a NoneType"]),
    "a constant": (lambda p: torch.tensor(3.0), ["does not depend on the parameters"]),
    "of nothing": (lambda: 1.0, ["(parameters)", "too many positional"]),
    "an unknown name": (lambda p: p["3.bias"].sum(), ["'3.bias'", "did you mean 2.bias"]),
    "detached": (lambda p: p["0.bias"].detach().sum(), ["does not depend on the parameters"]),
    "of something else": (
        lambda p: torch.ones(2, requires_grad=True).sum(),
        ["does not depend on the parameters"],
    ),
    "random": (lambda p: p["0.bias"].sum() * torch.rand(()), ["not a function", "two calls"]),
}


@pytest.mark.parametrize(("function", "words"), BAD.values(), ids=BAD)
def test_a_function_that_is_no_regularizer_is_refused(function, words, refuses) -> None:
    problem = classifier().problem()
    with refuses("regularizer", *words):
        traverse(problem, regularizer=function)
    assert problem.evaluations == 0


def test_a_regularizer_that_is_or_becomes_nan_ends_at_the_last_good_point(refuses) -> None:
    with refuses("regularizer at the start is nan"):
        traverse(classifier().problem(), regularizer=lambda p: (p["0.bias"] - 10).log().sum())

    def blind(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        square = torch.stack([p.square().sum() for p in parameters.values()]).sum()
        return square * math.nan if square < wall else square

    problem = classifier().problem()
    start = problem.current()
    wall = 0.8 * start.dot(start)
    path = traverse(problem, regularizer=blind, stop=Stop(evaluations=200))
    assert path.points[-1].square().sum() >= wall
    assert path.steps["regularizer"].notna().all()


class Shared:
    """Works in theta itself and gives the same tensor of its gradient each time."""

    name = "shared"

    def __init__(self, size: int) -> None:
        self._grad = torch.empty(size, dtype=torch.float64)

    def value_and_grad(self, theta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        torch.mul(theta, 2, out=self._grad)
        return theta.square_().sum(), self._grad


def in_place(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
    for parameter in parameters.values():
        parameter.data.add_(1.0)
    return torch.stack([(p - 1).square().sum() for p in parameters.values()]).sum()


@pytest.mark.parametrize("kind", ["object", "function"])
@pytest.mark.parametrize("how", ["made small", "held"])
def test_what_a_regularizer_writes_to_is_its_own(kind: str, how: str) -> None:
    problem, stop = classifier().problem(), Stop(evaluations=20)
    own = Shared(problem.size) if kind == "object" else in_place
    start = problem.current()
    if how == "made small":
        path = traverse(problem, regularizer=own, stop=stop, progress=False)
    else:
        bound = at_most(own, 0.9 * start.square().sum().item())
        path = traverse(problem, regularizer="l1", hold={"norm": bound}, stop=stop, progress=False)
    assert len(path.points) > 2
    for point in path.points:
        assert problem.loss(point).item() == pytest.approx(path.level, rel=1.001e-3)
    if how == "made small":
        assert torch.equal(path.points[0], start)
        plain = traverse(problem, regularizer=squares, stop=stop, progress=False)
        assert path.steps["regularizer"].iloc[-1] < plain.steps["regularizer"].iloc[0]
        torch.testing.assert_close(path.points, plain.points)


def squares(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack([p.square().sum() for p in parameters.values()]).sum()


class Gives:
    """An object whose `value_and_grad` gives what a function of theta says."""

    name = "mine"

    def __init__(self, function: Any) -> None:
        self.value_and_grad = function


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda t: t.sum(), ["'mine'", "R, a tensor of shape ()", "(44,)", "got a Tensor"]),
        (lambda t: (t.sum().item(), t), ["a tensor of shape ()", "got a float and (44,)"]),
        (lambda t: (t.sum(), t.numpy()), ["got () and a ndarray"]),
        (lambda t: (t.sum()[None], t), ["got (1,) and (44,)"]),
        (lambda t: (t.sum(), t[None]), ["got () and (1, 44)"]),
        (lambda t: t.gone, ["'mine' failed on the parameters (AttributeError", "gone", "in line"]),
        (lambda t: t @ t[1:], ["'mine' failed on the parameters (RuntimeError", "in line"]),
        (lambda: 0, ["'mine' failed on the parameters (TypeError", "1 was given"]),
    ],
)
def test_what_an_object_gives_is_looked_at(function: Any, words: list[str], refuses) -> None:
    problem, own = classifier().problem(), Gives(function)
    with refuses(*words):
        traverse(problem, regularizer=own, progress=False)
    with refuses(*words):
        traverse(problem, hold={"a": at_most(own, 1.0)}, progress=False)
    with refuses(*words):
        traverse(problem, regularizer=weighted_sum((1.0, "l1"), (1.0, own)), progress=False)


def test_a_gradient_of_another_type_is_converted() -> None:
    problem = classifier().problem()
    own = Gives(lambda t: (t.square().sum(), 2 * t.float()))
    path = traverse(problem, regularizer=own, stop=Stop(steps=3), progress=False)
    assert path.steps["regularizer"].iloc[-1] < path.steps["regularizer"].iloc[0]


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda p: p["0.weight"].add_(1).sum(), ["'function' failed", "RuntimeError", "in line"]),
        (lambda p: [*p.values()][7].sum(), ["'function' failed", "IndexError", "in line"]),
    ],
)
def test_a_function_that_fails_is_named_in_a_sentence(function: Any, words, refuses) -> None:
    with refuses(*words):
        get_regularizer(function, classifier().problem())


# ---------------------------------------------------------------- sums


def test_an_object_is_taken_and_all_else_is_refused(refuses) -> None:
    problem = classifier().problem()
    own = get_regularizer(LinearRegularizer(torch.ones(problem.size)), problem)
    assert own.name == "linear"
    assert get_regularizer(own, problem) is own
    for made, words in (
        (lambda: "squared norm", ["'squared norm'", "did you mean squared_norm or"]),
        (lambda: L1, ["class L1", "give L1()"]),
        (lambda: 3, ["got an int", "a name such as 'squared_norm'"]),
        (lambda: None, ["got None"]),
        (lambda: classifier(sizes=(3, 4, 4)).problem(), ["other parameters"]),
        (lambda: weighted_sum(), ["got none"]),
        (lambda: weighted_sum("squared_norm"), ["'squared_norm'", "pair of a weight"]),
        (lambda: weighted_sum((math.nan, "l1")), ["nan", "finite"]),
        (lambda: weighted_sum(("l1", 1.0)), ["'l1'", "finite number"]),
        *((lambda w=w: w * L1(), ["weight of a reg"]) for w in (math.nan, math.inf, "2", True)),
    ):
        with refuses(*words):
            get_regularizer(made(), problem)


def test_a_weighted_sum_is_the_sum_of_its_parts() -> None:
    problem = classifier().problem()
    parts = [(2.0, "squared_norm"), (0.1, L1(smoothing=0.5)), (-1.0, quartic)]
    both = weighted_sum(*parts)
    expected = sum(weight * value_at(part, problem) for weight, part in parts)
    assert value_at(both, problem) == pytest.approx(expected, rel=1e-13)
    assert_gradient_is_the_slope(both, problem)
    assert get_regularizer(both, problem).name == "2 squared_norm + 0.1 l1 - quartic"
    worst = maximize("l1")
    assert value_at(worst, problem) == -value_at("l1", problem)
    assert torch.equal(grad_at(worst, problem), -grad_at("l1", problem))
    assert get_regularizer(worst, problem).name == "-l1"


def test_a_sum_says_its_curvature_where_it_is_known_and_positive() -> None:
    problem = classifier().problem()
    centered = SquaredNorm(center=problem.current())
    for made, curvature in (
        (SquaredNorm(), 2.0),
        (centered, 2.0),
        (SquaredNorm(weights={"0.weight": 3.0}), None),
        (weighted_sum((0.5, "squared_norm"), (2.0, centered)), 5.0),
        (SquaredNorm() + 2 * SquaredNorm(), 6.0),
        (weighted_sum((0.5, "squared_norm"), (2.0, "l1")), None),
        (maximize("squared_norm"), None),
    ):
        assert getattr(get_regularizer(made, problem), "curvature", None) == curvature


# ---------------------------------------------------------------- maximize


def test_the_loss_of_another_problem_can_be_maximized() -> None:
    net = classifier()
    other = type(net)(net.model, net.loss, (normal(12, 3, seed=7), net.data[1]), net.sizes)
    problem, held_out = net.problem(), other.problem()
    path = traverse(problem, regularizer=maximize(held_out), stop=Stop(evaluations=60))
    start, end = (other.loss_and_grad(path.points[k].numpy())[0] for k in (0, -1))
    assert end > 1.2 * start
    assert path.steps["regularizer"].iloc[-1] == pytest.approx(-end, rel=1e-10)
    assert net.loss_and_grad(path.points[-1].numpy())[0] == pytest.approx(path.level, rel=1.001e-3)


# ---------------------------------------------------------------- arithmetic


def test_arithmetic_is_weighted_sum() -> None:
    problem = classifier().problem()
    theta = problem.current()
    l1, norm = isoloss.L1(), isoloss.SquaredNorm()
    for made, weights in (
        (1.0 * l1 + 0.1 * norm, (1.0, 0.1)),
        (l1 * 2 - norm, (2.0, -1.0)),
        (-(l1 + norm), (-1.0, -1.0)),
        (0.5 * (l1 - 2 * norm), (0.5, -1.0)),
        (isoloss.weighted_sum((3, "l1"), (1.0, norm)), (3.0, 1.0)),
        (isoloss.weighted_sum(2 * l1, (1.0, norm)), (2.0, 1.0)),
    ):
        found = get_regularizer(made, problem).value_and_grad(theta)
        parts = [get_regularizer(one, problem).value_and_grad(theta) for one in (l1, norm)]
        for k in (0, 1):
            wanted = weights[0] * parts[0][k] + weights[1] * parts[1][k]
            torch.testing.assert_close(found[k], wanted)
