"""The parts of the default walk: its basis, its model and its subproblem, each against NumPy."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize
from tests.problems import Vector, normal
from torch import Tensor

from isoloss.evaluation import GaussNewton
from isoloss.evaluation.rows import StoredRows
from isoloss.methods.sqp import several
from isoloss.methods.sqp.basis import GROWTH, Basis
from isoloss.methods.sqp.known import Known
from isoloss.methods.sqp.model import Bend, Model, Slopes
from isoloss.methods.sqp.subproblem import Trial, solve

F64 = torch.float64
TYPES = pytest.mark.parametrize("dtype", [torch.float32, F64])
seeds = st.integers(0, 10**6)


def stored(basis: Basis) -> Tensor:
    return basis.rows.values[: basis.size].clone()


def orthonormal(basis: Basis) -> Tensor:
    """The rows of Q, in float64."""
    return torch.from_numpy(basis.inverse) @ stored(basis).double()


def spanned(*vectors: Tensor, capacity: int = 12) -> Basis:
    """The basis grown by these vectors in turn."""
    basis = Basis.empty(capacity, vectors[0])
    for vector in vectors:
        basis = basis.coordinates(vector)[1]
    return basis


def assert_orthonormal(basis: Basis, atol: float = 1e-13) -> None:
    rows = orthonormal(basis)
    torch.testing.assert_close(rows @ rows.T, torch.eye(basis.size, dtype=F64), rtol=0, atol=atol)


# ---------------------------------------------------------------- basis


@TYPES
def test_coordinates_give_the_vector_back(dtype: torch.dtype) -> None:
    accuracy = 30 * torch.finfo(dtype).eps
    vectors = normal(6, 40, seed=1).to(dtype)
    basis = Basis.empty(8, vectors[0])
    for k, vector in enumerate(vectors, 1):
        found, basis = basis.coordinates(vector)
        assert found.dtype == np.float64
        assert (len(found), basis.size, basis.room) == (k, k, 8 - k)
        assert stored(basis).dtype == dtype
        torch.testing.assert_close(basis.combine(found), vector, rtol=0, atol=10 * accuracy)
        assert_orthonormal(basis, accuracy)
    assert torch.equal(vectors, normal(6, 40, seed=1).to(dtype))
    # their length is no reason to leave them out
    for size in (1e-12, 1e12):
        basis = spanned(vectors[0], size * vectors[1], vectors[2] / size)
        assert basis.size == 3
        assert_orthonormal(basis, 1e-5 if dtype == torch.float32 else 1e-13)


@TYPES
def test_a_vector_in_the_span_up_to_rounding_adds_no_row(dtype: torch.dtype) -> None:
    vectors = normal(4, 30, seed=3).to(dtype)
    basis = spanned(*vectors)
    inside = vectors.T @ torch.tensor([2.0, -1.0, 0.5, 3.0], dtype=dtype)
    found, same = basis.coordinates(inside)
    assert (same.size, len(found)) == (4, 4)
    torch.testing.assert_close(same.combine(found), inside, rtol=1e-4, atol=1e-4)
    zero = torch.zeros_like(inside)
    assert Basis.empty(4, zero).coordinates(zero)[1].size == 0
    assert basis.coordinates(zero)[0].tolist() == [0.0] * 4
    for n in (1, 2, 3):
        assert spanned(*normal(10, n, seed=n).to(dtype)).size == n
    vectors /= vectors.norm(dim=1, keepdim=True)
    rounding = torch.finfo(dtype).eps * vectors[3]
    assert spanned(vectors[0], vectors[1], vectors[0] + vectors[1] + rounding).size == 2


@TYPES
def test_forty_vectors_that_are_mostly_known_keep_the_rows_orthonormal(dtype: torch.dtype) -> None:
    # as the changes of a gradient are: much along few stiff directions, little that is new
    stiff, new = normal(6, 3000, seed=7).to(dtype), normal(40, 3000, seed=8).to(dtype)
    mixed = normal(40, 6, seed=9).to(dtype) @ stiff + 0.05 * new
    basis = spanned(*mixed, capacity=40)
    assert basis.size == 40
    assert np.linalg.norm(basis.inverse, axis=1).max() <= GROWTH
    assert_orthonormal(basis, 3e-4 if dtype == torch.float32 else 1e-12)
    found, same = basis.coordinates(mixed[-1])
    assert same.size == 40
    exact = np.linalg.lstsq(orthonormal(basis).T.numpy(), mixed[-1].double().numpy())[0]
    rounding = 3e-4 if dtype == torch.float32 else 1e-12
    np.testing.assert_allclose(found, exact, atol=rounding * float(mixed[-1].norm()))


def test_a_million_entries_of_very_different_size_keep_the_rows_orthonormal() -> None:
    # summed up in float32 as a whole, the products of the rows are off by 3.5e-2
    stiff, new = normal(2, 2**20, seed=11).float() ** 3, normal(8, 2**20, seed=12).float() ** 3
    mixed = normal(8, 2, seed=13).float() @ stiff + 0.1 * new
    basis = spanned(*mixed, capacity=8)
    assert basis.size == 8
    assert_orthonormal(basis, 3e-3)


def test_a_vector_that_is_partly_new_costs_one_pass_over_the_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known, new = normal(2, 200, seed=10)
    basis = spanned(known)
    passes: list[str] = []
    for name in ("mv", "addmv"):
        inner = getattr(torch, name)
        monkeypatch.setattr(
            torch, name, lambda *a, f=inner, n=name, **k: (passes.append(n), f(*a, **k))[1]
        )
    basis.coordinates(known + 0.2 * new)
    assert passes == ["mv"]
    passes.clear()
    basis.coordinates(known + 1e-3 * new)
    assert passes == ["mv", "addmv", "mv"]


def test_both_branches_of_an_older_basis_stay_valid() -> None:
    vectors = normal(6, 20, seed=6)
    trunk = spanned(vectors[0], vectors[1])
    before = stored(trunk)
    left_found, left = trunk.coordinates(vectors[2])
    left_rows = stored(left)
    right_found, right = trunk.coordinates(vectors[3])
    left_more_found, left_more = left.coordinates(vectors[4])
    right_more_found, right_more = right.coordinates(vectors[5])
    assert torch.equal(stored(trunk), before)
    assert torch.equal(stored(left), left_rows)
    for basis, found, vector in [
        (left, left_found, vectors[2]),
        (right, right_found, vectors[3]),
        (left_more, left_more_found, vectors[4]),
        (right_more, right_more_found, vectors[5]),
    ]:
        assert_orthonormal(basis)
        torch.testing.assert_close(basis.combine(found), vector)


@TYPES
@pytest.mark.parametrize("n", [20, 8192 + 5, 2 * 8192])
def test_a_turned_basis_spans_the_combinations(dtype: torch.dtype, n: int) -> None:
    basis = spanned(*normal(6, n, seed=7).to(dtype))
    columns = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 4)))[0]
    expected = torch.from_numpy(columns.T) @ orthonormal(basis)
    turned = basis.turned(columns)
    assert turned.size == 4
    assert turned.room == 8
    torch.testing.assert_close(orthonormal(turned), expected, rtol=0, atol=1e-6)
    found, grown = turned.coordinates(torch.ones(n, dtype=dtype))
    assert grown.size == 5
    assert_orthonormal(grown, 1e-5 if dtype == torch.float32 else 1e-13)
    torch.testing.assert_close(grown.combine(found), torch.ones(n, dtype=dtype))


# ---------------------------------------------------------------- subproblem


@dataclass(frozen=True)
class Task:
    """A subproblem with a feasible step of half the radius."""

    r: Vector
    a: Vector
    b: Vector
    kappa: float
    phi: float
    radius: float

    def objective(self, p: Vector) -> float:
        return float(self.r @ p + self.kappa * p @ p / 2)

    def constraint(self, p: Vector) -> float:
        return float(self.phi + self.a @ p + p @ (self.b * p) / 2)

    def solve(self, multiplier: float = 1.0, gap: float = 1e-8) -> Trial:
        settings = (self.kappa, self.phi, self.radius, multiplier, gap)
        return solve(self.r, self.a, self.b, *settings)

    def by_scipy(self, radius: float, begin: Vector) -> Vector | None:
        """SciPy's local minimizer within a radius, where it finds one."""
        found = optimize.minimize(
            self.objective,
            begin,
            jac=lambda p: self.r + self.kappa * p,
            method="SLSQP",
            constraints=[
                {"type": "eq", "fun": self.constraint, "jac": lambda p: self.a + self.b * p},
                {"type": "ineq", "fun": lambda p: radius**2 - p @ p, "jac": lambda p: -2 * p},
            ],
            options={"maxiter": 200, "ftol": 1e-12},
        )
        inside = np.linalg.norm(found.x) <= radius * (1 + 1e-6)
        return found.x if inside and abs(self.constraint(found.x)) < 1e-8 else None


