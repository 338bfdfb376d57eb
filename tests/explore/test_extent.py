"""Extents against closed forms, SciPy, and the user's own model in plain torch."""

from __future__ import annotations

import math
import os
import signal
import warnings
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import sklearn.linear_model
import torch
from torch import Tensor, nn

import isoloss
from isoloss import Outcome, Outputs, Problem, Stop
from isoloss.explore import ends
from isoloss.explore.extent import Extents

TIGHT = {"rtol": 1e-10, "stop": Stop(kkt_residual=1e-8), "gain": 0, "progress": False}


def regression(seed: int = 0) -> tuple[nn.Linear, Tensor, Tensor]:
    """A linear model with random weights, in float64, and its data."""
    torch.manual_seed(seed)
    inputs = torch.randn(40, 5, dtype=torch.float64)
    targets = inputs @ torch.randn(5, 1, dtype=torch.float64) + 0.3 * torch.randn(40, 1)
    return nn.Linear(5, 1).double(), inputs, targets


def ellipsoid(inputs: Tensor, targets: Tensor, level: float, at: Tensor) -> tuple[float, float]:
    """Least and largest prediction at an input among all linear models of a mean squared error."""
    ones = torch.ones(len(inputs), 1, dtype=torch.float64)
    design = torch.cat([inputs, ones], 1)
    direction = torch.cat([at, torch.ones(1, dtype=torch.float64)])
    best = torch.linalg.lstsq(design, targets).solution
    least = (design @ best - targets).square().mean()
    curvature = design.T @ design / len(inputs)
    reach = ((level - least) * direction @ torch.linalg.solve(curvature, direction)).sqrt()
    center = (direction @ best).item()
    return center - reach.item(), center + reach.item()


