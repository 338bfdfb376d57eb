"""The predictor and corrector against a naive NumPy version written from the reference alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.problems import (
    NETS,
    LinearRegularizer,
    Net,
    Vector,
    classifier,
    normal,
    quadratic,
    regressor,
    rotation,
    sphere,
    two_factor,
    vector_problem,
)
from torch import Tensor

from isoloss import InputError, Outcome, Paper, Path, Problem, Record, Stop, traverse
from isoloss.point import Objective
from isoloss.regularizers import SquaredNorm

F64 = torch.float64
CALM = Paper(smallest_step=1e-3, largest_step=0.1, corrector_step=1e-6, max_corrections=500)
"""Its steps grow slowly; it leaves the band after some thirty of them."""
LIVELY = Paper(smallest_step=1e-2, largest_step=0.05, corrector_step=2e-6, max_corrections=500)
"""Leaves the band and comes back every few steps."""
WIDE = Paper(smallest_step=2e-2, largest_step=0.03, corrector_step=4e-5, tolerance=1e-3)
"""A band so wide that the largest step is reached, and that the path is bent inside it."""
SETTINGS = {"calm": CALM, "lively": LIVELY, "wide": WIDE}


def walk(problem: Problem, method: Paper, steps: int = 40, **settings: Any) -> Path:
    return traverse(
        problem,
        method=method,
        stop=settings.pop("stop", Stop(steps=steps, kkt_residual=0)),
        record=Record(points_at_most=None),
        progress=False,
        **settings,
    )


# ---------------------------------------------------------------- the reference's pseudo-code


@dataclass
class Naive:
    """One step of the reference: what it was, how long, and where it led."""

    kind: str
    length: float
    theta: Vector


def angle(a: Vector, b: Vector) -> float:
    cosine = a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def reference(
    loss_and_grad: Callable[[Vector], tuple[float, Vector]],
    theta: Vector,
    c: float,
    settings: Paper,
    steps: int,
) -> list[Naive]:
    s_min, s_max, s_c = settings.smallest_step, settings.largest_step, settings.corrector_step
    s, last, d_previous, done = s_min, None, None, []
    for _ in range(steps):
        L, g = loss_and_grad(theta)
        if (L - c) ** 2 <= settings.tolerance**2:
            r = 2 * theta
            d = r - (r @ g) * g / (g @ g) if np.sqrt(np.mean(g**2)) >= 1e-6 else r
            d = d / np.linalg.norm(d)
            if last == "predict":
                grow = angle(d, d_previous) < 0.1
                s = round(min(1.1 * s, s_max) if grow else max(0.1 * s, s_min), 10)
            elif last == "correct":
                s = s_min
            theta = theta - s * d
            last, d_previous = "predict", d
            done.append(Naive("predict", s, theta))
        else:
            e = 2 * (L - c) * g
            if d_previous is not None:
                e = e - (e @ d_previous) * d_previous
            e = e / np.linalg.norm(e)
            theta = theta - s_c * e
            last = "correct"
            done.append(Naive("correct", s_c, theta))
    return done


def agree(
    problem: Problem, expected: list[Naive], settings: Paper, start: Tensor, c: float
) -> None:
    """isoloss takes exactly these steps; every state of its own is compared, on the level or off."""
    objective = Objective(problem, SquaredNorm())
    state = settings.init(objective, start, c, rtol=1e-3)
    for k, naive in enumerate(expected):
        state = settings.step(objective, state)
        assert state.ending is None
        assert (state.kind, state.step_length) == (naive.kind, pytest.approx(naive.length)), k
        np.testing.assert_allclose(state.point.theta.numpy(), naive.theta, rtol=0, atol=1e-10)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("make", NETS.values(), ids=NETS)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_step_is_the_references(make: Any, settings: Paper, seed: int) -> None:
    net: Net = make(seed=seed)
    problem, start = net.problem(), net.theta
    c = problem.loss(start).item()
    expected = reference(net.loss_and_grad, start.numpy(), c, settings, 120)
    agree(problem, expected, settings, start, c)


def test_the_cases_of_the_reference_are_all_met_in_these_walks() -> None:
    seen: set[str] = set()
    for make, settings in itertools.product(NETS.values(), SETTINGS.values()):
        net = make()
        c = net.loss_and_grad(net.theta.numpy())[0]
        done = reference(net.loss_and_grad, net.theta.numpy(), c, settings, 120)
        for a, b in itertools.pairwise(done):
            seen.add(f"{a.kind} then {b.kind}")
            if a.kind == b.kind == "predict":
                seen.add(
                    "grown" if b.length > a.length else "shrunk" if b.length < a.length else ""
                )
                seen |= {"largest"} if b.length == settings.largest_step else set()
                seen |= {"smallest"} if b.length == settings.smallest_step else set()
    assert seen >= {
        *("predict then predict", "predict then correct"),
        *("correct then correct", "correct then predict"),
        *("grown", "shrunk", "largest", "smallest"),
    }


@given(seed=st.integers(0, 10**6), which=st.sampled_from(list(SETTINGS)))
def test_every_step_is_the_references_whatever_the_network(seed: int, which: str) -> None:
    net = (classifier if seed % 2 else regressor)(sizes=(2, 3, 3), examples=5, seed=seed)
    c = net.loss_and_grad(net.theta.numpy())[0]
    expected = reference(net.loss_and_grad, net.theta.numpy(), c, SETTINGS[which], 40)
    agree(net.problem(), expected, SETTINGS[which], net.theta, c)


@pytest.mark.parametrize("off", [1e-4, -1e-4])
def test_the_way_to_another_level_is_the_references(off: float) -> None:
    net = classifier()
    c = net.loss_and_grad(net.theta.numpy())[0] + off
    settings = Paper(smallest_step=1e-3, corrector_step=1e-5)
    expected = reference(net.loss_and_grad, net.theta.numpy(), c, settings, 40)
    assert [naive.kind for naive in expected[:9]] == ["correct"] * 9
    assert expected[-1].kind == "predict"
    agree(net.problem(), expected, settings, net.theta, c)


@pytest.mark.parametrize("slope", [0.9e-6, 1.1e-6])
def test_a_gradient_below_1e_6_per_parameter_is_not_projected_out(slope: float) -> None:
    start = torch.tensor([1.0, 2.0, -1.0, 0.5], dtype=F64)
    # the gradient is the same everywhere and its root mean square is the slope
    g = slope * torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=F64)
    problem = vector_problem(lambda theta: 1 + g.dot(theta - start), start)

    def loss_and_grad(theta: Vector) -> tuple[float, Vector]:
        return 1 + float(g.numpy() @ (theta - start.numpy())), g.numpy()

    expected = reference(loss_and_grad, start.numpy(), 1.0, LIVELY, 10)
    agree(problem, expected, LIVELY, start, 1.0)
    moved = expected[0].theta - start.numpy()
    along = abs(moved @ g.numpy()) / np.linalg.norm(moved) / g.norm().item()
    assert along > 0.5 if slope < 1e-6 else along < 1e-12


def test_lengths_are_rounded_to_ten_decimals() -> None:
    # 1e-5 * 1.1^6 has more than ten decimals
    path = walk(classifier().problem(), Paper(), steps=30)
    lengths = path.steps["step_length"].tolist()
    assert lengths[1:9] == [
        *(1e-05, 1.1e-05, 1.21e-05, 1.331e-05, 1.4641e-05, 1.61051e-05, 1.77156e-05, 1.94872e-05)
    ]
    assert all(length == round(length, 10) for length in lengths)


def test_a_float32_walk_is_the_references_up_to_rounding() -> None:
    net = regressor()
    start = net.theta.float().double()
    c = net.loss_and_grad(start.numpy())[0]
    # of one length, since float32 cannot tell whether a direction has turned by 0.1 degrees
    method = Paper(smallest_step=0.02, largest_step=0.02, corrector_step=4e-5, tolerance=1e-4)
    path = walk(net.problem(dtype=torch.float32), method, steps=30, start=start, level=c)
    expected = reference(net.loss_and_grad, start.numpy(), c, method, len(path.steps) - 1)
    assert (path.steps["kind"] == "correct").any()
    assert path.steps["kind"].tolist()[1:] == [naive.kind for naive in expected]
    np.testing.assert_allclose(path.points[-1].numpy(), expected[-1].theta, rtol=0, atol=1e-5)


# ---------------------------------------------------------------- what each step does


@given(seed=st.integers(0, 10**6), which=st.sampled_from(list(SETTINGS)))
def test_a_predictor_step_is_tangent_and_lowers_the_norm_as_far_as_its_length_can(
    seed: int, which: str
) -> None:
    net = (classifier if seed % 2 else regressor)(seed=seed)
    objective = Objective(net.problem(), SquaredNorm())
    method = SETTINGS[which]
    state = method.init(objective, net.theta, None, rtol=1e-3)
    for _ in range(25):
        before, state = state, method.step(objective, state)
        if state.kind != "predict":
            continue
        _, g = net.loss_and_grad(before.point.theta.numpy())
        moved = (state.point.theta - before.point.theta).numpy()
        s = state.step_length
        assert abs(moved @ g) <= 1e-12 * s * np.linalg.norm(g)
        assert np.linalg.norm(moved) == pytest.approx(s, rel=1e-9)
        r = 2 * before.point.theta.numpy()
        tangent = np.linalg.norm(r - (r @ g) / (g @ g) * g)
        change = state.point.regularizer - before.point.regularizer
        assert change == pytest.approx(s * (s - tangent), rel=1e-6, abs=1e-12)
        assert change <= 0 or tangent < s


@given(seed=st.integers(0, 10**6))
def test_a_correction_approaches_the_level_across_the_last_direction(seed: int) -> None:
    net = (classifier if seed % 2 else regressor)(seed=seed)
    objective = Objective(net.problem(), SquaredNorm())
    state = LIVELY.init(objective, net.theta, None, rtol=1e-3)
    walked = None
    for _ in range(30):
        before, state = state, LIVELY.step(objective, state)
        moved = state.point.theta - before.point.theta
        if state.kind == "predict":
            walked = moved / moved.norm()
            continue
        assert walked is not None
        assert abs(moved.dot(walked).item()) <= 1e-9 * state.step_length
        assert moved.norm().item() == pytest.approx(LIVELY.corrector_step, rel=1e-6)
        errors = [abs(each.point.loss - state.level) for each in (before, state)]
        assert errors[1] < errors[0]
        rise = abs(state.point.regularizer - before.point.regularizer)
        assert rise <= LIVELY.corrector_step * 2.1 * before.point.theta.norm().item()


def test_a_predictor_step_is_taken_from_the_level_set_only() -> None:
    steps = walk(regressor().problem(), LIVELY, steps=60).steps
    inside = (steps["level_error"] * steps["loss"][0]).abs() <= LIVELY.tolerance
    for k in range(1, len(steps)):
        assert steps["kind"][k] == ("predict" if inside[k - 1] else "correct")


def test_the_first_step_after_a_correction_is_the_smallest() -> None:
    steps = walk(regressor().problem(), LIVELY, steps=60).steps
    after = steps[(steps["kind"] == "predict") & (steps["kind"].shift() == "correct")]
    assert len(after) > 3
    assert (after["step_length"] == LIVELY.smallest_step).all()


def test_the_length_grows_by_a_tenth_up_to_the_largest_on_a_straight_way() -> None:
    # L does not depend on the first coordinate, down which R falls
    start = torch.tensor([3.0, 0.0], dtype=F64)
    problem = vector_problem(lambda theta: 1 + theta[1], start)
    lengths = walk(problem, Paper(smallest_step=0.01, largest_step=0.015), steps=6).steps
    grown = lengths["step_length"].tolist()[1:]
    assert grown == pytest.approx([0.01, 0.011, 0.0121, 0.01331, 0.014641, 0.015])


def test_the_length_shrinks_to_a_tenth_where_the_way_bends() -> None:
    # on a circle of radius 1 a step of s turns the tangent by s radians: 0.1 degrees at 0.00175
    known = sphere(n=2, radius=1.0)
    path = walk(
        known.problem,
        Paper(smallest_step=1e-5, largest_step=0.1, tolerance=1e-4),
        steps=80,
        regularizer=known.regularizer,
    )
    lengths = path.steps["step_length"].to_numpy()[1:]
    peak = int(lengths.argmax())
    assert lengths[peak] > math.radians(0.1) > lengths[peak - 1]
    assert lengths[peak + 1] == pytest.approx(lengths[peak] / 10, abs=1e-10)


def test_every_step_costs_one_evaluation() -> None:
    net = regressor()
    problem = net.problem()
    path = walk(problem, LIVELY, steps=30)
    assert (path.steps["kind"] == "correct").any()
    assert problem.evaluations == len(path.steps)


def test_a_step_does_not_change_the_state_it_is_given() -> None:
    objective = Objective(regressor().problem(), SquaredNorm())
    state = LIVELY.init(objective, regressor().theta, None, rtol=1e-3)
    for _ in range(20):
        theta = state.point.theta.clone()
        first, second = (LIVELY.step(objective, state) for _ in range(2))
        assert torch.equal(state.point.theta, theta)
        assert torch.equal(first.point.theta, second.point.theta)
        assert (first.kind, first.step_length) == (second.kind, second.step_length)
        state = first


def test_the_relative_tolerance_is_not_used() -> None:
    paths = [walk(regressor().problem(), LIVELY, rtol=rtol) for rtol in (1e-9, 0.5)]
    assert torch.equal(paths[0].points, paths[1].points)


# ---------------------------------------------------------------- the level


@pytest.mark.parametrize("off", [2e-3, -2e-3])
def test_a_level_given_is_reached_by_corrections(off: float) -> None:
    problem = regressor().problem()
    start = problem.loss(problem.current()).item()
    path = walk(problem, Paper(corrector_step=5e-6), steps=3, level=start + off)
    kinds = path.steps["kind"].tolist()
    first = kinds.index("predict")
    assert first > 100
    assert kinds[1:first] == ["correct"] * (first - 1)
    errors = (path.steps["loss"] - path.level).abs().to_numpy()
    assert (np.diff(errors[:first]) < 0).all()
    assert errors[first - 1] <= 1e-5 < errors[first - 2]
    assert path.point_steps[0] == first - 1
    assert path.level == start + off


def test_the_start_is_on_its_own_level() -> None:
    path = walk(regressor().problem(), CALM, steps=1)
    assert path.steps["level_error"][0] == 0
    assert path.steps["kind"].tolist() == ["start", "predict"]


# ---------------------------------------------------------------- the end


@pytest.mark.parametrize("cap", [1, 7])
def test_a_corrector_that_jumps_over_the_band_ends_the_walk(cap: int) -> None:
    # |g| is about 2, so that a step of 1e-3 crosses a band of width 2e-5 for ever
    method = Paper(smallest_step=0.02, corrector_step=1e-3, max_corrections=cap)
    path = walk(regressor().problem(), method, steps=100)
    kinds = path.steps["kind"].tolist()
    assert path.outcome is Outcome.CORRECTION_LIMIT
    assert not path.outcome.success
    assert kinds[-cap - 1 :] == ["predict", *["correct"] * cap]
    assert f"after {cap} corrections of 0.001" in path.message
    assert "corrector_step=" in path.message
    assert "1e-05" in path.message
    kept = path.steps["loss"].iloc[path.point_steps]
    assert ((kept - path.level).abs() <= 1e-5).all()


def test_the_cap_counts_corrections_in_a_row() -> None:
    problem = regressor().problem()
    steps = walk(problem, LIVELY, steps=60).steps
    runs = [len(list(run)) for kind, run in itertools.groupby(steps["kind"]) if kind == "correct"]
    assert sum(runs) > max(runs)
    enough = LIVELY.model_copy(update={"max_corrections": max(runs)})
    assert walk(problem, enough, steps=60).outcome is Outcome.STEP_LIMIT


def test_a_tangent_of_zero_is_the_end() -> None:
    start = torch.tensor([-2.0, 0.0], dtype=F64)  # exact in binary, so that the tangent is too
    problem = vector_problem(lambda theta: theta.dot(theta), start)
    slope = LinearRegularizer(torch.tensor([1.0, 0.0], dtype=F64))
    objective = Objective(problem, slope)
    state = CALM.init(objective, start, None, rtol=1e-3)
    after = CALM.step(objective, state)
    assert after.ending is not None
    assert after.ending.outcome is Outcome.CONVERGED
    assert after.point is state.point
    assert objective.evaluations == 1


def test_the_walk_comes_near_a_known_end() -> None:
    for known in (sphere(), two_factor(), quadratic()):
        path = walk(
            known.problem,
            Paper(smallest_step=5e-3, largest_step=0.02, corrector_step=5e-5, tolerance=2e-4),
            start=known.start,
            level=known.level,
            regularizer=known.regularizer,
            stop=Stop(steps=1500, kkt_residual=0.02),
        )
        assert path.outcome is Outcome.CONVERGED
        assert known.gap(path.points[-1]) < 0.1
        assert path.steps["regularizer"].iloc[-1] == pytest.approx(known.value, abs=5e-3)


# ---------------------------------------------------------------- symmetry


def bumpy(theta: Tensor) -> Tensor:
    """A smooth loss without symmetry."""
    weights = torch.linspace(0.5, 1.5, len(theta), dtype=theta.dtype)
    return 1 + torch.logsumexp(weights * theta, 0) ** 2 + (weights * theta.sin()).square().sum() / 4


@given(seed=st.integers(0, 10**6))
def test_rotated_coordinates_have_the_rotated_path(seed: int) -> None:
    Q, start = rotation(5, seed), normal(5, seed=seed + 1)
    method = Paper(smallest_step=5e-3, largest_step=0.03, corrector_step=1e-5, tolerance=1e-4)
    plain = walk(vector_problem(bumpy, start), method, steps=20)
    rotated = walk(vector_problem(lambda theta: bumpy(Q @ theta), Q.T @ start), method, steps=20)
    assert rotated.steps["kind"].tolist() == plain.steps["kind"].tolist()
    assert rotated.steps["step_length"].tolist() == plain.steps["step_length"].tolist()
    torch.testing.assert_close(rotated.points @ Q.T, plain.points, rtol=0, atol=1e-8)


# ---------------------------------------------------------------- bad settings


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"smallest_step": 0.5}, ["smallest_step=0.5", "largest_step=0.1"]),
        ({"largest_step": 1e-6}, ["smallest_step=1e-05", "largest_step=1e-06"]),
        ({"corrector_step": -1e-6}, ["corrector_step=-1e-06 ", "Paper", "greater than 0"]),
        ({"tolerance": "wide"}, ["tolerance=wide ", "Paper", "number"]),
        ({"max_corrections": 1.5}, ["max_corrections=1.5 ", "Paper", "integer"]),
        ({"corector_step": 1e-4}, ["'corector_step'", "did you mean corrector_step "]),
    ],
)
def test_a_bad_setting_is_answered_with_one_sentence(
    refuses, settings: dict[str, Any], words: list[str]
) -> None:
    with refuses(*words, error=InputError):
        Paper(**settings)


def test_its_name_is_paper() -> None:
    assert Paper().name == "paper"
    assert walk(regressor().problem(), CALM, steps=1).method == "paper"
