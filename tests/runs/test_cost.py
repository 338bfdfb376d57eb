"""What a run costs is measured on the experiment's own network, scaled to all its examples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from isoloss import Problem, experiments
from isoloss.cli.output import duration
from isoloss.experiments.catalog import Data
from isoloss.runs import cost as module


@pytest.fixture(autouse=True)
def unmeasured() -> None:
    module.cost.cache_clear()


def made_up(shape: tuple[int, ...], train: int, test: int) -> Data:
    return Data(
        torch.ones(train, *shape), torch.zeros(train, dtype=torch.int64),
        torch.ones(test, *shape), torch.zeros(test, dtype=torch.int64), torch.arange(train),
    )  # fmt: skip


def test_time_grows_with_the_examples_and_the_test_set_counts_as_often_as_it_is_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[int, str]] = []

    def taken(run: Any) -> float:
        cells = [cell.cell_contents for cell in run.__closure__]
        problem = next(cell for cell in cells if isinstance(cell, Problem))
        run()
        seen.append((problem.examples, "gradient" if problem.evaluations else "test"))
        return 1.0 if problem.evaluations else 3.0

    data = made_up((1, 28, 28), 1000, 400)
    monkeypatch.setattr(module, "_seconds", taken)
    monkeypatch.setattr(experiments.Experiment, "data", lambda self, seed: data)
    cost = module.cost("MNIST_CONV")
    assert seen == [(100, "gradient"), (100, "test")]
    assert cost.evaluations_per_second == pytest.approx(1 / 10)
    assert cost.paper_walk_seconds == pytest.approx(5_000 * (10 + 3 * 4 / 50))


def test_a_cost_is_measured_once_and_leaves_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first = module.cost("IRIS_FF")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    monkeypatch.setattr(module, "_seconds", lambda run: nn.Module())
    assert module.cost("IRIS_FF") is first
    assert first.evaluations_per_second > 0
    assert first.paper_walk_seconds > 20_000 / first.evaluations_per_second


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.5, "0.5 s"), (59, "59 s"), (90, "1.5 min"), (7_200, "2 h"), (400_000, "4.6 d")],
)
def test_durations_are_readable(seconds: float, text: str) -> None:
    assert duration(seconds) == text
