"""The default walk, against known ends, SciPy, scikit-learn and NumPy's own derivatives."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from sklearn.linear_model import LogisticRegression
from tests.problems import (
    KNOWN,
    NETS,
    Known,
    LinearRegularizer,
    Net,
    Vector,
    classifier,
    normal,
    regressor,
    ridge,
    rotation,
    sphere,
    vector_problem,
)
from torch import Tensor, nn

from isoloss import (
    SQP,
    Outcome,
    Paper,
    Path,
    Problem,
    Record,
    Stop,
    experiments,
    maximize,
    traverse,
)
from isoloss.methods.sqp.advance import Search
from isoloss.objective import Objective
from isoloss.point import Tolerance
from isoloss.regularizers import SquaredNorm

F64 = torch.float64
TIGHT = Stop(kkt_residual=1e-8, evaluations=500)
"""The exact end."""
CLOSE = Stop(kkt_residual=1e-3, evaluations=600)
ALL = Record(points_at_most=None)
NOISE = {torch.float32: 3e-6, F64: 1e-12}
"""Relative rounding error of a small network's loss, with room."""


def walk(problem: Problem, **given_settings: Any) -> Path:
    known = {"stop": CLOSE, "record": ALL, "progress": False}
    return traverse(problem, **{**known, **given_settings})


def walk_known(known: Known, **given_settings: Any) -> Path:
    about = {"start": known.start, "regularizer": known.regularizer, "stop": TIGHT}
    return walk(known.problem, **{**about, **given_settings})


def sine(r: Vector, g: Vector) -> float:
    """Sine of the angle between two vectors."""
    u, v = r / np.linalg.norm(r), g / np.linalg.norm(g)
    return float(np.linalg.norm(u - (u @ v) * v))


def band_errors(net: Net, path: Path) -> Vector:
    """|log(L / c)| of every kept point, recomputed in float64."""
    losses = [net.loss_and_grad(theta.double().numpy())[0] for theta in path.points]
    return np.abs(np.log(np.array(losses) / path.level))


def any_net(seed: int) -> Net:
    return (classifier if seed % 2 else regressor)(seed=seed)


