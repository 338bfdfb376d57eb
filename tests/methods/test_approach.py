"""The way to another level, against SciPy's L-BFGS, dense matrices and known polynomials."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize
from tests.problems import Vector, classifier, normal, quadratic, vector_problem
from torch import Tensor, nn

from isoloss import SQP, Outcome, Paper, Path, Problem, Stop, traverse
from isoloss.methods.sqp.approach import _Line, _newton
from isoloss.methods.sqp.basis import Rows, row_of
from isoloss.objective import Objective
from isoloss.point import Tolerance
from isoloss.problem import ALONE

F64 = torch.float64


def walk(problem: Problem, level: float, **given_settings: Any) -> Path:
    known = {"stop": Stop(steps=1), "check": False, "progress": False}
    return traverse(problem, level=level, **{**known, **given_settings})


def narrow(seed: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A network trained into a narrow valley: its gradient points across, and changes a lot."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(120, 3, generator=generator, dtype=F64)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    y = (x[:, :1] * x[:, 1:2]).tanh()
    adam = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(400):
        adam.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        adam.step()
    return model, x, y


def evaluations_of_scipy(model: nn.Module, x: Tensor, y: Tensor, level: float) -> int:
    """Until the loss is at the level or below, or rather has passed it, in plain torch."""
    losses: list[float] = []

    def evaluate(flat: Vector) -> tuple[float, Vector]:
        nn.utils.vector_to_parameters(torch.from_numpy(flat), model.parameters())
        model.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        losses.append(loss.item())
        if losses[-1] <= level:
            raise StopIteration
        return losses[-1], nn.utils.parameters_to_vector([p.grad for p in model.parameters()])

    start = nn.utils.parameters_to_vector(model.parameters()).detach().numpy().copy()
    options = {"maxcor": 40, "maxiter": 10_000, "maxfun": 10_000, "ftol": 0, "gtol": 0}
    with pytest.raises(StopIteration):
        optimize.minimize(evaluate, start, jac=True, method="L-BFGS-B", options=options)
    return len(losses)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("share", [0.95, 0.6])
def test_a_narrow_valley_is_followed_as_fast_as_by_scipys_lbfgs(share: float, seed: int) -> None:
    model, x, y = narrow(seed)
    level = share * nn.functional.mse_loss(model(x), y).item()
    path = walk(Problem(model, "mse", (x, y)), level)
    reached = path.steps["evaluations"][path.point_steps[0]]
    path.load_into(model, 0)
    assert nn.functional.mse_loss(model(x), y).item() == pytest.approx(level, rel=1e-3)
    # the least is theirs as often as not, and theirs need not land on the level
    assert reached <= 1.3 * evaluations_of_scipy(narrow(seed)[0], x, y, level) + 2


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("level", [1e-8, 0.1, 50.0, 1e9])
def test_a_level_far_away_is_landed_on(level: float, dtype: torch.dtype) -> None:
    scales = torch.logspace(-1, 1, 6, dtype=dtype)
    start = torch.ones(6, dtype=dtype)
    problem = vector_problem(lambda t: (scales * t.square()).sum(), start)
    path = walk(problem, level, rtol=1e-4)
    landed = path.points[0].double()
    assert (scales.double() * landed.square()).sum().item() == pytest.approx(level, rel=1.1e-4)
    assert path.steps["evaluations"][path.point_steps[0]] < 60
    errors = np.abs(np.log(path.steps["loss"][: path.point_steps[0] + 1] / level))
    assert errors.is_monotonic_decreasing


def test_a_wall_on_the_way_is_kept_away_from() -> None:
    def loss(theta: Tensor) -> Tensor:  # undefined beyond 1, where the first trial would end
        return 2 - theta[0] + 0 * torch.sqrt(1 - theta[0])

    path = walk(vector_problem(loss, torch.tensor([-20.0], dtype=F64)), level=1.001)
    assert path.steps["loss"][path.point_steps[0]] == pytest.approx(1.001, rel=1e-3)


def kept(steps: list[Tensor], changes: list[Tensor]) -> list[tuple[Rows, Rows]]:
    several = zip(steps, changes, strict=True)
    return [(row_of(step, ALONE), row_of(change, ALONE)) for step, change in several]


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("pairs", [0, 1, 3])
def test_the_direction_is_that_of_the_inverse_bfgs_matrix(pairs: int, sign: float) -> None:
    n = 5
    hessian = normal(n, n, seed=1)
    hessian = sign * (hessian @ hessian.T + torch.eye(n, dtype=F64))
    steps = [normal(n, seed=10 + k) for k in range(pairs)]
    changes = [hessian @ step for step in steps]
    grad = normal(n, seed=2)
    inverse = np.eye(n)
    for k, (step, change) in enumerate(zip(steps, changes, strict=True)):
        s, y = step.numpy(), sign * change.numpy()
        if k == 0:  # scaled by the last pair
            last_s, last_y = steps[-1].numpy(), sign * changes[-1].numpy()
            inverse = np.eye(n) * (last_s @ last_y) / (last_y @ last_y)
        left = np.eye(n) - np.outer(s, y) / (s @ y)
        inverse = left @ inverse @ left.T + np.outer(s, s) / (s @ y)
    ahead, learned = _newton(grad, kept(steps, changes), sign, ALONE)
    np.testing.assert_allclose(ahead.numpy(), -sign * inverse @ grad.numpy(), rtol=1e-9)
    assert learned == bool(pairs)
    concave = kept(steps, [-change for change in changes])
    ahead, learned = _newton(grad, concave, sign, ALONE)
    assert torch.equal(ahead, -sign * grad)
    assert not learned


@given(
    steep=st.floats(0.1, 3),
    bend=st.floats(0, 3),
    flattest=st.floats(-0.5, 1.5),
    root=st.floats(0.05, 0.95),
    scale=st.floats(1e-3, 1e3),
)
def test_the_level_on_a_line_where_the_loss_is_a_cubic_is_found_at_once(
    steep: float, bend: float, flattest: float, root: float, scale: float
) -> None:
    slope = np.polynomial.Polynomial([-steep - bend * flattest**2, 2 * bend * flattest, -bend])
    cubic = slope.integ() - slope.integ()(root)  # falls, and is 0 at the root
    level = 10.0
    problem = vector_problem(
        lambda t: level + sum(k * (t[0] / scale) ** i for i, k in enumerate(cubic.coef)),
        torch.zeros(1, dtype=F64),
    )
    objective = Objective(problem, "squared_norm")
    state = SQP().init(objective, torch.zeros(1, dtype=F64), level, Tolerance(1e-9))
    line = _Line(objective, state, ())
    far = scale / line.ahead.item()
    beyond = line._mark(far, objective.evaluate(line.ahead * far))
    along = line._next(line.start, beyond, far, halved=True)
    assert along * line.ahead.item() == pytest.approx(root * scale, rel=1e-6)


def test_no_more_than_memory_pairs_are_held_and_none_on_the_level() -> None:
    model, x, y = narrow(0)
    problem = Problem(model, "mse", (x, y))
    method, theta = SQP(memory=16), problem.current()
    objective = Objective(problem, "squared_norm")
    state = method.init(objective, theta, 0.6 * problem.loss(theta).item(), Tolerance(1e-3))
    most = 0
    while not state.on_level:
        state = method.step(objective, state)
        most = max(most, len(state.pairs))
    assert most == 16
    assert state.pairs == ()


# ---------------------------------------------------------------- not reached


def test_a_level_below_the_least_loss_is_answered_with_that_loss() -> None:
    problem = quadratic(constant=0.5).problem
    path = walk(problem, level=0.3)
    assert path.outcome is Outcome.LEVEL_UNREACHABLE
    assert path.steps["loss"].iloc[-1] == pytest.approx(0.5, rel=1e-12)
    assert problem.evaluations < 40  # the last searches, which found none, included
    for words in ("loss 0.5 ", "towards 0.3", "the least that was found", "Hold a level above"):
        assert words in path.message
    assert set(path.steps["kind"][1:]) == {"correct"}


def test_a_loss_that_jumps_over_the_level_is_told() -> None:
    def loss(theta: Tensor) -> Tensor:
        return theta.square().sum() + (theta[0] > 1).double()

    path = walk(vector_problem(loss, torch.tensor([1.5, 0.0], dtype=F64)), level=1.5)
    assert path.outcome is Outcome.LEVEL_UNREACHABLE
    assert "jumps over it, to 1" in path.message
    assert "float64" not in path.message  # it is in float64


def test_the_most_steps_towards_a_level_can_be_raised() -> None:
    path = walk(classifier().problem(), level=1e-3, method=SQP(max_approach=2))
    assert path.outcome is Outcome.LEVEL_UNREACHABLE
    assert path.steps["kind"].tolist() == ["start", "correct", "correct"]
    assert "after 2 steps" in path.message
    assert "raise SQP(max_approach=2)" in path.message


@pytest.mark.parametrize("method", [SQP(), Paper(corrector_step=1e-3)], ids=["sqp", "paper"])
@pytest.mark.parametrize(
    ("stop", "remedy"),
    [
        (Stop(evaluations=3), "raise Stop(evaluations=...)"),
        (Stop(seconds=1e-9), "raise Stop(seconds=...)"),
    ],
    ids=["evaluations", "seconds"],
)
def test_a_limit_before_the_level_is_no_success(method: Any, stop: Stop, remedy: str) -> None:
    path = walk(classifier().problem(), level=0.3, stop=stop, method=method)
    assert path.outcome is Outcome.LEVEL_UNREACHABLE
    assert not path.outcome.success
    assert path.point_steps == []
    assert remedy in path.message
    assert f"the loss was {path.steps['loss'].iloc[-1]:.6g} on the way to 0.3" in path.message


def test_a_loss_that_never_comes_near_the_level_ends_the_walk() -> None:
    bounded = vector_problem(lambda t: 2 - torch.exp(-t.dot(t)), normal(3, seed=1))
    path = walk(bounded, level=2.5)
    assert path.outcome is Outcome.LEVEL_UNREACHABLE
    assert path.steps["loss"].iloc[-1] == pytest.approx(2.0)
    assert "Hold a level nearer" in path.message
    assert math.isfinite(path.steps["regularizer"].iloc[-1])


@pytest.mark.parametrize("level", [-3.0, 0.0, 4.0])
def test_a_level_of_any_sign_is_reached_within_an_absolute_tolerance(level: float) -> None:
    start = torch.tensor([1.0, 2.0, -1.0], dtype=F64)
    problem = vector_problem(lambda t: (t**2 + 0.3 * torch.sin(3 * t)).sum() - 4.5, start)
    path = walk(problem, level, atol=1e-5)
    landed = path.points[0]
    assert (landed**2 + 0.3 * torch.sin(3 * landed)).sum().item() - 4.5 == pytest.approx(
        level, abs=1e-5
    )
    assert path.steps["evaluations"][path.point_steps[0]] < 20