@st.composite
def tasks(draw: Any) -> tuple[Task, Vector]:
    """A random subproblem, and the feasible step that it was built about."""
    source = np.random.default_rng(draw(seeds))
    k = draw(st.integers(2, 6))  # along one direction the nearer of the two steps may be missed
    r, a, inside = source.normal(size=(3, k))
    b = source.normal(size=k) * 10.0 ** draw(st.integers(-2, 2))
    sign = draw(st.sampled_from(["mixed", "positive", "negative", "some zero"]))
    b = {"mixed": b, "positive": abs(b), "negative": -abs(b)}.get(sign, b * (b > 0))
    r = r * 10.0 ** draw(st.integers(-2, 1))
    radius = 10.0 ** draw(st.integers(-2, 1))
    inside *= 0.5 * radius / np.linalg.norm(inside)
    phi = -float(a @ inside + inside @ (b * inside) / 2)
    return Task(r, a, b, 10.0 ** draw(st.integers(-1, 1)), phi, radius), inside


@given(tasks(), st.floats(-100, 100))
def test_a_trial_meets_the_constraint_within_the_radius_is_stationary_and_scipys_is_no_better(
    drawn: tuple[Task, Vector], multiplier: float
) -> None:
    task, inside = drawn
    for found in (task.solve(multiplier), task.solve()):
        p = found.step
        assert abs(task.constraint(p)) <= 1e-8 + 1e-12
        assert found.length <= 1.1 * task.radius * (1 + 1e-12)
        assert found.length == pytest.approx(np.linalg.norm(p))
    left = task.r + task.kappa * p + found.multiplier * (task.a + task.b * p)
    mu = -(left @ p) / (p @ p)
    size = np.linalg.norm(task.r) + abs(found.multiplier) * (1 + np.linalg.norm(task.b * p))
    assert mu >= -1e-6 * size / found.length
    assert np.linalg.norm(left + mu * p) <= 1e-6 * size
    others = [task.by_scipy(0.9 * task.radius, begin) for begin in (inside, found.step)]
    values = [task.objective(other) for other in others if other is not None]
    for value in values:
        size = 1 + abs(found.multiplier) + np.linalg.norm(task.r) * task.radius
        assert task.objective(found.step) <= value + 1e-6 * size