@dataclass(frozen=True)
class Quartic:
    """R = sum of theta^4 + theta^2, whose Hessian has to be learned."""

    name: str = "quartic"

    def value_and_grad(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        return (theta**4 + theta**2).sum(), 4 * theta**3 + 2 * theta


# ---------------------------------------------------------------- known ends


@pytest.mark.parametrize("seed", [0, 1, 4, 8, 22, 34])
@pytest.mark.parametrize("make", KNOWN.values(), ids=KNOWN)
def test_the_walk_reaches_the_known_end(make: Callable[..., Known], seed: int) -> None:
    known = make(seed=seed)
    path = walk_known(known, rtol=1e-9)
    end = path.steps.iloc[-1]
    assert path.outcome is Outcome.CONVERGED, path.message
    assert end["kkt_residual"] <= 1e-8
    assert known.gap(path.points[-1]) < 1e-5
    assert end["regularizer"] == pytest.approx(known.value, rel=1e-6)
    assert end["equivalent_penalty"] == pytest.approx(known.penalty, rel=1e-6)
    stays = walk_known(known, start=known.end, stop=Stop(kkt_residual=1e-6))
    assert (stays.outcome, len(stays.steps)) == (Outcome.CONVERGED, 1)


def test_the_end_of_logistic_regression_is_scikit_learns() -> None:
    X, y = normal(40, 4, seed=1), torch.arange(40) % 3
    model = nn.Linear(4, 3, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(normal(3, 4, seed=2))
    problem = Problem(model, "cross_entropy", (X, y))
    path = walk(problem, level=1.05, stop=TIGHT)
    assert path.outcome is Outcome.CONVERGED, path.message
    penalty = path.steps["equivalent_penalty"].iloc[-1]
    assert penalty > 0
    theirs = LogisticRegression(
        C=1 / (2 * 40 * penalty), fit_intercept=False, tol=1e-10, solver="newton-cg"
    )
    theirs.fit(X.numpy(), y.numpy())
    np.testing.assert_allclose(path.points[-1].reshape(3, 4).numpy(), theirs.coef_, atol=1e-6)


# ---------------------------------------------------------------- networks, against SciPy


@pytest.mark.parametrize("seed", [5, 16, 20, 27, 37])
def test_where_the_loss_would_fall_with_the_norm_the_walk_arrives_too(seed: int) -> None:
    net = classifier(seed=seed)
    path = walk(net.problem(), stop=Stop(kkt_residual=1e-6, evaluations=400))
    assert path.outcome is Outcome.CONVERGED, path.message
    assert path.steps["equivalent_penalty"].iloc[-1] < 0
    end = path.points[-1].numpy()
    assert sine(2 * end, net.loss_and_grad(end)[1]) <= 1.01e-6


@pytest.mark.parametrize("seed", [1, 4])
def test_a_network_ends_at_a_point_that_scipy_cannot_improve(seed: int) -> None:
    net = classifier(sizes=(4, 6, 3), seed=seed)
    path = walk(net.problem(), rtol=1e-6, stop=Stop(kkt_residual=1e-4, evaluations=1000))
    assert path.outcome is Outcome.CONVERGED, path.message
    end = path.points[-1].numpy()
    loss, g = net.loss_and_grad(end)
    assert sine(2 * end, g) <= 1.01e-4

    def slsqp(begin: Vector) -> Any:
        return optimize.minimize(
            lambda t: (t @ t, 2 * t),
            begin,
            jac=True,
            method="SLSQP",
            constraints={
                "type": "eq",
                "fun": lambda t: math.log(net.loss_and_grad(t)[0] / loss),
                "jac": lambda t: net.loss_and_grad(t)[1] / net.loss_and_grad(t)[0],
            },
            options={"maxiter": 150, "ftol": 1e-10},
        )

    with np.errstate(all="ignore"):  # SciPy tries steps without bound
        from_our_end, from_our_start = slsqp(end), slsqp(net.theta.numpy())
    assert from_our_end.fun >= 0.9999 * (end @ end)
    if from_our_start.success:  # it may come to another local end, or to ours
        assert end @ end <= 1.01 * from_our_start.fun


@pytest.mark.parametrize("make", NETS.values(), ids=NETS)
def test_a_regularizer_without_a_known_curvature_is_made_stationary(
    make: Callable[..., Net],
) -> None:
    net = make(seed=2)
    stop = Stop(kkt_residual=1e-4, evaluations=1000)
    path = walk(net.problem(), regularizer=Quartic(), stop=stop)
    assert path.outcome is Outcome.CONVERGED, path.message
    end = path.points[-1].numpy()
    assert sine(4 * end**3 + 2 * end, net.loss_and_grad(end)[1]) <= 1.01e-4
    assert path.steps["regularizer"].iloc[-1] == pytest.approx((end**4 + end**2).sum())
    assert band_errors(net, path).max() <= 1e-3


@pytest.mark.parametrize("seed", range(6))
def test_the_largest_norm_of_a_linear_regression_is_found_in_a_few_evaluations(seed: int) -> None:
    """R is concave all along; largest of many points drawn on the ellipsoid of the level."""
    inputs, noise = normal(20, 4, seed=seed), normal(20, 1, seed=seed + 10)
    targets = inputs @ normal(4, 1, seed=seed + 20) + 0.3 * noise
    best = torch.linalg.lstsq(inputs, targets).solution
    least = (inputs @ best - targets).square().mean()
    problem = Problem(nn.Linear(4, 1, bias=False).double(), "mse", (inputs, targets))
    path = traverse(
        problem, start=normal(4, seed=seed + 30), level=1.5 * least.item(),
        regularizer=maximize("squared_norm"), progress=False,
    )  # fmt: skip
    root = torch.linalg.cholesky(inputs.T @ inputs / 20)
    ways = torch.nn.functional.normalize(normal(100_000, 4, seed=0))
    away = torch.linalg.solve_triangular(root.T, ways.T, upper=True)
    largest = (best + (0.5 * least).sqrt() * away).square().sum(0).max().item()
    assert path.outcome is Outcome.CONVERGED
    assert -path.steps["regularizer"].iloc[-1] == pytest.approx(largest, rel=2e-3)
    assert path.steps["evaluations"].iloc[-1] <= 40


def test_it_takes_far_fewer_evaluations_than_the_paper() -> None:
    net = classifier(seed=1)
    path = walk(net.problem())
    values = path.steps["regularizer"]
    target = 0.8 * values.iloc[0] + 0.2 * values.iloc[-1]
    ours = int(path.steps["evaluations"][values <= target].iloc[0])
    limit = Stop(regularizer_below=target, evaluations=5 * ours, kkt_residual=0)
    theirs = walk(net.problem(), method=Paper(), stop=limit)
    assert theirs.outcome is Outcome.EVALUATION_LIMIT
    assert theirs.steps["regularizer"].min() > target


# ---------------------------------------------------------------- properties, whatever the network


@settings(max_examples=16)
@given(
    seed=st.integers(0, 10**6),
    dtype=st.sampled_from([torch.float32, F64]),
    rtol=st.sampled_from([1e-1, 1e-2, 1e-3, 1e-4]),
)
def test_every_point_kept_is_in_the_band_and_r_rises_by_no_more_than_it_allows(
    seed: int, dtype: torch.dtype, rtol: float
) -> None:
    net = any_net(seed)
    stop = Stop(kkt_residual=1e-3, evaluations=100)
    path = walk(net.problem(dtype=dtype), rtol=rtol, stop=stop)
    assert len(path.points) == len(path.steps)
    assert band_errors(net, path).max() <= rtol * (1 + 1e-9) + NOISE[dtype]

    thetas = path.points.double().numpy()
    values = (thetas**2).sum(1)
    multipliers = []
    for theta in thetas:
        loss, g = net.loss_and_grad(theta)
        multipliers.append(abs(2 * theta @ g) * loss / (g @ g))
    allowed = 2.2 * rtol * np.maximum.accumulate(multipliers)[1:]
    lowest = np.minimum.accumulate(values)[:-1]
    assert (values[1:] <= lowest + allowed + 10 * NOISE[dtype] * values[0]).all()


@pytest.mark.parametrize("rtol", [1e-2, 1e-3, 1e-6])
@pytest.mark.parametrize("make", NETS.values(), ids=NETS)
def test_a_network_converges_at_any_tolerance(make: Callable[..., Net], rtol: float) -> None:
    ends = []
    for seed in (1, 5):
        path = walk(make(seed=seed).problem(), rtol=rtol)
        ends.append((path.outcome, path.message))
    assert [outcome for outcome, _ in ends] == [Outcome.CONVERGED] * 2, ends


@pytest.mark.parametrize("make", NETS.values(), ids=NETS)
def test_a_band_ten_thousand_times_as_narrow_costs_less_than_twice_as_much(
    make: Callable[..., Net],
) -> None:
    counts = {
        rtol: sum(
            int(walk(make(seed=seed).problem(), rtol=rtol).steps["evaluations"].iloc[-1])
            for seed in range(1, 5)
        )
        for rtol in (1e-2, 1e-6)
    }
    assert counts[1e-6] < 2 * counts[1e-2], counts


@pytest.mark.slow
def test_single_precision_does_not_stop_short_of_the_end() -> None:
    # near the end R falls by less than its rounding; the gradients still tell by how much
    starts = [experiments.get("IRIS_FF").start(seed=seed) for seed in range(3)]
    paths = [walk(start.problem, record=None, stop=Stop(evaluations=600)) for start in starts]
    ends = [(path.outcome, path.steps["kkt_residual"].iloc[-1]) for path in paths]
    assert sum(outcome is Outcome.CONVERGED for outcome, _ in ends) >= 2, ends


@pytest.mark.parametrize("what", ["rotation", "permutation"])
def test_another_basis_of_the_coordinates_turns_the_path(what: str) -> None:
    start, A = normal(6, seed=3), torch.diag(torch.arange(1.0, 7.0, dtype=F64))
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    Q = rotation(6, seed=1) if what == "rotation" else torch.eye(6, dtype=F64)[order]

    def loss(theta: Tensor) -> Tensor:
        return theta @ A @ theta / 2 + 0.1 * (theta**2 @ A @ theta.sin())

    asked = {"rtol": 1e-5, "stop": Stop(kkt_residual=1e-5, evaluations=500)}
    straight = walk(vector_problem(loss, start), **asked)
    turned = walk(vector_problem(lambda t: loss(Q.T @ t), Q @ start), **asked)
    few = min(len(straight.steps), len(turned.steps), 6)
    assert few > 2
    torch.testing.assert_close(
        turned.points[:few], straight.points[:few] @ Q.T, rtol=1e-6, atol=1e-6
    )
    assert turned.outcome is straight.outcome is Outcome.CONVERGED
    torch.testing.assert_close(turned.points[-1], Q @ straight.points[-1], rtol=0, atol=1e-3)


@pytest.mark.parametrize("factor", [2.0**-20, 3.0, 1e6])
def test_scaling_the_loss_and_its_level_scales_nothing_else(factor: float) -> None:
    net = regressor(seed=1)
    level = 1.2 * net.loss_and_grad(net.theta.numpy())[0]
    scaled = Problem(
        net.model, lambda outputs, targets: factor * (outputs - targets).square().mean(1), net.data
    )
    one = walk(net.problem(), level=level, stop=Stop(steps=8))
    other = walk(scaled, level=factor * level, stop=Stop(steps=8))
    torch.testing.assert_close(other.points, one.points, rtol=1e-5, atol=1e-5)
    for column in ("kind", "evaluations"):
        assert other.steps[column].tolist() == one.steps[column].tolist()
    assert other.steps["equivalent_penalty"].to_numpy() == pytest.approx(
        factor * one.steps["equivalent_penalty"].to_numpy(), rel=1e-4
    )


# ---------------------------------------------------------------- stepping by hand


def wide(seed: int = 0) -> Net:
    """More parameters than the smallest memory holds directions."""
    return classifier((10, 20, 8), 40, seed=seed)


def begin(net: Net, method: SQP, rtol: float = 1e-3) -> tuple[Objective, Any]:
    objective = Objective(net.problem(), SquaredNorm())
    return objective, method.init(objective, net.theta, None, Tolerance(rtol))


def fingerprint(state: Any) -> Any:
    return (
        state.point.theta.tolist(),
        state.radius,
        state.multiplier,
        state.slopes.r.tolist(),
        state.slopes.a.tolist(),
        state.model.bend.tolist(),
        state.model.basis.rows.values[: state.model.basis.size].tolist(),
    )


@pytest.mark.parametrize("memory", [80, 16], ids=["roomy", "compressed"])
def test_a_state_can_be_stepped_from_again(memory: int) -> None:
    method, net = SQP(memory=memory), wide()
    objective, state = begin(net, method)
    states = [state]
    while len(states) < 16 and states[-1].ending is None:
        before = fingerprint(states[-1])
        first = method.step(objective, states[-1])
        assert fingerprint(states[-1]) == before
        second = method.step(objective, states[-1])
        assert torch.equal(first.point.theta, second.point.theta)
        states.append(second)
    assert len(states) == 16
    assert objective.evaluations > memory or memory > 16


@pytest.mark.parametrize("memory", [80, 16], ids=["roomy", "compressed"])
def test_the_state_knows_the_gradients_exactly(memory: int) -> None:
    method, net = SQP(memory=memory), wide()
    objective, state = begin(net, method)
    for _ in range(30):
        basis, theta = state.model.basis, state.point.theta.numpy()
        loss, g = net.loss_and_grad(theta)
        assert basis.size <= memory
        np.testing.assert_allclose(basis.combine(state.slopes.r).numpy(), 2 * theta, atol=1e-9)
        np.testing.assert_allclose(basis.combine(state.slopes.a).numpy(), g / loss, atol=1e-9)
        assert state.on_level
        assert abs(math.log(loss / state.level)) <= 1e-3
        used = objective.evaluations
        state = method.step(objective, state)
        assert objective.evaluations - used <= 2 * method.max_trials
        if state.ending is not None:
            break


def test_far_from_the_end_a_step_goes_on_from_centers_near_the_level(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def walked() -> tuple[pd.Series, Path]:
        path = walk(wide().problem(), stop=Stop(evaluations=14))
        return path.steps["evaluations"].diff(), path

    costs, path = walked()
    # sys.modules, since the package has a function of that name
    monkeypatch.setattr(sys.modules["isoloss.methods.sqp.advance"], "CHAIN", 1)
    landing_costs, landing = walked()
    assert costs.max() > landing_costs.max()
    far = [
        p.steps.loc[p.steps["evaluations"] <= 7, "regularizer"].iloc[-1] for p in (path, landing)
    ]
    assert far[0] < 0.9 * far[1]
    assert (costs[path.steps["kkt_residual"].shift() < 0.1] <= 2).all()  # near it each trial lands
    assert np.abs(path.steps["level_error"]).max() <= 1e-3


@pytest.mark.parametrize(
    ("size", "exact", "held", "light", "most"),
    [
        (1000, True, 0, True, 40),
        (1000, True, 0, False, 80),
        (2**22, True, 0, False, 80),
        (2**22 + 1, True, 0, False, 40),
        (2**20, True, 1, False, 44),  # where more than a level is held it was not measured
        (2**20, False, 0, False, 120),
    ],
)
def test_where_an_evaluation_takes_time_memory_is_larger(size, exact, held, light, most) -> None:
    assert SQP().directions(size, exact, held, light) == most
    assert SQP(memory=16).directions(size, exact, held, light) == 16 + 4 * held
    if (exact, held) == (True, 0):
        assert SQP().vectors(size, exact, held, light) == 2 * most + 13


@pytest.mark.parametrize(
    ("make", "light"),
    [
        (lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), True),
        (lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)), False),
        (lambda: nn.Sequential(nn.Linear(3, 2**15), nn.Linear(2**15, 2)), False),
    ],
    ids=["dense", "norm", "large"],
)
def test_small_dense_networks_are_light(make: Callable[[], nn.Module], light: bool) -> None:
    problem = Problem(make(), "cross_entropy", (normal(5, 3, seed=0), torch.zeros(5).long()))
    assert problem.light is light
    objective = Objective(problem, SquaredNorm())
    state = SQP().init(objective, problem.current(), None, Tolerance(1e-3))
    assert state.model is not None
    assert state.model.basis.capacity == (40 if light else 80)


