"""`isoloss verify` finds what is wrong, and nothing where nothing is."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tests.torture.victim import make

from isoloss import InputError, Outcome
from isoloss import Path as Walk
from isoloss.cli import main
from isoloss.cli.reports import template
from isoloss.files import read_ending, read_json, write_folder, write_json
from isoloss.path import POINTS
from isoloss.projects import Project
from isoloss.report.verify import verify
from isoloss.runs.walk import WalkRun, walk_settings
from isoloss.store import load_decay, run_folder
from isoloss.store.folder import EPOCHS, MEMBERS, save_walk


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
    other = out / "IRIS_FF" / "equivalent" / "else" / "run-000"
    shutil.copytree(out / "IRIS_FF" / "decay" / "run-000", other)  # of a comparison
    checks = verify(out)
    assert not [check.problem for check in checks if check.problem]
    assert {check.run for check in checks} == {
        "IRIS_FF/traverse/paper/run-000", "IRIS_FF/traverse/sqp/run-000", "IRIS_FF/decay/run-000",
        "IRIS_FF/equivalent/else/run-000",
    }  # fmt: skip
    said = " ".join(check.what for check in checks)
    for what in (
        "files", "its folder", "settings", "rows", "points", "outcome", "loss on the level",
        "regularizer", "angle_degrees", "equivalent_penalty", "test_loss", "test_metric",
        "train_metric", "start, train_loss", "epochs",
    ):  # fmt: skip
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
    assert found["computed again"] == "not done: your own project"
    assert {"rows (3)", "points (3)", "outcome", "regularizer (3)"} < {*found}
    rewrite(folder, changed("regularizer", 1.1))
    assert wrong(tmp_path / "out") == ["regularizer is off by 0.1, 0.001 is allowed"]
    rewrite(folder, changed("regularizer", 1 / 1.1))
    points = Walk.load(folder).points
    rewrite(folder, lambda path: replace(path, points=points[[0, 0, 2]]))
    found = " ".join(wrong(tmp_path / "out"))
    assert "step 1 is nearer to the one before than the step between is long" in found
    assert "step 2 is farther from the one before than the steps between are long" in found
    rewrite(folder, lambda path: replace(path, points=points))
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
        (lambda p: replace(p, steps=p.steps.drop(columns="loss")), "it has no column loss"),
        (lambda p: replace(p, steps=p.steps.drop(columns="test_loss")), "test_loss is not rec"),
        (lambda p: replace(p, points=p.points[:-1]), "points are kept, but the steps of"),
        (lambda p: replace(p, points=p.points[:0], point_steps=[]), "no point is kept"),
        (lambda p: replace(p, point_steps=[0, *[999] * (len(p.points) - 1)]), "not in order"),
        (lambda p: replace(p, points=p.points[1:], point_steps=p.point_steps[1:]), "first at step"),
        (lambda p: replace(p, points=p.points[:-1], point_steps=p.point_steps[:-1]), "points kept"),
        (lambda p: replace(p, points=p.points * torch.nan), "infinite or not a number"),
        (lambda p: replace(p, level=-p.level), "level must be positive"),
        (lambda p: replace(p, level=1.0001 * p.level), "is not the loss at the start"),
        (lambda p: replace(p, method="paper"), "its method is paper, which is not that"),
        (lambda p: replace(p, regularizer="l1"), "names the regularizer squared_norm"),
        (lambda p: replace(p, state_keys={**p.state_keys, "0.bias": "x"}), "state_keys, frozen or"),
        (lambda p: replace(p, frozen={"0.bias": "x"}), "state_keys, frozen or buffers"),
        (lambda p: replace(p, shapes={"w": (p.points.shape[1],)}), "parameters are not those of"),
        (
            lambda p: replace(p, outcome=Outcome.CONVERGED),
            "converged, which the last step does not",
        ),
        (lambda p: replace(p, outcome=Outcome.SLOWED), "slowed, which the last step does not"),
        (
            lambda p: replace(p, steps=p.steps.iloc[:2], points=p.points[:2], point_steps=[0, 1]),
            "step_limit, which the last step does not",
        ),
        (changed("level_error", -1.0), "level_error does not follow from"),
        (changed("arc_length", 2.0), "arc_length does not follow from"),
        (changed("arc_length"), "arc_length is not a number at 2"),
        (changed("kkt_residual", 0.5), "kkt_residual does not follow from"),
        (changed("angle_degrees", 0.999), "angle_degrees is off by"),
        (changed("equivalent_penalty", 1.01), "equivalent_penalty is off by"),
        (changed("equivalent_penalty", -1.0), "equivalent_penalty has the sign of another"),
        (changed("step_length", -1.0), "step_length is negative"),
        (changed("evaluations", -1), "evaluations do not increase"),
        (changed("seconds", -1.0), "seconds decrease"),
        (changed("step", 2), "step does not count"),
        (lambda p: replace(p, steps=p.steps.assign(kind="predict")), "kind is not that of"),
        (changed("test_loss", rows=1), "test_loss is not there, or there alone, at 1 steps"),
        (lambda p: replace(p, steps=p.steps.assign(test_loss=0.5)), "or there alone, at 1 steps"),
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


def configured(folder: Path, **changes: object) -> None:
    """A walk with other settings, of which its last file gives the digest; None takes one away."""
    path, content = Walk.load(folder), read_json(folder / "config.json")
    config = {**content["config"], **changes}
    config = {key: value for key, value in config.items() if value is not None}
    write_json(folder / "config.json", {**content, "config": config})
    save_walk(folder, path, dict(path.metadata["tensors"]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"project": {"file": "a.py", "function": "f", "sha256": ""}}, "but IRIS_FF is an experim"),
        ({"imported": "yes"}, "says that the walk is imported, the rest does not"),
        ({"method": {"name": "paper"}}, "names the method paper, not sqp"),
        ({"experiment": None}, "names no experiment and no project"),
        ({"experiment": "MPG_FF"}, "its experiment is MPG_FF, which is not that of its folder"),
        ({"start": "weight decay, penalty 0"}, "its start is weight decay"),
        ({"seed": "4"}, "seed must be a whole number, got '4'"),
        ({"rtol": 1e9}, "rtol must be in (0, 1)"),
        ({"rtol": None}, "cannot be checked: KeyError: 'rtol'"),
        ({"stop": [1]}, "stop must be a mapping"),
        ({"stop": {"steps": 1e9}}, "cannot be checked"),
        ({"record": {"points_at_most": None}}, "the points kept are not those"),
    ],
)  # fmt: skip
def test_settings_that_are_not_those_of_the_walk_are_found(out: Path, changes, words) -> None:
    configured(out / "IRIS_FF" / "traverse" / "sqp" / "run-000", **changes)
    checks = [check for check in verify(out) if check.problem]
    assert {check.run for check in checks} == {"IRIS_FF/traverse/sqp/run-000"}
    assert any(words in check.problem for check in checks), checks


def test_probes_are_needed_where_they_were_to_be_measured_alone(out: Path) -> None:
    steps = Walk.load(out / "IRIS_FF" / "traverse" / "paper" / "run-000").steps
    assert steps["test_loss"].isna().tolist() == [False, True, False]
    assert not wrong(out)


def test_an_imported_walk_is_held_against_its_own_numbers(out: Path) -> None:
    folder = out / "IRIS_FF" / "traverse" / "paper" / "run-000"
    path = Walk.load(folder)
    nothing = dict.fromkeys(("device", "stop", "record", "rtol", "dtype", "regularizer"))
    configured(folder, **nothing, method={"name": "paper"}, imported=path.message)
    found = {check.what: check.found for check in verify(out) if "paper" in check.run}
    assert found["computed again"] == "not done: imported, without its settings"
    assert not wrong(out)
    for column, words in (("regularizer", "is off by"), ("kkt_residual", "does not follow")):
        rewrite(folder, changed(column, 0.9))
        assert any(words in one for one in wrong(out))
        rewrite(folder, changed(column, 1 / 0.9))


def test_copies_of_runs_and_folders_of_other_names_are_found(out: Path) -> None:
    folder = out / "IRIS_FF" / "traverse" / "sqp"
    for name in ("run-000 (copy)", "run-0001", "run-007"):
        shutil.copytree(folder / "run-000", folder / name)
    shutil.copytree(out / "IRIS_FF" / "decay" / "run-000", out / "IRIS_FF" / "decay" / "run-001")
    shutil.copytree(folder / "run-000", out / "IRIS_FF" / "traverse" / "new" / "run-000")
    (folder / "run-000" / "quarantine").mkdir()
    checks = verify(out)
    assert {check.run: check.problem for check in checks if check.problem} == {
        "IRIS_FF/decay/run-001": "it is a copy of run-000: it has the same seed, 3",
        "IRIS_FF/traverse/new/run-000": "its method is sqp, which is not that of its folder",
        "IRIS_FF/traverse/sqp/run-007": "it is a copy of run-000: it has the same seed, 3",
    }
    strays = {check.run for check in checks if "not that of a run" in check.found}
    assert strays == {"IRIS_FF/traverse/sqp/run-000 (copy)", "IRIS_FF/traverse/sqp/run-0001"}


def test_a_folder_is_verified_wherever_it_lies(out: Path) -> None:
    place = Path(shutil.copytree(out, out / "replaced" / "run-0" / "quarantine"))
    assert {check.run for check in verify(place)} == {check.run for check in verify(out)}
    assert len(verify(place / "IRIS_FF" / "decay" / "run-000")) > 5


def test_an_error_in_a_check_is_of_that_run_alone(out: Path, monkeypatch) -> None:
    def torn(folder: Path) -> Walk:
        raise TypeError("no such thing\nat all")

    monkeypatch.setattr(Walk, "load", torn)
    found = {check.run: check.problem for check in verify(out) if check.problem}
    assert list(found) == ["IRIS_FF/traverse/paper/run-000", "IRIS_FF/traverse/sqp/run-000"]
    assert all(sentence.endswith("TypeError: no such thing") for sentence in found.values())


def tampered(tensors=None, members=None, epochs=None):
    """Changes of the files of a run of weight decay."""
    return tensors or dict, members or pd.DataFrame.copy, epochs or pd.DataFrame.copy


def at_end(table: pd.DataFrame, column: str, value: object) -> pd.DataFrame:
    table = table.copy()
    table.loc[table.index[-1], column] = value
    return table


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (tampered(lambda t: {**t, "ends": t["ends"] * 1.1}), "squared_norm is off"),
        (tampered(lambda t: {**t, "ends": t["ends"][:1]}), "are none of the 2 trained"),
        (tampered(lambda t: {**t, "ends": t["ends"] * torch.nan}), "said to have finished is infi"),
        (tampered(lambda t: {**t, "start": t["start"] * 1.1}), "start is not the network that"),
        (tampered(lambda t: {**t, "indices": t["indices"] + 1}), "not those that the seed draws"),
        (tampered(members=lambda m: m.assign(test_loss=torch.nan)), "test_loss is not a number at"),
        (tampered(members=lambda m: m.drop(columns="train_loss")), "it has no column train_loss"),
        (tampered(members=lambda m: m.assign(penalty=[0.0, 2.0])), "penalties are not those"),
        (tampered(members=lambda m: m.assign(status="non_finite")), "contradict one another"),
        (tampered(members=lambda m: at_end(m, "train_metric", 0.1)), "not that of the last epoch"),
        (tampered(members=lambda m: m.drop(columns=["validation_loss"])), "held out though the"),
        (tampered(epochs=lambda e: e.iloc[2:]), "rows are not those that the settings ask for"),
        (tampered(epochs=lambda e: e.assign(penalized_test_loss=1.0)), "does not follow from test"),
        (tampered(epochs=lambda e: e.assign(test_loss=e["test_loss"] + (e["epoch"] == 0))),
         "start, test_loss is off by"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_weight_decay_is_found(out: Path, change, words: str) -> None:
    retrained(out / "IRIS_FF" / "decay" / "run-000", *change)
    found = [check for check in verify(out) if check.problem]
    assert {check.run for check in found} == {"IRIS_FF/decay/run-000"}
    assert any(words in check.problem for check in found), found


def retrained(folder: Path, tensors, members, epochs) -> None:
    """A changed run of weight decay with checksums that are right."""
    run, ending = load_decay(folder), read_ending(folder)
    content = {key: value for key, value in ending.content.items() if key != "files"}
    tables = {MEMBERS: members(run.members), EPOCHS: epochs(run.epochs)}
    write_folder(folder, content, {**tables, POINTS: tensors(run.tensors())})


def test_networks_that_were_lost_are_not_needed(out: Path) -> None:
    def lost(table: pd.DataFrame) -> pd.DataFrame:
        for column in ("train_loss", "penalized_train_loss", "test_loss", "penalized_test_loss",
                       "squared_norm", "squared_norm_weights"):  # fmt: skip
            table = at_end(table, column, torch.nan)
        return table

    retrained(
        out / "IRIS_FF" / "decay" / "run-000",
        lambda t: {**t, "ends": t["ends"].index_fill(0, torch.tensor([1]), torch.nan)},
        lambda m: at_end(at_end(lost(m), "status", "non_finite"), "lost_epoch", 1),
        lost,
    )
    assert not wrong(out)


def test_of_what_was_computed_from_other_runs_these_are_looked_at(out: Path) -> None:
    for name, k in (("after-decay/sqp", 1), ("equivalent/sqp", 0)):
        kind = "decay" if k == 0 else "traverse/sqp"
        shutil.copytree(out / "IRIS_FF" / kind / "run-000", out / "IRIS_FF" / name / "run-000")
    folder = out / "IRIS_FF" / "after-decay" / "sqp" / "run-000"
    configured(folder, start="weight decay, penalty 0.001")
    found = sorted(re.split(" of /| [0-9]", one)[0] for one in wrong(out))
    assert found == ["it does not start from the network", "its penalty is not"]


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


@pytest.mark.parametrize(
    "where",
    [
        *(f"IRIS_FF/traverse/sqp{one}" for one in ("", "/run-000", "/run-000/config.json")),
        *("IRIS_FF/traverse/sqp/run-000/quarantine/x", "report/IRIS_FF", "report/IRIS_FF/walk.png"),
    ],
)
def test_links_are_named_and_the_other_runs_are_right(
    out: Path, tmp_path: Path, where: str
) -> None:
    link = out / where
    link.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "outside").mkdir()
    if link.exists():
        shutil.move(link, tmp_path / "outside" / "it")
    link.symlink_to(tmp_path / "outside" / "it")
    if where == "report/IRIS_FF":
        (tmp_path / "outside" / "it").mkdir()
    assert [f"{link} is a symbolic link" in one for one in wrong(out)] == [True]


def test_the_command_says_what_was_not_checked(out: Path, capsys) -> None:
    folder = out / "IRIS_FF" / "traverse" / "paper" / "run-000"
    path = Walk.load(folder)
    nothing = dict.fromkeys(("device", "stop", "record", "rtol", "dtype", "regularizer"))
    configured(folder, **nothing, method={"name": "paper"}, imported=path.message)
    shutil.copytree(folder, folder.with_name("run-000 (copy)"))
    main_code(0, "verify", str(out))
    said = " ".join(capsys.readouterr().out.split())
    assert "All 3 are right; 1 are not named as runs and were not checked; of 1 what needs" in said


def main_code(code: int, *arguments: str) -> None:
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    assert (end.value.code or 0) == code


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run"):
        verify(tmp_path)
