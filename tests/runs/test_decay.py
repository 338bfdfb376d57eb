"""Runs of weight decay: what is written is what independent code computes from the end points."""

import numpy as np
import pandas as pd
import pytest
import torch
from tests.report.made import undrawn

from isoloss import InputError, Problem, experiments, open_results
from isoloss.report import report
from isoloss.report.verify import check_reports
from isoloss.runs.decay import DecayRun, decay_settings, hold_out
from isoloss.runs.run import Display
from isoloss.store import run_folder

IRIS = experiments.get("IRIS_FF")
PENALTIES = (0.0, 1e-3, 1.0, 1e6)


def run(out, index=0, seed=3, penalties=PENALTIES, pairs=("record_every=2",), cancelled=bool):
    settings = decay_settings(IRIS, penalties, 5, pairs)
    one = DecayRun(index, seed, run_folder(out, "IRIS_FF", None, index, "decay"), settings)
    assert not one.finished()
    return one.execute(lambda news: None, cancelled)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Two runs of five epochs with four penalties."""
    out = tmp_path_factory.mktemp("results")
    for index, seed in enumerate((3, 8)):
        assert run(out, index, seed).ending == "finished"
    return open_results(out)


def test_rows_are_runs_and_penalties(results):
    table = results.decay("IRIS_FF")
    assert table["run"].tolist() == [0] * 4 + [1] * 4
    assert table["seed"].tolist() == [3] * 4 + [8] * 4
    assert table["penalty"].tolist() == list(PENALTIES) * 2
    assert (table["status"] == "finished").all()
    assert (table["epoch"] == 5).all()
    assert results.experiments() == ["IRIS_FF"]
    assert results.decay_unfinished("IRIS_FF") == {}


def test_figures_are_those_of_the_end_points_in_double_precision(results):
    table, points = results.decay("IRIS_FF"), results.decay_points("IRIS_FF")
    data, model = IRIS.data(3), IRIS.network(3)
    kinds = {"train": (data.inputs, data.targets), "test": (data.test_inputs, data.test_targets)}
    problems = {
        kind: Problem(model, "cross_entropy", pair, dtype=torch.float64)
        for kind, pair in kinds.items()
    }
    kernels = torch.cat(
        [torch.full((p.numel(),), float(p.ndim > 1)) for p in model.parameters()]
    ).double()
    assert points.shape == (8, problems["train"].size)
    for row, theta in zip(table.to_dict("records"), points.double(), strict=True):
        norm, weights = theta.dot(theta).item(), (theta * kernels).dot(theta).item()
        assert row["squared_norm"] == pytest.approx(norm)
        assert row["squared_norm_weights"] == pytest.approx(weights)
        for kind, problem in problems.items():
            loss, metric = problem.evaluate(theta)
            assert row[f"{kind}_loss"] == pytest.approx(loss, rel=2e-6)
            assert row[f"{kind}_metric"] == pytest.approx(metric)
            penalized = loss + row["penalty"] * weights
            assert row[f"penalized_{kind}_loss"] == pytest.approx(penalized, rel=2e-6)


def test_history_goes_from_the_common_start_to_the_end(results):
    epochs, ends = results.decay_epochs("IRIS_FF"), results.decay("IRIS_FF")
    assert sorted(epochs["epoch"].unique()) == [0, 2, 4, 5]
    assert len(epochs) == 2 * 4 * 4
    first = epochs[(epochs["epoch"] == 0) & (epochs["run"] == 0)]
    assert first["train_loss"].nunique() == 1
    last = epochs[epochs["epoch"] == 5].reset_index(drop=True)
    pd.testing.assert_frame_equal(last, ends[last.columns])


def test_validation_is_of_another_network_on_examples_it_has_not_seen(results):
    table = results.decay("IRIS_FF")
    assert table["validation_loss"].notna().all()
    assert (table["validation_loss"] != table["test_loss"]).all()
    data = IRIS.data(3)
    kept, aside = hold_out(data, 0.2, 3)
    assert (len(kept), len(aside)) == (96, 24)
    assert sorted([*kept.tolist(), *aside.tolist()]) == list(range(120))
    assert not torch.equal(aside, hold_out(data, 0.2, 4)[1])
    assert torch.equal(aside, hold_out(data, 0.2, 3)[1])


@pytest.mark.parametrize(("pairs", "epochs"), [((), 10), (("held_out=0",), 5)])
def test_progress_counts_the_epochs_of_both_trainings(tmp_path, capsys, pairs, epochs):
    folder = run_folder(tmp_path, "IRIS_FF", None, 0, "decay")
    one = DecayRun(0, 3, folder, decay_settings(IRIS, PENALTIES, 5, pairs))
    told = one.execute(lambda news: None, bool)
    assert told.done == one.total == epochs
    assert one.counted(told.done) == ("2 \u00d7 5" if epochs == 10 else "5")
    assert one.counted(3) == "3"
    display = Display("IRIS_FF decay", [one])
    display.show(told)
    assert f"finished: {one.counted(told.done)} epochs, best" in capsys.readouterr().err
    assert ("validation_loss" in open_results(tmp_path).decay("IRIS_FF")) is (epochs == 10)


def test_huge_penalties_collapse_the_network_and_are_a_result(results):
    table = results.decay("IRIS_FF")
    huge = table[table["penalty"] == 1e6]
    assert huge["train_loss"].between(1.0, 1.2).all()  # ln 3 = 1.0986 of constant outputs
    assert (huge["squared_norm"] < 0.8 * table["squared_norm"].max()).all()  # after 20 steps


def test_a_network_that_is_lost_is_shown_as_such_and_ends_alone(tmp_path):
    run(tmp_path, penalties=(0.0, 1e200))  # overflows in single precision
    table = open_results(tmp_path).decay("IRIS_FF")
    assert table["status"].tolist() == ["finished", "non_finite"]
    assert table["lost_epoch"].tolist() == [-1, 1]
    assert np.isfinite(table["test_loss"].iloc[0])
    assert np.isnan(table["test_loss"].iloc[1])


def test_an_interrupted_run_is_done_again(tmp_path):
    assert run(tmp_path, cancelled=lambda: True).ending == "interrupted"
    results = open_results(tmp_path)
    assert len(results.decay("IRIS_FF")) == 0
    assert results.decay_unfinished("IRIS_FF") == {"run-000": "not finished"}
    run(tmp_path)
    assert len(results.decay("IRIS_FF")) == 4


@pytest.mark.slow
def test_weight_decay_alone_can_be_reported_and_verified(tmp_path):
    run(tmp_path)
    with undrawn("pdf"):
        written = report(open_results(tmp_path), "IRIS_FF")
    names = {table.name for table in written.tables}
    assert names == {"comparison.csv", "comparison.md", "comparison.tex"}
    assert {figure.stem for figure in written.figures} == {"comparison", "decay"}
    assert written.missing == ["IRIS_FF: no walk yet, make one with 'isoloss traverse IRIS_FF'"]
    means = pd.read_csv(written.tables[0].with_name("comparison.csv"))
    known = open_results(tmp_path).decay("IRIS_FF").groupby("penalty")["test_loss"].mean()
    shown = means[(means["group"] == "weight decay") & (means["quantity"] == "test_loss")]
    assert shown.set_index("penalty")["mean"].to_dict() == pytest.approx(known.to_dict())
    assert not [check.problem for check in check_reports(tmp_path) if check.problem]


def test_other_settings_in_the_folder_are_refused(tmp_path):
    run(tmp_path)
    with pytest.raises(InputError, match=r"penalties was .* now \[0\.0\]"):
        run(tmp_path, penalties=(0.0,))
    for pair, words in (
        ("include_biases=true", "include_biases was False, now True"),
        ("held_out=0.3", r"held_out was 0\.2, now 0\.3"),
        ("record_every=3", "record_every was 2, now 3"),
    ):
        with pytest.raises(InputError, match=words):
            run(tmp_path, pairs=(*(() if "every" in pair else ("record_every=2",)), pair))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"penalties": [-1.0]}, ["penalty", "-1"]),
        ({"penalties": [float("nan")]}, ["penalty", "nan", "finite"]),
        ({"penalties": [float("inf")]}, ["penalty", "inf", "finite"]),
        ({"penalties": []}, ["no penalty"]),
        ({"penalties": [1.0, 1.0]}, ["penalty 1", "twice"]),
        ({"epochs": 0}, ["epochs of DecayOptions must be greater than 0, got 0"]),
        ({"epochs": 5, "pairs": ["epochs=5"]}, ["epochs", "twice"]),
        ({"pairs": ["held_out=0.9"]}, ["held_out", "less than or equal to 0.5, got 0.9"]),
        ({"pairs": ["held_out=-0.1"]}, ["greater than or equal to 0, got -0.1"]),
        ({"pairs": ["include_biases=perhaps"]}, ["include_biases", "true or false, got perhaps"]),
        ({"pairs": ["epoch=3"]}, ["epoch", "did you mean epochs"]),
    ],
)
def test_bad_settings_get_one_sentence(arguments, words, refuses):
    with refuses(*words):
        decay_settings(IRIS, **arguments)


def test_the_papers_settings_are_the_default():
    settings = decay_settings(experiments.get("MNIST_FF"))
    assert len(settings.penalties) == 14
    assert (settings.penalties[0], settings.penalties[1], settings.penalties[-1]) == (0, 1e-6, 1e6)
    assert settings.options.epochs == 200
    assert decay_settings(IRIS).options.epochs == 500
    assert not settings.options.include_biases
    assert experiments.get("MNIST_FF").decay_runs == 15
