"""A walk that was interrupted goes on with the bits of one that never was."""

from __future__ import annotations

from pathlib import Path as FilePath
from typing import Any

import pytest
import torch
from tests.problems import vector_problem
from torch import Tensor

from isoloss import Checkpoint, Outcome, Path, Record, Stop, traverse
from isoloss.regularizers import Regularizer

N = 24


def bowl(theta: Tensor) -> Tensor:
    """Smooth, positive and curved enough that a walk of some dozen steps has corrections."""
    scales = torch.linspace(0.5, 3, N, dtype=theta.dtype)
    return (scales * theta.square()).sum() + 0.1 * torch.sin(3 * theta).square().sum() + 0.05


class Quartic:
    """A regulariser of unknown curvature, so that its Hessian is learnt too."""

    name = "quartic"

    def value_and_grad(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        return theta.pow(4).sum() + theta.square().sum(), 4 * theta.pow(3) + 2 * theta


METHODS: dict[str, dict[str, Any]] = {
    "paper": {"method": "paper", "stop": Stop(steps=90)},
    "sqp": {"method": "sqp", "stop": Stop(steps=40, kkt_residual=1e-12)},
    "sqp, learnt": {
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

    with refuses("mute", "annotate"):
        walk(method=Mute(), checkpoint=Checkpoint(tmp_path))


_: Regularizer = Quartic()
