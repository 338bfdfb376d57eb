"""The reference's predictor and corrector, against a naive NumPy walk written from its text."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.problems import (
    KNOWN,
    NETS,
    Known,
    Net,
    Vector,
    classifier,
    normal,
    regressor,
    rotation,
    sphere,
    vector_problem,
)
from torch import Tensor

from isoloss import Outcome, Paper, Path, Problem, Record, Stop, traverse
from isoloss.objective import Objective
from isoloss.point import Tolerance
from isoloss.regularizers import SquaredNorm

LossAndGrad = Callable[[Vector], tuple[float, Vector]]


@dataclass
class Trace:
    """What the naive walk did, a step each, and how near its two decisions came to a tie."""

    kinds: list[str] = field(default_factory=list)
    lengths: list[float] = field(default_factory=list)
    thetas: list[Vector] = field(default_factory=list)
    nearest_to_band: float = math.inf
    nearest_to_angle: float = math.inf

    @property
    def tied(self) -> bool:
        """Whether rounding decided a step, on which two programs need not agree."""
        return self.nearest_to_band < 1e-11 or self.nearest_to_angle < 1e-4


def reference_walk(
    loss_and_grad: LossAndGrad, theta: Vector, c: float, steps: int, method: Paper
) -> Trace:
    """The loop of the reference protocol, line by line, in float64."""
    trace = Trace()
    s, last, d_before = method.smallest_step, None, np.zeros_like(theta)
    for _ in range(steps):
        L, g = loss_and_grad(theta)
        miss = abs(L - c) - method.tolerance
        trace.nearest_to_band = min(trace.nearest_to_band, abs(miss))
        if miss <= 0:
            r = 2 * theta
            d = r if np.sqrt(np.mean(g**2)) < 1e-6 else r - np.dot(r, g) * g / np.dot(g, g)
            d = d / np.linalg.norm(d)
            if last == "predict":
                turned = np.degrees(np.arccos(np.clip(np.dot(d, d_before), -1, 1)))
                trace.nearest_to_angle = min(trace.nearest_to_angle, abs(turned - 0.1))
                if turned < 0.1:
                    s = round(min(1.1 * s, method.largest_step), 10)
                else:
                    s = round(max(0.1 * s, method.smallest_step), 10)
            elif last == "correct":
                s = method.smallest_step
            theta, last, d_before = theta - s * d, "predict", d
        else:
            e = 2 * (L - c) * g
            e = e - np.dot(e, d_before) * d_before
            theta, last = theta - method.corrector_step * e / np.linalg.norm(e), "correct"
        trace.kinds.append(last)
        trace.lengths.append(s if last == "predict" else method.corrector_step)
        trace.thetas.append(theta)
    return trace


def walk(problem: Problem, method: Paper, steps: int, **given: Any) -> Path:
    stop = Stop(steps=steps, kkt_residual=0)
    return traverse(
        problem,
        method=method,
        stop=stop,
        record=Record(points_at_most=None),
        progress=False,
        **given,
    )


def points_at_every_step(problem: Problem, method: Paper, steps: int, **given: Any) -> Any:
    """The walk with all its points, those off the level set too, seen as evaluations."""
    seen: list[Tensor] = []
    ask = problem.loss_and_grad

    def watched(theta: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(theta.clone())
        return ask(theta)

    problem.loss_and_grad = watched  # type: ignore[method-assign]
    return walk(problem, method, steps, **given), torch.stack(seen).numpy()


def both_walks(
    net: Net, method: Paper, steps: int, level: float | None = None
) -> tuple[Path, Any, Trace]:
    """isoloss' walk, its points at every step, and the naive walk of as many steps."""
    path, points = points_at_every_step(net.problem(), method, steps, level=level)
    c = net.loss_and_grad(net.theta.numpy())[0] if level is None else level
    start, count = net.theta.numpy(), len(path.steps) - 1
    return path, points, reference_walk(net.loss_and_grad, start, c, count, method)


def assert_same(path: Path, points: Any, trace: Trace) -> None:
    """Both walks agree at every step in kind, step length (to the bit) and point."""
    assert path.steps["kind"].tolist() == ["start", *trace.kinds]
    assert path.steps["step_length"].tolist() == [0.0, *trace.lengths]
    np.testing.assert_allclose(points[1:], np.array(trace.thetas), rtol=0, atol=1e-10)


FINE = Paper(smallest_step=1e-4, largest_step=2e-3, corrector_step=1e-6)
ADAPTIVE = Paper(smallest_step=1e-4, corrector_step=1e-6)
LIVELY = Paper(smallest_step=1e-2, largest_step=0.05, corrector_step=2e-6, max_corrections=200)
BRISK = Paper(smallest_step=3e-3, largest_step=0.02, corrector_step=3e-5, tolerance=1e-4)


@pytest.fixture(scope="module", params=NETS)
def net(request: pytest.FixtureRequest) -> Net:
    return NETS[request.param]()


# ---------------------------------------------------------------- step by step