def test_a_walk_with_the_smallest_memory_comes_as_far() -> None:
    stop = Stop(kkt_residual=1e-2, evaluations=600)
    small = walk(wide().problem(), method=SQP(memory=16), stop=stop)
    large = walk(wide().problem(), method=SQP(memory=80), stop=stop)
    assert large.outcome is Outcome.CONVERGED, large.message
    ends = [path.steps["regularizer"].iloc[-1] for path in (small, large)]
    assert ends[0] <= 1.1 * ends[1]


@pytest.mark.parametrize("first_step", [1e-4, 1e-2])
def test_the_first_step_is_as_short_as_asked(first_step: float) -> None:
    net = classifier(seed=2)
    method = SQP(first_step=first_step)
    path = walk(net.problem(), method=method, stop=Stop(steps=1))
    longest = first_step * net.theta.norm().item()
    assert 0 < path.steps["step_length"].iloc[1] <= 2.5 * longest


# ---------------------------------------------------------------- another level


@pytest.mark.parametrize("share", [0.5, 0.97, 1.05, 2.0, 30.0])
@pytest.mark.parametrize("make", [classifier, ridge], ids=["classifier", "ridge"])
def test_a_level_beside_the_start_is_reached_and_then_held(make: Any, share: float) -> None:
    source = make(seed=1)
    problem = source.problem if isinstance(source, Known) else source.problem()
    beginning = problem.loss(problem.current()).item()
    lowest = 0.0
    if isinstance(source, Known):
        X, y = normal(12, 4, seed=1).numpy(), normal(12, seed=2).numpy()
        lowest = float(np.linalg.lstsq(X, y, rcond=None)[1][0]) / 12
    level = lowest + share * (beginning - lowest)
    path = walk(problem, level=level, stop=Stop(kkt_residual=1e-3, steps=5))
    assert path.outcome in (Outcome.STEP_LIMIT, Outcome.CONVERGED), path.message
    assert path.level == level
    kinds = path.steps["kind"].tolist()
    approach = kinds.count("correct")
    assert approach >= 1
    assert kinds == ["start", *["correct"] * approach, *["sqp"] * (len(kinds) - 1 - approach)]
    errors = np.abs(np.log(path.steps["loss"] / level))
    assert errors[: approach + 1].is_monotonic_decreasing
    assert (errors[:approach] > 1e-3).all()
    assert (errors[approach:] <= 1e-3).all()
    assert path.point_steps[0] == approach


