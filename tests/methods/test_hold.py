"""Walks that hold more than a level, against SciPy, closed forms and plain torch in float64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from tests.problems import (
    LinearRegularizer,
    Net,
    Vector,
    classifier,
    normal,
    regressor,
    vector_problem,
)
from torch import Tensor, nn

import isoloss
from isoloss import Checkpoint, Outcome, Path, Problem, Record, Stop, at_most, equal, traverse
from isoloss.constraints import Constraint, balanced
from isoloss.path import COLUMNS

F64 = torch.float64
ALL = Record(points_at_most=None)
TIGHT: dict[str, Any] = {"rtol": 1e-9, "stop": Stop(kkt_residual=1e-7, evaluations=4000)}
"""The end to seven digits."""


def walk(problem: Problem, **settings: Any) -> Path:
    known = {"stop": Stop(evaluations=300), "record": ALL, "progress": False}
    return traverse(problem, **{**known, **settings})


def last(path: Path) -> dict[str, Any]:
    return path.steps.iloc[-1].to_dict()


class Quadratic:
    """(theta - center)' A (theta - center) / 2 + constant, in NumPy and as a problem."""

    def __init__(self, A: Vector, center: Vector, constant: float = 1.0) -> None:
        self.A, self.center, self.constant = A, center, constant

    @staticmethod
    def random(source: np.random.Generator, n: int, far: float = 1.0) -> Quadratic:
        A = source.standard_normal((n, n))
        return Quadratic(A @ A.T / n + 0.3 * np.eye(n), far * source.standard_normal(n))

    def value(self, x: Vector) -> float:
        return float((x - self.center) @ self.A @ (x - self.center) / 2 + self.constant)

    def grad(self, x: Vector) -> Vector:
        return self.A @ (x - self.center)

    def problem(self, start: Vector) -> Problem:
        A, center = torch.from_numpy(self.A), torch.from_numpy(self.center)
        return vector_problem(
            lambda theta: (theta - center) @ A @ (theta - center) / 2 + self.constant,
            torch.from_numpy(start),
        )

    def for_scipy(self, bound: float, upper: bool) -> dict[str, Any]:
        return {
            "type": "ineq" if upper else "eq",
            "fun": lambda x: bound - self.value(x),
            "jac": lambda x: -self.grad(x),
        }


def slsqp(start: Vector, constraints: list[dict[str, Any]]) -> Any:
    """SciPy's shortest point."""
    return optimize.minimize(
        lambda x: x @ x,
        start,
        jac=lambda x: 2 * x,
        constraints=constraints,
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 1000},
    )


# ---------------------------------------------------------------- ends that others know


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_the_end_is_that_of_slsqp(seed: int, outside: bool) -> None:
    source = np.random.default_rng(seed)
    n, more = int(source.integers(6, 12)), 1 + seed % 3  # 2 to 4 constraints
    quadratics = [Quadratic.random(source, n) for _ in range(1 + more)]
    start = (4.0 if outside else 2.0) * source.standard_normal(n)
    feasible = source.standard_normal(n) if outside else start
    level, *bounds = (one.value(feasible) for one in quadratics)
    uppers = [bool(source.random() < 0.6) for _ in bounds]
    problem, *others = (one.problem(start) for one in quadratics)
    hold = {
        f"held {k}": (at_most if upper else equal)(other, bound, rtol=1e-9)
        for k, (other, bound, upper) in enumerate(zip(others, bounds, uppers, strict=True))
    }
    upper_level = outside and seed % 2 == 1
    path = walk(
        problem, hold=hold, level=at_most(problem, level) if upper_level else level, **TIGHT
    )
    assert path.outcome is Outcome.CONVERGED
    end = path.points[-1].numpy()
    rules = [
        one.for_scipy(bound, upper)
        for one, bound, upper in zip(
            quadratics, [level, *bounds], [upper_level, *uppers], strict=True
        )
    ]
    # it does not converge from everywhere
    tries = (slsqp(end + 0.01 * source.standard_normal(n), rules) for _ in range(5))
    oracle = next(found for found in tries if found.success)
    assert last(path)["regularizer"] == pytest.approx(oracle.fun, rel=1e-6, abs=1e-10)
    assert np.linalg.norm(end - oracle.x) <= 1e-5 * np.linalg.norm(start)


