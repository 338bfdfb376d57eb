"""Curves and bands from numbers few enough to do by hand, and figures that show their numbers."""

import dataclasses

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from tests.report.made import made_path

from isoloss import Outcome, Path
from isoloss.report import close_up, plot, save, walk_panels
from isoloss.report.tables import on_level
from isoloss.report.walks import band, curve


def walk(values, test=None, kinds=None, **columns):
    count = len(values)
    steps = pd.DataFrame(
        {
            "step": range(count),
            "kind": kinds or ["start"] + ["predict"] * (count - 1),
            "evaluations": range(1, count + 1),
            "regularizer": values,
            "loss": 0.5,
            "test_loss": values if test is None else test,
            **columns,
        }
    )
    return Path(steps, torch.zeros(1, 1), [0], 0.5, Outcome.STEP_LIMIT, "", "paper", "squared_norm")


def straight(length, offset=0.0):
    x = np.arange(length, dtype=float)
    return walk(300 - offset - x, 0.1 + x, angle_degrees=90 + offset + x, test_metric=0.9)


def test_rows_that_a_correction_follows_are_left_out():
    kinds = ["start", "predict", "correct", "correct", "predict"]
    rows = on_level(walk([9.0, 8.0, 7.0, 6.0, 5.0], kinds=kinds))
    assert rows["progress"].tolist() == [0, 1, 2]
    assert rows["regularizer"].tolist() == [9.0, 6.0, 5.0]


def test_mean_and_sample_standard_deviation_by_hand():
    found = band([walk([1.0, 3.0]), walk([3.0, 7.0])], "regularizer")
    assert found.x.tolist() == [0, 1]
    assert found.mean.tolist() == [2.0, 5.0]
    assert found.std.tolist() == pytest.approx([2**0.5, 8**0.5])
    assert found.beyond == []
    assert np.isnan(band([walk([1.0, 2.0])], "regularizer").std).all()


def test_the_mean_ends_with_the_shortest_run_and_the_others_continue_alone():
    found = band([walk([1.0, 2.0]), walk([1.0, 4.0, 5.0, 6.0])], "regularizer")
    assert found.x.tolist() == [0, 1]
    assert found.mean.tolist() == [1.0, 3.0]
    ((steps, values),) = found.beyond
    assert steps.tolist() == [1, 2, 3]
    assert values.tolist() == [4.0, 5.0, 6.0]


def test_values_not_measured_are_left_out():
    path = walk([1.0, 2.0, 3.0], [5.0, np.nan, 7.0])
    found = band([path, path], "test_loss")
    assert found.x.tolist() == [0, 2]
    assert found.mean.tolist() == [5.0, 7.0]


def test_against_evaluations_runs_are_interpolated_where_all_are():
    a, b = walk([9.0, 5.0, 1.0], evaluations=[1, 3, 5]), walk([8.0, 4.0], evaluations=[1, 4])
    found = band([a, b], "regularizer", "evaluations")
    assert found.x.tolist() == [1, 3, 4]
    assert found.mean.tolist() == pytest.approx([8.5, (5 + 8 - 4 * 2 / 3) / 2, (3 + 4) / 2])
    assert found.std[0] == pytest.approx(0.5**0.5)
    ((x, y),) = found.beyond
    assert (x.tolist(), y.tolist()) == ([4, 5], [3, 1])


def test_of_equal_lengths_one_counts_and_of_the_regularizer_only_new_lows():
    still = walk([9.0, 5.0, 4.0, 1.0], arc_length=[0.0, 1.0, 1.0, 2.0])
    assert curve(still, "regularizer", "arc_length")[0].tolist() == [0, 1, 2]
    path = walk([9.0, 5.0, 6.0, 5.0, 1.0], [0.1, 0.2, 0.3, 0.4, 0.5])
    x, y = curve(path, "test_loss", "regularizer")
    assert (x.tolist(), y.tolist()) == ([1, 5, 9], [0.5, 0.2, 0.1])


