"""Run folders: begun, ended, damaged, and done again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path as FilePath
from typing import Any

import pytest
import torch
from tests.store.made import made_path

from isoloss import Outcome, Path, Stop, files
from isoloss.files import write_json
from isoloss.settings import ONLY_IN_PYTHON
from isoloss.store import ResultsError, check_out_folder, run_folder
from isoloss.store.checkpoint import TrainingCheckpoint, load_start, save_start, training_folder
from isoloss.store.folder import (
    begin,
    check,
    load_config,
    problem,
    save_failure,
    save_walk,
    settle,
)
from isoloss.store.lock import LockedError, only_writer

RUN_FILES = ["config.json", "outcome.json", "points.safetensors", "steps.parquet"]


def names(folder: FilePath) -> list[str]:
    """Files in a folder, without the times of those in quarantine."""
    return sorted(file.name.split("-2")[0] for file in folder.iterdir())


def test_where_runs_are():
    for where, given in {
        "out/IRIS_FF/traverse/sqp/run-007": ("sqp", 7),
        "out/IRIS_FF/decay/run-000": (None, 0, "decay"),
        "out/IRIS_FF/equivalent/sqp/run-012": ("sqp", 12, "equivalent"),
        "out/IRIS_FF/after-decay/sqp/run-000": ("sqp", 0, "after-decay"),
    }.items():
        assert run_folder(FilePath("out"), "IRIS_FF", *given).as_posix() == where


def test_a_finished_run_is_not_done_again_and_an_interrupted_one_is(tmp_path):
    assert not check(tmp_path, {"seed": 3})
    begin(tmp_path, {"seed": 3}, {})
    (tmp_path / "checkpoint").mkdir()
    save_walk(tmp_path, made_path(outcome=Outcome.INTERRUPTED))
    assert (tmp_path / "checkpoint").exists()
    assert begin(tmp_path, {"seed": 3}, {"torch": "other"})
    save_walk(tmp_path, made_path(outcome=Outcome.CONVERGED))
    assert not (tmp_path / "checkpoint").exists()
    assert check(tmp_path, {"seed": 3})
    assert not begin(tmp_path, {"seed": 3}, {"torch": "other"})


def test_other_settings_are_refused_and_the_difference_shown(tmp_path, refuses):
    begin(tmp_path, {"seed": 3, "stop": {"steps": 5, "seconds": None}}, {})
    with refuses("(stop.steps was 5, now 4)", "--restart"):
        begin(tmp_path, {"seed": 3, "stop": {"steps": 4, "seconds": None}}, {})


STOP = Stop(steps=5, evaluations=9).model_dump(exclude=ONLY_IN_PYTHON)


def with_stop(**changed: float | None) -> dict[str, Any]:
    return {"seed": 3, "stop": STOP | changed}


def ended(folder: FilePath, outcome: Outcome, **given: bool) -> FilePath:
    """A walk that ended so, with what it would go on from."""
    begin(folder, with_stop(), {})
    (folder / "checkpoint").mkdir()
    save_walk(folder, made_path(outcome=outcome), **given)
    return folder


@pytest.mark.parametrize(
    ("outcome", "later"),
    [
        (Outcome.STEP_LIMIT, {"steps": 6}),
        (Outcome.STEP_LIMIT, {"steps": 6, "evaluations": None, "seconds": None}),
        (Outcome.EVALUATION_LIMIT, {"evaluations": None}),
        (Outcome.EVALUATION_LIMIT, {"evaluations": 10, "kkt_residual": 1e-4}),
        (Outcome.SLOWED, {"gain": 0.0}),
        (Outcome.INTERRUPTED, {"steps": 6}),
    ],
)
def test_a_walk_that_a_limit_ended_goes_on_to_a_later_one(tmp_path, outcome, later):
    ended(tmp_path, outcome)
    assert check(tmp_path, with_stop(), later=True) == (outcome is not Outcome.INTERRUPTED)
    assert begin(tmp_path, with_stop(), {}, later=True) == (outcome is Outcome.INTERRUPTED)
    assert not check(tmp_path, with_stop(**later), later=True)
    assert begin(tmp_path, with_stop(**later), {}, later=True)
    stays = outcome is not Outcome.INTERRUPTED  # what a limit ended is there until it is replaced
    there = RUN_FILES if stays else ["config.json", *RUN_FILES[2:]]
    assert names(tmp_path) == ["checkpoint", *there]
    assert load_config(tmp_path) == with_stop(**({} if stays else later))
    settle(tmp_path, with_stop(**later), {})
    assert load_config(tmp_path) == with_stop(**later)
    assert problem(tmp_path) == "not finished"
    save_walk(tmp_path, made_path(outcome=Outcome.CONVERGED))
    assert names(tmp_path) == RUN_FILES
    assert check(tmp_path, with_stop(**later), later=True)


@pytest.mark.parametrize(
    ("outcome", "later"),
    [
        (Outcome.CONVERGED, {"steps": 6, "evaluations": None}),
        (Outcome.STALLED, {"evaluations": 10}),
        (Outcome.STEP_LIMIT, {"evaluations": 10}),
        (Outcome.EVALUATION_LIMIT, {"gain": 0.0}),
    ],
)
def test_a_walk_that_ended_before_its_limit_is_that_of_a_later_one(tmp_path, outcome, later):
    ended(tmp_path, outcome)
    before = (tmp_path / "outcome.json").read_bytes()
    assert check(tmp_path, with_stop(**later), later=True)
    assert not begin(tmp_path, with_stop(**later), {}, later=True)
    assert (tmp_path / "outcome.json").read_bytes() == before
    assert load_config(tmp_path) == with_stop()


@pytest.mark.parametrize(
    "other",
    [
        {"stop": STOP | {"steps": 4}},
        {"stop": STOP | {"steps": 6, "evaluations": 8}},
        {"stop": STOP | {"steps": 6, "kkt_residual": 1e-2}},
        {"stop": STOP | {"steps": 6, "regularizer_below": 1.0}},
        {"stop": STOP | {"steps": 6, "seconds": 9.0}},
        {"stop": STOP | {"steps": 6}, "seed": 4},
        {"stop": {"steps": 6}},
        {"stop": None},
    ],
)
def test_an_end_that_is_not_later_in_all_is_another_setting(tmp_path, refuses, other):
    ended(tmp_path, Outcome.STEP_LIMIT)
    for claim in (check, partial(begin, made_with={})):
        with refuses("holds a run with other settings"):
            claim(tmp_path, with_stop() | other, later=True)
    assert check(tmp_path, with_stop(), later=True)


@pytest.mark.parametrize(
    ("outcome", "later"),
    [
        (Outcome.CONVERGED, {"kkt_residual": 1e-4}),
        (Outcome.CONVERGED, {"kkt_residual": 0.0, "steps": 6}),
        (Outcome.REGULARIZER_REACHED, {"regularizer_below": 1.0}),
    ],
)
def test_an_end_that_was_reached_is_no_end_of_a_walk_asked_to_go_farther(
    tmp_path, refuses, outcome, later
):
    before = with_stop(regularizer_below=2.0)
    begin(tmp_path, before, {})
    save_walk(tmp_path, made_path(outcome=outcome))
    for claim in (check, partial(begin, made_with={})):
        with refuses("holds a run with other settings", "is gone"):
            claim(tmp_path, {**before, "stop": before["stop"] | later}, later=True)


def test_of_other_runs_than_walks_a_later_end_is_another_setting(tmp_path, refuses):
    ended(tmp_path, Outcome.STEP_LIMIT)
    for claim in (check, partial(begin, made_with={})):
        with refuses("stop.steps was 5, now 6"):
            claim(tmp_path, with_stop(steps=6))


def test_what_a_walk_would_go_on_from_may_be_gone(tmp_path, refuses):
    kept = ended(tmp_path / "kept", Outcome.STEP_LIMIT)
    (kept / "checkpoint").rmdir()
    for folder in (kept, ended(tmp_path / "good", Outcome.STEP_LIMIT, for_good=True)):
        assert names(folder) == RUN_FILES
        assert check(folder, with_stop(), later=True)
        with refuses("stop.steps was 5, now 6", "what it would go on from is gone; give another"):
            begin(folder, with_stop(steps=6), {}, later=True)


def test_damage_is_found_before_a_walk_goes_on(tmp_path):
    ended(tmp_path, Outcome.STEP_LIMIT)
    (tmp_path / "steps.parquet").write_bytes(b"")
    said: list[str] = []
    assert begin(tmp_path, with_stop(steps=6), {}, said.append, later=True)
    assert names(tmp_path / "quarantine") == RUN_FILES[1:]
    assert load_config(tmp_path) == with_stop(steps=6)
    assert len(said) == 1


def test_a_failure_is_kept_and_the_run_is_done_again(tmp_path):
    begin(tmp_path, {}, {})
    save_failure(tmp_path, "no memory")
    assert problem(tmp_path) == "no memory"
    assert begin(tmp_path, {}, {})
    with pytest.raises(ResultsError, match="no memory"):
        Path.load(tmp_path)


@pytest.mark.parametrize("name", RUN_FILES)
def test_a_damaged_file_is_named_and_the_run_is_done_again(tmp_path, name):
    begin(tmp_path, {"seed": 0}, {})
    save_walk(tmp_path, made_path())
    whole = (tmp_path / name).read_bytes()
    for damage in (b"", b"{", b"\x00" * 50, whole[:-1], whole + b" ", None):
        if damage is None:
            (tmp_path / name).unlink()
        else:
            (tmp_path / name).write_bytes(damage)
        with pytest.raises((ResultsError, ValueError), match=str(tmp_path)):
            Path.load(tmp_path)
        assert problem(tmp_path) is not None
        assert not check(tmp_path, {"seed": 0})
    (tmp_path / name).write_bytes(b"{")
    said: list[str] = []
    done_again = begin(tmp_path, {"seed": 0}, {}, said.append)
    assert f"{name} " in said[0]
    kept = names(tmp_path / "quarantine")
    if name == "config.json":  # what the others are results of is told by outcome.json
        assert (done_again, kept) == (False, ["config.json"])
        assert Path.load(tmp_path).metadata["config"] == {"seed": 0}
    else:
        assert (done_again, kept) == (True, RUN_FILES[1:])


def test_settings_that_are_not_those_of_the_files_are_found(tmp_path):
    for seed in (0, 1):
        begin(tmp_path / str(seed), {"seed": seed}, {})
        save_walk(tmp_path / str(seed), made_path())
    (tmp_path / "0" / "config.json").replace(tmp_path / "1" / "config.json")
    assert "a run with other settings" in (problem(tmp_path / "1") or "")
    with pytest.raises(ResultsError, match="a run with other settings"):
        Path.load(tmp_path / "1")


def test_no_file_outside_the_folder_is_named_by_it(tmp_path):
    begin(tmp_path / "r", {}, {})
    save_walk(tmp_path / "r", made_path())
    (tmp_path / "secret").touch()
    ending = json.loads((tmp_path / "r" / "outcome.json").read_text())
    ending["files"]["../secret"] = ending["files"]["steps.parquet"]
    for key in ("format_version", "isoloss", "sha256"):
        del ending[key]
    write_json(tmp_path / "r" / "outcome.json", ending)
    assert "'../secret' is not the name of a file beside it" in (problem(tmp_path / "r") or "")


def test_a_run_of_another_format_is_refused_and_left_alone(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(files, "FORMAT_VERSION", 2)
        begin(tmp_path, {"seed": 0}, {})
        save_walk(tmp_path, made_path())
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    for refused in (lambda: begin(tmp_path, {"seed": 0}, {}), lambda: Path.load(tmp_path)):
        with pytest.raises(
            ResultsError, match=r"format 2, written by .*reads format 3; .*--restart"
        ):
            refused()
    assert before == {file.name: file.read_bytes() for file in tmp_path.iterdir()}


@dataclass
class Trained:
    """Of a training that goes on."""

    epoch: int


def test_what_phase_1_ended_with_is_kept_as_the_newest_of_its_states(tmp_path):
    said: list[str] = []
    assert load_start(tmp_path, said.append) is None
    training = TrainingCheckpoint(training_folder(tmp_path), tmp_path, 0.0)
    training.load(Trained)
    training.save(Trained(1))
    training.save(Trained(2))
    assert load_start(tmp_path, said.append) is None
    save_start(tmp_path, {"weights": torch.ones(3)})
    kept = load_start(tmp_path, said.append)
    assert kept is not None
    assert torch.equal(kept["weights"], torch.ones(3))
    assert said == []
    newest = training_folder(tmp_path) / "a"
    newest.write_bytes(newest.read_bytes()[:-1])
    assert load_start(tmp_path, said.append) is None  # training goes on from where it was
    assert f"{newest} has " in said[0]
    assert training.load(Trained) == Trained(2)


@pytest.mark.parametrize("name", ["a", "b"])
def test_the_loss_of_the_only_generation_is_noticed(tmp_path, name):
    save_start(tmp_path, {"weights": torch.ones(3)})
    (training_folder(tmp_path) / name).unlink()
    said: list[str] = []
    assert (load_start(tmp_path, said.append) is None) is (name == "a")
    assert said == [f"{training_folder(tmp_path) / name} is missing"]


def test_a_run_that_failed_before_it_had_begun_is_no_damage(tmp_path):
    said: list[str] = []
    save_failure(tmp_path, "its process was killed")
    assert begin(tmp_path, {"seed": 0}, {}, said.append)
    assert said == []
    assert names(tmp_path) == ["config.json", "outcome.json"]
    (tmp_path / "config.json").unlink()
    (tmp_path / "steps.parquet").touch()  # but this was there, so that it has been lost
    assert begin(tmp_path, {"seed": 0}, {}, said.append)
    assert "config.json is missing" in said[0]
    assert names(tmp_path / "quarantine") == ["outcome.json", "steps.parquet"]
    (tmp_path / "config.json").write_bytes(b"{")
    (tmp_path / "checkpoint").mkdir()  # and nothing tells what settings it is of
    assert begin(tmp_path, {"seed": 0}, {}, said.append)
    assert {"checkpoint", "config.json"} < {*names(tmp_path / "quarantine")}


def test_a_folder_has_one_writer_and_tells_who(tmp_path):
    with only_writer(tmp_path / "r") as died:
        assert died is None
        with pytest.raises(LockedError, match=r"r is being written to by process \d+ on .* since "):
            only_writer(tmp_path / "r").__enter__()
    note = {"pid": 2**22 + 1, "host": __import__("socket").gethostname(), "since": "yesterday"}
    write_json(tmp_path / ".r.holder.json", note)
    with only_writer(tmp_path / "r") as died:
        assert died is not None
        assert died.startswith(f"process {2**22 + 1} on ")


def test_an_out_folder_that_cannot_be_written_to_is_refused(tmp_path, monkeypatch, refuses):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with refuses("--out must name a folder", "is a file"):
            check_out_folder(folder)
    check_out_folder(tmp_path / "new" / "folder")
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write anywhere
    with refuses("may not be written to"):
        check_out_folder(tmp_path / "new")