def test_the_end_of_a_network_is_that_of_slsqp() -> None:
    net, other = classifier((2, 3, 3), seed=3), classifier((2, 3, 3), seed=8)
    validation = Problem(net.model, "cross_entropy", other.data)
    start = net.theta
    oracle_net = Net(net.model, net.loss, other.data, net.sizes)
    level, bound = (one.loss_and_grad(start.numpy())[0] for one in (net, oracle_net))
    hold = {"validation": at_most(validation, 0.95 * bound, rtol=1e-9)}
    path = walk(net.problem(), hold=hold, **TIGHT)
    assert path.outcome is Outcome.CONVERGED
    assert last(path)["validation_active"]
    end = path.points[-1].numpy()

    def constraint(one: Net, value: float, kind: str) -> dict[str, Any]:
        return {
            "type": kind,
            "fun": lambda x: value - one.loss_and_grad(x)[0],
            "jac": lambda x: -one.loss_and_grad(x)[1],
        }

    constraints = [constraint(net, level, "eq"), constraint(oracle_net, 0.95 * bound, "ineq")]
    oracle = slsqp(end + 1e-3 * normal(len(end), seed=1).numpy(), constraints)
    assert last(path)["regularizer"] == pytest.approx(oracle.fun, rel=1e-6)


@pytest.mark.parametrize("seed", [1, 2, 4, 7])
def test_the_end_of_a_network_takes_no_long_tail(seed: int) -> None:
    net, other = (regressor((4, 20, 2), 20, seed=k) for k in (seed, seed + 100))
    held = other.problem()
    hold = {"other": at_most(held, held.loss(net.theta).item())}
    path = walk(net.problem(), hold=hold, stop=Stop(kkt_residual=1e-4, evaluations=200))
    assert path.outcome is Outcome.CONVERGED, path.message
    end = path.points[-1].numpy()
    slopes = np.stack([one.loss_and_grad(end)[1] for one in (net, other)], axis=1)
    balanced_by = np.linalg.lstsq(slopes, -2 * end, rcond=None)[0]
    assert np.linalg.norm(2 * end + slopes @ balanced_by) <= 1.01e-4 * np.linalg.norm(2 * end)


@pytest.mark.slow
@pytest.mark.parametrize("limits", [(0.2,), (-0.4, -0.1), (-0.3, 5.0, -0.2), (9.0, 9.0)], ids=str)
def test_active_sets_multipliers_and_ends_of_a_cut_sphere(limits: tuple[float, ...]) -> None:
    """<b, theta> on a sphere with theta_k <= t_k: each is active where the rest leads beyond it."""
    n, radius = 6, 1.5
    b = -normal(n, seed=2).abs() - 0.3
    start = torch.full((n,), -1.0, dtype=F64)
    start *= radius / start.norm()
    problem = vector_problem(lambda theta: theta.dot(theta), start)

    def coordinate(k: int) -> Callable[[dict[str, Tensor]], Tensor]:
        return lambda parameters: parameters["theta"][k]

    hold = {f"c{k}": at_most(coordinate(k), t, atol=1e-9) for k, t in enumerate(limits)}
    path = walk(problem, hold=hold, regularizer=LinearRegularizer(b), **TIGHT)
    assert path.outcome is Outcome.CONVERGED

    best: tuple[float, Tensor, set[int]] | None = None
    for count in range(len(limits) + 1):
        for active in itertools.combinations(range(len(limits)), count):
            free = torch.tensor([k not in active for k in range(n)])
            end = torch.zeros(n, dtype=F64)
            for k in active:
                end[k] = limits[k]
            left = radius**2 - end.square().sum().item()
            if left <= 0:
                continue
            end[free] = -math.sqrt(left) * b[free] / b[free].norm()
            if all(end[k] <= t + 1e-12 for k, t in enumerate(limits)):
                found = (b.dot(end).item(), end, set(active))
                best = found if best is None or found[0] < best[0] else best
    assert best is not None
    value, end, active = best
    row = last(path)
    assert row["regularizer"] == pytest.approx(value, rel=1e-7)
    torch.testing.assert_close(path.points[-1], end, rtol=0, atol=1e-6)
    of_level = float(-b[-1] / (2 * end[-1]))
    assert row["level_multiplier"] == pytest.approx(of_level, rel=1e-5)
    for k in range(len(limits)):
        wanted = float(-b[k] - 2 * of_level * end[k]) if k in active else 0.0
        assert row[f"c{k}_active"] == (k in active)
        assert row[f"c{k}_multiplier"] == pytest.approx(wanted, abs=1e-5)


