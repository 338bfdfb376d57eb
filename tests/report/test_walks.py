"""The walk's figure shows the numbers it was given."""

import dataclasses

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from tests.report.made import made_path

from isoloss import Outcome, Path
from isoloss.report import close_up, plot, save, walk_panels


def walk(length, offset=0.0):
    x = np.arange(length, dtype=float)
    steps = pd.DataFrame(
        {
            "kind": ["start"] + ["predict"] * (length - 1),
            "angle_degrees": 90 + offset + x,
            "regularizer": 300 - offset - x,
            "test_loss": 0.1 + offset + x / 1000,
            "test_metric": 0.9,
        }
    )
    return Path(steps, torch.zeros(1, 1), [0], 0.5, Outcome.STEP_LIMIT, "", "paper", "squared_norm")


def full(length, seed=0, method="sqp"):
    return made_path(length, seed, method)


def test_four_panels_show_mean_and_band():
    figure = walk_panels({"paper": [walk(50), walk(50, 2.0)]}, title="IRIS_FF", metric="accuracy")
    panels = figure.axes
    assert len(panels) == 4
    assert [panel.get_ylabel().split("\n")[0] for panel in panels] == [
        "angle between",
        "regularizer R",
        "test loss",
        "test accuracy",
    ]
    np.testing.assert_allclose(panels[1].lines[0].get_ydata(), 299 - np.arange(50))
    low, high = panels[1].collections[0].get_datalim(panels[1].transData).intervaly
    assert high == pytest.approx(299 + 2**0.5)
    assert low == pytest.approx(299 - 49 - 2**0.5)


def test_number_of_runs_and_method_are_said():
    figure = walk_panels({"paper": [walk(5), walk(5)], "sqp": [full(3)]})
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert "method paper, 2 runs" in titles
    assert "method sqp, 1 run" in titles
    assert "Method paper: mean over 2 runs, band of one standard" in figure.get_supxlabel()


def test_runs_of_unequal_length_are_said_and_shown_one_by_one():
    figure = walk_panels({"paper": [walk(5), walk(9)]})
    assert "differ in length" in figure.get_supxlabel()
    assert len(figure.axes[0].lines) == 2
    assert figure.axes[0].lines[0].get_xdata()[-1] == 4
    assert figure.axes[0].lines[1].get_xdata().tolist() == [4, 5, 6, 7, 8]
    assert "differ in length" not in walk_panels({"paper": [walk(5), walk(5)]}).get_supxlabel()


def test_one_run_has_no_band_and_says_so():
    figure = walk_panels({"paper": [walk(5)]})
    assert all(not panel.collections for panel in figure.axes)
    assert "1 run, so no band" in figure.get_supxlabel()


def test_long_walks_are_thinned_but_keep_their_ends():
    (line,) = walk_panels({"paper": [walk(20_001)]}).axes[1].lines
    assert len(line.get_xdata()) <= 1501
    assert (line.get_xdata()[0], line.get_xdata()[-1]) == (0, 20_000)
    np.testing.assert_allclose(line.get_ydata(), 300 - line.get_xdata())


def test_the_users_own_style_neither_changes_the_figure_nor_is_changed(tmp_path):
    before = dict(mpl.rcParams)
    plain = save(walk_panels({"paper": [walk(5)]}), tmp_path / "a", "walk")[0].read_bytes()
    assert dict(mpl.rcParams) == before
    with mpl.rc_context({"font.size": 20, "axes.grid": False}):
        theirs = save(walk_panels({"paper": [walk(5)]}), tmp_path / "b", "walk")[0].read_bytes()
    assert plain == theirs


@pytest.mark.parametrize(
    ("against", "label", "first"),
    [
        ("evaluations", "evaluations of loss and gradient", "angle between"),
        ("arc_length", "arc length in parameter space", "angle between"),
        ("regularizer", "regularizer R (squared norm), falling", "angle between"),
    ],
)
def test_methods_share_the_panels_against_anything_but_steps(against, label, first):
    methods = {"paper": [full(30, 1, "paper")], "sqp": [full(20), full(25, 2)]}
    figure = walk_panels(methods, against=against, unit="nats", metric="accuracy")
    panels = figure.axes
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
    path = full(20)
    panels = plot(path).axes
    assert [p.get_ylabel() for p in panels][2:] == ["test loss", "test metric"]
    np.testing.assert_allclose(panels[1].lines[0].get_ydata(), path.steps["regularizer"])
    steps = path.steps.drop(columns=["test_metric"]).rename(columns={"test_loss": "held_out_loss"})
    panels = plot(dataclasses.replace(path, steps=steps), against="evaluations").axes
    assert [p.get_ylabel() for p in panels][2:] == ["held_out loss"]


@pytest.mark.parametrize(
    ("walks", "titles"),
    [
        ([full(9), full(9, 1), full(5, 2, "paper")], ["method sqp, 2 runs", "method paper, 1 run"]),
        ((full(9),), ["method sqp, 1 run"]),
        ({"wide": full(9), "narrow": [full(5, 1), full(5, 2)]}, ["wide, 1 run", "narrow, 2 runs"]),
        ({"sqp": full(5, 2, "paper")}, ["sqp, 1 run"]),
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
    figure = close_up({"sqp": [full(20), full(30, 1)]}, "test_loss", (2, 10), label="test loss")
    (axes,) = figure.axes
    assert axes.get_xlim() == (2, 10)
    assert len(axes.lines) == 3
    low, high = axes.get_ylim()
    inside = np.concatenate([full(*a).steps["test_loss"][2:11] for a in ((20,), (30, 1))])
    assert low < inside.min() < inside.max() < high
    assert high - low < 1.3 * np.ptp(inside)
    assert axes.get_ylabel() == "test loss"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: walk_panels({}), ["no walk"]),
        (lambda: walk_panels({"sqp": []}), ["no walk"]),
        (lambda: plot(full(5), against="steps"), ["steps", "step"]),
        (lambda: plot([]), ["no walk"]),
        (lambda: plot({"a": []}), ["no walk"]),
        (lambda: plot(3), ["walks must be", "got int"]),
        (lambda: plot({"a": full(5).steps}), ["walks must be", "got str"]),
        (lambda: close_up({"sqp": [full(5)]}, "test_loss", (3, 1)), ["(3, 1)", "smaller end"]),
        (
            lambda: close_up({"sqp": [full(5)]}, "test_loss", (80, 90)),
            ["(80, 90)", "measured point"],
        ),
        (lambda: close_up({"sqp": [full(5)]}, "tst_loss", (0, 3)), ["tst_loss", "test_loss"]),
    ],
)
def test_what_cannot_be_drawn_is_refused(call, words, refuses):
    with refuses(*words):
        call()
