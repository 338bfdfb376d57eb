"""Runs at equal training loss: which penalty, which start, which folder."""

import re
import shutil

import pytest
import torch
from tests.report.made import undrawn

from isoloss import experiments, open_results
from isoloss.cli import main
from isoloss.errors import InputError
from isoloss.report import report
from isoloss.report.chapter import FILES, read_runs, report_tables
from isoloss.report.tables import chosen_per_run, equivalent_penalty, equivalent_table
from isoloss.report.verify import check_reports
from isoloss.runs.decay import DecayRun, decay_settings, equivalent_runs
from isoloss.runs.walk import WalkRun, after_decay_runs, walk_settings
from isoloss.store import run_folder

IRIS = experiments.get("IRIS_FF")
WALK = walk_settings(IRIS, "sqp", ["steps=25"])

OF_FRONTS = {"front.csv", "front.md"}


def execute(run):
    news = run.execute(lambda news: None, bool)
    assert not news.failed, news.ending
    return news


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A walk, a run of weight decay on the same seed, and what is compared with them."""
    out = tmp_path_factory.mktemp("results")
    execute(WalkRun(0, 4, run_folder(out, "IRIS_FF", "sqp", 0), WALK))
    settings = decay_settings(IRIS, [0.0, 1e-3], 20)
    execute(DecayRun(0, 4, run_folder(out, "IRIS_FF", None, 0, "decay"), settings))
    results = open_results(out)
    for run in [*equivalent_runs(results, IRIS, "sqp", epochs=3), *after_decay_runs(results, WALK)]:
        execute(run)
    return results


@pytest.mark.slow
def test_weight_decay_is_given_the_penalty_at_which_the_walk_ended(results):
    (path,) = results.paths("IRIS_FF", "sqp")
    (row,) = results.equivalent("IRIS_FF", "sqp").to_dict("records")
    assert row["penalty"] == equivalent_penalty(path) > 0
    assert row["seed"] == 4
    # on biases too, as the walk's R is
    expected = row["train_loss"] + row["penalty"] * row["squared_norm"]
    assert row["penalized_train_loss"] == pytest.approx(expected)


def test_the_two_are_tabled_side_by_side(results):
    paths = results.paths("IRIS_FF", "sqp")
    trained = results.equivalent("IRIS_FF", "sqp")
    (row,) = equivalent_table({"sqp": paths}, {"sqp": trained}).to_dict("records")
    end = paths[0].steps.iloc[-1]
    assert row["walk_loss"] == end["loss"]
    assert row["walk_squared_norm"] == end["regularizer"]
    assert row["decay_loss"] == trained["train_loss"].item()
    assert row["walk_objective"] == pytest.approx(end["loss"] + row["penalty"] * end["regularizer"])
    assert row["decay_objective"] == pytest.approx(trained["penalized_train_loss"].item())
    assert len(equivalent_table({"sqp": []}, {"sqp": trained})) == 0


def test_the_walk_goes_on_from_the_network_that_was_chosen_without_the_test_set(results):
    chosen = chosen_per_run(results.decay("IRIS_FF"))
    (path,) = results.after_decay("IRIS_FF", "sqp")
    start = results.decay_points("IRIS_FF")[chosen.index[0]]
    assert torch.equal(path.points[0], start)
    assert path.level == pytest.approx(chosen["train_loss"].item(), rel=1e-5)
    assert path.steps["regularizer"].iloc[-1] < path.steps["regularizer"].iloc[0]
    penalty = chosen["penalty"].item()
    assert path.metadata["config"]["start"] == f"weight decay, penalty {penalty:g}"


def test_the_report_tables_both(results):
    files = report_tables(read_runs(results, "IRIS_FF"))[1]
    assert set(files) == set(FILES) - OF_FRONTS
    lines = files["equivalent.md"].splitlines()
    assert len(lines) == 3
    assert len({line.count("|") for line in lines}) == 1
    gained = files["after-decay.md"]
    assert "sqp, from weight decay's best" in gained
    assert "start to end" in gained


def wrong_tables(out):
    return [check.problem for check in check_reports(out) if check.problem]


@pytest.fixture(scope="module")
def written(results):
    with undrawn():
        return report(results, "IRIS_FF")


@pytest.mark.slow
def test_a_changed_digit_in_any_table_of_the_report_is_found_and_named(results, written):
    assert {file.name for file in written.tables} == set(FILES) - OF_FRONTS
    also = 2  # the chapter, the page
    assert len(list(check_reports(results.folder))) == len(written.tables) + also
    assert wrong_tables(results.folder) == []
    for file in [*written.tables, written.tables[0].with_name("chapter.json")]:
        before = file.read_text()
        at = [found.start() for found in re.finditer(r"[0-9]", before)][-1]
        file.write_text(before[:at] + str((int(before[at]) + 1) % 10) + before[at + 1 :])
        (problem,) = wrong_tables(results.folder)
        assert str(file) in problem
        assert "isoloss report IRIS_FF" in problem
        file.write_text(before)
    assert wrong_tables(results.folder) == []


@pytest.mark.usefixtures("written")
def test_tables_that_are_missing_torn_or_of_other_runs_are_found(results, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(results.folder, out)
    folder = out / "report" / "IRIS_FF"
    (folder / "changes.csv").unlink()
    (folder / "comparison.csv").write_bytes(b"\xff")
    shutil.rmtree(out / "IRIS_FF" / "equivalent")
    found = wrong_tables(out)
    assert [re.split(" is | holds ", one)[0].split("/")[-1] for one in found] == [
        "comparison.csv", "changes.csv", "equivalent.csv", "equivalent.md", "chapter.json"
    ]  # fmt: skip
    words = ("not text", "missing", "not here", "not here", "holds other numbers of")
    for problem, word in zip(found, words, strict=True):
        assert word in problem
    shutil.rmtree(out / "IRIS_FF" / "traverse")
    assert any("walk.csv is a table of runs that are not here" in p for p in wrong_tables(out))
    shutil.rmtree(out / "IRIS_FF" / "decay")
    (problem,) = wrong_tables(out)
    assert "cannot be made again: " in problem


def test_finished_runs_are_not_done_again(results):
    for run in [*equivalent_runs(results, IRIS, "sqp", epochs=3), *after_decay_runs(results, WALK)]:
        assert run.finished()


def test_without_walks_there_is_nothing_to_compare(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["compare", "IRIS_FF", "--out", str(tmp_path)])
    assert end.value.code == 2
    assert "no walk of IRIS_FF by sqp; make one with 'isoloss traverse" in capsys.readouterr().err


def test_without_held_out_examples_there_is_no_best_network(tmp_path):
    settings = decay_settings(IRIS, [0.0], 1, ["held_out=0"])
    execute(DecayRun(0, 4, run_folder(tmp_path, "IRIS_FF", None, 0, "decay"), settings))
    assert after_decay_runs(open_results(tmp_path), WALK) == []


def test_other_starts_are_other_runs(results):
    (run,) = after_decay_runs(results, WALK)
    plain = WalkRun(run.index, run.seed, run.folder, WALK)
    with pytest.raises(InputError, match="start was 'weight decay"):
        plain.finished()