@pytest.mark.slow
@settings(max_examples=15)
@given(seed=st.integers(0, 10_000), n=st.integers(3, 9), more=st.integers(1, 4))
def test_convex_problems_end_where_karush_kuhn_and_tucker_say(seed: int, n: int, more: int) -> None:
    """All bounds are upper ones of convex quadratics around the origin: one end, from anywhere."""
    source = np.random.default_rng(seed)
    quadratics = [Quadratic.random(source, n, far=0.3) for _ in range(1 + more)]
    goal = 3 * source.standard_normal(n)
    start = 2 * source.standard_normal(n)
    bounds = [one.value(np.zeros(n)) * float(source.uniform(1.2, 3)) for one in quadratics]
    problem, *others = (one.problem(start) for one in quadratics)
    hold = {
        f"c{k}": at_most(q, bound, rtol=1e-9)
        for k, (q, bound) in enumerate(zip(others, bounds[1:], strict=True))
    }
    distance = isoloss.SquaredNorm(center=torch.from_numpy(goal))
    level = at_most(problem, bounds[0])
    path = walk(problem, hold=hold, level=level, regularizer=distance, **TIGHT)
    assert path.outcome is Outcome.CONVERGED
    end, row = path.points[-1].numpy(), last(path)
    names = ["level", *hold]
    multipliers = np.array([row[f"{name}_multiplier"] for name in names])
    values = np.array([one.value(end) for one in quadratics])
    assert (values <= np.array(bounds) * (1 + 1.1e-9)).all()
    assert (multipliers >= 0).all()
    assert (np.abs(multipliers * (values / bounds - 1)) <= 1e-7 * multipliers.max()).all()
    balance = 2 * (end - goal)
    rest = balance + multipliers @ np.stack([one.grad(end) for one in quadratics])
    assert np.linalg.norm(rest) <= 1e-6 * np.linalg.norm(balance)


def test_the_multiplier_is_what_a_unit_of_the_bound_is_worth() -> None:
    source = np.random.default_rng(4)
    one, two = (Quadratic.random(source, 7) for _ in range(2))
    start = 2 * source.standard_normal(7)
    problem, other, bound = one.problem(start), two.problem(start), two.value(start)
    ends = [
        last(walk(problem, hold={"other": equal(other, b, rtol=1e-10)}, **TIGHT))
        for b in (0.80 * bound, 0.81 * bound)
    ]
    worth = (ends[0]["regularizer"] - ends[1]["regularizer"]) / (0.01 * bound)
    mean = (ends[0]["other_multiplier"] + ends[1]["other_multiplier"]) / 2
    assert mean == pytest.approx(worth, rel=1e-2)


# ---------------------------------------------------------------- agreement among walks


@pytest.fixture(scope="module")
def case() -> tuple[Net, Problem]:
    """A network with a training and a validation set."""
    net = classifier((3, 6, 4), examples=20, seed=1)
    return net, Problem(net.model, "cross_entropy", classifier((3, 6, 4), seed=5).data)


def test_what_is_never_reached_changes_no_end() -> None:
    source = np.random.default_rng(3)
    one = Quadratic.random(source, 8)
    start = 2 * source.standard_normal(8)
    problem = one.problem(start)
    alone = walk(problem, **TIGHT)
    loose = {"norm": at_most("squared_norm", 1e3), "l1": at_most("l1", 1e3)}
    held = walk(problem, hold=loose, **TIGHT)
    torch.testing.assert_close(held.points[-1], alone.points[-1], rtol=0, atol=1e-6)
    assert not held.steps[["norm_active", "l1_active"]].any(axis=None)
    assert (held.steps[["norm_multiplier", "l1_multiplier"]] == 0).all(axis=None)