def test_runs_that_never_meet_have_no_mean_but_are_shown():
    found = band([walk([9.0, 8.0]), walk([5.0, 4.0])], "evaluations", "regularizer")
    assert len(found.mean) == 0
    assert sorted(x.tolist() for x, _ in found.beyond) == [[4, 5], [8, 9]]


@pytest.mark.parametrize("against", ["step", "evaluations"])
def test_a_thinned_band_is_the_band_at_some_of_its_points(against):
    paths = [made_path(400, seed) for seed in (0, 1)]
    whole = band(paths, "test_loss", against)
    some = band(paths, "test_loss", against, at_most=50)
    assert 40 < len(some.x) <= 51
    assert (some.x[0], some.x[-1]) == (whole.x[0], whole.x[-1])
    there = np.isin(whole.x, some.x)
    np.testing.assert_array_equal(some.mean, whole.mean[there])
    np.testing.assert_array_equal(some.std, whole.std[there])


def test_four_panels_show_mean_and_band():
    two = {"paper": [straight(50), straight(50, 2.0)]}
    panels = walk_panels(two, title="IRIS_FF", metric="accuracy").axes
    names = [panel.get_ylabel().split("\n")[0] for panel in panels]
    assert names == ["angle between", "regularizer R", "test loss", "test accuracy"]
    np.testing.assert_allclose(panels[1].lines[0].get_ydata(), 299 - np.arange(50))
    low, high = panels[1].collections[0].get_datalim(panels[1].transData).intervaly
    assert high == pytest.approx(299 + 2**0.5)
    assert low == pytest.approx(299 - 49 - 2**0.5)


def test_runs_of_unequal_length_are_stated_and_shown_one_by_one():
    figure = walk_panels({"paper": [straight(5), straight(9)]})
    assert "differ in length" in figure.get_supxlabel()
    mean, beyond = (line.get_xdata() for line in figure.axes[0].lines)
    assert (mean[-1], beyond.tolist()) == (4, [4, 5, 6, 7, 8])
    same = walk_panels({"paper": [straight(5), straight(5)]}).get_supxlabel()
    assert "differ in length" not in same
    assert "Method paper: mean over 2 runs, band of one standard" in same


def test_one_run_has_no_band_and_says_so():
    figure = walk_panels({"paper": [straight(5)]})
    assert all(not panel.collections for panel in figure.axes)
    assert "1 run, so no band" in figure.get_supxlabel()


def test_long_walks_are_thinned_but_keep_their_ends():
    (line,) = walk_panels({"paper": [straight(20_001)]}).axes[1].lines
    assert len(line.get_xdata()) <= 1501
    assert (line.get_xdata()[0], line.get_xdata()[-1]) == (0, 20_000)
    np.testing.assert_allclose(line.get_ydata(), 300 - line.get_xdata())


@pytest.mark.slow
def test_the_users_own_style_neither_changes_the_figure_nor_is_changed(tmp_path):
    before = dict(mpl.rcParams)
    plain = save(walk_panels({"paper": [straight(5)]}), tmp_path / "a", "walk")[0].read_bytes()
    assert dict(mpl.rcParams) == before
    with mpl.rc_context({"font.size": 20, "axes.grid": False}):
        theirs = save(walk_panels({"paper": [straight(5)]}), tmp_path / "b", "walk")[0].read_bytes()
    assert plain == theirs