def test_without_bend_and_with_room_the_trial_is_the_projection() -> None:
    r, a = np.array([1.0, -2.0, 0.5]), np.array([0.5, 1.0, 2.0])
    found = solve(r, a, np.zeros(3), 2.0, 0.3, 100.0, 1.0, 1e-12)
    system = np.block([[2 * np.eye(3), a[:, None]], [a[None], np.zeros((1, 1))]])
    expected = np.linalg.solve(system, np.append(-r, -0.3))
    np.testing.assert_allclose(found.step, expected[:3], atol=1e-10)
    assert found.multiplier == pytest.approx(expected[3])


def test_the_end_has_a_trial_of_no_length() -> None:
    a = np.array([0.5, 1.0, 2.0])
    found = solve(-0.7 * a, a, np.array([1.0, -1.0, 0.3]), 2.0, 0.0, 1.0, 0.5, 1e-14)
    assert found.length < 1e-12
    assert found.multiplier == pytest.approx(0.7)


E = np.array([0.6, -0.8, 0.0])
DEGENERATE: dict[str, Any] = {
    "no bend": (E, np.array([0.0, 1.0, 1.0]), np.zeros(3), 0.1),
    "no bend, on the level": (E, np.array([0.0, 1.0, 1.0]), np.zeros(3), 0.0),
    "parallel": (2 * E, E, np.array([1.0, -1.0, 0.0]), 0.0),
    "antiparallel": (-2 * E, E, np.array([1.0, -1.0, 0.0]), 0.0),
    "parallel without bend": (2 * E, E, np.zeros(3), 0.01),
    "no regularizer": (0 * E, E, np.array([1.0, -1.0, 0.0]), 0.0),
    "equal bends": (E, np.array([1.0, 1.0, 1.0]), np.ones(3), 0.0),
    "no slope where it bends": (E, np.array([0.0, 0.0, 1.0]), np.array([5.0, -5.0, 0.0]), 0.01),
    "hard case": (np.array([0.0, 1.0, 0.0]), np.array([0.0, 1.0, 0.0]), np.array([9, 0, 0.0]), -1),
    "not feasible": (E, np.array([0.1, 0.1, 0.1]), np.ones(3), 5.0),
    "too far": (E, np.array([0.1, 0.1, 0.1]), np.zeros(3), 50.0),
    "one direction": (np.array([1.0]), np.array([-2.0]), np.array([3.0]), 0.01),
}