def test_an_upper_bound_that_is_reached_ends_where_the_equality_does() -> None:
    source = np.random.default_rng(6)
    one, two = (Quadratic.random(source, 8) for _ in range(2))
    start = 2 * source.standard_normal(8)
    problem, other = one.problem(start), two.problem(start)
    bound = 0.8 * two.value(walk(problem, **TIGHT).points[-1].numpy())
    upper, exact = (
        walk(problem, hold={"other": kind(other, bound, rtol=1e-9)}, **TIGHT)
        for kind in (at_most, equal)
    )
    assert last(upper)["other_active"]
    assert last(upper)["other_multiplier"] > 0
    torch.testing.assert_close(upper.points[-1], exact.points[-1], rtol=0, atol=1e-5)


def test_a_level_that_is_an_upper_bound_ends_where_the_level_does() -> None:
    source = np.random.default_rng(2)
    one = Quadratic.random(source, 9)
    problem, level = one.problem(3 * source.standard_normal(9)), 0.7 * one.value(np.zeros(9))
    upper, exact = (walk(problem, level=at, **TIGHT) for at in (at_most(problem, level), level))
    assert upper.outcome is exact.outcome is Outcome.CONVERGED
    assert last(upper)["level_active"]
    torch.testing.assert_close(upper.points[-1], exact.points[-1], rtol=0, atol=1e-5)
    penalty = last(upper)["equivalent_penalty"]
    assert last(upper)["level_multiplier"] == pytest.approx(1 / penalty, rel=1e-3)


def test_a_least_point_inside_all_bounds_is_an_end() -> None:
    start = torch.full((5,), 2.0, dtype=F64)
    center = normal(5, seed=1)
    problem = vector_problem(lambda theta: theta.dot(theta) + 1, start)
    distance = isoloss.SquaredNorm(center=center)
    hold = {"sum": at_most(lambda parameters: parameters["theta"].sum(), 50.0)}
    path = walk(problem, level=at_most(problem, 40.0), hold=hold, regularizer=distance, **TIGHT)
    assert path.outcome is Outcome.CONVERGED
    torch.testing.assert_close(path.points[-1], center, rtol=0, atol=1e-6)
    assert not last(path)["level_active"]


def test_nothing_held_is_the_walk_of_a_level_bit_for_bit(case: Any) -> None:
    net, _ = case
    problem = net.problem(dtype=torch.float32)
    level = problem.loss(problem.current()).item()
    alone = walk(problem, level=level)
    for other in (walk(problem, level=level, hold={}), walk(problem, level=equal(problem, level))):
        assert torch.equal(other.points, alone.points)
        assert other.steps.drop(columns="seconds").equals(alone.steps.drop(columns="seconds"))
    assert list(alone.steps) == list(COLUMNS)
    assert alone.steps["evaluations"].dtype.kind == "i"
    assert alone.constraints == {}


# ---------------------------------------------------------------- every point


def hold_of(net: Net, validation: Problem, start: Tensor) -> dict[str, Constraint]:
    """An equality and two upper bounds, of which the start does not meet the last."""
    norm = start.dot(start).item()
    return {
        "validation": at_most(validation, 1.02 * validation.loss(start).item()),
        "first": equal(lambda parameters: parameters["0.weight"].square().sum(), 9.0, atol=1e-2),
        "norm": at_most("squared_norm", 0.8 * norm),
    }


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("regularizer", ["squared_norm", "l1"])
def test_every_point_meets_all_and_every_row_is_true_in_plain_torch(
    case: tuple[Net, Problem], dtype: torch.dtype, regularizer: str
) -> None:
    net, validation = case
    problem = net.problem(dtype=dtype)
    hold = hold_of(net, validation.with_dtype(dtype), problem.current())
    path = walk(problem, hold=hold, regularizer=regularizer)
    assert len(path.points) > 5
    rows = path.steps.iloc[path.point_steps]
    assert (path.steps["kind"] == "correct").any()
    model = classifier((3, 6, 4), examples=20, seed=1).model
    noise = 1e-5 if dtype == torch.float32 else 1e-9
    for theta, (_, row) in zip(path.points, rows.iterrows(), strict=True):
        nn.utils.vector_to_parameters(theta.double(), model.parameters())
        losses = [
            nn.functional.cross_entropy(model(inputs), targets)
            for inputs, targets in (net.data, classifier((3, 6, 4), seed=5).data)
        ]
        first = model[0].weight.square().sum()
        norm = sum(p.square().sum() for p in model.parameters())
        assert abs(losses[0].item() / path.level - 1) <= 1e-3 + noise
        assert losses[1].item() <= hold["validation"].bound * (1 + 1e-3 + noise)
        assert abs(first.item() - 9) <= 1e-2 + 9 * noise
        assert norm.item() <= hold["norm"].bound * (1 + 1e-3 + noise)
        values = {"validation": losses[1], "first": first, "norm": norm}
        parts = {"level": losses[0], **values}
        for name, one in values.items():
            assert row[f"{name}_value"] == pytest.approx(one.item(), rel=noise)
        slopes = {
            name: nn.utils.parameters_to_vector(
                torch.autograd.grad(one, list(model.parameters()), materialize_grads=True,
                                    allow_unused=True)
            ).detach()
            for name, one in parts.items()
        }  # fmt: skip
        flat = nn.utils.parameters_to_vector(model.parameters()).detach()
        r = 2 * flat if regularizer == "squared_norm" else flat / (flat**2 + 1e-4).sqrt()
        _check_residual(row, r, slopes, hold)


