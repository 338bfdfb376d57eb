"""Runs of fronts: by command as by Python, interrupted, verified, reported."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tests.report.made import undrawn

import isoloss
from isoloss import Front, InputError, experiments, open_results
from isoloss.cli import main
from isoloss.cli.reports import template
from isoloss.projects import Project
from isoloss.report.fronts import above_hull, fronts_section, shown_fronts
from isoloss.report.verify import verify
from isoloss.runs.front import FrontRun, front_settings
from isoloss.runs.run import News
from isoloss.runs.walk import WalkRun, walk_settings
from isoloss.store import run_folder
from isoloss.store.folder import save_front

IRIS = experiments.get("IRIS_FF")
FEW = ["kkt_residual=0.1"]


def made(out: Path, **given: object) -> FrontRun:
    settings = front_settings(IRIS, "squared_norm", count=3, pairs=FEW)
    folder = run_folder(out, "IRIS_FF", "squared_norm", 0, "front")
    return replace(FrontRun(0, 0, folder, settings), **given)


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results with a front of IRIS_FF."""
    out = tmp_path_factory.mktemp("results")
    news = made(out).execute(lambda _: None, lambda: False)
    assert (news.ending, news.failed, news.done) == ("finished", False, 5)
    return out


@pytest.fixture
def out(walked: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(walked, tmp_path / "out"))


def front_of(out: Path) -> Front:
    return Front.load(out / "IRIS_FF/front/squared_norm/run-000")


def wrong(out: Path) -> list[str]:
    return [check.problem for check in verify(out) if check.problem]


def test_a_run_is_the_front_by_python_to_the_bit(walked: Path) -> None:
    start = IRIS.start(seed=0)
    front = isoloss.front(
        start.problem, count=3, kkt=0.1,
        probes=start.probes, progress=False,
    )  # fmt: skip
    found = front_of(walked)
    pd.testing.assert_frame_equal(found.table, front.table, check_exact=True)
    assert torch.equal(found.points, front.points)
    assert found.table["level"].iloc[0] == start.problem.loss(start.problem.current()).item()


def test_an_interrupted_run_goes_on_to_the_same_bits(walked: Path, tmp_path: Path) -> None:
    seen: list[News] = []

    def cancelled() -> bool:
        return len(seen) > 3

    first = made(tmp_path, checkpoint_every=0.0).execute(seen.append, cancelled)
    assert first.interrupted
    assert not (tmp_path / "IRIS_FF/front/squared_norm/run-000/outcome.json").exists()
    assert made(tmp_path).execute(lambda _: None, lambda: False).ending == "finished"
    whole, found = front_of(walked), front_of(tmp_path)
    pd.testing.assert_frame_equal(whole.table, found.table, check_exact=True)
    assert torch.equal(whole.points, found.points)
    left = {file.name for file in (tmp_path / "IRIS_FF/front/squared_norm/run-000").iterdir()}
    assert left == {"config.json", "front.parquet", "points.safetensors", "outcome.json"}


def test_what_was_computed_is_right_and_what_was_changed_is_found(out: Path) -> None:
    checks = verify(out)
    assert not [check.problem for check in checks if check.problem]
    said = " ".join(check.what for check in checks)
    for what in ("rows (5)", "loss on the level (5)", "regularizer (5)", "kkt_residual (5)",
                 "test_loss (5)", "test_metric (5)"):  # fmt: skip
        assert what in said
    folder, front = out / "IRIS_FF/front/squared_norm/run-000", front_of(out)

    def found(change: Callable[[pd.DataFrame], pd.DataFrame], points: torch.Tensor) -> list[str]:
        save_front(folder, *replace(front, table=change(front.table), points=points).content)
        return wrong(out)

    for column in ("loss", "regularizer", "test_loss"):
        one = found(lambda table, c=column: table.assign(**{c: table[c] * 1.02}), front.points)
        assert any(column in sentence for sentence in one)
    one = found(lambda table: table.assign(kkt_residual=0.2), front.points)
    assert any("larger KKT residual" in sentence for sentence in one)
    one = found(lambda table: table.iloc[:3], front.points[:3])
    assert any("levels are not those" in sentence for sentence in one)
    one = found(lambda table: table, front.points * 1.01)
    assert any("regularizer is off" in sentence for sentence in one)
    shutil.move(folder.parent, folder.parent.with_name("l1"))
    assert any("not that of its folder" in sentence for sentence in wrong(out))


def test_the_report_holds_what_was_read_of_the_fronts(out: Path) -> None:
    front, place = front_of(out), out / "IRIS_FF/front/squared_norm"
    shutil.copytree(place / "run-000", place / "run-001")
    (place / "run-001/front.parquet").write_bytes(b"torn")
    with undrawn("pdf"):
        found = isoloss.report.report(open_results(out), "IRIS_FF")
    names = {file.name for file in (*found.figures, *found.tables)}
    assert names == {"front-squared-norm.png", "front-squared-norm.pdf", "front.csv", "front.md"}
    assert any("run-001" in sentence for sentence in found.missing)
    assert any("no walk yet" in sentence for sentence in found.missing)
    assert "Every front" in found.page.read_text()
    table = pd.read_csv(out / "report/IRIS_FF/front.csv")
    np.testing.assert_allclose(table["regularizer"], front.table["regularizer"])
    assert not [check for check in verify(out) if check.run.startswith("report") and check.problem]


