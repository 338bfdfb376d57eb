"""Fronts: against the paths of other libraries and a published one, kept, resumed, refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.optimize import brentq
from sklearn.datasets import load_diabetes, load_iris
from sklearn.linear_model import Lasso, Ridge
from tests.conftest import Refuses
from tests.problems import F64, classifier, vector_problem
from torch import nn

import isoloss
from isoloss import Problem
from isoloss.explore.branches import Plan, follow
from isoloss.explore.front import gathered

PUBLISHED = {  # L1 norm by loss, of the network below (arXiv:2308.12044)
    0.0136: 20.00, 0.0843: 14.98, 0.2055: 12.00, 0.3409: 9.99,
    0.4889: 6.99, 0.6240: 5.00, 0.8705: 3.00, 1.0053: 2.00,
}  # fmt: skip
ROWS = (  # of scikit-learn's Iris
    *(82, 30, 123, 128, 66, 107, 21, 115, 106, 7, 23, 135, 46, 72, 89),
    *(97, 95, 111, 124, 25, 113, 100, 78, 18, 39, 55, 51, 99, 104, 17),
)


def standardized(values: Any) -> Any:
    return (values - values.mean(0)) / values.std(0)


def linear() -> tuple[Problem, Any, Any]:
    """Least squares without an intercept, in float64, and its examples."""
    data = load_diabetes()
    inputs, targets = standardized(data.data), standardized(data.target)
    model = nn.Linear(10, 1, bias=False, dtype=F64)
    with torch.no_grad():
        model.weight.copy_(torch.linspace(-1, 1, 10))
    pair = torch.tensor(inputs), torch.tensor(targets)[:, None]
    return Problem(model, "mse", pair), inputs, targets


def iris() -> Problem:
    data = load_iris()
    inputs = torch.tensor(standardized(data.data)[list(ROWS)])
    torch.manual_seed(0)
    layers = (nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    model = nn.Sequential(*layers).double()
    return Problem(model, "cross_entropy", (inputs, torch.tensor(data.target[list(ROWS)])))


def same(one: isoloss.Front, other: isoloss.Front) -> None:
    pd.testing.assert_frame_equal(one.table, other.table, check_exact=True)
    np.testing.assert_array_equal(one.points.numpy(), other.points.numpy())


# ---------------------------------------------------------------- against other libraries


def at_level(fit: Any, inputs: Any, targets: Any, level: float) -> tuple[float, Any]:
    """The penalty with which a fit has a mean squared error, and its coefficients."""

    def excess(power: float) -> float:
        return float(np.mean((targets - inputs @ fit(np.exp(power))) ** 2)) - level

    penalty = float(np.exp(brentq(excess, np.log(1e-6), np.log(1e3), xtol=1e-14, rtol=1e-14)))
    return penalty, fit(penalty)


def test_the_front_of_a_linear_model_is_the_ridge_path() -> None:
    problem, inputs, targets = linear()
    levels = np.geomspace(0.5, 0.95, 6)
    front = isoloss.front(problem, levels=levels, kkt=1e-9, rtol=1e-12, progress=False)

    def fit(penalty: float) -> Any:
        kind = Ridge(alpha=penalty * len(targets), fit_intercept=False, solver="cholesky")
        return kind.fit(inputs, targets).coef_

    assert len(front.table) == 11
    assert set(front.table["branch"]) == {0}
    assert not len(front.folds)
    for row, point in zip(front.table.to_dict("records"), front.points, strict=True):
        penalty, coefficients = at_level(fit, inputs, targets, row["level"])
        np.testing.assert_allclose(point, coefficients, atol=1e-8)
        assert row["regularizer"] == pytest.approx(coefficients @ coefficients, rel=1e-9)
        assert row["equivalent_penalty"] == pytest.approx(penalty, rel=1e-7)
        assert row["outcome"] == "converged"
        assert row["kkt_residual"] <= 1e-9
        assert abs(row["level_error"]) <= 1e-12


def test_the_front_of_the_largest_norm_leaves_the_network_of_the_least() -> None:
    _, inputs, targets = linear()
    x = inputs[:, :3]
    model = nn.Linear(3, 1, bias=False, dtype=F64)
    problem = Problem(model, "mse", (torch.tensor(x), torch.tensor(targets)[:, None]))
    best = np.linalg.lstsq(x, targets, rcond=None)[0]
    least = np.mean((targets - x @ best) ** 2)
    levels = least + np.array([0.05, 0.1, 0.2])
    # |w| is largest, and least, on the ellipsoid where w = m A (w - best)
    size, axes = np.linalg.eigh(x.T @ x / len(x))
    center = axes.T @ best

    def off(m: float) -> Any:
        return center / (m * size - 1)  # w - best, along the axes

    def network(level: float, low: float, high: float) -> Any:
        m = brentq(lambda m: size @ off(m) ** 2 - (level - least), low, high, xtol=1e-14)
        return axes @ off(m) + best

    start = network(levels[0], -1e6, -1e-6)
    front = isoloss.front(
        problem, levels=levels, regularizer=isoloss.maximize("squared_norm"),
        starts=torch.tensor(start), evaluations=300, progress=False,
    )  # fmt: skip
    assert len(front.table) == 5
    for row in front.table.to_dict("records"):
        w = network(row["level"], (1 + 1e-9) / size[0], 1e6)
        assert w @ w > 1.2 * start @ start
        assert -row["regularizer"] == pytest.approx(w @ w, rel=5e-3)
    assert not len(front.folds)


def test_ends_without_any_regularizer_left_are_one_branch() -> None:
    _, inputs, targets = linear()
    pair = torch.tensor(inputs[:, :3]), torch.tensor(targets)[:, None]
    problem = Problem(nn.Linear(3, 1, bias=False, dtype=F64), "mse", pair)
    gap = isoloss.Outputs(pair[0][:1], lambda outputs: outputs.square().sum())
    # every level above the least loss of the models that give 0 there has such models
    x, y, a = inputs[:, :3], targets, inputs[0, :3]
    basis = np.linalg.svd(a[None])[2][1:].T
    rest = np.linalg.lstsq(x @ basis, y, rcond=None)[0]
    zero = np.mean((y - x @ basis @ rest) ** 2)
    best = np.mean((y - x @ np.linalg.lstsq(x, y, rcond=None)[0]) ** 2)
    levels = [0.5 * (best + zero), 1.05 * zero, 1.1 * zero, 1.2 * zero]
    front = isoloss.front(problem, levels=levels, regularizer=gap, evaluations=60, progress=False)
    table = front.table
    assert (table["regularizer"][table["level"] > zero] < 1e-9).all()
    assert table["regularizer"].iloc[0] > 1e-5
    assert set(table["branch"]) == {0}
    assert not len(front.folds)


@pytest.mark.slow
def test_the_front_of_a_linear_model_is_the_lasso_path() -> None:
    problem, inputs, targets = linear()
    front = isoloss.front(
        problem, levels=np.geomspace(0.5, 0.87, 4), regularizer=isoloss.L1(smoothing=1e-8),
        kkt=1e-8, rtol=1e-10, progress=False,
    )  # fmt: skip

    def fit(penalty: float) -> Any:
        kind = Lasso(alpha=penalty / 2, fit_intercept=False, tol=1e-14, max_iter=1_000_000)
        return kind.fit(inputs, targets).coef_

    for level, point in zip(front.table["level"], front.points, strict=True):
        _, coefficients = at_level(fit, inputs, targets, level)
        np.testing.assert_allclose(point, coefficients, atol=1e-6)
        assert point.abs().sum().item() == pytest.approx(np.abs(coefficients).sum(), rel=1e-6)


@pytest.mark.slow
def test_the_published_front_is_met_at_every_level_in_a_hundred_evaluations_each() -> None:
    problem = iris()
    assert problem.size == 55
    front = isoloss.front(
        problem, levels=PUBLISHED, regularizer=isoloss.L1(smoothing=2e-3), kkt=1e-2, progress=False
    )
    best = front.best
    norms = front.points[best.index.to_list()].abs().sum(1)
    assert best["level"].to_list() == list(PUBLISHED)
    for norm, published in zip(norms, PUBLISHED.values(), strict=True):
        assert norm <= 1.005 * published
    assert front.evaluations <= 800
    # at this level there are two branches, and the walk up in loss meets the worse one
    fold = front.folds.set_index("level").loc[0.4889]
    assert fold["rising"] == pytest.approx(8.28, rel=0.01)
    assert fold["falling"] == pytest.approx(6.99, rel=0.005)
    number = best.loc[best["level"] == 0.4889, "branch"].item()
    assert number == front.table.query("direction == 'falling'")["branch"].iloc[0]


def test_every_end_is_one_where_a_walk_of_its_own_stays() -> None:
    problem = classifier().problem()
    front = isoloss.front(problem, levels=[0.3, 0.5, 0.8], kkt=1e-4, progress=False)
    exact = classifier().problem().with_dtype(F64)
    for row, point in zip(front.table.to_dict("records"), front.points, strict=True):
        assert row["outcome"] == "converged"
        assert row["loss"] == pytest.approx(exact.loss(point.double()).item(), rel=1e-12)
        assert abs(row["level_error"]) <= 1e-3
        path = isoloss.traverse(
            problem, start=point, level=row["level"], stop=isoloss.Stop(kkt_residual=1e-5),
            progress=False,
        )  # fmt: skip
        assert path.steps["regularizer"].iloc[-1] == pytest.approx(row["regularizer"], rel=1e-4)


# ---------------------------------------------------------------- what is asked and returned


def test_levels_are_taken_in_any_order_and_probes_measured_at_each_end() -> None:
    problem, test = classifier().problem(), classifier(seed=1).problem()
    front, other = (
        isoloss.front(problem, levels=levels, probes={"test": test}, kkt=1e-2, progress=False)
        for levels in ([0.4, 0.8, 0.6], [0.8, 0.6, 0.4])
    )
    same(front, other)
    assert front.table["level"].to_list() == [0.4, 0.4, 0.6, 0.6, 0.8]
    for k, row in front.table.iterrows():
        loss, metric = test.evaluate(front.points[k])
        assert (row["test_loss"], row["test_metric"]) == (loss, metric)
    assert front.evaluations == front.table["evaluations"].sum()
    best = front.best
    assert best["level"].is_monotonic_increasing
    assert (
        best["regularizer"].to_numpy() == front.table.groupby("level")["regularizer"].min()
    ).all()
    front.load_into(model := classifier().model, best.index[0])
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    torch.testing.assert_close(weights, front.points[best.index[0]], rtol=0, atol=0)
    assert "3 levels from 0.4 to 0.8" in repr(front)


def test_by_default_levels_reach_from_the_start_to_nine_tenths_of_the_loss_without_weights() -> (
    None
):
    problem, inputs, targets = linear()
    start = torch.tensor(np.linalg.lstsq(inputs, targets, rcond=None)[0])
    low, nothing = (problem.loss(theta).item() for theta in (start, 0 * start))
    front = isoloss.front(problem, starts=start, count=4, kkt=1e-2, progress=False)
    levels = front.table["level"].unique()
    assert levels[0] == low
    np.testing.assert_allclose(levels[-1], 0.9 * nothing, rtol=1e-12)
    np.testing.assert_allclose(np.diff(np.log(levels)), np.log(levels[-1] / levels[0]) / 3)


def test_several_starts_are_branches_of_one_table() -> None:
    problem = classifier().problem()
    starts = torch.stack([problem.current(), 2 * problem.current().flip(0)])
    front = isoloss.front(problem, levels=[0.5, 0.8], starts=starts, kkt=1e-2, progress=False)
    assert front.table["start"].to_list() == [0, 0, 1, 1, 0, 1]
    assert (front.table["outcome"] == "converged").all()
    for k, start in enumerate(starts):
        own = isoloss.front(problem, levels=[0.5, 0.8], starts=start, kkt=1e-2, progress=False)
        mine = front.table[front.table["start"] == k]["regularizer"]
        assert mine.to_list() == own.table["regularizer"].to_list()


@pytest.mark.slow
def test_the_number_of_workers_changes_nothing() -> None:
    problem = classifier().problem()
    starts = [problem.current(), 2 * problem.current()]
    fronts = [
        isoloss.front(problem, levels=[0.5, 0.8], starts=starts, workers=workers, progress=False)
        for workers in (1, 2)
    ]
    same(*fronts)


def test_levels_that_cannot_be_reached_are_rows_of_the_table(tmp_path: Path) -> None:
    def loss(theta: torch.Tensor) -> torch.Tensor:  # from 1 to less than 2
        return 2 - torch.exp(-theta.square().sum())

    problem = vector_problem(loss, torch.tensor([0.5, 0.7], dtype=F64))
    away = isoloss.SquaredNorm(center=torch.tensor([1.0, 0.0], dtype=F64))
    asked = {"regularizer": away, "kkt": 1e-6, "checkpoint": tmp_path, "progress": False}
    front, again = (isoloss.front(problem, levels=[0.5, 1.3, 1.6, 2.5], **asked) for _ in "12")
    same(front, again)
    table = front.table.set_index(["level", "direction"])
    for level in (1.3, 1.6):
        radius = np.sqrt(-np.log(2 - level))
        for direction in ("rising", "falling"):
            row = table.loc[level, direction]
            assert row["outcome"] == "converged"
            assert row["regularizer"] == pytest.approx((1 - radius) ** 2, abs=1e-4)
    for level in (0.5, 2.5):
        row = table.loc[level, "rising"]
        assert row["outcome"] in ("level_unreachable", "gradient_vanished", "non_finite")
        assert np.isnan(row["regularizer"])
        assert row["loss"] == pytest.approx(level, abs=0.7)
    assert front.best["level"].to_list() == [1.3, 1.6]
    lost = int(front.table.index[front.table["level"] == 2.5][0])
    assert front.points[lost].isnan().all()
    with pytest.raises(isoloss.InputError, match="that was reached"):
        front.load_into(nn.Linear(2, 1), lost)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"levels": [0.5, 0.8], "count": 3}, ("levels and count",)),
        ({"levels": [0.5, 0.8, 0.5]}, ("0.5", "twice")),
        ({"levels": [0.5, -0.1]}, ("positive", "-0.1")),
        ({"levels": [0.5, float("nan")]}, ("positive", "nan")),
        ({"levels": [0.5, "high"]}, ("levels[1]", "'high'")),
        ({"levels": [0.5]}, ("two at least", "got 1")),
        ({"levels": 0.5}, ("levels", "0.5")),
        ({"count": 1}, ("count", "at least 2", "1")),
        ({"count": 2.5}, ("count", "2.5")),
        ({"starts": []}, ("starts", "none")),
        ({"starts": torch.full((44,), float("nan"))}, ("start 0", "NaN")),
        ({"starts": torch.zeros(3)}, ("starts", "44")),
        ({"starts": torch.zeros(44)}, ("give levels", "zero")),
        ({"kkt": -1.0, "levels": [0.5, 0.8]}, ("kkt_residual", "-1")),
        ({"rtol": 2.0, "levels": [0.5, 0.8]}, ("rtol", "2")),
        ({"method": "paper"}, ("method",)),
        ({"probes": {"a b": classifier().problem()}, "levels": [0.5, 0.8]}, ("'a b'", "plain")),
        ({"workers": 0, "levels": [0.5, 0.8]}, ("workers", "0")),
        ({"regularizer": "l3", "levels": [0.5, 0.8]}, ("l3", "l1")),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, Any], words: Any, refuses: Refuses) -> None:
    problem = classifier().problem()
    assert problem.size == 44
    with refuses(*words):
        isoloss.front(problem, **given, progress=False)


def test_further_constraints_are_held_at_every_level() -> None:
    center = torch.tensor([2.0, 1.0], dtype=F64)
    problem = vector_problem(lambda t: 0.1 + (t - center).square().sum(), torch.ones(2, dtype=F64))
    low = vector_problem(lambda t: t[1] - 0.2 * t[0] + 1, torch.ones(2, dtype=F64))
    front = isoloss.front(
        problem, levels=[0.4, 0.6], kkt=1e-6, rtol=1e-9, progress=False,
        hold={"slope": isoloss.at_most(low, 1.43, rtol=1e-9)},
    )  # fmt: skip
    assert (front.table["outcome"] == "converged").all()
    for level, point in zip(front.table["level"], front.points, strict=True):
        assert point[1] - 0.2 * point[0] + 1 <= 1.43 * (1 + 1e-8)
        free = center * (1 - np.sqrt(level - 0.1) / center.norm())
        outside = free[1] - 0.2 * free[0] + 1 > 1.43
        if outside:  # on the circle and on the line
            assert point[1] - 0.2 * point[0] + 1 == pytest.approx(1.43, rel=1e-6)
        else:
            torch.testing.assert_close(point, free, rtol=1e-5, atol=1e-6)
        assert (point - center).square().sum() == pytest.approx(level - 0.1, rel=1e-6)


# ---------------------------------------------------------------- on the disk


def test_a_front_is_read_back_as_it_was_saved(tmp_path: Path, refuses: Refuses) -> None:
    problem = classifier().problem()
    front = isoloss.front(problem, levels=[0.5, 0.8], kkt=1e-2, progress=False)
    for _ in range(2):  # in place of an earlier one
        front.save(tmp_path / "front")
    again = isoloss.Front.load(tmp_path / "front")
    same(front, again)
    assert (again.regularizer, again.shapes) == (front.regularizer, front.shapes)
    with refuses("front"):
        isoloss.Front.load(tmp_path / "other")
    (tmp_path / "front" / "mine.txt").write_text("kept")
    with refuses("mine.txt"):
        front.save(tmp_path / "front")
    isoloss.traverse(problem, progress=False).save(tmp_path / "walk")
    with refuses("something else"):
        isoloss.Front.load(tmp_path / "walk")
    file = tmp_path / "front" / "points.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(isoloss.ResultsError, match="checksum"):
        isoloss.Front.load(tmp_path / "front")


class Killed(BaseException):
    """The process is gone."""


class Dying:
    """The squared norm, until the process is killed."""

    name = "dying"
    curvature = 2.0
    left = 10**9

    def value_and_grad(self, theta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        Dying.left -= 1
        if Dying.left < 0:
            raise Killed
        return theta.dot(theta), 2 * theta


@pytest.mark.slow
@pytest.mark.parametrize("every", [0.0, 30.0])
def test_a_front_that_was_killed_goes_on_to_the_same_bits(tmp_path: Path, every: float) -> None:
    problem = classifier().problem()
    start = problem.current()
    plan = Plan(
        problem, Dying(), (0.4, 0.6, 0.9), isoloss.Stop(kkt_residual=1e-2), isoloss.SQP(), 1e-3,
        {}, {},
    )  # fmt: skip
    Dying.left = 10**9
    whole = follow(plan, 0, start, lambda *_: False)
    needed = 10**9 - Dying.left
    kept = replace(plan, folder=tmp_path, every=every)
    for calls in (3, int(0.75 * needed), 5):
        Dying.left = calls
        with pytest.raises(Killed):
            follow(kept, 0, start, lambda *_: False)
    Dying.left = 10**9
    found = follow(kept, 0, start, lambda *_: False)
    used = 10**9 - Dying.left
    same(gathered(plan, [whole]), gathered(plan, [found]))
    assert used < 0.6 * needed  # what was done before is not done again
    Dying.left = 2  # the loss at the last end is looked at, and no more
    same(gathered(plan, [whole]), gathered(plan, [follow(kept, 0, start, lambda *_: False)]))
    assert not list(tmp_path.glob("*/checkpoint*"))
    Dying.left = 10**9


def test_what_is_kept_of_another_front_is_refused(tmp_path: Path, refuses: Refuses) -> None:
    problem = classifier().problem()

    def front(of: Problem = problem, **given: Any) -> isoloss.Front:
        usual = {"levels": [0.5, 0.8], "kkt": 1e-2, "checkpoint": tmp_path, "progress": False}
        return isoloss.front(of, **{**usual, **given})

    first = front()
    same(first, front())
    with refuses("another front", "levels"):
        front(levels=[0.5, 0.9])
    with refuses("another front", "kkt_residual"):
        front(kkt=1e-3)
    with refuses("another front", "the loss at its last end"):
        front(classifier(seed=1).problem(), starts=problem.current())
    file = next(tmp_path.glob("start-000/points.safetensors"))
    file.write_bytes(b"torn")
    same(first, front())


def test_ctrl_c_leaves_what_there_is_and_the_rest_for_later(tmp_path: Path) -> None:
    problem = classifier().problem()
    plan = Plan(
        problem, "squared_norm", (0.4, 0.6, 0.9), isoloss.Stop(kkt_residual=1e-2), isoloss.SQP(),
        1e-3, {}, {},
    )  # fmt: skip
    whole = follow(plan, 0, problem.current(), lambda *_: False)
    kept = replace(plan, folder=tmp_path)
    left = follow(kept, 0, problem.current(), lambda leg, _: leg == 2)
    assert left.interrupted
    assert [row["outcome"] for row in left.rows] == ["converged", "converged", "interrupted"]
    assert left.rows[:2] == whole.rows[:2]
    found = follow(kept, 0, problem.current(), lambda *_: False)
    same(gathered(plan, [whole]), gathered(plan, [found]))