def _check_residual(
    row: Any,
    r: Tensor,
    slopes: Mapping[str, Tensor],
    hold: Mapping[str, Constraint],
) -> None:
    """The KKT residual of a row against SciPy's bounded least squares."""
    active = [name for name in slopes if name == "level" or row[f"{name}_active"]]
    columns = torch.stack([slopes[name] for name in active], 1).numpy()
    sizes = np.linalg.norm(columns, axis=0)
    least = [0.0 if name in hold and hold[name].upper else -np.inf for name in active]
    found = optimize.lsq_linear(columns / sizes, -r.numpy(), (least, np.inf), tol=1e-14)
    residual = math.sqrt(2 * found.cost) / np.linalg.norm(r.numpy())
    assert row["kkt_residual"] == pytest.approx(residual, rel=1e-2, abs=1e-5)
    for name in set(slopes) - set(active):
        assert row[f"{name}_multiplier"] == 0
        assert row[f"{name}_value"] < hold[name].bound


def test_a_start_outside_is_brought_in_first(case: tuple[Net, Problem]) -> None:
    net, _ = case
    bound = 0.8 * net.theta.dot(net.theta).item()
    path = walk(net.problem(), hold={"norm": at_most("squared_norm", bound)}, regularizer="l1")
    assert path.steps["kind"].iloc[1] == "correct"
    assert path.point_steps[0] == (path.steps["kind"] == "correct").sum()
    assert (path.points.square().sum(1) <= bound * 1.001).all()


@given(seed=st.integers(0, 10_000), n=st.integers(1, 6))
def test_multipliers_are_those_of_bounded_least_squares(seed: int, n: int) -> None:
    source = np.random.default_rng(seed)
    slopes = source.standard_normal((n, 8)) * 10.0 ** source.uniform(-3, 3, (n, 1))
    r, free = source.standard_normal(8), source.random(n) < 0.4
    found, rest = balanced(torch.from_numpy(r), list(torch.from_numpy(slopes)), free.tolist())
    sizes = np.linalg.norm(slopes, axis=1)
    columns, least = (slopes / sizes[:, None]).T, np.where(free, -np.inf, 0.0)
    oracle = optimize.lsq_linear(columns, -r, (least, np.inf), method="bvls", tol=1e-14)
    assert rest == pytest.approx(math.sqrt(2 * oracle.cost), rel=1e-7)
    np.testing.assert_allclose(found * sizes, oracle.x, rtol=1e-5, atol=1e-6)


def test_evaluations_are_counted_apart_and_in_all(case: tuple[Net, Problem]) -> None:
    net, validation = case
    problem = net.problem()
    counted = {"training": 0, "validation": 0}
    for name, one in (("training", problem), ("validation", validation)):
        inner = one.loss_and_grad

        def count(theta: Tensor, inner: Any = inner, name: str = name) -> Any:
            counted[name] += 1
            return inner(theta)

        one.loss_and_grad = count  # pyright: ignore[reportAttributeAccessIssue]
    try:
        hold = {
            "validation": at_most(validation, 1.1 * validation.loss(net.theta).item()),
            "slope": at_most("gradient_norm", 10.0),
        }
        before = problem.evaluations, validation.evaluations
        path = walk(problem, hold=hold, stop=Stop(evaluations=120), check=False)
    finally:
        del problem.loss_and_grad, validation.loss_and_grad  # pyright: ignore
    row, examples = last(path), (problem.examples, validation.examples)
    mine, other = problem.evaluations - before[0], validation.evaluations - before[1]
    assert row["validation_evaluations"] == other == counted["validation"]
    assert row["slope_evaluations"] == 3 * other  # at every point: a gradient and a product
    assert row["evaluations"] == pytest.approx(mine + other * examples[1] / examples[0])


