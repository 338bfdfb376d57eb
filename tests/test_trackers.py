"""What a walk tells its callbacks, and what trackers do that fail or are missing."""

from __future__ import annotations

import json
import sys
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import pytest
import torch
from tests.problems import Net, classifier

from isoloss import Outcome, Path, Record, Stop, experiments, open_results, trackers, traverse, walk
from isoloss.errors import require_extra
from isoloss.path import Row
from isoloss.runs.walk import WalkRun, walk_settings
from isoloss.store import run_folder
from isoloss.trackers import MLflow, TensorBoard, Tracker, WandB

NET = classifier()


def go(callback: Any, net: Net = NET, steps: int = 7, **settings: Any) -> Path:
    probes, record = {"test": net.problem()}, Record(probes_every=3)
    return traverse(
        net.problem(), callback=callback, stop=Stop(steps=steps), probes=probes, record=record,
        progress=False, **settings,
    )  # fmt: skip


class Listener:
    """Writes down what it is told."""

    def __init__(self, last: int = 10**9) -> None:
        self.told: list[tuple[str, Any]] = []
        self.last = last

    def begin(self, settings: dict[str, Any]) -> None:
        self.told.append(("begin", settings))

    def __call__(self, row: Row) -> bool:
        self.told.append(("row", dict(row)))
        return row["step"] >= self.last

    def end(self, path: Path | None) -> None:
        self.told.append(("end", path))


# ---------------------------------------------------------------- callbacks


def test_several_callbacks_hear_settings_rows_and_path_in_order() -> None:
    first, second, rows = Listener(), Listener(), list[Row]()
    path = go([first, rows.append, second], rtol=2e-3, method="sqp")
    assert [what for what, _ in first.told] == ["begin", *["row"] * len(path.steps), "end"]
    assert first.told[0] == second.told[0]
    assert first.told[-1][1] is second.told[-1][1] is path
    assert [row["loss"] for row in rows] == path.steps["loss"].tolist()
    settings = json.loads(json.dumps(first.told[0][1]))
    assert settings["rtol"] == 2e-3
    assert settings["level"] == path.level
    assert settings["stop"]["steps"] == 7
    assert settings["method"]["name"] == "sqp"
    assert settings["device"] == "cpu"
    assert settings == json.loads(json.dumps(_walked(path).settings))


def _walked(path: Path) -> walk:
    stop, record, probes = Stop(steps=7), Record(probes_every=3), {"test": NET.problem()}
    return walk(NET.problem(), rtol=2e-3, stop=stop, record=record, probes=probes)


@pytest.mark.parametrize("stopper", [0, 1])
def test_any_of_them_ends_the_walk_and_all_hear_its_last_row(stopper: int) -> None:
    both = [Listener(), Listener()]
    both[stopper].last = 3
    path = go(both)
    assert path.outcome is Outcome.INTERRUPTED
    assert len(path.steps) == 4
    assert all(len(one.told) == 6 for one in both)


@pytest.mark.parametrize(
    ("answer", "ends"),
    [
        (np.bool_(True), True), (torch.tensor(True), True), (torch.tensor([True]), True),
        (np.bool_(False), False), (torch.tensor(False), False), (torch.tensor(1.0), False),
        (torch.tensor([True, True]), False), (1, False), ({"loss": 1}, False), ("yes", False),
    ],
)  # fmt: skip
def test_true_of_numpy_and_torch_ends_a_walk_and_nothing_else_does(answer: Any, ends: bool) -> None:
    path = go(lambda _: answer, steps=2)
    assert path.outcome is (Outcome.INTERRUPTED if ends else Outcome.STEP_LIMIT)


def test_ctrl_c_before_the_first_row_is_ctrl_c() -> None:
    class Slow(Listener):
        def begin(self, settings: dict[str, Any]) -> None:
            raise KeyboardInterrupt

    listener = Slow()
    with pytest.raises(KeyboardInterrupt):
        go(listener)
    assert listener.told == [("end", None)]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_end_is_told_whatever_ends_the_walk(error: type[BaseException]) -> None:
    def broken(row: Row) -> None:
        if row["step"] == 2:
            raise error

    listener = Listener()
    if error is KeyboardInterrupt:
        assert go([listener, broken]) is listener.told[-1][1]
    else:
        with pytest.raises(error):
            go([listener, broken])
        assert listener.told[-1] == ("end", None)
    assert len(listener.told) == 5


