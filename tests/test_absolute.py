"""Levels of any sign, held by an absolute tolerance, against closed forms and plain torch."""

from __future__ import annotations

import math
from pathlib import Path as FilePath
from typing import Any

import pytest
import torch
from tests.problems import generator, normal, vector_problem
from torch import Tensor, nn
from torch.nn import functional

from isoloss import SQP, Checkpoint, Outcome, Path, Problem, Record, Stop, traverse
from isoloss.objective import Objective
from isoloss.point import Tolerance

F64 = torch.float64
CENTER = torch.tensor([3.0, -1.0, 2.0], dtype=F64)


def walk(problem: Problem, **settings: Any) -> Path:
    known = {"record": Record(points_at_most=None), "progress": False}
    return traverse(problem, **{**known, **settings})


def bowl(constant: float, start: Tensor) -> Problem:
    """L = |theta - center|^2 + constant: the level set is a sphere, its end nearest the origin."""
    return vector_problem(lambda theta: (theta - CENTER).square().sum() + constant, start)


@pytest.mark.parametrize("level", [-2.0, 0.0, 0.5, 1e-9, 1.0 - 5.0])
@pytest.mark.parametrize("away", [0.0, 4.0])
def test_a_level_of_any_sign_is_held_to_the_known_end(level: float, away: float) -> None:
    radius, atol = math.sqrt(level + 5), 1e-7
    start = CENTER + math.sqrt(level + 5 + away) * functional.normalize(normal(3, seed=0), dim=0)
    stop = Stop(kkt_residual=1e-6, evaluations=300)
    path = walk(bowl(-5.0, start), level=level, atol=atol, stop=stop)
    assert path.outcome is Outcome.CONVERGED
    end = CENTER * (1 - radius / CENTER.norm())
    assert (path.points[-1] - end).norm() < 1e-5
    errors = (path.points - CENTER).square().sum(1) - 5 - level
    assert errors.abs().max() <= atol * (1 + 1e-6)
    held = path.steps.loc[path.point_steps, "level_error"]
    torch.testing.assert_close(torch.tensor(held.to_list(), dtype=F64), errors, rtol=0, atol=1e-13)


def test_the_tolerance_is_that_of_the_loss_whatever_is_added_to_it() -> None:
    start = CENTER + functional.normalize(normal(3, seed=1), dim=0)
    stop = Stop(kkt_residual=1e-7, evaluations=300)
    ends = [
        walk(bowl(shift, start), atol=1e-9, stop=stop).points[-1] for shift in (-1e3, -1.0, 10.0)
    ]
    for end in ends:
        assert (end - ends[0]).norm() < 1e-6
        assert ((end - CENTER).norm() - 1).abs() < 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_negative_likelihood_of_a_network_is_held(dtype: torch.dtype, tmp_path: FilePath) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 2))
    x = torch.randn(60, 2, generator=generator(0))
    y = 0.1 * x[:, 0]

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        mean, spread = outputs.unbind(1)
        return functional.gaussian_nll_loss(mean, targets, spread.exp(), reduction="none")

    adam = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(300):
        adam.zero_grad()
        loss(model(x), y).mean().backward()
        adam.step()
    problem = Problem(model, loss, (x, y), dtype=dtype)
    asked = {"atol": 1e-4, "checkpoint": Checkpoint(tmp_path / "walk")}
    path = walk(problem, stop=Stop(steps=30), **asked)
    assert path.level < -0.5
    assert path.steps["regularizer"].iloc[-1] < 0.9 * path.steps["regularizer"].iloc[0]
    exact = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    for k in range(0, len(path.points), 7):
        path.load_into(exact, k)
        value = loss(exact(x.double()), y.double()).mean().item()
        assert abs(value - path.level) <= 1e-4 + (2e-6 if dtype == torch.float32 else 1e-12)
    again = walk(problem, stop=Stop(steps=30), **asked)
    assert torch.equal(again.points, path.points)


def test_losses_that_are_not_positive_need_an_absolute_tolerance(refuses) -> None:
    problem = bowl(-5.0, CENTER + 0.1)
    with refuses("must be positive", "relative tolerance", "-4.97", "atol="):
        walk(problem)
    with refuses("level must be positive", "-1.0", "atol="):
        walk(problem, level=-1.0)
    with refuses("below the noise"):
        walk(problem, atol=1e-17)


def test_the_slopes_that_are_carried_along_are_those_of_phi() -> None:
    """phi = (L - c) / scale, whatever constant L holds."""
    start = CENTER + functional.normalize(normal(3, seed=1), dim=0)
    objective = Objective(bowl(-1.0, start), "squared_norm")
    method = SQP(first_step=1e-3)  # with its default the first step is the last
    state = method.init(objective, start, None, Tolerance(atol=1e-3))
    for _ in range(4):
        state = method.step(objective, state)
        assert state.ending is None
        assert state.model is not None
        assert state.slopes is not None
        assert state.scale is not None
        carried = state.model.basis.combine(state.slopes.a)
        wanted = 2 * (state.point.theta - CENTER) / state.scale
        torch.testing.assert_close(carried, wanted, rtol=1e-8, atol=1e-9)