# ---------------------------------------------------------------- what else a walk does


@pytest.mark.slow
def test_a_walk_continues_with_the_same_bits(case: tuple[Net, Problem], tmp_path: FilePath) -> None:
    net, validation = case
    problem = net.problem(dtype=torch.float32)
    hold = hold_of(net, validation.with_dtype(torch.float32), problem.current())
    level = at_most(problem, problem.loss(problem.current()).item())
    settings: dict[str, Any] = {"hold": hold, "level": level, "regularizer": "l1"}
    whole = walk(problem, stop=Stop(evaluations=150), **settings)
    kinds, evaluations = whole.steps["kind"], whole.steps["evaluations"]
    assert (kinds == "sqp").sum() > 4
    outside, inside = (evaluations[kinds == kind].iloc[1] for kind in ("correct", "sqp"))
    for limit in (outside, inside, 150.0):
        path = walk(
            problem,
            checkpoint=Checkpoint(tmp_path / "walk", every=0),
            stop=Stop(evaluations=int(limit)),
            **settings,
        )
    assert path.steps.drop(columns="seconds").equals(whole.steps.drop(columns="seconds"))
    assert torch.equal(path.points, whole.points)
    assert path.message == whole.message


def test_a_checkpoint_of_other_bounds_is_refused(
    case: tuple[Net, Problem], tmp_path: FilePath, refuses: Any
) -> None:
    net, validation = case
    folder, bound = tmp_path / "walk", 2 * validation.loss(net.theta).item()
    kept: dict[str, Any] = {"stop": Stop(evaluations=20)}

    def go(**hold: Constraint) -> Path:
        return walk(net.problem(), hold=hold, checkpoint=Checkpoint(folder, every=0), **kept)

    go(validation=at_most(validation, bound))
    with refuses("hold.validation.bound"):
        go(validation=at_most(validation, 1.1 * bound))
    with refuses("hold"):
        go()


def test_a_path_is_saved_with_what_was_held(case: tuple[Net, Problem], tmp_path: FilePath) -> None:
    net, validation = case
    problem, level = net.problem(), net.problem().loss(net.theta).item()
    hold = {"group b": at_most(validation, 9.0), "sum": at_most("l1", 80.0, atol=1e-3)}
    path = walk(problem, hold=hold, level=at_most(problem, level), stop=Stop(evaluations=30))
    path.save(tmp_path / "walk")
    read = Path.load(tmp_path / "walk")
    assert read.steps.equals(path.steps)
    assert read.steps["group b_active"].dtype == bool
    assert read.constraints == path.constraints
    assert read.constraints["sum"] == {
        "quantity": "l1", "kind": "at_most", "bound": 80.0, "rtol": None, "atol": 1e-3,
    }  # fmt: skip
    assert read.constraints["level"]["bound"] == level


def test_the_iterator_gives_the_rows_of_the_table(case: tuple[Net, Problem]) -> None:
    net, validation = case
    hold = {"validation": at_most(validation, 2.0)}
    rows = list(isoloss.walk(net.problem(), hold=hold, stop=Stop(evaluations=40)))
    path = walk(net.problem(), hold=hold, stop=Stop(evaluations=40))
    assert [row["validation_value"] for row in rows] == path.steps["validation_value"].tolist()
    assert list(rows[0]) == list(path.steps)