def network(seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[nn.Sequential, Problem]:
    """A small classifier of noise, trained a little, and its problem."""
    torch.manual_seed(seed)
    inputs = torch.randn(60, 4, dtype=dtype)
    targets = (inputs[:, 0] + 0.8 * torch.randn(60) > 0).long()
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).to(dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    return model, Problem(model, "cross_entropy", (inputs, targets))


def probability(at: Tensor) -> Outputs:
    return Outputs(at, lambda logits: logits.softmax(1)[0, 1], "probability")


def test_a_linear_prediction_goes_as_far_as_the_ellipsoid() -> None:
    model, inputs, targets = regression()
    problem = Problem(model, "mse", (inputs, targets))
    at = torch.randn(6, 5, dtype=torch.float64)
    wanted = {f"x{k}": Outputs(at[k : k + 1], lambda outputs: outputs.sum()) for k in range(6)}
    level = problem.loss(problem.current()).item()
    found = isoloss.extent(problem, wanted, **TIGHT)
    assert list(found) == list(wanted)
    for k, (name, one) in enumerate(found.items()):
        assert (one.low, one.high) == pytest.approx(
            ellipsoid(inputs, targets, level, at[k]), rel=1e-6
        )
        assert one.low_end.outcome is one.high_end.outcome is Outcome.CONVERGED
        assert one.start == pytest.approx(model(at[k]).item(), rel=1e-12)
        assert tuple(found.table.loc[name, ["low", "high"]]) == (one.low, one.high)
    one = isoloss.extent(problem, wanted["x3"], level=0.5 * level, **TIGHT)
    inner = ellipsoid(inputs, targets, 0.5 * level, at[3])
    assert (one.low, one.high) == pytest.approx(inner, rel=1e-6)


def logistic() -> tuple[list[Problem], list[tuple[np.ndarray, np.ndarray]]]:
    """A linear classifier's problems on a training and a validation set, and their data."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 1), nn.Flatten(0)).double()
    problems: list[Problem] = []
    data: list[tuple[np.ndarray, np.ndarray]] = []
    for _ in range(2):
        inputs = torch.randn(40, 5, dtype=torch.float64)
        targets = (torch.rand(40) < (inputs[:, 0] - inputs[:, 1]).sigmoid()).double()
        problems.append(Problem(model, "bce_with_logits", (inputs, targets)))
        data.append((np.hstack([inputs.numpy(), np.ones((40, 1))]), targets.numpy()))
    return problems, data


def slsqp(
    at: np.ndarray, data: list[tuple[np.ndarray, np.ndarray]], most: list[float]
) -> list[float]:
    """Least and largest log odds of logistic regressions whose losses are at most so much."""

    def constraint(x: np.ndarray, y: np.ndarray, bound: float) -> dict[str, Any]:
        return {
            "type": "ineq",
            "fun": lambda w: bound - np.mean(np.logaddexp(0, x @ w) - y * (x @ w)),
            "jac": lambda w: x.T @ (y - 1 / (1 + np.exp(-x @ w))) / len(y),
        }

    held = [constraint(*one, bound) for one, bound in zip(data, most, strict=False)]
    ends: list[float] = []
    for sign in (1, -1):
        solved = scipy.optimize.minimize(
            lambda w, sign=sign: sign * (at @ w), np.zeros(6), jac=lambda w, sign=sign: sign * at,
            constraints=held, method="SLSQP", options={"ftol": 1e-15, "maxiter": 1000},
        )  # fmt: skip
        ends.append(float(at @ solved.x))
    return ends


def test_a_logistic_prediction_goes_as_far_as_slsqp_finds() -> None:
    (problem, _), data = logistic()
    at = np.append(0.1 * np.random.default_rng(0).normal(size=5), 1.0)
    there = torch.from_numpy(at[None, :5])
    logit = Outputs(there, lambda outputs: outputs.sum())
    chance = Outputs(there, lambda outputs: outputs.sigmoid().sum())
    found = isoloss.extent(problem, {"logit": logit, "chance": chance}, level=0.6, **TIGHT)
    ends = slsqp(at, data, [0.6])
    assert (found["logit"].low, found["logit"].high) == pytest.approx(ends, rel=1e-6)
    # a monotone function of a quantity has the same networks at its ends
    expected = [1 / (1 + math.exp(-end)) for end in ends]
    assert (found["chance"].low, found["chance"].high) == pytest.approx(expected, rel=1e-6)


def test_what_is_held_narrows_an_interval_as_slsqp_finds() -> None:
    (problem, validation), data = logistic()
    at = np.append(np.random.default_rng(0).normal(size=5), 1.0)
    logit = Outputs(torch.from_numpy(at[None, :5]), lambda outputs: outputs.sum())
    bounds = {"validation": isoloss.at_most(validation, 0.53, rtol=1e-10)}
    found = isoloss.extent(
        problem, logit, level=isoloss.at_most(problem, 0.65), hold=bounds, **TIGHT
    )
    assert (found.low, found.high) == pytest.approx(slsqp(at, data, [0.65, 0.53]), rel=1e-6)
    free = isoloss.extent(problem, logit, level=0.65, **TIGHT)
    assert free.high - free.low > 1.1 * (found.high - found.low)
    for end in (found.low_end, found.high_end):
        assert end.held["validation"] == pytest.approx(validation.loss(end.theta).item(), rel=1e-12)
        assert end.held["validation"] <= 0.53 * (1 + 1e-9)
        assert end.level_error <= 1e-9


def test_a_walk_leaves_the_optimum_of_the_other_kind_that_it_begins_at() -> None:
    model, inputs, targets = regression()
    problem = Problem(model, "mse", (inputs, targets))
    at = torch.randn(1, 5, dtype=torch.float64)
    prediction = Outputs(at, lambda outputs: outputs.sum())
    level = problem.loss(problem.current()).item()
    ends = ellipsoid(inputs, targets, level, at[0])
    first = isoloss.extent(problem, prediction, **TIGHT)
    for end in (first.low_end, first.high_end):
        again = isoloss.extent(problem, prediction, start=end.theta, **TIGHT)
        assert (again.low, again.high) == pytest.approx(ends, rel=1e-6)
        stays = again.low_end if end is first.low_end else again.high_end
        assert torch.allclose(stays.theta, end.theta, atol=1e-5)
        assert stays.outcome is Outcome.CONVERGED


@pytest.mark.parametrize("upper", [False, True])
def test_a_regularized_regression_of_scikit_learn_has_no_largest_norm(upper: bool) -> None:
    (problem, _), data = logistic()
    x, y = data[0]
    fit = sklearn.linear_model.LogisticRegression(C=1.0, tol=1e-10, max_iter=10_000)
    fit.fit(x[:, :5], y)
    given = np.append(fit.coef_[0], fit.intercept_)
    start, norm = torch.from_numpy(given), isoloss.SquaredNorm(without_biases=True)
    level = problem.loss(start).item()
    held = isoloss.at_most(problem, level) if upper else level
    found = isoloss.extent(problem, norm, start=start, level=held, progress=False)
    # the penalty makes it the least one; the largest one by SLSQP from several starts
    assert found.low == pytest.approx(given[:5] @ given[:5], rel=1e-3)
    most = 0.0
    for seed in range(5):
        solved = scipy.optimize.minimize(
            lambda w: -w[:5] @ w[:5], given + 0.5 * np.random.default_rng(seed).normal(size=6),
            jac=lambda w: np.append(-2 * w[:5], 0.0), method="SLSQP",
            constraints={
                "type": "eq",
                "fun": lambda w: np.mean(np.logaddexp(0, x @ w) - y * (x @ w)) - level,
                "jac": lambda w: x.T @ (1 / (1 + np.exp(-x @ w)) - y) / len(y),
            },
            options={"ftol": 1e-13, "maxiter": 1000},
        )  # fmt: skip
        most = max(most, -solved.fun if solved.success else 0.0)
    assert most > 1.5 * found.low
    assert found.high == pytest.approx(most, rel=5e-3)


def test_a_bound_that_all_values_are_above_ends_the_low_side_alone() -> None:
    model, inputs, targets = regression()
    problem = Problem(model, "mse", (inputs, targets))
    at = torch.randn(1, 5, dtype=torch.float64)
    level = problem.loss(problem.current()).item()
    low, high = ellipsoid(inputs, targets, level, at[0])
    assert low < 0 < high
    end = high if model(at).item() > 0 else low  # up on the start's side
    square = Outputs(at, lambda outputs: outputs.square().sum())
    stop = Stop(kkt_residual=1e-6, regularizer_below=1e-4)
    found = isoloss.extent(problem, square, stop=stop, rtol=1e-8, gain=0, progress=False)
    assert found.low_end.outcome is Outcome.REGULARIZER_REACHED
    assert found.low <= 1e-4
    assert found.high_end.outcome is Outcome.CONVERGED
    assert found.high == pytest.approx(end * end, rel=1e-5)
    # a negative one is far enough on either side
    one = Outputs(at, lambda outputs: outputs.sum())
    enough = 0.5 * min(-low, high)
    stop = Stop(regularizer_below=-enough)
    found = isoloss.extent(problem, one, stop=stop, progress=False)
    assert low < found.low <= -enough
    assert enough <= found.high < high


def test_one_gain_says_when_a_walk_has_slowed() -> None:
    _, problem = network()
    at = torch.randn(1, 4)
    level = problem.loss(problem.current()).item() * 1.2
    asked = {"level": level, "progress": False}

    def ends(**given: Any) -> list[tuple[Outcome, float]]:
        found = isoloss.extent(problem, probability(at), **asked, **given)
        return [(end.outcome, end.value) for end in (found.low_end, found.high_end)]

    usual = ends()
    assert {outcome for outcome, _ in usual} == {Outcome.SLOWED}
    assert ends(gain=1e-3, stop=Stop(evaluations=500, gain=0)) == usual
    on = ends(gain=0, stop=Stop(evaluations=80))
    assert Outcome.SLOWED not in {outcome for outcome, _ in on}
    assert ends(stop=Stop(evaluations=80, gain=0)) == on


def test_ten_steps_that_gain_nothing_are_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(self: Any, row: Any) -> bool:
        self.last, self.width = -1e-5, 1.0
        return row["step"] >= 2

    monkeypatch.setattr(ends._Slow, "__call__", lost)
    (problem, validation), _ = logistic()
    found = isoloss.extent(problem, validation, progress=False)
    for end in (found.low_end, found.high_end):
        assert end.outcome is Outcome.SLOWED
        assert "(nothing in 10 steps, of 1 in all" in end.path.message


def test_a_start_outside_of_what_is_held_is_brought_in_once_for_all(refuses) -> None:
    (problem, validation), _ = logistic()
    bound = 0.9 * validation.loss(problem.current()).item()
    hold = {"validation": isoloss.at_most(validation, bound)}
    quantities = {"l1": isoloss.L1(), "first": lambda named: named["0.weight"][0, 0]}
    found = isoloss.extent(problem, quantities, hold=hold, progress=False)
    starts = [end.path.points[0] for one in found.values() for end in (one.low_end, one.high_end)]
    assert all(torch.equal(start, starts[0]) for start in starts)
    assert validation.loss(starts[0]) <= 1.0011 * bound
    assert all(one.low_end.held["validation"] <= 1.0011 * bound for one in found.values())
    with refuses("no start on the level set", "validation"):
        low = {"validation": isoloss.at_most(validation, 0.1)}
        isoloss.extent(problem, "l1", level=0.65, hold=low, progress=False)


def test_ends_are_what_the_users_model_gives_in_float64() -> None:
    model, problem = network()
    before = problem.current()
    at = torch.randn(1, 4)
    level = problem.loss(before).item() + 0.01
    one = isoloss.extent(
        problem, probability(at), level=level, stop=Stop(evaluations=60), progress=False
    )
    assert one.low < one.start < one.high
    for end, sign in ((one.low_end, 1), (one.high_end, -1)):
        end.path.load_into(model)
        model.double()
        chunk = next(iter(isoloss.problem.inside(problem).chunks))  # pyright: ignore
        loss = nn.functional.cross_entropy(model(chunk.inputs.double()), chunk.targets).item()
        assert end.loss == pytest.approx(loss, rel=1e-12)
        assert end.level_error == pytest.approx((loss - level) / level, rel=1e-6, abs=1e-9)
        assert abs(end.level_error) <= 1.01e-3
        value = model(at.double()).softmax(1)[0, 1].item()
        assert end.value == pytest.approx(value, rel=1e-12)
        walked = sign * end.path.steps["regularizer"].iloc[-1]
        assert end.value_error == walked - end.value
        model.float()
    assert torch.equal(problem.current(), one.high_end.theta)  # loaded last
    assert torch.equal(one.networks, torch.stack([one.low_end.theta, one.high_end.theta]))


def test_what_saturates_ends_when_nothing_is_gained() -> None:
    _, problem = network()
    at = torch.randn(1, 4)
    level = problem.loss(problem.current()).item() * 1.2
    one = isoloss.extent(problem, probability(at), level=level, progress=False)
    full = isoloss.extent(problem, probability(at), level=level, gain=0, progress=False)
    for end, patient in ((one.low_end, full.low_end), (one.high_end, full.high_end)):
        assert end.outcome is Outcome.SLOWED
        assert "gain=" in end.path.message
        assert end.evaluations < patient.evaluations
        assert end.value == pytest.approx(patient.value, abs=0.02)


def test_every_kind_of_quantity() -> None:
    model, problem = network()
    other = Problem(model, "cross_entropy", (torch.randn(9, 4), torch.randint(2, (9,))))
    level = problem.loss(problem.current()).item()
    distance = isoloss.SquaredNorm(center=problem.current())
    quantities = [
        other, "squared_norm", isoloss.L1(), lambda named: named["0.bias"].sum(), distance,
        isoloss.weighted_sum((1.0, other), (0.5, "squared_norm")),
    ]  # fmt: skip
    # some have no largest value, and float32 no digits of the loss left at weights of a million
    stop = Stop(evaluations=30, regularizer_below=-1e3)
    found = isoloss.extent(problem, quantities, stop=stop, progress=False)
    assert isinstance(found, Extents)
    assert list(found) == ["0", "1", "2", "3", "4", "5"]
    for name, one in found.items():
        assert one.low < one.high, name
        assert abs(one.low_end.value_error) <= 1e-5 * max(1, abs(one.low)), name
        for end in (one.low_end, one.high_end):
            assert end.path.level == level
            assert abs(end.level_error) <= 1.01e-3
    # whose gradient is 0 at the start
    assert found["4"].start == 0
    assert found["4"].high > 1
    assert (found.table["low"] <= found.table["start"] + 1e-3).all()


@pytest.mark.slow
def test_the_same_whatever_the_workers() -> None:
    _, problem = network()
    points = torch.randn(7, 4)
    named = {str(k): probability(points[k : k + 1]) for k in range(7)}
    asked = {"stop": Stop(evaluations=25), "progress": False}
    here = isoloss.extent(problem, named, workers=1, **asked)
    there = isoloss.extent(problem, named, workers=2, **asked)
    assert here.table.equals(there.table)
    for name in named:
        assert torch.equal(here[name].networks, there[name].networks)


def test_later_quantities_start_where_the_earlier_ones_led() -> None:
    _, problem = network()
    at = torch.randn(1, 4)
    alike = [probability(at + 0.01 * k) for k in range(6)]
    found = isoloss.extent(problem, alike, stop=Stop(evaluations=40), progress=False)
    first = found["0"].high_end.path.steps["regularizer"].iloc[0]
    later = found["5"].high_end.path.steps["regularizer"].iloc[0]
    assert first == pytest.approx(-found["0"].start)
    assert later < first - 0.9 * (found["0"].high - found["0"].start)


def test_ctrl_c_keeps_what_there_is() -> None:
    _, problem = network()
    walked = 0

    def counted(named: dict[str, Tensor]) -> Tensor:
        nonlocal walked
        walked += 1
        if walked == 60:
            os.kill(os.getpid(), signal.SIGINT)
        return named["0.weight"].square().sum()

    found = isoloss.extent(
        problem, {"a": counted, "b": "l1", "c": "squared_norm"}, workers=1, progress=False
    )
    outcomes = [found["a"].low_end.outcome, found["a"].high_end.outcome]
    assert Outcome.INTERRUPTED in outcomes
    assert found["a"].low < found["a"].start
    assert found["c"].low_end.outcome is found["c"].high_end.outcome is Outcome.INTERRUPTED
    assert len(found["c"].low_end.path.steps) == 1  # the networks found for the others
    assert found["c"].low <= found["c"].start <= found["c"].high


@pytest.mark.slow
def test_a_worker_that_dies_is_warned_of_and_the_rest_kept() -> None:
    _, problem = network()
    home = os.getpid()

    def deadly(named: dict[str, Tensor]) -> Tensor:
        if os.getpid() != home:
            os.kill(os.getpid(), signal.SIGKILL)
        return named["0.weight"].square().sum()

    named = {"a": "l1", "b": "l1", "c": "l1", "d": "squared_norm", "e": deadly}
    with pytest.warns(UserWarning, match="worker process died"):
        found = isoloss.extent(problem, named, workers=2, stop=Stop(evaluations=10), progress=False)
    assert found["a"].low < found["a"].start
    assert found["e"].high_end.outcome is Outcome.INTERRUPTED
    assert len(found["e"].high_end.path.steps) == 1
    with pytest.raises(isoloss.IsolossError, match="worker process died"):
        isoloss.extent(problem, deadly, workers=2, progress=False)


def test_a_model_that_float64_cannot_have_is_said_by_nan() -> None:
    torch.manual_seed(0)
    mine = torch.randn(4)

    def model(named: dict[str, Tensor], inputs: Tensor) -> Tensor:
        return inputs @ named["w"] + inputs @ mine  # refuses float64

    problem = Problem(
        model, "mse", (torch.randn(20, 4), torch.randn(20)), parameters={"w": torch.ones(4)}
    )
    one = isoloss.extent(problem, "l1", stop=Stop(evaluations=20), progress=False)
    assert math.isnan(one.low_end.value_error)
    assert one.low < one.start < one.high


def test_what_cannot_be_had_is_refused(refuses) -> None:
    _, problem = network()
    at = torch.randn(1, 4)

    def rounded(named: dict[str, Tensor]) -> Tensor:
        return named["0.weight"].sum().round()

    def broken(named: dict[str, Tensor]) -> Tensor:
        return named["0.weight"].sum() * math.nan

    ask = isoloss.extent
    with refuses("constant", "no derivative", "rounded"):
        ask(problem, rounded)
    with refuses("'class' cannot be used", "differentiated"):
        ask(problem, {"class": Outputs(at, lambda logits: logits.argmax(1).double().sum())})
    with refuses("constant", "no derivative"):
        ask(problem, lambda named: 0 * named["0.weight"].sum())
    with refuses("finite", "broken", "nan"):
        ask(problem, broken)
    with refuses("none of them"):
        ask(problem, {})
    with refuses("none of them"):
        ask(problem, [])
    with refuses("must be a string", "3"):
        ask(problem, {3: "l1"})
    with refuses("unknown regularizer", "l3"):
        ask(problem, "l3")
    with refuses("quantity 'a' cannot be used", "got an int"):
        ask(problem, {"a": 3})
    with refuses("gain", "[0, 1)", "1"):
        ask(problem, "l1", gain=1)
    with refuses("no start on the level set", "max_approach"):
        ask(problem, "l1", level=1e-9, method=isoloss.SQP(max_approach=3))
    with refuses("workers"):
        ask(problem, "l1", workers=0)


def test_nothing_is_warned_of() -> None:
    _, problem = network()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one = isoloss.extent(problem, "l1", stop=Stop(evaluations=8), progress=True)
    assert "Extent(l1 from" in repr(one)
    assert "evaluation_limit" in repr(one)