@pytest.mark.parametrize("multiplier", [-1.0, 1e-300, 1.0, 1e12])
@pytest.mark.parametrize("name", DEGENERATE)
def test_a_degenerate_subproblem_has_a_finite_trial(name: str, multiplier: float) -> None:
    r, a, b, phi = DEGENERATE[name]
    found = solve(r, a, b, 2.0, phi, 0.1, multiplier, 1e-9)
    assert np.isfinite(found.step).all()
    assert math.isfinite(found.multiplier)
    assert math.isfinite(found.length)


# ---------------------------------------------------------------- model


def random_symmetric(n: int, seed: int) -> Vector:
    square = np.random.default_rng(seed).normal(size=(n, n))
    return square + square.T


def taught(hessian: Vector, curvature: Vector | None, trials: int, seed: int) -> Model:
    """A model after trials on quadratics with these Hessians, in any direction."""
    n = len(hessian)
    basis = spanned(normal(n, seed=seed), capacity=2 * n)
    learned = None if curvature is None else np.eye(1)
    model = Model(basis, np.zeros((1, 1)), learned, 1.0)
    source = np.random.default_rng(seed)
    for _ in range(trials):
        direction = torch.from_numpy(source.normal(size=n))
        step, basis = model.basis.coordinates(direction)
        change_a, basis = basis.coordinates(torch.from_numpy(hessian @ direction.numpy()))
        change_r = step
        if curvature is not None:
            bent = torch.from_numpy(curvature @ direction.numpy())
            change_r, basis = basis.coordinates(bent)
        model = model.learn(basis, step, change_r, change_a)
    return model


def unfolded(model: Model, matrix: Vector) -> Vector:
    """A matrix in the basis, as one in all directions."""
    rows = orthonormal(model.basis).numpy()
    return rows.T @ matrix @ rows


@given(seeds)
def test_the_bend_of_a_quadratic_is_learned_exactly(seed: int) -> None:
    hessian = random_symmetric(5, seed)
    model = taught(hessian, None, 11, seed)
    np.testing.assert_allclose(unfolded(model, model.bend), hessian, atol=1e-5)


@given(seeds)
def test_the_last_trial_is_reproduced_by_a_new_model(seed: int) -> None:
    source = np.random.default_rng(seed)
    model = taught(random_symmetric(6, seed), np.eye(6), 3, seed)
    size = model.basis.size
    step, change_r, change_a = source.normal(size=(3, size))
    assert model.curvature is not None
    before = model.bend.copy(), model.curvature.copy(), stored(model.basis)
    if change_r @ step < 0.3 * step @ model.curvature @ step:  # would be damped
        change_r = model.curvature @ step + 0.1 * step
    learned = model.learn(model.basis, step, change_r, change_a)
    np.testing.assert_allclose(learned.bend @ step, change_a, atol=1e-6)
    assert learned.curvature is not None
    np.testing.assert_allclose(learned.curvature @ step, change_r, rtol=1e-8, atol=1e-8)
    np.testing.assert_array_equal(model.bend, before[0])
    np.testing.assert_array_equal(model.curvature, before[1])
    assert torch.equal(stored(model.basis), before[2])
    np.testing.assert_allclose(learned.bend, learned.bend.T, atol=1e-6 * abs(learned.bend).max())


@given(seeds)
def test_the_curvature_stays_positive_definite_whatever_is_seen(seed: int) -> None:
    model = taught(random_symmetric(6, seed), random_symmetric(6, seed + 1), 15, seed)
    assert model.curvature is not None
    np.testing.assert_allclose(model.curvature, model.curvature.T, atol=1e-9)
    assert np.linalg.eigvalsh(model.curvature).min() > 0