def test_masked_entries_stay_where_they_are(case: tuple[Net, Problem]) -> None:
    net, _ = case
    mask = {"0.weight": torch.arange(18).view(6, 3) % 2 == 0}
    problem = net.problem(mask=mask)
    other = Problem(net.model, "cross_entropy", classifier((3, 6, 4), seed=5).data, mask=mask)
    hold = {
        "validation": at_most(other, 0.95 * other.loss(net.theta).item()),
        "norm": at_most("squared_norm", 0.8 * net.theta.dot(net.theta).item()),
    }
    path = walk(problem, hold=hold, regularizer="l1", stop=Stop(evaluations=80))
    fixed = torch.zeros(problem.size, dtype=torch.bool)
    fixed[:18] = ~mask["0.weight"].flatten()
    assert path.outcome.success
    assert torch.equal(path.points[:, fixed], net.theta[fixed].expand(len(path.points), -1))
    assert last(path)["regularizer"] < 0.9 * path.steps["regularizer"].iloc[0]


def test_rounded_gradients_hold_all_as_exactly(case: tuple[Net, Problem]) -> None:
    net, _ = case
    problem = net.problem(dtype=torch.float32, precision="bf16")
    data = classifier((3, 6, 4), seed=5).data
    other = Problem(net.model, "cross_entropy", data, dtype=torch.float32, precision="bf16")
    bound = 0.97 * other.loss(problem.current()).item()
    path = walk(problem, hold={"validation": at_most(other, bound)}, stop=Stop(evaluations=150))
    exact = [one.with_dtype(F64) for one in (problem, other)]
    assert len(path.points) > 5
    for theta in path.points.double():
        assert exact[0].loss(theta).item() == pytest.approx(path.level, rel=1.01e-3)
        assert exact[1].loss(theta).item() <= bound * 1.00101


# ---------------------------------------------------------------- what cannot be


def sphere() -> tuple[Problem, Problem]:
    """|theta|^2 and the squared distance from a point outside its level set."""
    start = torch.tensor([1.0, 1.0, 0.5], dtype=F64)
    center = torch.tensor([3.0, 0.0, 0.0], dtype=F64)
    return (
        vector_problem(lambda theta: theta.dot(theta), start),
        vector_problem(lambda theta: (theta - center).square().sum(), start),
    )


@pytest.mark.parametrize("kind", [at_most, equal])
def test_constraints_that_contradict_the_level_are_named(kind: Any) -> None:
    problem, other = sphere()
    path = walk(problem, hold={"other": kind(other, 0.1)}, regularizer="l1")
    assert path.outcome is Outcome.CONSTRAINT_UNREACHABLE
    assert not path.outcome.success
    assert len(path.points) == 0
    assert "the loss" in path.message
    assert "other" in path.message
    assert last(path)["evaluations"] < 200


def test_constraints_that_contradict_one_another_are_named() -> None:
    problem, other = sphere()
    hold = {"near": at_most(other, 3.0), "far": at_most(-isoloss.SquaredNorm(), -50.0, atol=1e-2)}
    path = walk(problem, hold=hold, level=at_most(problem, 100.0), regularizer="l1")
    assert path.outcome is Outcome.CONSTRAINT_UNREACHABLE
    assert "near" in path.message
    assert "far" in path.message


def test_a_limit_on_the_way_in_names_what_is_not_met(case: tuple[Net, Problem]) -> None:
    net, validation = case
    hold = {"validation": at_most(validation, 1e-3)}
    path = walk(net.problem(), hold=hold, stop=Stop(evaluations=4))
    assert path.outcome is Outcome.CONSTRAINT_UNREACHABLE
    assert "validation is" in path.message
    assert "at most 0.001" in path.message
    assert "Stop(evaluations=...)" in path.message


@pytest.mark.slow
def test_the_same_constraint_twice_is_no_trouble() -> None:
    problem, _ = sphere()
    twice = {"norm": equal("squared_norm", 2.25), "again": at_most("squared_norm", 2.25)}
    path = walk(problem, hold=twice, regularizer="l1", stop=Stop(kkt_residual=1e-3))
    alone = walk(problem, regularizer="l1", stop=Stop(kkt_residual=1e-3))
    assert path.outcome is Outcome.CONVERGED
    assert last(path)["regularizer"] == pytest.approx(last(alone)["regularizer"], rel=1e-2)


def test_a_quantity_that_is_flat_where_it_is_met_may_be_held() -> None:
    problem, _ = sphere()

    def below(parameters: dict[str, Tensor]) -> Tensor:
        return torch.relu(-parameters["theta"].sum())

    path = walk(problem, hold={"below": at_most(below, 0.0, atol=1e-3)}, regularizer="l1")
    assert path.outcome is Outcome.CONVERGED


