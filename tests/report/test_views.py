"""The figures of the PCA show its numbers, and grow with what is shown alone."""

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from tests.report.made import made_path, undrawn

from isoloss.report import explained_variance, pca, pca_views
from isoloss.report.tables import Runs
from isoloss.report.views import pca_section


@pytest.fixture(scope="module")
def found():
    return pca([made_path(20, k).points for k in (0, 1)])


def test_bars_and_line_are_each_and_all_up_to_it(found):
    (axes,) = explained_variance(found).axes
    heights = [bar.get_height() for bar in axes.patches]
    np.testing.assert_allclose(heights, found.explained_variance_ratio)
    np.testing.assert_allclose(axes.lines[0].get_ydata(), np.cumsum(heights))


def test_views_show_six_components_with_ends_and_means_marked(found):
    other = found.scores[3]
    figure = pca_views(found, ends={"weight decay": other})
    first, second = (axes for axes in figure.axes if axes.name == "3d")
    np.testing.assert_allclose(np.array(first.lines[0].get_data_3d()), found.runs[0][:, :3].T)
    np.testing.assert_allclose(np.array(second.lines[1].get_data_3d()), found.runs[1][:, 3:6].T)
    labels = [text.get_text() for text in first.get_legend().get_texts()]
    assert labels == ["mean of a run", "mean end of the walks", "weight decay"]
    marks = {m.get_label(): np.array(m._offsets3d).T for m in second.collections}
    np.testing.assert_allclose(marks["weight decay"], [other[3:6]])
    ends = [made_path(20, k).points[-1].double() for k in (0, 1)]
    mean_end = found.transform(sum(ends)[None] / 2)[:, 3:6]
    np.testing.assert_allclose(marks["mean end of the walks"], mean_end, atol=1e-6)
    expected = [run[:, 3:6].mean(axis=0) for run in found.runs]
    np.testing.assert_allclose(marks["mean of a run"], expected)


def test_the_caption_says_what_is_lost(found):
    caption = " ".join(pca_views(found).get_supxlabel().split())
    low, high = (f"{100 * share:.0f} %" for share in sorted(found.length_share(1, 3)))
    assert f"the views hold {low} to {high} (components 1 to 3)" in caption
    assert "40 kept points of 2 runs" in caption
    assert "divided by its standard deviation" in caption


def test_two_components_have_one_view():
    flat = pca([made_path(10, n=2).points])
    views = [axes for axes in pca_views(flat).axes if axes.name == "3d"]
    assert len(views) == 1
    assert not np.array(views[0].lines[0].get_data_3d())[2].any()


@pytest.mark.slow
def test_of_many_points_evenly_chosen_ones_are_shown(tmp_path):
    paths = [made_path(90, 0), made_path(31, 1), made_path(8, 2)]
    runs = Runs("X", "metric", "", {"sqp": paths}, pd.DataFrame(), {}, {})
    with undrawn("pdf"):
        (section,), missing = pca_section(runs, tmp_path, {}, at_most=60)
    assert missing == []
    steps = [run.step for run in section.scenes[0].runs]
    assert [len(run) for run in steps] == [20, 20, 8]
    assert [(run[0], run[-1]) for run in steps] == [(0, 89), (0, 30), (0, 7)]
    assert max(np.diff(steps[0])) - min(np.diff(steps[0])) <= 1
    assert section.scenes[0].runs[0].values["R"][1] == pytest.approx(
        paths[0].steps["regularizer"][steps[0][1]], rel=1e-5
    )
    assert "48 kept points of 3 runs" in section.scenes[0].captions["scaled"]
    assert section.text[-1] == (
        "Of each run by sqp, 20 points or fewer, spread along it, are shown."
    )
    assert matplotlib.image.imread(tmp_path / "pca-sqp.png").std() > 0.02
