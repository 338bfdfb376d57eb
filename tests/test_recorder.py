"""Which rows, weights and probes of a walk are kept."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.problems import vector_problem
from torch import Tensor

from isoloss import Problem, Record
from isoloss.methods.paper import PaperState
from isoloss.objective import Objective
from isoloss.path import COLUMNS
from isoloss.point import Tolerance
from isoloss.recorder import Recorder
from isoloss.regularizers import SquaredNorm


def plain(start: Tensor) -> Problem:
    """L = |theta|^2, which has no metric."""
    return vector_problem(lambda theta: theta.dot(theta), start)


def probed(start: Tensor) -> Problem:
    """Loss |theta|^2 and metric theta[0]."""
    nothing = torch.zeros(1)
    return Problem(
        lambda p, _: p["theta"][None],
        lambda outputs, _: outputs.square().sum(1),
        (nothing, nothing),
        metric=lambda outputs, _: outputs[:, 0],
        parameters={"theta": start},
    )


ORIGIN = torch.zeros(1, dtype=torch.float64)
POINT = Objective(plain(ORIGIN), SquaredNorm()).evaluate(ORIGIN)


def state(k: float, kind: str = "predict", on_level: bool = True, length: float = 0.5) -> Any:
    theta = torch.tensor([k], dtype=torch.float64)
    point = dataclasses.replace(POINT, theta=theta, loss=2.0 + k)
    return PaperState(point, 2.0, on_level, kind, length)


def record(
    settings: Record, states: list[Any], probes: dict[str, Problem] | None = None
) -> tuple[pd.DataFrame, Tensor, list[int]]:
    recorder = Recorder(settings, probes or {}, 2.0, Tolerance())
    for k, each in enumerate(states):
        recorder.add(each, evaluations=10 * k)
    return recorder.finish()


def kept(n: int, **settings: Any) -> list[int]:
    """The steps whose weights are kept of a walk of n points, all on the level set."""
    _, points, steps = record(Record(**settings), [state(float(k)) for k in range(n)])
    assert points.squeeze(1).tolist() == steps
    return steps


@given(n=st.integers(1, 400), every=st.integers(1, 9), at_most=st.integers(2, 40))
def test_kept_points_are_evenly_spaced_few_enough_and_end_with_the_last(
    n: int, every: int, at_most: int
) -> None:
    steps = kept(n, points_every=every, points_at_most=at_most)
    assert steps[0] == 0
    assert steps[-1] == n - 1
    assert min((n - 1) // every + 1, at_most // 2) <= len(steps) <= at_most
    unlimited = kept(n, points_every=every, points_at_most=None)
    assert unlimited == sorted({*range(0, n, every), n - 1})
    gaps = [b - a for a, b in itertools.pairwise(steps)]
    assert all(gap > 0 for gap in gaps)
    if len(gaps) > 1:
        spacing = gaps[0]
        assert set(gaps[:-1]) == {spacing}
        assert gaps[-1] < 2 * spacing
        assert math.log2(spacing / every).is_integer()


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (4, [0, 1, 2, 3]),
        (5, [0, 2, 4]),
        (6, [0, 2, 4, 5]),
        (8, [0, 2, 4, 7]),
        (9, [0, 4, 8]),
    ],
)
def test_every_other_point_is_let_go_when_there_are_too_many(n: int, expected: list[int]) -> None:
    assert kept(n, points_at_most=4) == expected


def test_the_last_point_kept_is_the_last_on_the_level_set() -> None:
    states = [state(0.0, "start"), state(1.0), state(2.0), state(3.0, on_level=False)]
    rows, points, steps = record(Record(points_every=10), states)
    assert rows["kind"].tolist() == ["start", *["predict"] * 3]
    assert steps == [0, 2]
    assert points[-1].tolist() == [2.0]
    rows, points, steps = record(Record(), [state(0.0, "start", on_level=False)])
    assert (len(rows), len(points), steps) == (1, 0, [])


def test_the_spacing_counts_points_on_the_level_set_only() -> None:
    states = [state(float(k), on_level=k % 2 == 0) for k in range(9)]
    assert record(Record(points_every=2), states)[2] == [0, 4, 8]


def test_rows_hold_what_was_given() -> None:
    states = [state(0.0, "start", length=0.0), state(0.5), state(-1.0, "correct", length=0.125)]
    recorder = Recorder(
        Record(), {"test": probed(ORIGIN), "valid": plain(ORIGIN)}, 2.0, Tolerance()
    )
    given = [recorder.add(each, evaluations=10 * k) for k, each in enumerate(states)]
    rows, _, _ = recorder.finish()
    assert given == recorder.rows
    assert given[2]["test_loss"] == 1.0
    probes = ["test_loss", "test_metric", "valid_loss", "valid_metric"]
    assert list(rows.columns) == [*COLUMNS, *probes]
    assert rows["valid_loss"].tolist() == [0.0, 0.25, 1.0]
    assert rows["valid_metric"].isna().all()
    assert rows["step"].tolist() == [0, 1, 2]
    assert rows["evaluations"].tolist() == [0, 10, 20]
    assert rows["loss"].tolist() == [2.0, 2.5, 1.0]
    assert rows["level_error"].tolist() == [0.0, 0.25, -0.5]
    assert rows["step_length"].tolist() == [0.0, 0.5, 0.125]
    assert rows["arc_length"].tolist() == [0.0, 0.5, 0.625]
    assert rows["seconds"].is_monotonic_increasing
    assert (rows["seconds"] >= 0).all()


def test_progress_counts_neither_the_start_nor_corrections() -> None:
    recorder = Recorder(Record(), {}, 2.0, Tolerance())
    for kind in ("start", "predict", "correct", "correct", "predict", "sqp"):
        recorder.add(state(0.0, kind), evaluations=0)
    assert recorder.progress == 3


@given(n=st.integers(1, 30), every=st.integers(1, 7))
def test_probes_are_measured_at_every_such_point_and_the_last(n: int, every: int) -> None:
    rows, _, _ = record(
        Record(probes_every=every), [state(float(k)) for k in range(n)], {"test": probed(ORIGIN)}
    )
    measured = rows["test_loss"].notna()
    assert rows.index[measured].tolist() == sorted({*range(0, n, every), n - 1})
    assert (rows["test_metric"].notna() == measured).all()
    assert rows["test_loss"][measured].tolist() == [float(k**2) for k in rows.index[measured]]
    assert rows["test_metric"][measured].tolist() == [float(k) for k in rows.index[measured]]


def test_probes_are_not_measured_off_the_level_set() -> None:
    states = [state(0.0), state(1.0, on_level=False), state(2.0), state(3.0, on_level=False)]
    rows, _, _ = record(Record(), states, {"test": probed(ORIGIN)})
    assert rows["test_loss"].notna().tolist() == [True, False, True, False]
