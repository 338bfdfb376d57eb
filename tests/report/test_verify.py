"""`isoloss verify` finds what is wrong, and nothing where nothing is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tests.torture.victim import make

from isoloss import InputError
from isoloss import Path as Walk
from isoloss.cli import main
from isoloss.cli.reports import template
from isoloss.files import read_ending, write_folder
from isoloss.path import POINTS
from isoloss.projects import Project
from isoloss.report.verify import verify
from isoloss.runs.walk import WalkRun, walk_settings
from isoloss.store import load_decay, run_folder
from isoloss.store.folder import EPOCHS, MEMBERS, Stack, save_decay, save_walk


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("results")
    for kind in ("paper", "sqp", "decay"):
        assert not make(out, kind).execute(lambda news: None, lambda: False).failed
    return out


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "out"))


def wrong(out: Path) -> list[str]:
    return [check.problem for check in verify(out) if check.problem]


def test_what_was_computed_is_right_and_nothing_is_left_out(out: Path) -> None:
    other = out / "IRIS_FF" / "equivalent" / "sqp" / "run-000"
    shutil.copytree(out / "IRIS_FF" / "decay" / "run-000", other)  # of a comparison
    checks = verify(out)
    assert not [check.problem for check in checks if check.problem]
    assert {check.run for check in checks} == {
        "IRIS_FF/traverse/paper/run-000", "IRIS_FF/traverse/sqp/run-000", "IRIS_FF/decay/run-000",
        "IRIS_FF/equivalent/sqp/run-000",
    }  # fmt: skip
    said = " ".join(check.what for check in checks)
    for what in ("files", "loss on the level", "regularizer", "test_loss", "test_metric"):
        assert what in said
    assert "squared_norm (2)" in [check.what for check in verify(other)]


def test_of_a_users_own_project_the_files_are_checked_and_its_code_is_not_run(
    tmp_path: Path,
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(template())
    walk = walk_settings(Project.of(f"{file}:build"), "sqp", ["steps=2"], "as built")
    folder = run_folder(tmp_path / "out", "mine.build", "sqp", 0)
    assert not WalkRun(0, 0, folder, walk).execute(lambda news: None, lambda: False).failed
    file.write_text("raise RuntimeError('run')")
    assert not wrong(tmp_path / "out")
    found = {check.what: check.found for check in verify(tmp_path / "out")}
    assert found == {"files": "2 whole", "computed again": "not done: your own project"}
    (folder / "steps.parquet").write_bytes(b"torn")
    assert "steps.parquet" in wrong(tmp_path / "out")[0]


def changed(column: str, factor: float = float("nan"), rows: object = slice(None)):
    """A walk with a column multiplied at some of the kept points, by default to NaN."""

    def change(path: Walk) -> Walk:
        steps = path.steps.copy()
        steps.loc[np.atleast_1d(np.array(path.point_steps)[rows]), column] *= factor
        return replace(path, steps=steps)

    return change


def moved(path: Walk) -> Walk:
    points = path.points.clone()
    points[-1] *= 1.01
    return replace(path, points=points)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (moved, "loss on the level"),
        (changed("loss", 1.1), "loss is off by"),
        (changed("regularizer", 1.1), "regularizer is off by"),
        (changed("test_loss", 1.1), "test_loss is off by"),
        (changed("test_metric", 1.1), "test_metric is off by"),
        (changed("loss", rows=1), "loss is not a number at 1"),
        (changed("regularizer", rows=0), "regularizer is not a number at 1"),
        (changed("test_loss", rows=-1), "test_loss is not a number at 1"),
        (changed("test_metric", rows=0), "test_metric is not a number at 1"),
        (lambda p: replace(p, steps=p.steps.drop(columns="loss")), "loss is not recorded"),
        (lambda p: replace(p, steps=p.steps.drop(columns="test_loss")), "test_loss is not rec"),
        (lambda p: replace(p, points=p.points[:-1]), "points are kept, but the steps of"),
        (lambda p: replace(p, points=p.points[:0], point_steps=[]), "no point is kept"),
        (lambda p: replace(p, point_steps=[0, *[999] * (len(p.points) - 1)]), "cannot be checked"),
    ],
)
def test_what_is_wrong_with_a_walk_of_right_checksums_is_found(out: Path, change, words) -> None:
    rewrite(out / "IRIS_FF" / "traverse" / "sqp" / "run-000", change)
    checks = [check for check in verify(out) if check.problem]
    assert {check.run for check in checks} == {"IRIS_FF/traverse/sqp/run-000"}
    assert any(words in check.problem for check in checks), checks


def rewrite(folder: Path, change: Callable[[Walk], Walk]) -> None:
    """A changed walk with checksums that are right."""
    path = Walk.load(folder)
    save_walk(folder, change(path), dict(path.metadata["tensors"]))


@pytest.mark.parametrize(
    ("columns", "problems"),
    [(["test_loss", "test_metric"], 0), (["loss"], 1), (["regularizer"], 1)],
)
def test_probes_alone_may_be_missing_between_the_first_and_the_last_point(
    out: Path, columns: list[str], problems: int
) -> None:
    def change(path: Walk) -> Walk:
        steps = pd.concat([path.steps.iloc[[0]], path.steps], ignore_index=True)
        steps.loc[1, columns] = float("nan")
        points = torch.cat([path.points[:1], path.points])
        later = [step + 1 for step in path.point_steps]
        return replace(path, steps=steps, points=points, point_steps=[0, *later])

    rewrite(out / "IRIS_FF" / "traverse" / "paper" / "run-000", change)
    assert len(wrong(out)) == problems


def test_an_error_in_a_check_is_of_that_run_alone(out: Path, monkeypatch) -> None:
    def torn(folder: Path) -> Walk:
        raise TypeError("no such thing\nat all")

    monkeypatch.setattr(Walk, "load", torn)
    monkeypatch.setattr("isoloss.store.read_path", torn)
    report = out / "report" / "IRIS_FF"
    report.mkdir(parents=True)
    (report / "walk.csv").write_text("")
    found = {check.run: check.problem for check in verify(out) if check.problem}
    assert list(found) == [
        "IRIS_FF/traverse/paper/run-000", "IRIS_FF/traverse/sqp/run-000", "report/IRIS_FF"
    ]  # fmt: skip
    assert all(sentence.endswith("TypeError: no such thing") for sentence in found.values())


def nan(ends: torch.Tensor, members: pd.DataFrame) -> tuple[torch.Tensor, pd.DataFrame]:
    return ends.index_fill(0, torch.tensor([1]), torch.nan), members


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda ends, members: (ends * 1.1, members), "squared_norm is off"),
        (lambda ends, members: (ends[:1], members), "1 networks are kept, but 2 were trained"),
        (nan, "said to have finished is infinite"),
        (lambda ends, m: (ends, m.assign(test_loss=torch.nan)), "test_loss is not a number at 2"),
        (lambda ends, m: (ends, m.drop(columns="train_loss")), "train_loss is not recorded"),
    ],
)
def test_what_is_wrong_with_weight_decay_is_found(out: Path, change, words: str) -> None:
    folder = out / "IRIS_FF" / "decay" / "run-000"
    run, ending = load_decay(folder), read_ending(folder)
    ends, members = change(run.ends(), run.members)
    tensors = {"ends": ends, "start": ends[0].clone(), "indices": torch.arange(3)}
    tables = {MEMBERS: members, EPOCHS: run.epochs}
    write_folder(folder, ending.content, {**tables, POINTS: tensors})
    found = [check for check in verify(out) if check.problem]
    assert {check.run for check in found} == {"IRIS_FF/decay/run-000"}
    assert any(words in check.problem for check in found), found


def test_networks_that_were_lost_are_not_needed(out: Path) -> None:
    folder = out / "IRIS_FF" / "decay" / "run-000"
    run = load_decay(folder)
    ends, _ = nan(run.ends(), run.members)
    stack = Stack(run.epochs, ends, torch.tensor([-1, 1]))
    save_decay(folder, stack, None, start=ends[0].clone(), indices=torch.arange(3))
    assert not wrong(out)


def test_the_command_names_the_damaged_file_and_exits_with_1(out: Path, capsys) -> None:
    main_code(0, "verify", str(out))
    assert "All 3 are right." in capsys.readouterr().out
    (out / "IRIS_FF" / "decay" / "run-000" / "outcome.json").unlink()
    main_code(0, "verify", str(out))
    said = " ".join(capsys.readouterr().out.split())
    assert "All 2 are right; 1 are not finished and were not checked." in said
    file = out / "IRIS_FF" / "traverse" / "sqp" / "run-000" / "points.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    main_code(1, "verify", str(out))
    said = capsys.readouterr().out
    assert "points.safetensors was changed" in said
    assert "1 of 3 are not right." in said


def main_code(code: int, *arguments: str) -> None:
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    assert (end.value.code or 0) == code


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run"):
        verify(tmp_path)