# ---------------------------------------------------------------- how walks end


def test_the_evaluation_limit_ends_the_walk() -> None:
    path = walk(classifier().problem(), stop=Stop(evaluations=10, kkt_residual=0))
    assert path.outcome is Outcome.EVALUATION_LIMIT
    evaluations = path.steps["evaluations"].tolist()
    assert evaluations[-2] < 10 <= evaluations[-1] < 10 + SQP().max_trials


@pytest.mark.parametrize("level", [None, 2.0])
def test_a_stationary_start_has_no_tangent(level: float | None) -> None:
    place = normal(4, seed=1)
    problem = vector_problem(lambda t: 1 + (t - place).square().sum(), place.clone())
    path = walk(problem, level=level)
    assert path.outcome is Outcome.GRADIENT_VANISHED
    assert len(path.steps) == 1


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("make", [*NETS.values(), ridge], ids=[*NETS, "ridge"])
def test_asked_for_the_exact_end_the_walk_ends_by_itself(make: Any, dtype: torch.dtype) -> None:
    source = make(seed=1)
    problem = source.problem if isinstance(source, Known) else source.problem()
    stop = Stop(kkt_residual=0, evaluations=3000)
    path = walk(problem.with_dtype(dtype), stop=stop)
    assert path.outcome in (Outcome.STALLED, Outcome.CONVERGED)
    assert path.steps["kkt_residual"].min() < (1e-2 if dtype == torch.float32 else 1e-4)
    if path.outcome is Outcome.STALLED:
        assert "float64" in path.message


