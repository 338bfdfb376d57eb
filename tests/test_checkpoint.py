"""A walk that was interrupted goes on with the bits of one that never was."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path as FilePath
from typing import Any

import pytest
import torch
from tests.problems import vector_problem
from torch import Tensor

from isoloss import (
    L1,
    SQP,
    Checkpoint,
    Outcome,
    Paper,
    Path,
    Problem,
    Record,
    SquaredNorm,
    Stop,
    traverse,
    weighted_sum,
)
from isoloss.regularizers import Regularizer

N = 24


def bowl(theta: Tensor) -> Tensor:
    """Smooth, positive and curved enough that a walk of some dozen steps has corrections."""
    scales = torch.linspace(0.5, 3, N, dtype=theta.dtype)
    return (scales * theta.square()).sum() + 0.1 * torch.sin(3 * theta).square().sum() + 0.05


class Quartic:
    """A regularizer of unknown curvature, so that its Hessian is learned too."""

    name = "quartic"

    def value_and_grad(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        return theta.pow(4).sum() + theta.square().sum(), 4 * theta.pow(3) + 2 * theta


METHODS: dict[str, dict[str, Any]] = {
    "paper": {"method": "paper", "stop": Stop(steps=90)},
    "sqp": {"method": "sqp", "stop": Stop(steps=40, kkt_residual=1e-12)},
    "sqp, learned": {
        "method": "sqp", "stop": Stop(steps=40, kkt_residual=1e-12), "regularizer": Quartic()
    },
    "sqp, other level": {
        "method": "sqp", "stop": Stop(steps=20, kkt_residual=1e-12), "level": 9.0
    },
}  # fmt: skip


def walk(**changes: Any) -> Path:
    start = torch.linspace(-1, 1.5, N, dtype=torch.float64)
    problem = vector_problem(bowl, start)
    record = Record(points_at_most=10, probes_every=3)
    probes = {"test": vector_problem(lambda theta: bowl(theta).square(), start)}
    return traverse(problem, **{"record": record, "probes": probes, "progress": False, **changes})


def same(one: Path, other: Path) -> bool:
    rows = [path.steps.drop(columns="seconds") for path in (one, other)]
    return (
        rows[0].equals(rows[1])
        and torch.equal(one.points, other.points)
        and one.point_steps == other.point_steps
        and (one.outcome, one.message, one.level) == (other.outcome, other.message, other.level)
    )


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("every", [0.0, 1e9])
def test_a_walk_stopped_anywhere_ends_as_one_never_stopped(
    name: str, every: float, tmp_path: FilePath
) -> None:
    settings = METHODS[name]
    whole = walk(**settings)
    for stop_at in (0, 1, 2, 3, 5, 8, 13, 21, 34, 55, None):
        part = walk(
            **settings,
            checkpoint=Checkpoint(tmp_path / "kept", every),
            callback=lambda row, at=stop_at: at is not None and row["step"] >= at,
        )
        if stop_at is not None and stop_at < len(whole.steps) - 1:
            assert part.outcome is Outcome.INTERRUPTED
    assert same(part, whole)


def test_ctrl_c_in_the_middle_of_anything_loses_no_bit(tmp_path: FilePath) -> None:
    whole = walk(**METHODS["sqp"])
    calls, limit = 0, 20

    def interrupting(theta: Tensor) -> Tensor:
        nonlocal calls, limit
        calls += 1
        if calls == limit:
            limit = calls + 13
            raise KeyboardInterrupt
        return bowl(theta)

    start = torch.linspace(-1, 1.5, N, dtype=torch.float64)
    problem = vector_problem(bowl, start)
    probe = vector_problem(lambda theta: interrupting(theta).square(), start)
    outcomes: list[Outcome] = []
    while not outcomes or outcomes[-1] is Outcome.INTERRUPTED:
        path = traverse(
            problem if len(outcomes) % 2 else vector_problem(interrupting, start),
            **METHODS["sqp"],
            record=Record(points_at_most=10, probes_every=3),
            probes={"test": probe},
            progress=False,
            checkpoint=Checkpoint(tmp_path / "kept"),
        )
        outcomes.append(path.outcome)
    assert outcomes.count(Outcome.INTERRUPTED) >= 2
    assert same(path, whole)


def test_an_ended_walk_is_not_walked_again_and_goes_on_when_more_is_asked(
    tmp_path: FilePath,
) -> None:
    settings = {"method": "paper", "checkpoint": Checkpoint(tmp_path / "kept")}
    short = walk(**settings, stop=Stop(steps=30))

    def never(row: object) -> None:
        raise AssertionError

    again = walk(
        **settings, stop=Stop(steps=30), callback=lambda row: row["step"] < 30 and never(row)
    )
    assert same(again, short)
    longer = walk(**settings, stop=Stop(steps=90))
    assert same(longer, walk(**METHODS["paper"]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rtol": 1e-2}, ["rtol was 0.001, now 0.01"]),
        ({"method": "sqp"}, ["method.name was 'paper', now 'sqp'"]),
        ({"level": 9.0}, ["level was None, now 9.0"]),
        ({"record": Record(points_every=7)}, ["record.points_every was 1, now 7"]),
        ({"start": torch.ones(N, dtype=torch.float64)}, ["start was"]),
    ],
)
def test_a_checkpoint_of_another_walk_is_refused(
    change: dict[str, Any], words: list[str], tmp_path: FilePath, refuses: Any
) -> None:
    checkpoint = Checkpoint(tmp_path / "kept")
    walk(method="paper", checkpoint=checkpoint, callback=lambda row: True)
    with refuses(*words, "another folder"):
        walk(**{"method": "paper", "checkpoint": checkpoint, **change})


def strength(theta: Mapping[str, Tensor], by: float = 1.0) -> Tensor:
    return by * theta["theta"].square().sum()


def other(theta: Mapping[str, Tensor]) -> Tensor:
    return strength(theta)


AROUND = SquaredNorm(center=torch.zeros(N, dtype=torch.float64))
CHANGED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"regularizer": L1()}, {"regularizer": L1(smoothing=0.1)},
     "regularizer.smoothing was 0.01, now 0.1"),
    ({"regularizer": "l1"}, {"regularizer": L1(smoothing=0.1)},
     "regularizer.smoothing was 0.01, now 0.1"),
    ({"regularizer": weighted_sum((1.0, "squared_norm"), (0.1, L1()))},
     {"regularizer": weighted_sum((1.0, "squared_norm"), (0.1, L1(smoothing=0.1)))},
     "regularizer.parts.1.1.smoothing was 0.01, now 0.1"),
    ({"regularizer": AROUND},
     {"regularizer": SquaredNorm(center=torch.ones(N, dtype=torch.float64))},
     "regularizer.center was 'tensor of (24,), "),
    ({"regularizer": SquaredNorm(weights={"th*": 2.0, "*": 1.0})},
     {"regularizer": SquaredNorm(weights={"*": 1.0, "th*": 2.0})},
     "regularizer.weights.0 was ['th*', 2.0], now ['*', 1.0]"),
    ({"regularizer": strength}, {"regularizer": other},
     "regularizer.name was 'strength', now 'other'"),
    ({"regularizer": partial(strength, by=1.0)}, {"regularizer": partial(strength, by=2.0)},
     "regularizer.given.1.0 was ['by', 1.0], now ['by', 2.0]"),
    ({"method": SQP(memory=20)}, {"method": SQP(memory=30)}, "method.memory was 20, now 30"),
    ({"method": "paper"}, {"method": Paper(tolerance=1e-6)},
     "method.tolerance was 1e-05, now 1e-06"),
    ({}, {"dtype": torch.float32}, "dtype was 'float64', now 'float32'"),
    ({}, {"examples": 2}, "problem.examples was 1, now 2"),
    ({}, {"probed": 2}, "probes.other.examples was 1, now 2"),
]  # fmt: skip


def set_out(
    folder: FilePath,
    *,
    examples: int = 1,
    probed: int = 1,
    dtype: torch.dtype = torch.float64,
    loss: Any = bowl,
    **changes: Any,
) -> None:
    """Begin a walk, or go on with it for two steps."""
    start = torch.linspace(-1, 1.5, N, dtype=torch.float64)

    def problem(count: int) -> Problem:
        return Problem(
            lambda parameters, _: loss(parameters["theta"]).expand(count),
            lambda outputs, _: outputs,
            (torch.zeros(count), torch.zeros(count)),
            parameters={"theta": start},
            dtype=dtype,
        )

    steps = 0

    def enough(row: object) -> bool:
        nonlocal steps
        steps += 1
        return steps > 2

    probes = {"test": problem(1), "other": problem(probed)}
    settings = {"method": "paper", "probes": probes, "progress": False, "callback": enough}
    traverse(problem(examples), **{**settings, **changes}, checkpoint=Checkpoint(folder, 0.0))


@pytest.mark.parametrize(("before", "now", "words"), CHANGED)
def test_a_changed_setting_of_anything_is_refused_and_an_equal_one_is_not(
    before: dict[str, Any], now: dict[str, Any], words: str, tmp_path: FilePath, refuses: Any
) -> None:
    set_out(tmp_path, **before)
    with refuses(words, "give another folder"):
        set_out(tmp_path, **now)
    set_out(tmp_path, **before)


def test_a_name_and_the_object_of_that_name_are_one_regularizer(tmp_path: FilePath) -> None:
    set_out(tmp_path, regularizer="l1")
    set_out(tmp_path, regularizer=L1())


def test_what_a_function_gives_is_compared_where_its_name_is_the_same(
    tmp_path: FilePath, refuses: Any
) -> None:
    def times(factor: float) -> Any:
        def scaled(parameters: Mapping[str, Tensor]) -> Tensor:
            return factor * parameters["theta"].square().sum()

        return scaled

    set_out(tmp_path, regularizer=times(1.0))
    with refuses("regularizer scaled at the point it has reached was", "give another folder"):
        set_out(tmp_path, regularizer=times(1.001))
    with refuses("loss at the point it has reached was", "the data, the model"):
        set_out(tmp_path, regularizer=times(1.0), loss=lambda theta: 1.001 * bowl(theta))
    set_out(tmp_path, regularizer=times(1.0))


def test_a_checkpoint_of_format_2_that_names_the_regularizer_alone_is_gone_on_from(
    tmp_path: FilePath, refuses: Any
) -> None:
    kept = FilePath(__file__).parent / "results" / "formats" / "version-2" / "checkpoint"
    shutil.copytree(kept, tmp_path / "kept")
    checkpoint = Checkpoint(tmp_path / "kept")
    with refuses("regularizer was 'squared_norm', now 'l1'"):
        walk(**METHODS["paper"], regularizer="l1", checkpoint=checkpoint)
    path = walk(**METHODS["paper"], checkpoint=checkpoint)
    assert checkpoint.progress == 19  # it was interrupted at step 20
    whole = walk(**METHODS["paper"])
    assert path.steps["kind"].tolist() == whole.steps["kind"].tolist()
    assert torch.allclose(path.points, whole.points, rtol=1e-9)
    with refuses("regularizer.name was 'squared_norm', now 'l1'"):  # it tells more from now on
        walk(**METHODS["paper"], regularizer="l1", checkpoint=Checkpoint(tmp_path / "kept"))


@pytest.mark.parametrize("every", [-1.0, float("nan")])
def test_a_time_between_checkpoints_that_is_none_is_refused(
    every: float, tmp_path: FilePath, refuses: Any
) -> None:
    with refuses(f"every={every}"):
        Checkpoint(tmp_path, every)


def test_a_method_that_does_not_say_its_state_is_refused(tmp_path: FilePath, refuses: Any) -> None:
    class Mute:
        name = "mute"

        def init(self, *arguments: Any):
            raise AssertionError

        step = relative_tolerance = stride = takes_all_steps = init

    with refuses("mute", "annotate"):
        walk(method=Mute(), checkpoint=Checkpoint(tmp_path))


_: Regularizer = Quartic()