def test_steps_grow_and_fall_back_as_the_references(net: Net) -> None:
    path, *rest = both_walks(net, ADAPTIVE, steps=120)
    assert_same(path, *rest)
    lengths = path.steps["step_length"].to_numpy()[1:]
    assert lengths.max() > 3 * ADAPTIVE.smallest_step
    assert (np.diff(lengths[path.steps["kind"][1:] == "predict"]) < 0).any()


def test_corrections_are_the_references(net: Net) -> None:
    path, *rest = both_walks(net, LIVELY, steps=30)
    assert_same(path, *rest)
    assert (path.steps["kind"] == "correct").sum() > 5


@settings(max_examples=20)
@given(
    make=st.sampled_from([classifier, regressor]),
    seed=st.integers(0, 10**6),
    hidden=st.integers(1, 6),
    smallest=st.sampled_from([1e-5, 1e-3, 1e-2]),
    growth=st.sampled_from([1.0, 3.0, 30.0]),
    corrector=st.sampled_from([1e-6, 3e-6]),
    off=st.sampled_from([0.0, 2e-5, -2e-5]),
)
def test_the_walk_is_the_references_on_random_small_networks(
    make: Any,
    seed: int,
    hidden: int,
    smallest: float,
    growth: float,
    corrector: float,
    off: float,
) -> None:
    net: Net = make(sizes=(2, hidden, 3), examples=8, seed=seed)
    method = Paper(
        smallest_step=smallest,
        largest_step=growth * smallest,
        corrector_step=corrector,
        max_corrections=60,
    )
    level = net.loss_and_grad(net.theta.numpy())[0] + off
    path, points, trace = both_walks(net, method, steps=30, level=level)
    assume(not trace.tied)
    assert_same(path, points, trace)


def test_float32_follows_the_reference_too() -> None:
    net = classifier()
    path, points = points_at_every_step(net.problem(dtype=torch.float32), FINE, steps=60)
    c = net.loss_and_grad(net.theta.float().double().numpy())[0]
    trace = reference_walk(net.loss_and_grad, net.theta.numpy(), c, len(path.steps) - 1, FINE)
    np.testing.assert_allclose(points[1:], np.array(trace.thetas), rtol=0, atol=1e-5)


# ---------------------------------------------------------------- the predictor


def test_on_a_straight_way_steps_grow_by_a_tenth_up_to_the_largest() -> None:
    # L = theta[1]: the level set is a line, on which the direction never turns
    problem = vector_problem(lambda t: t[1] * 1.0, torch.tensor([9.0, 1.0], dtype=torch.float64))
    path = walk(problem, Paper(smallest_step=1e-3, largest_step=2e-3), steps=12)
    expected = [1e-3]
    while len(expected) < 12:
        expected.append(round(min(1.1 * expected[-1], 2e-3), 10))
    assert path.steps["step_length"].tolist()[1:] == expected
    assert expected[-1] == 2e-3


def test_an_exact_end_has_no_way_to_go() -> None:
    end = torch.tensor([0.0, 2.0], dtype=torch.float64)
    problem = vector_problem(lambda t: t[1] * 1.0, end)
    path = walk(problem, Paper(), steps=5)
    assert path.outcome is Outcome.CONVERGED
    assert len(path.steps) == 1


# ---------------------------------------------------------------- the corrector


@pytest.mark.parametrize("off", [-1e-4, 1e-4])
def test_a_level_beside_the_start_is_reached_by_corrections(net: Net, off: float) -> None:
    level = net.loss_and_grad(net.theta.numpy())[0] + off
    path = walk(net.problem(), FINE, steps=1, level=level)
    assert path.steps["level_error"].abs()[:-1].is_monotonic_decreasing
    kinds = path.steps["kind"].tolist()
    assert kinds[:2] == ["start", "correct"]
    assert kinds[-1] == "predict"
    assert path.point_steps[0] == kinds.index("predict") - 1
    assert abs(net.loss_and_grad(path.points[0].numpy())[0] - level) <= FINE.tolerance


def test_the_cap_counts_corrections_in_a_row() -> None:
    path = walk(regressor().problem(), LIVELY, steps=30)
    kinds = path.steps["kind"]
    longest = kinds.ne("correct").cumsum()[kinds == "correct"].value_counts().max()
    cap = LIVELY.model_copy(update={"max_corrections": int(longest)})
    assert (kinds == "correct").sum() > longest
    assert walk(regressor().problem(), cap, steps=30).outcome is Outcome.STEP_LIMIT


# ---------------------------------------------------------------- the whole walk


@pytest.mark.parametrize("make", KNOWN.values(), ids=KNOWN)
def test_the_walk_comes_near_the_known_end(make: Any) -> None:
    known: Known = make()
    path = traverse(
        known.problem,
        start=known.start,
        regularizer=known.regularizer,
        method=BRISK,
        stop=Stop(kkt_residual=0.05, steps=3000),
        progress=False,
    )
    assert path.outcome is Outcome.CONVERGED
    assert known.gap(path.points[-1]) < 0.15
    assert path.steps["regularizer"].iloc[-1] == pytest.approx(known.value, abs=0.01)
    assert path.steps["equivalent_penalty"].iloc[-1] == pytest.approx(known.penalty, rel=0.05)