@pytest.mark.parametrize("beginning", [1.001, 1.05, 3.0])
def test_a_cliff_ends_the_walk_at_the_last_good_point(beginning: float) -> None:
    slope = LinearRegularizer(torch.tensor([1.0, 0.0], dtype=F64))
    problem = vector_problem(
        lambda t: t[1] + 0 * torch.sqrt(t[0] - 1), torch.tensor([beginning, 2.0], dtype=F64)
    )
    path = walk(problem, regularizer=slope, stop=Stop(evaluations=2000))
    assert path.outcome is Outcome.NON_FINITE
    held = path.steps.drop(columns=["kind", "equivalent_penalty"])  # r and g are orthogonal
    assert np.isfinite(held.to_numpy(dtype=float)).all()
    assert 1 <= path.points[-1][0] < 1.001
    assert path.points[-1][1] == pytest.approx(2.0, rel=1e-3)


def test_a_cliff_beside_the_way_is_walked_around() -> None:
    known = sphere(n=3, seed=2)

    def loss(theta: Tensor) -> Tensor:
        along = (theta - known.end).norm()
        return theta.dot(theta) + 0 * torch.sqrt(6.0 - along)  # undefined far from the end

    path = walk_known(known, start=None, stop=CLOSE)
    walled = walk(
        vector_problem(loss, known.start), regularizer=known.regularizer, method=SQP(first_step=9.0)
    )
    assert path.outcome is walled.outcome is Outcome.CONVERGED
    assert known.gap(walled.points[-1]) < 1e-2


