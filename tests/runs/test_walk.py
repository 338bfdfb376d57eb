"""A run of a walk: its settings from KEY=VALUE pairs, its claim, and what its bits depend on."""

from __future__ import annotations

import json
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from isoloss import Path as Walk
from isoloss import experiments, open_results, problem
from isoloss.errors import InputError
from isoloss.runs import walk
from isoloss.runs.run import News
from isoloss.runs.walk import WalkRun, walk_settings
from isoloss.store import run_folder

IRIS = experiments.get("IRIS_FF")
HARDLY_TRAINED = replace(IRIS, epochs=1)


def test_the_experiments_own_settings_are_the_default() -> None:
    config = walk_settings(IRIS, "paper").config(seed=7)
    assert config["seed"] == 7
    assert config["method"] == {"name": "paper", **IRIS.paper.model_dump()}
    assert config["stop"]["steps"] == 20_000
    assert config["record"]["points_every"] == 50
    assert config["record"]["probes_every"] == 1
    assert json.loads(json.dumps(config)) == config


def test_pairs_reach_the_part_they_belong_to() -> None:
    pairs = ["steps=500", "corrector_step=1e-4", "points_at_most=9", "rtol=1e-2", "dtype=float64"]
    chosen = walk_settings(IRIS, "paper", pairs)
    assert chosen.stop.steps == 500
    assert chosen.method.corrector_step == 1e-4
    assert chosen.record.points_at_most == 9
    assert (chosen.level.rtol, chosen.level.dtype) == (1e-2, "float64")
    assert walk_settings(IRIS, "sqp", ["chunk_size=40"]).config(0)["chunk_size"] == 40
    assert "chunk_size" not in walk_settings(IRIS, "sqp").config(0)
    of_l1 = walk_settings(IRIS, "sqp", ["regularizer=l1", "regularizer_below=20"])
    assert (of_l1.level.regularizer, of_l1.stop.regularizer_below) == ("l1", 20)
    assert walk_settings(IRIS, "paper", ["points_at_most=none"]).record.points_at_most is None


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ("stepz=5", ["stepz", "did you mean steps"]),
        ("steps", ["KEY=VALUE", "got steps"]),
        ("=5", ["KEY=VALUE"]),
        ("steps=5 steps=6", ["steps", "twice"]),
        ("regularizer=l11", ["'l11'", "did you mean l1"]),
        ("steps=-5", ["steps of Stop must be greater than 0, got -5"]),
        ("steps=many", ["steps of Stop must be a whole number, got many"]),
        ("corrector_step=nan", ["corrector_step of Paper must be a finite number, got nan"]),
        ("smallest_step=1", ["smallest_step=1.0", "largest_step=0.1"]),
        ("rtol=1", ["rtol of Level must be less than 1, got 1"]),
        ("dtype=float16", ["dtype of Level must be 'float32' or 'float64', got float16"]),
        ("chunk_size=0", ["chunk_size of Level must be greater than 0, got 0"]),
        ("when=print", ["when"]),
    ],
)
def test_bad_pairs_get_one_sentence(refuses, pair: str, words: list[str]) -> None:
    with refuses(*words):
        walk_settings(IRIS, "paper", pair.split())


def go(out: Path, *pairs: str, steps: int = 6, cancelled: bool = False) -> Walk:
    settings = walk_settings(HARDLY_TRAINED, "sqp", [f"steps={steps}", *pairs])
    one = WalkRun(0, 3, run_folder(out, "IRIS_FF", "sqp", 0), settings)
    phases: list[str] = []
    one.execute(lambda news: phases.append(news.phase), lambda: cancelled and "walking" in phases)
    (path,) = open_results(out).paths("IRIS_FF", "sqp")
    return path


def measured(monkeypatch: pytest.MonkeyPatch, size: int | None) -> None:
    monkeypatch.setattr(problem, "measured_size", lambda *_: size)