def test_ctrl_c_while_the_end_is_told_loses_nothing() -> None:
    class Slow(Listener):
        def end(self, path: Path | None) -> None:
            raise KeyboardInterrupt

    listener = Listener()
    path = go([Slow(), listener])
    assert listener.told[-1] == ("end", path)
    assert path.outcome is Outcome.STEP_LIMIT


def test_an_error_at_the_beginning_is_the_only_one(recwarn: pytest.WarningsRecorder) -> None:
    class Wrong(Listener):
        def begin(self, settings: dict[str, Any]) -> None:
            raise RuntimeError

    tracker = Broken("close")
    with pytest.raises(RuntimeError):
        go([Wrong(), tracker])
    assert tracker.calls == []
    assert not recwarn


def test_begin_and_end_that_are_no_methods_are_not_called() -> None:
    class Window(list[Row]):
        begin, end = 2, 4

        def __call__(self, row: Row) -> None:
            self.append(row)

    window = Window()
    path = go([window])
    assert len(window) == len(path.steps)


def test_nothing_is_told_of_a_walk_that_is_refused(refuses) -> None:
    listener = Listener()
    with refuses("level"):
        go(listener, level=-1.0)
    assert listener.told == []


@pytest.mark.parametrize(
    ("given", "words"),
    [([print, 3], ["callback[1]", "int"]), ("print", ["callback", "list"]),
     ([print, lambda: True], ["callback", "(row)"])],
)  # fmt: skip
def test_what_is_no_callback_is_refused(refuses, given: Any, words: list[str]) -> None:
    with refuses(*words):
        go(given)


# ---------------------------------------------------------------- trackers, without any package


class Broken(Tracker):
    """Fails in one of its calls."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where, self.calls = where, list[str]()

    def _note(self, what: str) -> None:
        self.calls.append(what)
        if what == self.where:
            raise OSError("no space left")

    def _open(self, settings: Any) -> None:
        self._note("open")

    def _log(self, step: int, figures: Any) -> None:
        self._note(f"step {step}")

    def _close(self, ending: Any) -> None:
        self._note("close")


@pytest.mark.parametrize("where", ["open", "step 3", "close"])
def test_a_tracker_that_fails_costs_one_warning_and_not_the_walk(where: str) -> None:
    plain, broken, listener = go(None), Broken(where), Listener()
    with pytest.warns(UserWarning, match="Broken failed.*no space left.*continues") as caught:
        path = go([broken, listener])
    assert len(caught) == 1
    assert broken.calls[-1] == where
    assert path.outcome is plain.outcome
    assert torch.equal(path.points, plain.points)
    assert len(listener.told) == len(path.steps) + 2
    broken.where = "nowhere"  # the next walk is another chance
    go(broken)
    assert broken.calls[-1] == "close"


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_a_package_that_is_missing_is_named_before_anything_runs(
    refuses, monkeypatch: pytest.MonkeyPatch, tmp_path: FilePath, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with refuses(name, "isoloss[trackers]"):
        trackers.tracker_of_run(name, tmp_path)


def test_a_folder_that_is_named_like_the_package_is_not_taken_for_it(
    refuses, monkeypatch: pytest.MonkeyPatch, tmp_path: FilePath
) -> None:
    (tmp_path / "no_such_package").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with refuses("no_such_package is not installed", "isoloss[trackers]"):
        require_extra("no_such_package", "trackers")


def test_wrong_trackers_are_refused(refuses, tmp_path: FilePath) -> None:
    with refuses("'tensorbord'", "did you mean tensorboard"):
        trackers.tracker_of_run("tensorbord", tmp_path)
    with refuses("module must be imported", "str"):
        WandB("some", module="trackio")
    with refuses("config must be", "int"):
        TensorBoard("some", config=3)
    with refuses("tracking_uri must be", "int"):
        MLflow("some", tracking_uri=3)


@pytest.mark.slow
def test_a_tracker_that_fails_in_a_run_is_one_note_of_it(
    tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(trackers.TRACKERS, "broken", lambda folder, **about: Broken("step 2"))
    news, path = run(tmp_path, "broken")
    (note,) = news.notes
    assert "Broken failed at step 2" in note
    assert not news.failed
    assert len(path.steps) == 7


def run(out: FilePath, *names: str) -> tuple[Any, Path]:
    settings = walk_settings(experiments.get("IRIS_FF"), "sqp", ["steps=6"])
    one = WalkRun(0, 3, run_folder(out, "IRIS_FF", "sqp", 0), settings)
    news = one.tracked(names).execute(lambda _: None, lambda: False)
    (path,) = open_results(out).paths("IRIS_FF", "sqp")
    return news, path