def test_trials_that_are_not_finite_lead_back_to_the_last_point_with_a_smaller_radius() -> None:
    objective = Objective(classifier().problem(), SquaredNorm())
    state = SQP().init(objective, objective.problem.current(), None, Tolerance(1e-3))
    search = Search(objective, state, state.model, state.slopes)
    trial = search.propose()
    there, change = objective.trial(search.origin, search.shares(trial))
    search.here = replace(search.home, point=there)  # a center outside the band
    start = search.radius = 0.5
    far = replace(trial, length=1e9)  # as long as restoring phi may ask for
    for k in range(1, 7):
        search.judge(far, replace(there, loss=math.nan), change)
        assert (search.here is search.home) == (k == 6)
        assert search.radius == pytest.approx(start * 0.25**k * (0.1 if k == 6 else 1.0))


def misled(state: Any) -> Any:
    """The state with slopes and a bend that have nothing to do with the point."""
    size = state.model.basis.size
    wrong = normal(size, size, seed=3).numpy()
    bend = 1e6 * (wrong + wrong.T)
    slopes = replace(state.slopes, a=-state.slopes.a, r=-state.slopes.r)
    return replace(
        state, slopes=slopes, model=replace(state.model, bend=bend, known=None), radius=1e-12
    )


def test_a_stall_goes_on_with_a_fresh_model_until_it_gains_no_more() -> None:
    method = SQP()
    objective, state = begin(classifier(seed=2), method)
    for _ in range(3):
        state = method.step(objective, state)
    lost = misled(state)
    found = method.step(objective, lost)
    assert found.ending is None
    assert found.renewed_below < lost.point.regularizer < lost.renewed_below
    for _ in range(5):
        found = method.step(objective, found)
    assert found.point.regularizer < lost.point.regularizer
    # where the last renewal gained nothing, the stall is the end, at the same point
    idle = replace(lost, renewed_below=lost.point.regularizer, renewed_nearer=lost.nearest)
    end = method.step(objective, idle)
    assert end.ending is not None
    assert end.ending.outcome is Outcome.STALLED
    assert torch.equal(end.point.theta, lost.point.theta)


@pytest.mark.parametrize(
    ("given_settings", "words"),
    [
        ({"memory": 1}, ["memory of SQP must be greater than or equal to 16, got 1"]),
        ({"first_step": 0}, ["first_step of SQP must be greater than 0, got 0"]),
        ({"max_trials": 0}, ["max_trials of SQP must be greater than 0, got 0"]),
        ({"max_approach": -1}, ["max_approach of SQP must be greater than 0, got -1"]),
        ({"memori": 20}, ["'memori'", "did you mean memory?"]),
    ],
)
def test_a_bad_setting_is_answered_with_one_sentence(
    refuses: Any, given_settings: dict[str, Any], words: list[str]
) -> None:
    with refuses(*words):
        SQP(**given_settings)