def test_a_rotation_of_the_coordinates_rotates_the_path() -> None:
    start, A = normal(5, seed=3), torch.diag(torch.arange(1.0, 6.0, dtype=torch.float64))
    Q = rotation(5, seed=1)

    def loss(theta: Tensor) -> Tensor:
        return theta @ A @ theta / 2 + 0.1 * (theta**2 @ A @ theta.sin())

    straight = walk(vector_problem(loss, start), LIVELY, steps=60)
    turned = walk(vector_problem(lambda t: loss(Q.T @ t), Q @ start), LIVELY, steps=60)
    assert turned.steps["kind"].tolist() == straight.steps["kind"].tolist()
    torch.testing.assert_close(turned.points, straight.points @ Q.T, rtol=0, atol=1e-9)


def test_scaling_loss_level_and_tolerance_together_leaves_the_path() -> None:
    net = regressor()
    whole = walk(net.problem(), LIVELY, steps=20)
    doubled = Problem(
        net.model, lambda outputs, targets: 2 * (outputs - targets).square().mean(1), net.data
    )
    wider = LIVELY.model_copy(update={"tolerance": 2 * LIVELY.tolerance})
    torch.testing.assert_close(walk(doubled, wider, steps=20).points, whole.points)


def test_the_relative_tolerance_is_not_used() -> None:
    paths = [walk(sphere().problem, LIVELY, 10, rtol=rtol) for rtol in (1e-9, 0.5)]
    assert torch.equal(paths[0].points, paths[1].points)


# ---------------------------------------------------------------- properties, whatever the network


def test_a_length_falls_to_a_tenth_where_the_way_turns_by_a_tenth_of_a_degree() -> None:
    # on a circle of radius 1 a step of s turns the tangent by s radians: 0.1 degrees at 0.00175
    known = sphere(n=2, radius=1.0)
    path = walk(known.problem, Paper(tolerance=1e-4), steps=80, regularizer=known.regularizer)
    lengths = path.steps["step_length"].to_numpy()[1:]
    peak = int(lengths.argmax())
    assert lengths[peak] > math.radians(0.1) > lengths[peak - 1]
    assert lengths[peak + 1] == pytest.approx(lengths[peak] / 10, abs=1e-10)


def test_a_step_does_not_change_the_state_it_is_given() -> None:
    net = regressor()
    objective = Objective(net.problem(), SquaredNorm())
    state = LIVELY.init(objective, net.theta, None, Tolerance())
    for _ in range(15):
        theta = state.point.theta.clone()
        first, second = (LIVELY.step(objective, state) for _ in range(2))
        assert torch.equal(state.point.theta, theta)
        assert torch.equal(first.point.theta, second.point.theta)
        state = first


def test_a_corrector_that_jumps_over_the_band_keeps_the_points_on_the_level() -> None:
    # |g| is about 2, so that a step of 1e-3 crosses a band of width 2e-5 for ever
    method = Paper(smallest_step=0.02, corrector_step=1e-3, max_corrections=7)
    path = walk(regressor().problem(), method, steps=100)
    assert path.outcome is Outcome.CORRECTION_LIMIT
    assert path.steps["kind"].tolist()[-8:] == ["predict", *["correct"] * 7]
    for word in ("7 corrections", "0.001", "1e-05", "corrector_step", "max_corrections"):
        assert word in path.message
    kept = path.steps["loss"].iloc[path.point_steps]
    assert len(kept) > 0
    assert ((kept - path.level).abs() <= method.tolerance).all()


@pytest.mark.parametrize(("slope", "flat"), [(0.9e-6, True), (1.1e-6, False)])
def test_flatness_is_judged_by_the_root_mean_square(slope: float, flat: bool) -> None:
    start = torch.tensor([1.0, 2.0, -1.0, 0.5], dtype=torch.float64)
    g = slope * torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)  # rms: the slope
    problem = vector_problem(lambda t: 1 + g.dot(t - start), start)
    path = walk(problem, Paper(smallest_step=1e-2), steps=1)
    moved = path.points[1] - path.points[0]
    cosine = abs(moved.dot(g).item()) / (moved.norm() * g.norm()).item()
    assert cosine > 0.5 if flat else cosine < 1e-9


@pytest.mark.parametrize(
    ("given_settings", "words"),
    [
        ({"smallest_step": 0.5}, ["smallest_step=0.5", "largest_step=0.1"]),
        ({"largest_step": 1e-6}, ["smallest_step=1e-05", "largest_step=1e-06"]),
        ({"max_corrections": 1.5}, ["max_corrections of Paper must be a whole number, got 1.5"]),
        ({"corector_step": 1e-4}, ["'corector_step'", "did you mean corrector_step "]),
    ],
)
def test_a_bad_setting_is_answered_with_one_sentence(
    refuses, given_settings: dict[str, Any], words: list[str]
) -> None:
    with refuses(*words):
        Paper(**given_settings)