@pytest.mark.parametrize("learned", [False, True])
def test_the_modelled_fall_is_that_of_a_quadratic(learned: bool) -> None:
    curvature = np.diag([1.0, 3.0, 5.0]) if learned else 2 * np.eye(3)
    basis = spanned(*normal(3, 3, seed=1))
    model = Model(basis, np.zeros((3, 3)), curvature if learned else None, 2.0)
    r, step = np.array([1.0, -1.0, 2.0]), np.array([-0.3, 0.2, 0.1])
    expected = np.linalg.lstsq(step[:, None], -r, rcond=None)[0][0]
    assert Slopes(r, step).multiplier == pytest.approx(expected)
    fall = model.fall(Slopes(r, r), step)
    assert fall == pytest.approx(-(r @ step + step @ curvature @ step / 2))


@given(seeds, st.booleans())
def test_a_trial_of_the_model_is_scipys_on_the_modelled_problem(seed: int, learned: bool) -> None:
    source = np.random.default_rng(seed)
    n = 4
    root = source.normal(size=(n, n))
    curvature = root @ root.T + np.eye(n) if learned else 2 * np.eye(n)
    bend = source.normal(size=(n, n))
    bend = bend @ bend.T / n  # convex, so that no curvature is raised
    r, a = source.normal(size=(2, n))
    a *= -math.copysign(1.0, r @ a)  # R falls where the loss rises
    model = Model(spanned(*normal(n, n, seed=seed)), bend, curvature if learned else None, 2.0)
    found = model.trial(Slopes(r, a), 0.05, 1e3, 1.0, 1e-10)

    def constraint(p: Vector) -> float:
        return float(0.05 + a @ p + p @ bend @ p / 2)

    def objective(p: Vector) -> float:
        return float(r @ p + p @ curvature @ p / 2)

    expected = optimize.minimize(
        objective,
        np.zeros(n),
        jac=lambda p: r + curvature @ p,
        method="SLSQP",
        constraints=[{"type": "eq", "fun": constraint, "jac": lambda p: a + bend @ p}],
        options={"maxiter": 200, "ftol": 1e-13},
    ).x
    if abs(constraint(expected)) > 1e-9:
        return  # no step meets the constraint
    assert abs(constraint(found.step)) < 1e-8
    assert objective(found.step) <= objective(expected) + 1e-6


def propose(last: float, multiplier: float, held: bool, learned: bool) -> Trial:
    """A trial of a model of three directions, of which the last bends so much and is orthogonal to
    the gradient of phi; with an upper bound that is never met, or without."""
    basis = spanned(*normal(3, 3, seed=4))
    slopes = Slopes(np.ones(3), -math.copysign(1.0, multiplier) * np.array([1.0, 0.5, 0.0]))
    curvature = 2.0 * np.eye(3) if learned else None
    model = Model(basis, np.diag([0.1, 0.2, last]), curvature, 2.0)
    if not held:
        return model.trial(slopes, 0.01, 1e3, multiplier, 1e-12)
    model = replace(model, beside=(Bend(np.zeros((3, 3))),))
    slopes = replace(slopes, beside=(np.zeros(3),))
    rules = several.Rules(np.array([True, False]), np.full(2, 1e-3))
    start = np.array([multiplier, 0.0])
    return several.trial(model, slopes, np.array([0.01, -9.0]), rules, 1e3, start)


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("learned", [False, True])
def test_where_the_lagrangian_is_concave_a_trial_sees_it_convex(held: bool, learned: bool) -> None:
    def along(last: float, multiplier: float) -> float:
        """The curvature of the Lagrangian in the last direction, as a trial goes there."""
        found = propose(last, multiplier, held, learned)
        assert found.multiplier * multiplier > 0
        modeled = -1 / found.step[2]
        return (modeled - 2) * multiplier / found.multiplier + 2  # at the price it began with

    def about(curvature: float) -> Any:
        return pytest.approx(curvature, rel=1e-6)

    # where phi pulls against R, of the same size
    assert along(-50.0, 1.5) == about(2 + 50 * 1.5)
    # where both would fall, a share of that of R, however concave
    assert along(50.0, -1.5) == along(500.0, -1.5) == about(0.3 * 2)
    # what it can bear is seen as it is, but for the last of it
    assert along(-0.5, 1.5) == about(2 - 0.5 * 1.5)
    for last, multiplier in ((-1.99 / 1.5, 1.5), (1.99 / 1.5, -1.5)):
        assert along(last, multiplier) == about((0.3 if learned else 0.03) * 2)