def test_networks_of_weight_decay_are_compared_with_the_front_at_their_own_loss(
    out: Path, tmp_path: Path
) -> None:
    front = front_of(out)
    best = front.best
    loss = [*best["loss"], 1e-9]  # the last is far below all levels
    norms = [*(best["regularizer"] * [1.0, 2.0, 4.0]), 1.0]
    decay = pd.DataFrame({"run": 3, "penalty": 1e-3, "train_loss": loss, "squared_norm": norms})
    decay["test_loss"] = 1.0
    fronts = {"squared_norm": {"run-003": front}}
    (section,) = fronts_section(fronts, decay, "IRIS_FF", tmp_path)
    assert "Of 3 networks" in section.text[1]
    assert "1 to 4 times the front's, the median 2 times" in section.text[1]
    assert fronts_section({}, decay, "IRIS_FF", tmp_path) == []


def test_pictures_of_fronts_are_drawn_with_and_without_weight_decay(out: Path) -> None:
    front = front_of(out)
    bare = replace(front, table=front.table.drop(columns=["test_loss", "test_metric"]))
    assert len(isoloss.plot(bare).axes) == 1
    levels = front.best["loss"].to_numpy()
    rows = [
        {"penalty": 10.0**-k, "train_loss": loss, "squared_norm": 99.0, "test_loss": 1.0}
        for k, loss in enumerate([*levels, 1e-9])  # the last is far from all levels
    ]
    figure = isoloss.report.front_panels([front, front], pd.DataFrame(rows), title="Fronts")
    panel, test, bar = figure.axes
    assert [panel.get_xlabel(), panel.get_ylabel()] == [
        "training loss c",
        "regularizer R (squared norm)",
    ]
    assert test.get_ylabel() == "test loss"
    assert len(bar.get_yticklabels()) == 3
    best = next(line for line in panel.lines if line.get_marker() == "o")
    np.testing.assert_allclose(best.get_ydata(), front.best["regularizer"])
    negative = replace(front, table=front.table.assign(regularizer=-front.table["regularizer"]))
    assert [one.get_yscale() for one in isoloss.plot(negative).axes] == ["linear", "log"]
    assert [one.get_xscale() for one in isoloss.plot(negative).axes] == ["log", "log"]
    with pytest.raises(InputError, match="at least, got none"):
        isoloss.report.front_panels([])


def test_a_concave_part_of_a_front_lies_above_the_hull() -> None:
    level = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    assert not above_hull(level, 10 / level).any()  # convex
    assert above_hull(level, 26 - level**2).tolist() == [False, True, True, True, False]
    assert above_hull(level, np.array([9.0, 5.0, 4.9, 2.0, 1.9])).tolist() == [
        False, False, True, False, False,
    ]  # fmt: skip
    assert not above_hull(level[:1], level[:1]).any()


def test_the_command_walks_a_project_and_refuses_other_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(template())
    subject = Project.of(f"{file}:build")
    settings = front_settings(subject, "l1", [1e7, 1e6], pairs=["evaluations=1"], device="as built")
    assert settings.levels == (1e6, 1e7)
    folder = run_folder(tmp_path / "out", subject.name, "l1", 0, "front")
    news = FrontRun(0, 0, folder, settings).execute(lambda _: None, lambda: False)
    assert news.ending == "finished"
    front = Front.load(folder)
    assert front.regularizer == "l1"
    assert not len(front.best)  # neither level is to be had
    assert np.isnan(news.row["loss"])
    assert shown_fronts({"l1": {"run-000": front}}).rows[0][1] == "- to -"
    decay = pd.DataFrame(
        {"run": [0], "penalty": 1.0, "train_loss": 1e6, "squared_norm": 1.0, "test_loss": 1.0}
    )
    fronts = {"squared_norm": {"run-000": front}}
    (section,) = fronts_section(fronts, decay, "mine", tmp_path)
    assert section.text[1].startswith("Of 0 levels")
    assert not wrong(tmp_path / "out")

    def command(*arguments: str) -> str:
        with pytest.raises(SystemExit) as end:
            main(["front", *arguments, "--out", str(tmp_path / "out")])
        assert end.value.code == 2
        return capsys.readouterr().err

    assert "other settings" in command(f"{file}:build", "--regularizer", "l1", "--count", "4")
    longer = front_settings(subject, "l1", [1e7, 1e6], pairs=["evaluations=2"], device="as built")
    with pytest.raises(InputError, match=r"stop\.evaluations was 1, now 2"):
        FrontRun(0, 0, folder, longer).finished()
    assert "--levels and --count" in command("IRIS_FF", "--levels", "1,2", "--count", "4")
    assert "--levels must be numbers" in command("IRIS_FF", "--levels", "1,x")
    assert "twice" in command("IRIS_FF", "--levels", "1,1")
    assert "at least 2, got 1" in command("IRIS_FF", "--count", "1")
    assert "did you mean l1" in command("IRIS_FF", "--regularizer", "l11")


def test_a_front_begins_where_the_walk_of_the_same_run_does(walked: Path, tmp_path: Path) -> None:
    folder = run_folder(tmp_path, "IRIS_FF", "sqp", 0)
    run = WalkRun(0, 0, folder, walk_settings(IRIS, "sqp", FEW))
    assert run.execute(lambda _: None, lambda: False).ending == "converged"
    path, first = isoloss.Path.load(folder), front_of(walked).table.iloc[0]
    assert path.level == first["level"]
    assert path.steps["regularizer"].iloc[-1] == first["regularizer"]
