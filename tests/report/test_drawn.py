"""What a report keeps of many runs: as little as it draws, and every number of its tables."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from tests.report.made import made_path, undrawn, write_decay, write_run

from isoloss import open_results
from isoloss.files import read_tensors
from isoloss.report import comparison_table, outcome_table, views, walk_table
from isoloss.report.chapter import read_runs, report_tables
from isoloss.report.comparison import comparison_scatter, comparison_section
from isoloss.report.drawn import MOST_SINGLE, Drawn, evenly, few, thinned
from isoloss.report.findings import findings
from isoloss.report.statistics import paired_change
from isoloss.report.tables import Runs, changes_table, equivalent_penalty
from isoloss.report.views import MOST_POINTS, pca_section, spread
from isoloss.report.walks import band, curve, walk_panels

NOTHING = pd.DataFrame()


def long_path(length, seed):
    """A walk with corrector steps, probes every few steps, and its best test loss in between."""
    path, generator = made_path(length, seed), np.random.default_rng(seed)
    steps = path.steps.assign(test_loss=generator.normal(size=length))
    steps["kind"] = ["start", *np.where(generator.random(length - 1) < 0.3, "correct", "predict")]
    steps.loc[1, "kind"] = "correct" if seed else "predict"
    probed = (np.arange(length) % 7 == 3) | (np.arange(length) >= length - 2)
    steps.loc[~probed, ["test_loss", "test_metric"]] = np.nan
    return dataclasses.replace(path, steps=steps, method="paper")


def test_all_tables_of_thinned_walks_are_those_of_the_whole_to_the_bit():
    whole = {"paper": [long_path(900 + 31 * seed, seed) for seed in range(4)]}
    little = {"paper": [thinned(path, 40) for path in whole["paper"]]}
    for path, small in zip(whole["paper"], little["paper"], strict=True):
        assert len(small.steps) < 250 < len(path.steps)
        assert equivalent_penalty(small) == equivalent_penalty(path)
    for make in (
        walk_table,
        outcome_table,
        lambda methods: comparison_table(methods, NOTHING),
        lambda methods: changes_table(methods, NOTHING, "accuracy"),
        lambda methods: changes_table(methods, NOTHING, "mse"),
    ):
        pd.testing.assert_frame_equal(make(little), make(whole), check_exact=True)


@pytest.mark.parametrize("against", ["step", "evaluations", "regularizer"])
def test_curves_of_thinned_walks_are_the_same_curves_with_fewer_vertices(against):
    path = long_path(2_000, 1)
    for column in ("angle_degrees", "test_loss"):
        (x, y), (u, v) = (curve(one, column, against) for one in (path, thinned(path, 60)))
        assert 40 < len(u) < 500
        assert set(zip(u, v, strict=True)) <= set(zip(x, y, strict=True))
        assert (u[0], u[-1]) == (x[0], x[-1])


def test_a_band_of_thinned_walks_is_near_that_of_the_whole():
    paths = [made_path(3_000 + 100 * seed, seed) for seed in range(5)]
    found = band([thinned(path, 300) for path in paths], "regularizer", at_most=200)
    exact = band(paths, "regularizer")
    at = np.searchsorted(exact.x, found.x)
    np.testing.assert_allclose(found.mean, exact.mean[at], rtol=1e-4)
    np.testing.assert_allclose(found.std, exact.std[at], rtol=1e-2)


def test_rows_kept_of_all_runs_are_bounded_and_points_are_not_copied(tmp_path, monkeypatch):
    monkeypatch.setattr("isoloss.report.drawn.MOST_ROWS", 1_000)
    monkeypatch.setattr("isoloss.report.drawn.FEWEST_ROWS", 10)
    for k in range(8):
        write_run(tmp_path, made_path(3_000, k, n=6), k)
    loaded = []
    monkeypatch.setattr("isoloss.files.load", lambda content: loaded.append(len(content)))
    kept = Drawn(tmp_path).paths("IRIS_FF", "sqp")
    assert sum(len(path.steps) for path in kept) < 3 * 1_000
    assert loaded == []  # no file was read whole: points are mapped
    assert all(len(path.points) == 3_000 for path in kept)
    whole = open_results(tmp_path).paths("IRIS_FF", "sqp")
    assert all(len(path.steps) == 3_000 for path in whole)


def test_evenly_chosen_ones_have_both_ends():
    assert evenly(3, 10).tolist() == [0, 1, 2]
    assert evenly(101, 5).tolist() == [0, 25, 50, 75, 100]
    assert evenly(0, 5).tolist() == []
    assert few(range(7)) == list(range(7))
    chosen = few(range(1_000))
    assert (len(chosen), chosen[0], chosen[-1]) == (MOST_SINGLE, 0, 999)


@pytest.mark.slow
def test_of_many_runs_a_bounded_number_is_drawn(tmp_path, monkeypatch):
    paths = [made_path(20 + k, k, n=6) for k in range(120)]
    used = []
    exact = views.pca
    monkeypatch.setattr(
        views,
        "pca",
        lambda points, **how: used.append(sum(map(len, points))) or exact(points, **how),
    )
    runs = Runs("X", "metric", "", {"sqp": paths}, NOTHING, {}, {})
    with undrawn():
        (section,), _ = pca_section(runs, tmp_path, {})
    assert len(section.scenes[0].runs) == MOST_SINGLE
    assert used == [MOST_POINTS] * 2
    assert f"Of the 120 runs by sqp, {MOST_SINGLE} are shown." in section.text
    panels = walk_panels({"sqp": paths}).axes
    assert all(len(panel.lines) <= 1 + MOST_SINGLE for panel in panels)
    caption = " ".join(panels[0].figure.get_supxlabel().split())
    assert "thin lines are 50 of the 120 single runs that continue" in caption
    panel = comparison_scatter({"sqp": paths}, NOTHING).axes[0]
    assert len(panel.lines) == 3 * MOST_SINGLE  # a curve and two marks each


def test_points_are_spread_by_length_and_number():
    path = made_path(200)
    length = np.concatenate([np.linspace(0, 9, 10), 9 + np.linspace(0.001, 0.19, 190)])
    path = dataclasses.replace(path, steps=path.steps.assign(arc_length=length))
    rows = spread(path, 20)
    assert (rows[0], rows[-1]) == (0, 199)
    assert len(rows) <= 20
    assert rows[:8] == list(range(8))  # all of those that are far apart
    assert sum(row > 20 for row in rows) > 5
    assert spread(made_path(9), 20) == list(range(9))


def test_of_weight_decay_only_the_networks_asked_for_are_given(tmp_path, monkeypatch):
    for k in range(3):
        write_decay(tmp_path, k)
    results = open_results(tmp_path)
    every = results.decay_points("IRIS_FF")
    read = []
    monkeypatch.setattr(
        "isoloss.store.read_tensors",
        lambda file, stamp: read.append(file.parent.name) or read_tensors(file, stamp),
    )
    assert torch.equal(results.decay_points("IRIS_FF", [1, 4]), every[[1, 4]])
    assert read == ["run-000", "run-002"]


def test_a_project_is_not_told_of_weight_decay_and_has_findings(tmp_path):
    for k in range(2):
        write_run(tmp_path, made_path(30, k), k, experiment="mine.build")
    runs = read_runs(Drawn(tmp_path), "mine.build")
    section = comparison_section(runs, [], NOTHING, tmp_path)
    assert "weight decay" not in section.model_dump_json()
    (found,) = report_tables(runs)[2]
    ends = [made_path(30, k).steps.iloc[-1] for k in range(2)]
    last = np.mean([end["regularizer"] for end in ends])
    assert (
        f"Walks by sqp (2 runs, converged) took the squared norm from 300.5 to {last:.4g}" in found
    )
    change = np.mean([end["test_loss"] for end in ends]) - 0.455
    assert f"({change:+.3f}".replace("-", "\u2212") in found
    assert "NaN" not in found
    assert "nan" not in found


def test_findings_say_so_where_runs_cannot_tell_a_change_from_none():
    def said(changes):
        walk = pd.DataFrame(
            [
                {"method": "sqp", "quantity": quantity, "place": place, "mean": value}
                for quantity in ("R", "training loss", "test loss")
                for place, value in (("start", 2.0), ("end", 1.0))
            ]
        )
        row = {"group": "walk by sqp", "comparison": "start to end", "quantity": "test_loss"}
        paths = [made_path(5, k) for k in range(len(changes))]
        runs = Runs("X", "accuracy", "", {"sqp": paths}, NOTHING, {}, {})
        change = vars(paired_change(np.zeros(len(changes)), changes))
        (found,) = findings(runs, walk, pd.DataFrame([{**row, **change}]))
        return found

    clear = [0.1, 0.11, 0.12, 0.1, 0.13, 0.12]
    assert "no clear difference" not in said(clear)
    assert "no clear difference in 6 runs" in said([*clear[:5], -0.6])
    told = said([0.01, 0.1, 0.2])  # by the interval it is, by the t-test not
    assert "(+0.10: no clear difference in 3 runs, paired t-test p\u00a0=\u00a00.2; the 95" in told
    assert "leaves out 0, but bootstrap intervals from few runs are too narrow)" in told
    assert "went from 2 to 1 (+0.10 in 1 run)" in said([0.1])
    assert "stayed at 1" in said([0.0, 0.0])