@pytest.mark.parametrize("gap", [1e-9, 0.05])
def test_a_trial_tells_what_it_leaves_of_phi(gap: float) -> None:
    basis, slopes = spanned(*normal(3, 3, seed=5)), Slopes(np.ones(3), np.array([-1.0, -0.5, 0.2]))
    bend = np.diag([1.0, 3.0, 8.0])
    trial = Model(basis, bend, None, 2.0).trial(slopes, 0.3, 1e3, 1.5, gap)
    expected = 0.3 + slopes.a @ trial.step + trial.step @ bend @ trial.step / 2
    assert trial.left == pytest.approx(expected, abs=1e-12)
    assert abs(trial.left) <= gap
    assert trial.left != 0


# ---------------------------------------------------------------- a smaller model


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("learned", [False, True])
def test_a_smaller_model_is_the_larger_one_on_its_span_with_the_gradients_held(
    learned: bool, parallel: bool
) -> None:
    model = taught(random_symmetric(16, 1), np.eye(16) if learned else None, 14, 1)
    model = replace(model, steepest=1e9)
    r, a, *other = np.random.default_rng(1).normal(size=(4, 16))
    held = [Slopes(r, -2 * r)] * 2 if parallel else [Slopes(r, a), Slopes(*other)]
    smaller, kept = model.compressed(8, held)
    assert (model.basis.size, smaller.basis.size) == (16, 8)
    assert_orthonormal(smaller.basis, 1e-12)
    for now, then in zip(kept, held, strict=True):
        for part in ("r", "a"):
            expected = model.basis.combine(getattr(then, part))
            found = smaller.basis.combine(getattr(now, part))
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    rows = orthonormal(smaller.basis).numpy()
    whole = rows @ unfolded(model, model.bend) @ rows.T
    np.testing.assert_allclose(smaller.bend, whole, atol=1e-9)
    assert (smaller.curvature is not None) == learned
    if smaller.curvature is not None:
        whole = rows @ unfolded(model, model.curvature) @ rows.T
        np.testing.assert_allclose(smaller.curvature, whole, atol=1e-9)


@pytest.mark.parametrize("learned", [False, True])
def test_a_smaller_model_keeps_where_phi_and_a_learned_regularizer_bend_most(learned: bool) -> None:
    n = 16
    basis = spanned(*normal(n, n, seed=2), capacity=n)
    turn = np.linalg.qr(random_symmetric(n, 5))[0]
    bends = np.array([100.0, -80.0, 60.0, *np.linspace(-1, 1, n - 3)])
    curves = np.array([2.0] * 3 + [90.0, 70.0] + [2.0] * (n - 5))
    bend, curvature = ((turn * values) @ turn.T for values in (bends, curves))
    model = Model(basis, bend, curvature if learned else None, 2.0, steepest=100.0)
    held = [Slopes(*np.random.default_rng(2).normal(size=(2, n)))]
    smaller, _ = model.compressed(8, held)
    for k in range(3):
        direction = basis.combine(turn[:, k]).numpy()
        kept = direction @ unfolded(smaller, smaller.bend) @ direction
        assert kept == pytest.approx(bends[k], rel=1e-9)
    for k in (3, 4) if learned else ():
        direction = basis.combine(turn[:, k]).numpy()
        kept = direction @ unfolded(smaller, smaller.curvature) @ direction
        assert kept == pytest.approx(curves[k], rel=1e-9)


def test_rounding_does_not_build_up_from_one_smaller_basis_to_the_next() -> None:
    # 8e-5 after twelve if the rows of a smaller basis are taken for orthonormal
    source, basis = torch.Generator().manual_seed(3), Basis.empty(12, torch.zeros(500))
    for k in range(12):
        while basis.room:
            new = torch.randn(500, generator=source)
            known = basis.combine(np.ones(basis.size) / math.sqrt(max(basis.size, 1)))
            before = basis.size
            _, basis = basis.coordinates(known + 0.2 * new / new.norm())
            assert basis.size == before + 1
        assert_orthonormal(basis, 2e-5)
        basis = basis.turned(np.linalg.qr(np.random.default_rng(k).normal(size=(12, 6)))[0])


