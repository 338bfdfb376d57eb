"""The size of a chunk is part of what determines a run's bits: given, or measured once and kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from isoloss import Path as Walk
from isoloss import experiments, problem
from isoloss.runs.settings import walk_settings
from isoloss.runs.walk import WalkRun


def go(folder: Path, *pairs: str, cancelled: bool = False) -> Walk:
    settings = walk_settings(experiments.get("IRIS_FF"), "sqp", ["steps=6", *pairs])
    begun = folder / "checkpoint" / "start.json"  # the walk has begun once it is there
    one = WalkRun(0, 3, folder, settings)
    one.execute(lambda news: None, lambda: cancelled and begun.exists())
    return Walk.load(folder)


def measured(monkeypatch: pytest.MonkeyPatch, size: int | None) -> None:
    monkeypatch.setattr(problem, "measured_size", lambda *_: size)


def test_a_run_goes_on_with_the_size_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(monkeypatch, 40)
    whole = go(tmp_path / "whole")
    assert whole.metadata["tensors"]["chunk_size"].item() == 40
    interrupted = go(tmp_path / "resumed", cancelled=True)
    assert len(interrupted.steps) < len(whole.steps)
    measured(monkeypatch, 13)
    resumed = go(tmp_path / "resumed")
    assert resumed.metadata["tensors"]["chunk_size"].item() == 40
    assert torch.equal(resumed.points, whole.points)
    other = go(tmp_path / "other")
    assert other.metadata["tensors"]["chunk_size"].item() == 13
    assert not torch.equal(other.points, whole.points)


def test_a_size_that_is_given_is_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(monkeypatch, 40)
    measured_one = go(tmp_path / "measured")
    monkeypatch.setattr(problem, "measured_size", lambda *_: pytest.fail("measured"))
    given = go(tmp_path / "given", "chunk_size=40")
    assert torch.equal(given.points, measured_one.points)
    assert given.metadata["config"]["chunk_size"] == 40


def test_where_there_is_nothing_to_choose_the_usual_size_is_kept(tmp_path: Path) -> None:
    assert go(tmp_path / "run").metadata["tensors"]["chunk_size"].item() == 0