UNSOUND: dict[str, tuple[Callable[[Problem, Problem], Any], tuple[str, ...]]] = {
    "bound of NaN": (lambda _, q: at_most(q, math.nan), ("bound of at_most", "finite", "nan")),
    "zero bound": (lambda _, q: at_most(q, 0.0), ("positive", "atol=")),
    "negative value": (lambda _, q: equal(q, -2.0), ("positive", "equal(..., -2, atol=...)")),
    "rtol of 2": (lambda _, q: at_most(q, 1.0, rtol=2.0), ("rtol", "(0, 1)", "2.0")),
    "atol of 0": (lambda _, q: at_most(q, 1.0, atol=0.0), ("atol", "positive")),
    "quantity of 3": (lambda _, _q: at_most(3, 1.0), ("quantity must be a Problem", "an int, 3")),  # pyright: ignore[reportArgumentType]
    "no constraint": (lambda _, _q: 3.0, ("hold['x']", "isoloss.at_most(...)", "3.0")),
    "the walked problem": (lambda p, _: at_most(p, 1.0), ("hold['x']", "level=isoloss.at_most")),
    "unknown name": (lambda _, _q: at_most("nope", 1.0), ("hold['x']", "nope", "l1")),
    "a constant": (
        lambda _, _q: equal(lambda p: 0 * p["theta"].sum() + 2, 2.0),
        ("hold['x'] has no slope", "constant"),
    ),
    "no function of the parameters": (
        lambda _, _q: equal(lambda _p: torch.tensor(2.0), 2.0),
        ("hold['x']", "does not depend on the parameters"),
    ),
    "NaN": (
        lambda _, _q: at_most(lambda p: p["theta"].sum() * math.nan, 2.0),
        ("hold['x'] is nan", "not finite"),
    ),
    "random": (
        lambda _, _q: at_most(lambda p: p["theta"].sum() + torch.rand(()), 2.0),
        ("hold['x']", "not a function of the parameters alone"),
    ),
    "other parameters": (
        lambda _, _q: at_most(classifier().problem(), 2.0),
        ("hold['x']", "other parameters"),
    ),
}


@pytest.mark.parametrize("name", UNSOUND)
def test_what_cannot_be_held_is_refused(name: str, refuses: Any) -> None:
    make, words = UNSOUND[name]
    problem, other = sphere()
    with refuses(*words):
        walk(problem, hold={"x": make(problem, other)})


def test_a_held_loss_must_be_a_function_too(case: tuple[Net, Problem], refuses: Any) -> None:
    net, _ = case
    dropping = nn.Sequential(net.model[0], nn.Tanh(), nn.Dropout(0.5), net.model[2])
    problem = Problem(dropping.eval(), "cross_entropy", net.data)
    other = Problem(dropping.train(), "cross_entropy", net.data)
    with refuses("hold['x']", "not a function of the parameters alone", "Dropout"):
        walk(problem, hold={"x": at_most(other, 2.0)})


def test_a_mask_that_the_walk_does_not_have_is_refused(
    case: tuple[Net, Problem], refuses: Any
) -> None:
    net, _ = case
    masked = net.problem(mask={"0.weight": torch.zeros(6, 3, dtype=torch.bool)})
    with refuses("hold['x']", "mask="):
        walk(net.problem(), hold={"x": at_most(masked, 2.0)})


@pytest.mark.parametrize("name", ["level", "", " ", "two\nlines"])
def test_names_that_columns_cannot_have_are_refused(name: str, refuses: Any) -> None:
    problem, other = sphere()
    with refuses("name of what is held"):
        walk(problem, hold={name: at_most(other, 9.0)})


def test_the_level_bounds_the_loss_that_is_walked(refuses: Any) -> None:
    problem, other = sphere()
    with refuses("level must bound the loss of the problem that is walked", "hold="):
        walk(problem, level=at_most(other, 9.0))


@pytest.mark.parametrize("what", ["hold", "level"])
def test_paper_holds_a_level_alone(what: str, refuses: Any) -> None:
    problem, other = sphere()
    given = {"hold": {"x": at_most(other, 9.0)}, "level": at_most(problem, 9.0)}
    with refuses("'paper'", "method='sqp'"):
        walk(problem, method="paper", **{what: given[what]})