@pytest.mark.parametrize(
    ("against", "label"),
    [
        ("evaluations", "evaluations of loss and gradient"),
        ("arc_length", "arc length in parameter space"),
        ("regularizer", "regularizer R (squared norm), falling"),
    ],
)
def test_methods_share_the_panels_against_anything_but_steps(against, label):
    methods = {"paper": [made_path(30, 1, "paper")], "sqp": [made_path(20), made_path(25, 2)]}
    panels = walk_panels(methods, against=against, unit="nats", metric="accuracy").axes
    labels = [panel.get_ylabel().replace("\n", " ") for panel in panels]
    second = "evaluations needed" if against == "regularizer" else "regularizer R (squared norm)"
    assert labels == [
        "angle between gradients (degrees)", second, "test loss (nats)", "test accuracy"
    ]  # fmt: skip
    assert panels[-1].get_xlabel() == label
    names = [text.get_text() for text in panels[0].get_legend().get_texts()]
    assert names == ["paper, 1 run", "sqp, 2 runs"]
    left, right = panels[0].get_xlim()
    assert (left > right) == (against == "regularizer")
    styles = {line.get_linestyle() for line in panels[0].lines[:1] + panels[0].lines[-3:]}
    assert len(styles) > 1  # told apart without color


def test_plot_draws_one_walk_with_the_probes_it_has():
    path = made_path(20)
    panels = plot(path).axes
    assert [p.get_ylabel() for p in panels][2:] == ["test loss", "test metric"]
    np.testing.assert_allclose(panels[1].lines[0].get_ydata(), path.steps["regularizer"])
    steps = path.steps.drop(columns=["test_metric"]).rename(columns={"test_loss": "held_out_loss"})
    panels = plot(dataclasses.replace(path, steps=steps), against="evaluations").axes
    assert [p.get_ylabel() for p in panels][2:] == ["held_out loss"]


ONE, PAPER = made_path(9), made_path(5, 2, "paper")


@pytest.mark.parametrize(
    ("walks", "titles"),
    [
        ([ONE, made_path(9, 1), PAPER], ["method sqp, 2 runs", "method paper, 1 run"]),
        ((ONE,), ["method sqp, 1 run"]),
        ({"wide": ONE, "narrow": [PAPER, made_path(5, 1)]}, ["wide, 1 run", "narrow, 2 runs"]),
        ({"sqp": PAPER}, ["sqp, 1 run"]),
    ],
)
def test_plot_takes_several_walks_and_names_for_them(walks, titles):
    figure = plot(walks)
    assert [t for axes in figure.axes if (t := axes.get_title(loc="left"))] == titles
    named = [sentence.split(":")[0] for sentence in figure.get_supxlabel().splitlines()]
    assert named == [title.rpartition(",")[0].replace("method", "Method") for title in titles]
    legend = plot(walks, "evaluations").axes[0].get_legend().get_texts()
    assert [text.get_text() for text in legend] == [t.removeprefix("method ") for t in titles]


def test_a_close_up_shows_every_run_over_the_interval():
    paths = [made_path(20), made_path(30, 1)]
    (axes,) = close_up({"sqp": paths}, "test_loss", (2, 10), label="test loss").axes
    assert axes.get_xlim() == (2, 10)
    assert len(axes.lines) == 3
    low, high = axes.get_ylim()
    inside = np.concatenate([path.steps["test_loss"][2:11] for path in paths])
    assert low < inside.min() < inside.max() < high
    assert high - low < 1.3 * np.ptp(inside)
    assert axes.get_ylabel() == "test loss"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: walk_panels({}), ["no walk"]),
        (lambda: walk_panels({"sqp": []}), ["no walk"]),
        (lambda: plot(ONE, against="evaluation"), ["evaluation", "evaluations"]),
        (lambda: plot([]), ["no walk"]),
        (lambda: plot({"a": []}), ["no walk"]),
        (lambda: plot(3), ["walks must be", "got an int"]),
        (lambda: plot({"a": ONE.steps}), ["walks must be", "got str"]),
        (lambda: close_up({"sqp": [ONE]}, "test_loss", (3, 1)), ["(3, 1)", "smaller end"]),
        (lambda: close_up({"sqp": [ONE]}, "test_loss", (80, 90)), ["(80, 90)", "measured point"]),
        (lambda: close_up({"sqp": [ONE]}, "tst_loss", (0, 3)), ["tst_loss", "test_loss"]),
    ],
)
def test_what_cannot_be_drawn_is_refused(call, words, refuses):
    with refuses(*words):
        call()
