"""The walk's figure shows the numbers it was given."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch

from isoloss import Outcome, Path
from isoloss.figures import save, walk_panels


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


def test_four_panels_show_mean_and_band():
    figure = walk_panels({"paper": [walk(50), walk(50, 2.0)]}, title="IRIS_FF", metric="accuracy")
    panels = figure.axes
    assert len(panels) == 4
    assert [panel.get_ylabel().split("\n")[0] for panel in panels] == [
        "angle between",
        "regulariser R",
        "test loss",
        "test accuracy",
    ]
    np.testing.assert_allclose(panels[1].lines[0].get_ydata(), 299 - np.arange(50))
    low, high = panels[1].collections[0].get_datalim(panels[1].transData).intervaly
    assert high == pytest.approx(299 + 2**0.5)
    assert low == pytest.approx(299 - 49 - 2**0.5)


def test_number_of_runs_and_method_are_said():
    figure = walk_panels({"paper": [walk(5), walk(5)], "sqp": [walk(3)]})
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