def test_a_walk_that_fails_on_the_way_to_a_later_end_is_still_what_it_was(
    tmp_path, monkeypatch
) -> None:
    before = go(tmp_path)

    def fails(*_args: Any, **settings: Any) -> Any:
        settings["callback"][-1]({"kind": "sqp"})
        raise MemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(walk, "traverse", fails)
        after = go(tmp_path, steps=9)
    assert after.outcome is before.outcome
    assert torch.equal(after.points, before.points)
    assert after.metadata["config"] == before.metadata["config"]
    at_once = go(tmp_path / "at once", steps=9)
    assert torch.equal(go(tmp_path, steps=9).points, at_once.points)
    settings = walk_settings(HARDLY_TRAINED, "sqp", ["steps=6"])
    earlier = WalkRun(0, 3, run_folder(tmp_path, "IRIS_FF", "sqp", 0), settings)
    with pytest.raises(InputError, match="other settings"):
        earlier.finished()


@pytest.mark.parametrize("rows", [0, 1])
def test_a_stop_does_not_wait_for_what_comes_before_the_first_row(
    tmp_path, monkeypatch, rows
) -> None:
    def hears(*_args: Any, **settings: Any) -> Any:
        for _ in range(rows):
            settings["callback"][-1]({"kind": "start"})
        signal.raise_signal(signal.SIGTERM)
        raise MemoryError("it went on")

    monkeypatch.setattr(walk, "traverse", hears)
    settings = walk_settings(HARDLY_TRAINED, "sqp")
    one = WalkRun(0, 3, run_folder(tmp_path, "IRIS_FF", "sqp", 0), settings)
    news = one.execute(lambda news: None, lambda: False)
    assert (news.interrupted, news.failed) == (not rows, bool(rows))


def test_a_run_is_resumed_with_the_chunk_size_it_began_with(tmp_path, monkeypatch) -> None:
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
    monkeypatch.setattr(problem, "measured_size", lambda *_: pytest.fail("measured"))
    given = go(tmp_path / "given", "chunk_size=40")
    assert torch.equal(given.points, whole.points)
    assert given.metadata["config"]["chunk_size"] == 40


def test_where_there_is_nothing_to_choose_the_usual_size_is_kept(tmp_path) -> None:
    assert go(tmp_path).metadata["tensors"]["chunk_size"].item() == 0


def test_a_folder_that_was_claimed_in_the_meantime_is_left_as_it_is(tmp_path) -> None:
    go(tmp_path)
    folder = run_folder(tmp_path, "IRIS_FF", "sqp", 0)
    before = {file: file.read_bytes() for file in folder.rglob("*.*")}
    other = WalkRun(0, 3, folder, walk_settings(HARDLY_TRAINED, "sqp", ["steps=5"]))
    news = other.execute(lambda news: None, lambda: False)
    assert news.failed
    assert "stop.steps was 6, now 5" in news.ending
    assert {file: file.read_bytes() for file in folder.rglob("*.*")} == before


@pytest.mark.slow
def test_walks_that_share_a_process_are_those_that_are_made_alone(tmp_path) -> None:
    def made(out: Path) -> list[WalkRun]:
        settings = walk_settings(HARDLY_TRAINED, "sqp", ["steps=4"])
        folders = [run_folder(out, "IRIS_FF", "sqp", k) for k in range(3)]
        return [WalkRun(k, k, folder, settings, 0.0) for k, folder in enumerate(folders)]

    for one in made(tmp_path / "alone"):
        one.execute(lambda news: None, bool)
    told: list[News] = []
    asked = threading.Event()

    def stop_once(news: News) -> None:
        told.append(news)
        if news.phase == "walking":
            asked.set()

    WalkRun.execute_all(made(tmp_path / "beside"), stop_once, asked.is_set)
    assert [news.ending for news in told if news.phase == "done"] == ["interrupted"] * 3
    told.clear()
    WalkRun.execute_all(made(tmp_path / "beside"), told.append, bool)
    assert sum(news.phase == "done" for news in told) == 3
    alone, beside = (
        open_results(tmp_path / name).paths("IRIS_FF", "sqp") for name in ("alone", "beside")
    )
    for one, other in zip(alone, beside, strict=True):
        assert one.outcome == other.outcome
        assert torch.equal(one.points, other.points)
