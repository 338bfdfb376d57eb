"""traverse: what a walk returns, when it ends, what it refuses, what it leaves alone."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tests.problems import (
    NETS,
    LinearRegularizer,
    Net,
    classifier,
    normal,
    quadratic,
    ridge,
    snapshot,
    sphere,
    vector_problem,
)
from torch import Tensor, nn

import isoloss
from isoloss import SQP, Outcome, Paper, Path, Problem, Record, Stop, check, traverse
from isoloss.methods.sqp.basis import Rows
from isoloss.path import Row

LIVELY = Paper(smallest_step=1e-2, largest_step=0.05, corrector_step=2e-6, max_corrections=200)
"""Leaves the band and comes back a few times within some twenty steps."""
BRISK = Paper(smallest_step=3e-3, largest_step=0.02, corrector_step=3e-5, tolerance=1e-4)
"""Reaches the end in some thousand steps."""
ALL = Record(points_at_most=None)
SIZE = 44
"""Parameters of `classifier()`."""


def walk(problem: Problem, **settings: Any) -> Path:
    known = {"method": LIVELY, "stop": Stop(steps=25), "record": ALL, "progress": False}
    return traverse(problem, **{**known, **settings})


@pytest.fixture(scope="module", params=NETS)
def net(request: pytest.FixtureRequest) -> Net:
    return NETS[request.param]()


@pytest.fixture(scope="module")
def path(net: Net) -> Path:
    return walk(net.problem())


def kept_rows(path: Path) -> Any:
    return path.steps.iloc[path.point_steps]


# ---------------------------------------------------------------- the columns, recomputed


@pytest.mark.parametrize("method", [LIVELY, SQP()], ids=["paper", "sqp"])
def test_the_columns_are_those_of_the_stored_points(net: Net, method: Any) -> None:
    problem = net.problem()
    problem.loss_and_grad(net.theta)
    path = walk(problem, method=method)
    steps, points = path.steps, path.points.numpy()
    assert set(steps["kind"][1:]) == ({"predict", "correct"} if method is LIVELY else {"sqp"})
    assert len(points) > 10
    for (_, row), theta in zip(kept_rows(path).iterrows(), points, strict=True):
        loss, g = net.loss_and_grad(theta)
        r = 2 * theta
        cosine = r @ g / math.sqrt((r @ r) * (g @ g))
        assert row["loss"] == pytest.approx(loss, rel=1e-12)
        assert row["regularizer"] == pytest.approx(theta @ theta, rel=1e-12)
        assert row["angle_degrees"] == pytest.approx(math.degrees(math.acos(cosine)), abs=1e-4)
        assert row["kkt_residual"] == pytest.approx(math.sqrt(1 - cosine**2), abs=1e-8)
        assert row["equivalent_penalty"] == pytest.approx(-(g @ g) / (r @ g), rel=1e-6)
    neighbors = np.flatnonzero(np.diff(path.point_steps) == 1)
    moved = np.linalg.norm(np.diff(points, axis=0)[neighbors], axis=1)
    lengths = steps["step_length"].to_numpy()[np.array(path.point_steps)[neighbors + 1]]
    assert len(neighbors) > 5
    np.testing.assert_allclose(moved, lengths, rtol=1e-9)
    error = (steps["loss"] - path.level) / path.level
    np.testing.assert_allclose(steps["level_error"], error, rtol=0, atol=1e-15)
    np.testing.assert_allclose(steps["arc_length"], np.cumsum(steps["step_length"]))
    assert steps["step"].tolist() == list(range(len(steps)))
    assert steps["seconds"].is_monotonic_increasing
    assert problem.evaluations == 1 + steps["evaluations"].iloc[-1]
    if method is LIVELY:  # which evaluates once a step
        assert steps["evaluations"].tolist() == list(range(1, len(steps) + 1))


def test_a_path_knows_what_it_was_made_with_and_says_so_in_a_line(net: Net, path: Path) -> None:
    assert (path.method, path.regularizer) == ("paper", "squared_norm")
    assert path.shapes == {name: tuple(p.shape) for name, p in net.model.named_parameters()}
    assert path.outcome is Outcome.STEP_LIMIT
    assert (path.steps["kind"] == "predict").sum() == 25  # corrections do not count
    assert abs(path.steps["loss"].iloc[-1] - path.level) <= LIVELY.tolerance
    for word in ("25 steps", Outcome.STEP_LIMIT.remedy):
        assert word in path.message
    assert f"{path.steps['kkt_residual'].iloc[-1]:.3g}" in path.message
    text = repr(path)
    assert "\n" not in text
    assert "step_limit" in text
    assert f"{len(path.steps) - 1} steps" in text


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_kept_point_is_on_the_level_set_when_recomputed(net: Net, dtype: torch.dtype) -> None:
    path = walk(net.problem(dtype=dtype))
    assert path.points.dtype == dtype
    noise = 1e-6 * path.level if dtype == torch.float32 else 0
    for theta in path.points.double().numpy():
        assert abs(net.loss_and_grad(theta)[0] - path.level) <= LIVELY.tolerance + noise


# ---------------------------------------------------------------- start and level


def test_the_walk_starts_at_the_models_weights_or_at_a_copy_of_the_start(
    net: Net, path: Path
) -> None:
    assert torch.equal(path.points[0], net.theta)
    assert path.level == path.steps["loss"][0]
    start = normal(net.theta.numel(), seed=11)
    before = start.clone()
    there = walk(net.problem(), start=start)
    assert torch.equal(there.points[0], start)
    assert there.level == pytest.approx(net.loss_and_grad(start.numpy())[0], rel=1e-12)
    assert walk(net.problem(dtype=torch.float32), start=start).points.dtype == torch.float32
    assert torch.equal(start, before)

    def overwrite(row: Row) -> None:
        start.zero_()

    assert torch.equal(walk(net.problem(), start=start, callback=overwrite).points, there.points)


def test_the_level_held_is_the_one_given() -> None:
    known = quadratic()
    path = walk(known.problem, level=known.level + 2e-4, method=Paper(corrector_step=1e-5))
    assert path.level == known.level + 2e-4
    short = walk(known.problem, level=torch.tensor(1.5), stop=Stop(evaluations=3))
    assert short.level == 1.5
    assert (kept_rows(path)["loss"] - path.level).abs().max() <= 1e-5


def test_another_regularizer_is_made_small_up_to_the_residual_asked_for() -> None:
    known = sphere()
    settings = {"regularizer": known.regularizer, "stop": Stop(kkt_residual=0.1)}
    path = walk(known.problem, method=BRISK, **settings)
    values = path.points @ known.regularizer.slope
    np.testing.assert_allclose(kept_rows(path)["regularizer"], values.numpy(), rtol=1e-12)
    assert path.regularizer == "linear"
    assert values[-1] < values[0] - 0.5
    residuals = kept_rows(path)["kkt_residual"].to_numpy()
    assert path.outcome is Outcome.CONVERGED
    assert residuals[-1] <= 0.1 < residuals[-2]
    assert known.gap(path.points[-1]) < 0.2


# ---------------------------------------------------------------- the end


@pytest.mark.parametrize("outcome", Outcome)
def test_every_outcome_has_a_sentence_and_a_remedy(outcome: Outcome) -> None:
    for text in (outcome.sentence, outcome.remedy, outcome.remedy_in_float64):
        assert text.endswith(".")
    assert "dtype" not in outcome.remedy_in_float64  # what is done already is no remedy
    assert Outcome(outcome.value) is outcome
    limits = ("STEP_LIMIT", "EVALUATION_LIMIT", "TIME_LIMIT")
    asked_for = ("CONVERGED", "REGULARIZER_REACHED", "SLOWED", *limits)
    assert outcome.success == (outcome.name in asked_for)


def at_step_4(row: Row) -> bool:
    return row["step"] == 4


def interrupt(row: Row) -> None:
    if row["step"] == 4:
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("settings", "outcome", "last"),
    [
        ({"stop": Stop(evaluations=9)}, Outcome.EVALUATION_LIMIT, 8),
        ({"stop": Stop(seconds=1e-9)}, Outcome.TIME_LIMIT, 0),
        ({"stop": Stop(when=at_step_4)}, Outcome.INTERRUPTED, 4),
        ({"callback": at_step_4}, Outcome.INTERRUPTED, 4),
        ({"callback": interrupt}, Outcome.INTERRUPTED, 4),
    ],
    ids=["evaluations", "seconds", "when", "callback", "Ctrl-C"],
)
def test_a_walk_that_is_ended_gives_the_path_so_far(
    net: Net, path: Path, settings: dict[str, Any], outcome: Outcome, last: int
) -> None:
    short = walk(net.problem(), **settings)
    assert short.outcome is outcome
    assert short.steps["loss"].tolist() == path.steps["loss"].tolist()[: last + 1]
    assert torch.equal(short.points, path.points[: len(short.points)])


def test_the_callback_sees_every_row_with_its_probes(net: Net) -> None:
    seen: list[Row] = []
    path = walk(net.problem(), callback=seen.append, probes={"test": net.problem()})
    assert [row["loss"] for row in seen] == path.steps["loss"].tolist()
    assert set(seen[0]) == set(path.steps.columns)
    assert seen[0]["test_loss"] == pytest.approx(seen[0]["loss"], rel=1e-12)


def test_a_regularizer_small_enough_ends_the_walk(net: Net, path: Path) -> None:
    wanted = path.steps["regularizer"].quantile(0.3)
    shorter = walk(net.problem(), stop=Stop(regularizer_below=wanted))
    values = kept_rows(shorter)["regularizer"].to_numpy()
    assert shorter.outcome is Outcome.REGULARIZER_REACHED
    assert values[-1] <= wanted < values[-2]


def test_ctrl_c_in_an_evaluation_returns_what_there_is() -> None:
    steps = 0

    def interrupted(theta: Tensor) -> Tensor:
        if steps == 3:
            raise KeyboardInterrupt
        return theta.dot(theta)

    def count(row: Row) -> None:
        nonlocal steps
        steps = row["step"]

    problem = vector_problem(interrupted, normal(3, seed=0))
    path = walk(problem, regularizer=LINEAR, callback=count)
    assert path.outcome is Outcome.INTERRUPTED
    assert len(path.steps) == 4


def test_ctrl_c_in_the_last_probe_loses_nothing(net: Net, path: Path) -> None:
    calls = 0

    def interrupted(theta: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:  # the first is the start's, the second the end's
            raise KeyboardInterrupt
        return theta.dot(theta)

    probe = vector_problem(interrupted, net.theta)
    calls = 0
    whole = walk(net.problem(), probes={"test": probe}, record=Record(probes_every=10**6))
    assert calls == 3
    assert whole.outcome is path.outcome
    assert whole.steps["loss"].tolist() == path.steps["loss"].tolist()
    assert whole.steps["test_loss"].iloc[-1] == pytest.approx(path.points[-1].square().sum().item())


LINEAR = LinearRegularizer(torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))


def cliff(theta: Tensor) -> Tensor:
    """Loss theta[1] where theta[0] > 1, undefined elsewhere."""
    return theta[1] + 0 * torch.sqrt(theta[0] - 1)


def test_an_undefined_loss_ends_the_walk_at_the_last_good_point() -> None:
    problem = vector_problem(cliff, torch.tensor([1.05, 2.0], dtype=torch.float64))
    path = walk(problem)
    assert path.outcome is Outcome.NON_FINITE
    assert np.isfinite(path.steps.drop(columns="kind").to_numpy(dtype=float)).all()
    assert 1 < path.points[-1][0] < 1.05
    assert problem.evaluations == len(path.steps) + 1


def test_a_vanishing_gradient_off_the_level_set_ends_the_walk() -> None:
    problem = vector_problem(lambda t: 1 + t.dot(t) ** 2, torch.zeros(3, dtype=torch.float64))
    path = walk(problem, level=2.0)
    assert path.outcome is Outcome.GRADIENT_VANISHED
    assert len(path.steps) == 1


def test_an_undefined_regularizer_gradient_at_the_start_is_refused(refuses) -> None:
    class Undefined:
        name = "undefined"

        def value_and_grad(self, theta: Tensor) -> tuple[Tensor, Tensor]:
            return theta.norm(), theta * math.nan

    with refuses("regularizer at the start", "not finite"):
        walk(quadratic().problem, regularizer=Undefined())


@pytest.mark.parametrize("nth", [1, 4])
def test_ctrl_c_in_a_probe_keeps_the_last_point_that_has_a_row(nth: int) -> None:
    calls = 0

    def interrupted(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == nth:
            raise KeyboardInterrupt
        return nn.functional.cross_entropy(outputs, targets, reduction="none")

    net = classifier()
    probe = Problem(net.model, interrupted, net.data)
    path = walk(net.problem(), probes={"test": probe}, method=Paper())
    assert path.outcome is Outcome.INTERRUPTED
    assert path.points.shape == (nth, SIZE)
    assert path.point_steps == path.steps["step"].tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_stalled_walk_is_told_what_helps_in_its_type(dtype: torch.dtype) -> None:
    # one trial, which a first step of five times |theta| makes useless
    method = SQP(max_trials=1, first_step=5.0)
    path = walk(classifier(seed=1).problem(dtype=dtype), method=method)
    assert path.outcome is Outcome.STALLED
    assert ("use dtype=torch.float64" in path.message) == (dtype == torch.float32)
    assert ("kink" in path.message) == (dtype == torch.float64)


# ---------------------------------------------------------------- what is kept


def test_thinning_does_not_change_the_walk(net: Net, path: Path) -> None:
    thin = walk(net.problem(), record=Record(points_at_most=4))
    whole = dict(zip(path.point_steps, path.points, strict=True))
    assert thin.steps["loss"].tolist() == path.steps["loss"].tolist()
    for step, point in zip(thin.point_steps, thin.points, strict=True):
        assert torch.equal(point, whole[step])


def test_probes_are_measured_at_the_stored_points_and_no_part_of_the_walk(
    net: Net, path: Path
) -> None:
    without = path
    other = type(net)(net.model, net.loss, tuple(x[:5] for x in net.data), net.sizes)
    probe = other.problem()
    path = walk(net.problem(), probes={"test": probe})
    for column in ("loss", "evaluations"):
        assert path.steps[column].tolist() == without.steps[column].tolist()
    assert probe.evaluations == 0
    losses = [other.loss_and_grad(theta)[0] for theta in path.points.numpy()]
    np.testing.assert_allclose(kept_rows(path)["test_loss"], losses, rtol=1e-12)
    unmeasured = path.steps.drop(index=path.point_steps)
    assert unmeasured[["test_loss", "test_metric"]].isna().all(axis=None)


def changed_norm(model: nn.Module) -> None:
    model[1].running_mean += 0.1


def changed_layer(model: nn.Module) -> None:
    model[3].bias.data += 0.1


@pytest.mark.parametrize(
    ("change", "name"), [(changed_norm, "1.running_mean"), (changed_layer, "3.bias")]
)
@pytest.mark.parametrize("use", ["probes", "hold", "regularizer"])
def test_a_problem_of_before_the_training_is_refused_wherever_it_is_given(
    refuses, change: Callable[[nn.Module], None], name: str, use: str
) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).eval()
    model[3].requires_grad_(False)
    data = normal(8, 3, seed=0).float(), torch.arange(8) % 2
    before = Problem(model, "cross_entropy", data)
    change(model)
    given: dict[str, Any] = {
        "probes": {"test": before},
        "hold": {"test": isoloss.at_most(before, 5.0)},
        "regularizer": before,
    }
    with refuses(f"another {name!r}", "after its training"):
        walk(Problem(model, "cross_entropy", data), **{use: given[use]})


def test_a_probe_with_the_same_parameters_in_another_order_is_refused(refuses) -> None:
    class Two(nn.Module):
        def __init__(self, *names: str) -> None:
            super().__init__()
            for one in names:
                setattr(self, one, nn.Linear(3, 3))

        def forward(self, inputs: Tensor) -> Tensor:
            return self.b(torch.tanh(self.a(inputs)))

    data = normal(8, 3, seed=0).float(), torch.arange(8) % 3
    one, two = (Problem(Two(*names), "cross_entropy", data) for names in ("ab", "ba"))
    with refuses("probe 'test'", "'b.weight' of shape (3, 3) where that has 'a.weight'"):
        walk(one, probes={"test": two})


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_one_parameter_is_walked_whatever_its_sign(sign: float) -> None:
    inputs = normal(20, 1, seed=0)
    data = inputs, 3 * sign * inputs + normal(20, 1, seed=1)
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, 2.0 * sign)
    path = walk(Problem(model, "mse", data))
    assert path.outcome is Outcome.CONVERGED  # its level set is two points
    assert path.points[-1].item() == pytest.approx(2 * sign, abs=1e-2)


# ---------------------------------------------------------------- determinism, and the user's model


@pytest.mark.parametrize("method", [LIVELY, SQP()], ids=["paper", "sqp"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", NETS.values(), ids=NETS)
def test_the_same_walk_has_the_same_bits(make: Any, dtype: torch.dtype, method: Any) -> None:
    paths = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        paths.append(walk(make().problem(dtype=dtype), method=method))
    assert torch.equal(paths[0].points, paths[1].points)
    timeless = [path.steps.drop(columns="seconds") for path in paths]
    assert timeless[0].equals(timeless[1])


def test_a_walk_and_an_error_in_it_leave_the_model_and_the_random_state_alone() -> None:
    def broken(row: Row) -> None:
        raise RuntimeError("broken")

    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    data = (normal(6, 3, seed=0).float(), torch.arange(6) % 2)
    model(data[0]).sum().backward()
    before = snapshot(model.eval())
    problem = Problem(model, loss="cross_entropy", data=data)
    walk(problem, probes={"test": Problem(model, loss="cross_entropy", data=data)})
    with pytest.raises(RuntimeError, match="broken"):
        walk(problem, callback=broken)
    assert snapshot(model) == before


def test_load_into_takes_any_kept_point_and_no_other(refuses) -> None:
    net = classifier()
    path = walk(net.problem())
    n = len(path.points)
    for k in (0, 3, -2, -1):
        path.load_into(net.model, k)
        assert torch.equal(net.theta, path.points[k])
    loss = nn.functional.cross_entropy(net.model(net.data[0]), net.data[1]).item()
    assert loss == pytest.approx(path.steps["loss"].iloc[-1], rel=1e-12)
    for k in (n, -n - 1, "a", None, 1.5):
        for give in (path.state_dict, lambda k: path.load_into(net.model, k)):
            with refuses("k must be", "got", f"{k!r}"):
                give(k)
    with refuses("architecture"):
        path.load_into(nn.Linear(2, 2))


# ---------------------------------------------------------------- progress


@pytest.mark.parametrize("terminal", [False, True])
def test_steps_are_shown_on_standard_error_of_a_terminal_alone(
    capfd: Any, monkeypatch: Any, terminal: bool
) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    walk(classifier().problem(), progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert ("steps" in err) == terminal
    assert terminal or err == ""


# ---------------------------------------------------------------- bad input

BAD: dict[str, tuple[dict[str, Any], list[str]]] = {
    "start too short": ({"start": torch.zeros(SIZE - 1)}, ["(43,)", "44 parameters"]),
    "start not flat": ({"start": torch.zeros(1, SIZE)}, ["(1, 44)", "44 parameters"]),
    "problem": ({"problem": None}, ["problem must be an isoloss.Problem", "None"]),
    "model": ({"problem": nn.Linear(1, 1)}, ["problem must be an isoloss.Problem", "Linear"]),
    "start with one NaN": (
        {"start": torch.zeros(SIZE).index_fill_(0, torch.tensor([17]), math.nan)},
        [" 1 entries", "NaN"],
    ),
    "start NaN": ({"start": torch.full((SIZE,), math.nan)}, ["44 entries", "NaN"]),
    "start infinite": ({"start": torch.full((SIZE,), math.inf)}, ["44 entries", "infinite"]),
    "start no tensor": ({"start": np.zeros(SIZE)}, ["start", "tensor"]),
    "level 0": ({"level": 0.0}, ["level must be", "0.0", "positive"]),
    "level negative": ({"level": -1.0}, ["level must be", "-1.0", "positive"]),
    "level NaN": ({"level": math.nan}, ["level must be", "nan", "finite"]),
    "level infinite": ({"level": math.inf}, ["level must be", "inf", "finite"]),
    "rtol 0": ({"rtol": 0.0}, ["rtol must be", "0.0", "(0, 1)"]),
    "rtol 1": ({"rtol": 1.0}, ["rtol must be", "1.0", "(0, 1)"]),
    "atol 0": ({"atol": 0.0}, ["atol must be", "0.0", "positive"]),
    "atol NaN": ({"atol": math.nan}, ["atol must be", "nan", "finite"]),
    "atol text": ({"atol": "1e-3"}, ["atol must be", "1e-3", "str", "number"]),
    "atol of paper": (
        {"atol": 1e-4, "method": "paper"},
        ["tolerance of its own", "Paper(tolerance=0.0001)"],
    ),
    "level infinite with atol": (
        {"level": math.inf, "atol": 1e-3},
        ["level must be", "inf", "finite"],
    ),
    "rtol NaN": ({"rtol": math.nan}, ["rtol must be", "nan", "(0, 1)"]),
    "method": ({"method": "papr"}, ["method 'papr'", "did you mean paper?"]),
    "method class": ({"method": Paper}, ["Paper()"]),
    "method number": ({"method": 3}, ["method must be", "int", "SQP("]),
    "level text": ({"level": "0.1"}, ["level must be", "0.1", "str", "number"]),
    "rtol text": ({"rtol": "1e-3"}, ["rtol must be", "1e-3", "str", "number"]),
    "stop": ({"stop": 5}, ["stop must be", "int", "Stop(steps="]),
    "record": ({"record": 5}, ["record must be", "int", "Record("]),
    "callback": ({"callback": 3}, ["callback must be", "int", "function"]),
    "checkpoint": ({"checkpoint": "folder"}, ["checkpoint must be", "str", "Checkpoint(folder)"]),
    "probes": ({"probes": classifier().problem()}, ["probes must be", "Problem", "dict"]),
    "probe": ({"probes": {"test": classifier().data}}, ["probes['test']", "tuple", "Problem"]),
    "regularizer": (
        {"regularizer": "squared norm"},
        ["regularizer 'squared norm'", "did you mean squared_norm or"],
    ),
    "probe size": (
        {"probes": {"test": classifier(sizes=(3, 4, 4)).problem()}},
        ["probe 'test'", "'0.weight' of shape (4, 3) where that has '0.weight' of shape (5, 3)"],
    ),
    "probe name taken": (
        {"probes": {"level": classifier().problem()}},
        ["'level'", "none of", "arc, kkt"],
    ),
    "probe name": ({"probes": {"a b": classifier().problem()}}, ["'a b'", "must be plain"]),
}


@pytest.mark.parametrize(("settings", "words"), BAD.values(), ids=BAD)
def test_a_value_that_cannot_be_used_is_refused_before_the_first_evaluation(
    refuses, settings: dict[str, Any], words: list[str]
) -> None:
    problem = classifier().problem()
    with refuses(*words):
        walk(**{"problem": problem, **settings})
    assert problem.evaluations == 0


def test_a_model_whose_weights_are_not_finite_is_refused(refuses) -> None:
    net = classifier()
    with torch.no_grad():
        net.model[0].bias.fill_(math.nan)
    with refuses("the model must", "5 entries", "NaN"):
        walk(net.problem())


def test_a_random_loss_is_refused_with_the_layer_named(refuses) -> None:
    model = nn.Sequential(nn.Linear(3, 9), nn.Dropout(0.5), nn.Linear(9, 2)).train()
    data = (normal(6, 3, seed=0).float(), torch.arange(6) % 2)
    with refuses("1 (Dropout)", "model.eval()"):
        walk(Problem(model, "cross_entropy", data))


def test_a_tolerance_below_the_noise_of_the_loss_is_refused(refuses) -> None:
    fine = Paper(tolerance=1e-10)
    with refuses("below the noise", "float32", "dtype=torch.float64"):
        walk(classifier().problem(dtype=torch.float32), method=fine)
    walk(classifier().problem(dtype=torch.float64), method=fine, stop=Stop(evaluations=3))


@pytest.mark.parametrize("level", [None, 2.0])
def test_a_start_without_a_positive_finite_loss_has_no_level_set(
    refuses, level: float | None
) -> None:
    for loss, start, found in (
        (cliff, [0.5, 2.0], "got nan"),
        (lambda t: t.dot(t), [0.0, 0], "got 0.0"),
        (lambda t: t[0], [-3.0, 0], "got -3"),
    ):
        problem = vector_problem(loss, torch.tensor(start, dtype=torch.float64))
        with refuses("loss at the start", found):
            walk(problem, level=level)


@pytest.mark.parametrize(("size", "holds"), [(1e-18, True), (1e-20, False), (1e-30, False)])
def test_a_gradient_whose_square_underflows_is_refused(refuses, size: float, holds: bool) -> None:
    """The KKT residual was 1 where it is 0.97, and a walk ended at 0.2 where it was at 2e-4."""
    model, (inputs, targets) = classifier().model, classifier().data
    few = inputs.float(), targets

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return size * nn.functional.cross_entropy(outputs, targets, reduction="none")

    small = Problem(model.float(), loss, few)
    if not holds:
        with refuses("square", "float32", "multiply the loss", "dtype=torch.float64"):
            walk(small)
        small = small.with_dtype(torch.float64)
    start = walk(small, stop=Stop(evaluations=1)).steps.iloc[0]
    whole = walk(Problem(model, "cross_entropy", few), stop=Stop(evaluations=1)).steps.iloc[0]
    assert start["kkt_residual"] == pytest.approx(whole["kkt_residual"], rel=1e-3)


@pytest.mark.parametrize("value", [math.inf, -math.inf, 1e39])  # the last overflows in float32
def test_infinite_inputs_are_named_where_the_loss_is_not_finite(refuses, value: float) -> None:
    inputs = normal(6, 3, seed=0)
    inputs[5, 1] = value
    data = [({"input": inputs[k : k + 3]}, torch.tensor([0, 1, 1])) for k in (0, 3)]
    problem = Problem(nn.Linear(3, 2), loss="cross_entropy", data=data)
    with refuses("is nan", "inputs['input'], in float32, hold inf, first in example 5"):
        walk(problem)
    (row,) = [row for row in check(problem).findings if row.what == "training loss L"]
    assert "hold inf, first in example 5" in row.found


def test_infinite_entries_of_a_mask_are_no_reason_to_refuse() -> None:
    mask = torch.zeros(6, 3).masked_fill(torch.eye(3).repeat(2, 1).bool(), -math.inf)
    inputs = (normal(6, 3, seed=0), mask)
    problem = Problem(
        lambda p, given: (given[0] @ p["w"] + given[1]).softmax(1) @ p["v"], "mse",
        [(inputs, normal(6, 2, seed=1))],
        parameters={"w": normal(3, 3, seed=2), "v": normal(3, 2, seed=3)},
    )  # fmt: skip
    assert len(walk(problem, stop=Stop(steps=3)).points) > 1


def test_a_walk_lets_go_of_the_bases_that_it_has_left() -> None:
    gc.collect()
    others = [one for one in gc.get_objects() if type(one) is Rows]  # held, with their ids
    before = {id(one) for one in others}
    stop = Stop(evaluations=80, kkt_residual=1e-12)
    steps = isoloss.walk(classifier().problem(), method=SQP(memory=16), stop=stop)
    evaluations = [row["evaluations"] for row in steps]
    assert evaluations[-1] > 40  # the basis was full more than once
    gc.collect()
    alive = [one for one in gc.get_objects() if type(one) is Rows and id(one) not in before]
    assert len(alive) == 1


def test_a_walk_goes_on_along_another_level_by_what_it_has_learned() -> None:
    known = ridge(examples=40, features=12)
    problem = known.problem
    stop, levels = Stop(kkt_residual=1e-8), (known.level, 1.1 * known.level, 0.97 * known.level)
    steps = isoloss.walk(problem, rtol=1e-10, stop=stop, start=known.start, level=levels[0])
    for _ in steps:
        pass
    before = steps.path.points.clone()
    for level in levels[1:]:
        moved = steps.moved(level)
        first, *rest = list(moved)
        assert (first["step"], first["kind"], first["evaluations"]) == (0, "start", 0)
        assert first["loss"] == pytest.approx(levels[0], rel=1e-9)
        fresh = traverse(
            problem, start=known.start, level=level, rtol=1e-10, stop=stop, progress=False
        )
        assert moved.path.outcome is Outcome.CONVERGED
        assert moved.path.level == moved.settings["level"] == level
        assert abs(rest[-1]["level_error"]) <= 1e-10
        assert rest[-1]["evaluations"] < 0.7 * fresh.steps["evaluations"].iloc[-1]
        torch.testing.assert_close(moved.path.points[-1], fresh.points[-1], rtol=1e-6, atol=1e-8)
    assert torch.equal(steps.path.points, before)  # it stands where it was
    again = steps.moved(levels[0] * (1 + 1e-12), stop=Stop(kkt_residual=1e-6))
    assert [row["evaluations"] for row in again] == [0]  # there already


def test_a_walk_goes_on_from_where_it_stalled_or_was_left_and_to_levels_of_any_sign() -> None:
    center = torch.tensor([3.0, 0.0], dtype=torch.float64)

    def loss(theta: Tensor) -> Tensor:
        return (theta - center).square().sum() - 1

    problem = vector_problem(loss, torch.tensor([3.0, 2.0], dtype=torch.float64))
    steps = isoloss.walk(problem, atol=1e-9, stop=Stop(kkt_residual=1e-6))
    next(steps)
    for level in (3.5, -0.19, 0.0):
        steps = steps.moved(level)
        for _ in steps:
            pass
        end = steps.path.steps.iloc[-1]
        assert end["regularizer"] == pytest.approx((3 - math.sqrt(1 + level)) ** 2, rel=1e-6)
        assert abs(end["level_error"]) <= 1e-9
    steps = steps.moved(-2.0)  # below the least loss
    for _ in steps:
        pass
    assert not steps.path.outcome.success
    steps = steps.moved(0.5)
    assert list(steps)[-1]["loss"] <= 0.5 + 1e-9


def test_only_a_method_that_can_and_a_level_that_can_be_held_are_moved_to(refuses) -> None:
    problem = classifier().problem()
    with refuses("paper", "another level", "'sqp'"):
        isoloss.walk(problem, method="paper").moved(0.5)
    with refuses("level", "positive", "-1"):
        isoloss.walk(problem).moved(-1.0)
    with refuses("level"):
        isoloss.walk(problem).moved("low")


def spread(logits: Tensor) -> Tensor:
    return (logits[:, 0] - logits[:, 1]).square().mean()


@pytest.mark.parametrize("how", ["callback", "when", "iterator"])
def test_what_is_done_to_a_row_leaves_the_walk_alone(how: str) -> None:
    problem, stop = classifier().problem(), Stop(steps=5)

    def spoil(row: Row) -> None:
        row["regularizer"] = f"{row['regularizer']:.3f}"
        row["mine"] = row.pop("evaluations")

    right = traverse(problem, stop=stop, progress=False)
    if how == "callback":
        path = traverse(problem, stop=stop, callback=spoil, progress=False)
    elif how == "when":
        path = traverse(problem, stop=Stop(steps=5, when=spoil), progress=False)
    else:
        steps = isoloss.walk(problem, stop=stop)
        for row in steps:
            spoil(row)
        path = steps.path
    assert path.message == right.message
    pd.testing.assert_frame_equal(
        path.steps.drop(columns="seconds"), right.steps.drop(columns="seconds")
    )


SHARED: dict[str, Callable[[Problem, Problem], dict[str, Any]]] = {
    "norm": lambda problem, other: {},
    "derivatives": lambda problem, other: {"regularizer": "gradient_norm"},
    "outputs": lambda problem, other: {
        "regularizer": isoloss.Outputs(normal(5, 3, seed=9), spread)
    },
    "held": lambda problem, other: {
        "hold": {"a": isoloss.at_most(other, other.loss(other.current()).item())},
        "probes": {"b": other},
    },
}


@pytest.mark.parametrize("kind", SHARED)
def test_threads_that_share_a_problem_walk_as_one_alone(kind: str) -> None:
    net, stop = classifier(examples=60), Stop(evaluations=40)
    problem = net.problem()
    other = Problem(net.model, net.loss, (net.data[0] + 0.1, net.data[1]))
    starts = [problem.current() * (1 + 0.1 * k) for k in range(3)]

    def one(start: Tensor) -> Path:
        more = SHARED[kind](problem, other)
        return traverse(problem, start=start, stop=stop, progress=False, **more)

    alone = [one(start) for start in starts]
    before = problem.evaluations
    with ThreadPoolExecutor(len(starts)) as threads:
        together = list(threads.map(one, starts))
    for mine, theirs in zip(alone, together, strict=True):
        assert torch.equal(mine.points, theirs.points)
        pd.testing.assert_frame_equal(
            mine.steps.drop(columns="seconds"), theirs.steps.drop(columns="seconds")
        )
    assert problem.evaluations == 2 * before