def test_rows_that_a_smaller_basis_does_not_use_are_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial may multiply all rows, and new memory may hold NaN."""
    basis = Basis.empty(6, torch.zeros(9))
    for k in range(4):
        _, basis = basis.coordinates(torch.eye(9)[k] + 0.1)
    monkeypatch.setattr(torch, "empty_like", lambda t: torch.full_like(t, torch.nan))
    smaller = basis.turned(np.eye(4)[:, :2])
    assert smaller.rows.values[:2].isfinite().all()
    assert not smaller.rows.values[2:].any()


@given(seeds)
def test_a_step_is_longer_than_the_radius_only_as_far_as_it_restores_the_level(seed: int) -> None:
    """Lengths are those in the variables in which R's learned Hessian is a multiple of I."""
    source = np.random.default_rng(seed)
    basis = spanned(*normal(3, 3, seed=seed % 1000))
    root = source.normal(size=(3, 3)) * 10.0 ** source.uniform(-2, 1)
    curvature = root @ root.T + 0.05 * np.eye(3)
    model = Model(basis, np.zeros((3, 3)), curvature, 2.0)
    slopes = Slopes(source.normal(size=3), source.normal(size=3))
    phi, radius = source.normal(), 10.0 ** source.uniform(-3, 0)
    trial = model.trial(slopes, phi, radius, 0.0, 1e-9)
    shortest = abs(phi) / math.sqrt(slopes.a @ np.linalg.solve(curvature / 2.0, slopes.a))
    length = math.sqrt(trial.step @ curvature @ trial.step / 2.0)
    assert length == pytest.approx(trial.length, rel=1e-6)
    assert length <= 1.11 * max(radius, 1.3 * shortest)
    assert phi + slopes.a @ trial.step == pytest.approx(0, abs=1e-6)


@TYPES
@pytest.mark.parametrize("share", [1e3, 1e5])
def test_what_is_known_of_directions_of_hardly_anything_new_is_not_rounding(
    dtype: torch.dtype, share: float
) -> None:
    """The images of rows of which a vector had a share of some roundings."""
    eps = torch.finfo(dtype).eps
    z = normal(5, 60, seed=1).to(dtype)
    z[:, 30:] = 0  # what is new is orthogonal to all rows, or nearly so
    vectors = normal(2, 60, seed=2).to(dtype)
    rows = GaussNewton(StoredRows(z), np.eye(5))
    basis = spanned(*vectors)
    known = Known(rows, basis.images(rows), np.zeros(basis.size))
    for k in range(4):
        new = torch.zeros(60, dtype=dtype)
        new[40 + k] = share * eps
        vector = vectors[k % 2] + new
        found, grown = basis.coordinates(vector)
        assert grown.size == basis.size + 1
        known = known.grown(grown, found, lambda r, v=vector: r.products(v[None])[0])
        basis = grown
    exact = (orthonormal(basis) @ z.double().T).numpy()
    np.testing.assert_allclose(known.images, exact, rtol=0, atol=1e3 * eps)


def test_where_a_smaller_norm_lowers_the_loss_what_is_known_is_taken_as_what_was_learned() -> None:
    """It then makes the Lagrangian concave, and is bounded like it."""
    basis, a = spanned(*normal(3, 3, seed=6)), np.array([0.1, 0.02, 0.0])
    slopes, images = Slopes(np.array([1.0, 0.5, 0.2]), a), np.diag([2.0, 3.0, 0.5])
    rows = GaussNewton(StoredRows(torch.eye(3, dtype=F64)), np.eye(3))
    known = Known(rows, images, np.zeros(3))
    model = Model(basis, np.zeros((3, 3)), None, 2.0, known=known)
    alike = Model(basis, images @ images.T, None, 2.0)
    for multiplier in (-20.0, slopes.multiplier):
        found = model.trial(slopes, 0.0, 0.3, multiplier, 1e-9)
        np.testing.assert_allclose(found.step, alike.trial(slopes, 0.0, 0.3, multiplier, 1e-9).step)
