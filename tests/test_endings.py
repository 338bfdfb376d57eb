"""What is said of the end of a walk: each cause in a sentence of its own, with what helps."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tests.problems import classifier, normal, vector_problem
from torch import Tensor, nn

from isoloss import (
    SQP,
    Checkpoint,
    Outcome,
    Paper,
    Path,
    Problem,
    Stop,
    at_most,
    endings,
    maximize,
    traverse,
)
from isoloss.endings import for_commands

F32, F64 = torch.float32, torch.float64


def walk(problem: Problem, **given_settings: Any) -> Path:
    return traverse(problem, **{"progress": False, **given_settings})


def off_center(start: list[float]) -> Problem:
    """A sphere of radius sqrt(3) about (1, 1, 1) at level 3, which goes through the origin."""
    return vector_problem(lambda t: (t - 1).square().sum(), torch.tensor(start, dtype=F64))


# ---------------------------------------------------------------- limits


@pytest.mark.parametrize("limit", [{"steps": 9}, {"evaluations": 10}])
def test_a_walk_that_was_cut_short_says_what_it_gained_of_late(limit: dict[str, int]) -> None:
    stiff = torch.arange(1.0, 41)
    bowl = vector_problem(lambda t: (t - 1).square() @ stiff, torch.full((40,), 3.0))
    stop = Stop(kkt_residual=0, **limit)
    path = walk(bowl, method=SQP(first_step=1e-5), stop=stop)
    used, values = path.steps["evaluations"], path.steps["regularizer"]
    assert list(used) == list(range(1, len(used) + 1))
    before, now = values[len(used) // 2 - 1 + len(used) % 2], values.iloc[-1]
    went = f"went from {before:.4g} to {now:.4g})"
    assert f"; in the second half the regularizer {went}" in path.message


def test_a_command_is_told_its_own_way_to_give_a_setting() -> None:
    told = {outcome: for_commands(outcome.remedy) for outcome in Outcome}
    assert told[Outcome.EVALUATION_LIMIT] == "To go on, raise --set evaluations=N."
    assert "lower --set corrector_step=N, or raise --set max_co" in told[Outcome.CORRECTION_LIMIT]
    assert "or use --set dtype=float64." in told[Outcome.NON_FINITE]
    assert told[Outcome.INTERRUPTED] == "To go on, call the same command again."
    assert not any("(" in text.partition("(max, abs, ReLU)")[2] for text in told.values())
    given = "give Record(points_every=5); Stop(when=...) returned True"
    assert for_commands(given) == "give --set points_every=5; Stop(when=...) returned True"


def test_a_walk_of_a_single_point_gained_nothing() -> None:
    path = walk(off_center([3.0, 1.0, 0.5]), stop=Stop(evaluations=1))
    assert path.outcome is Outcome.EVALUATION_LIMIT
    assert "half" not in path.message


# ---------------------------------------------------------------- walks that slow


def kinked(seed: int) -> Problem:
    """A network of ReLU, whose walk ends at kinks, where the gradients do not balance."""
    torch.manual_seed(seed)
    inputs = torch.randn(30, 4)
    targets = (inputs[:, 0] * inputs[:, 1] > 0).long()
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    adam = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(200):
        adam.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        adam.step()
    return Problem(model, "cross_entropy", (inputs, targets))


def first_slow(steps: pd.DataFrame, gain: float) -> int | None:
    """The first row from which `Stop.gain` asks for the end, by its definition."""
    used, value, angle = steps[["evaluations", "regularizer", "kkt_residual"]].to_numpy().T
    for k in np.flatnonzero(used >= 200):
        half = np.flatnonzero(used >= used[k] / 2)[0]
        slow = value[half] - value[k] < gain * abs(value[half])
        if (
            half
            and k - half >= 19
            and slow
            and angle[half : k + 1].min() > max(angle[:half].min() / 2, 0.01)
        ):
            return int(k)
    return None


@functools.cache
def of_gain(kinks: int, gain: float) -> Path:
    """A walk of kinks or of none that is to end at such a gain."""
    problem = kinked(seed=kinks) if kinks else classifier().problem()
    return walk(problem, stop=Stop(kkt_residual=0, evaluations=650, gain=gain))


@pytest.mark.parametrize("gain", [1e-3, 0.2])
@pytest.mark.parametrize("kinks", [3, 0])
def test_a_walk_ends_once_its_second_half_gains_too_little(kinks: int, gain: float) -> None:
    walks = [of_gain(kinks, one) for one in (gain, 0)]
    ended, whole = (one.steps.drop(columns="seconds") for one in walks)
    pd.testing.assert_frame_equal(ended, whole.iloc[: len(ended)])
    first = first_slow(whole, gain)
    slowed = walks[0].outcome is Outcome.SLOWED
    assert len(ended) - 1 == (first if slowed else len(whole) - 1)
    assert slowed or first is None
    told = endings.slowed(gain, ended.to_dict("records"))
    assert (told is not None) == slowed  # by the table alone, as `verify` judges it
    if slowed:
        assert f"less than gain={gain:g}; least KKT residual" in walks[0].message
    assert slowed or gain < 0.2 or not kinks
    if gain == 1e-3 and kinks:  # where nothing is left to gain
        assert ended["regularizer"].iloc[-1] < 1.001 * whole["regularizer"].iloc[-1]


def test_a_regularizer_that_rose_is_not_said_to_have_fallen() -> None:
    rows = [
        {"evaluations": 10 * k, "regularizer": 5 + 1e-5 * k, "kkt_residual": 0.5, "kind": "sqp"}
        for k in range(50)
    ]
    told = endings.slowed(1e-3, rows)
    assert told is not None
    assert "the regularizer rose by a share of 4.8e-05; least KKT residual 0.5" in told.detail
    fell = [{**row, "regularizer": 10 - row["regularizer"]} for row in rows]
    told = endings.slowed(1e-3, fell)
    assert told is not None
    assert "fell by a share of 4.8e-05, less than gain=0.001; least" in told.detail


def test_a_walk_of_short_steps_takes_them_all() -> None:
    path = walk(
        off_center([3.0, 1.0, 0.5]),
        method=Paper(smallest_step=1e-7, largest_step=1e-7),
        stop=Stop(steps=250),
    )
    assert first_slow(path.steps, 1e-3) is not None
    assert path.outcome is Outcome.STEP_LIMIT


# ---------------------------------------------------------------- nothing left to gain


def test_a_regularizer_that_comes_to_0_has_converged() -> None:
    exact: dict[str, Any] = {"rtol": 1e-9, "stop": Stop(kkt_residual=0, steps=300)}
    path = walk(off_center([3.0, 1.0, 0.5]), level=3.0, **exact)
    assert path.outcome is Outcome.CONVERGED
    assert path.points[-1].square().sum().item() < 1e-15
    assert "from 10.25 to " in path.message
    assert "0 to rounding). Nothing is left to gain" in path.message


def test_a_regularizer_without_a_slope_has_converged() -> None:
    def beyond(parameters: Mapping[str, Tensor]) -> Tensor:
        return (parameters["theta"] - 1.5).clamp(min=0).square().sum()

    path = walk(off_center([3.0, 1.0, 0.5]), regularizer=beyond)
    assert path.outcome is Outcome.CONVERGED
    assert path.steps["regularizer"].iloc[-1] == 0
    assert "it is 0, and its gradient is 0). Nothing is left to gain" in path.message


@pytest.mark.parametrize(("dtype", "far"), [(F32, 1e12), (F64, 1e130)])
def test_a_regularizer_without_a_least_value_is_told_from_noise(
    dtype: torch.dtype, far: float
) -> None:
    problem = vector_problem(lambda t: 1 + t[0] ** 2, torch.tensor([1.0, far], dtype=dtype))
    path = walk(problem, regularizer=maximize("squared_norm"))
    assert not path.outcome.success
    assert path.steps["regularizer"].iloc[-1] < -1e20
    assert "the regularizer may have no least value, it went from " in path.message
    assert "Stop(regularizer_below=...)" in path.message


def test_the_least_loss_has_a_level_set_of_one_point() -> None:
    problem = vector_problem(lambda t: 2 + (t - 1).square().sum(), torch.ones(3, dtype=F64))
    path = walk(problem)
    assert path.outcome is Outcome.GRADIENT_VANISHED
    assert "At the least loss the level set is a single point" in path.message


# ---------------------------------------------------------------- not finite


def line_problem(loss: Any, *, weight: float = 1.0, dtype: torch.dtype = F64) -> Problem:
    """Examples 0 to 5 of one weight: the outputs are weight * example."""
    model = nn.Linear(1, 1, bias=False).to(dtype)
    nn.init.constant_(model.weight, weight)
    inputs = torch.arange(6, dtype=dtype).unsqueeze(1)
    return Problem(model, loss, (inputs, torch.zeros(6, dtype=dtype)), chunk_size=2)


def test_the_example_whose_loss_is_not_finite_is_named_at_the_start(refuses: Any) -> None:
    def rooted(outputs: Tensor, targets: Tensor) -> Tensor:
        return (3.5 - outputs[:, 0]).sqrt() + targets

    with refuses("got nan: the loss of example 4 is nan, as those of 1 more are", "at example 4"):
        walk(line_problem(rooted))


def test_the_example_whose_loss_is_not_finite_is_named_in_the_walk() -> None:
    def walled(outputs: Tensor, targets: Tensor) -> Tensor:
        wall = torch.where(torch.arange(len(outputs)) == 1, outputs[:, 1] - 1, 1.0)
        return outputs[:, 0] + 0 * wall.sqrt() + targets

    problem = Problem(
        lambda p, x: (x + 1) * p["theta"].expand(len(x), 2),
        walled,
        (torch.zeros(2, 1, dtype=F64), torch.zeros(2, dtype=F64)),
        parameters={"theta": torch.tensor([2.0, 1.05], dtype=F64)},
    )
    path = walk(problem, stop=Stop(evaluations=2000))
    assert path.outcome is Outcome.NON_FINITE
    assert "the loss of example 1 is nan" in path.message
    assert "Look at example 1" in path.message
    assert 1 <= path.points[-1][1] < 1.05


def test_an_overflow_of_float32_is_told_from_a_loss_that_is_infinite(refuses: Any) -> None:
    def steep(outputs: Tensor, targets: Tensor) -> Tensor:
        return (20 * outputs[:, 0]).exp() + targets

    mean = np.exp(20.0 * np.arange(6)).mean()
    with refuses(f"the loss of example 5 is inf; in float64 the mean is {mean:.6g}", "float64"):
        walk(line_problem(steep, dtype=F32))

    def pole(outputs: Tensor, targets: Tensor) -> Tensor:
        return 1 / (outputs[:, 0] - 5).square() + targets

    with refuses("the loss of example 5 is inf; look at example 5"):
        walk(line_problem(pole, dtype=F32))


def test_the_parameter_whose_gradient_is_not_finite_is_named(refuses: Any) -> None:
    class Norms(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Parameter(torch.ones(3, dtype=F64))
            self.two = nn.Parameter(torch.zeros(3, dtype=F64))

        def forward(self, x: Tensor) -> Tensor:
            return x * (self.one.square().sum() + self.two.square().sum().sqrt())

    data = (torch.ones(4, 1, dtype=F64), torch.zeros(4, 1, dtype=F64))
    with refuses("gradient of the loss is not finite in 'two', though the loss is", "a root"):
        walk(Problem(Norms(), "mse", data))


def test_the_regularizer_that_is_not_finite_is_named(refuses: Any) -> None:
    def logarithm(parameters: Mapping[str, Tensor]) -> Tensor:
        return -parameters["theta"].log().sum()

    with refuses("the regularizer logarithm is inf"):
        walk(off_center([1.0, 0.0, 2.0]), regularizer=logarithm)


# ---------------------------------------------------------------- time


class Clock:
    """A clock on which an evaluation of the loss takes a second, and nothing else does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def problem(self) -> Problem:
        scales = torch.linspace(0.5, 3, 8, dtype=F64)

        def loss(theta: Tensor) -> Tensor:
            self.now += 1
            return (scales * theta.square()).sum() + 0.1 * torch.sin(3 * theta).square().sum()

        return vector_problem(loss, torch.linspace(-1, 1.5, 8, dtype=F64))


def test_the_checks_at_the_start_and_each_trial_count_as_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = walk(Clock(monkeypatch).problem(), stop=Stop(steps=5))
    at_start = int(whole.steps["seconds"].iloc[0])
    assert at_start > 5  # the checks'
    between = set(range(at_start, at_start + 10)) - set(whole.steps["seconds"])
    assert between  # within steps
    for seconds in (1, *range(at_start, at_start + 10)):
        clock = Clock(monkeypatch)
        path = walk(clock.problem(), stop=Stop(seconds=seconds, kkt_residual=0))
        assert path.outcome is Outcome.TIME_LIMIT
        assert clock.now == max(seconds, at_start)
        assert f"({max(seconds, at_start):.3g} s" in path.message


def test_a_step_that_was_cut_short_is_taken_again_with_the_same_bits(
    tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = walk(Clock(monkeypatch).problem(), stop=Stop(steps=12), method=SQP())
    lengths: list[int] = []
    for seconds in (*range(15, 90, 5), None):
        clock = Clock(monkeypatch)
        stop = Stop(steps=12, seconds=seconds)
        path = walk(
            clock.problem(), stop=stop, method=SQP(), checkpoint=Checkpoint(tmp_path / "kept", 0)
        )
        lengths.append(len(path.steps))
    assert lengths[0] < lengths[-1] == len(whole.steps)
    assert torch.equal(path.points, whole.points)
    steps = [one.steps.drop(columns="seconds") for one in (path, whole)]
    assert steps[0].equals(steps[1])


@pytest.mark.parametrize("seed", [0, 2])
def test_a_start_at_the_least_loss_is_told_to_hold_a_level_above_it(seed: int) -> None:
    inputs, targets = normal(20, 4, seed=seed), normal(20, 1, seed=seed + 1)
    best = torch.linalg.lstsq(inputs, targets).solution.T
    model = nn.Linear(4, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(best + 1e-8 * normal(1, 4, seed=2))
    problem = Problem(model, "mse", (inputs, targets), dtype=torch.float32)
    path = traverse(problem, progress=False)
    assert path.outcome is Outcome.GRADIENT_VANISHED
    assert "hold a level above it" in path.message
    above = at_most(problem, 1.1 * problem.loss(problem.current()).item())
    assert traverse(problem, level=above, progress=False).outcome is Outcome.CONVERGED
