"""The picture of extents: what is drawn is what was found."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection

import isoloss
from isoloss import Problem, Stop
from isoloss.report import extent_intervals


@pytest.fixture(scope="module")
def extents() -> isoloss.Extents:
    torch.manual_seed(0)
    problem = Problem(
        torch.nn.Linear(3, 1).double(), "mse", (torch.randn(20, 3), torch.randn(20, 1))
    )
    points = torch.randn(5, 3).double()
    named = {f"x{k}": isoloss.Outputs(points[k : k + 1], torch.Tensor.sum) for k in range(5)}
    # the first few converge, and not all
    return isoloss.extent(problem, named, stop=Stop(evaluations=8), gain=0, progress=False)


def test_bars_marks_and_filled_ends_are_what_was_found(extents) -> None:
    axes = extent_intervals(extents, title="All", label="prediction").axes[0]
    table = extents.table.sort_values("start", kind="stable")
    (bars,) = (one for one in axes.collections if isinstance(one, LineCollection))
    drawn = np.array([segment[:, 0] for segment in bars.get_segments()])
    assert np.array_equal(drawn, table[["low", "high"]].to_numpy())
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert names == list(table.index)
    marks = {line.get_marker(): line for line in axes.lines}
    assert np.array_equal(marks["|"].get_xdata(), table["start"].to_numpy())
    ends = [line for line in axes.lines if line.get_marker() == "o"]
    filled = {x for line in ends if line.get_markerfacecolor() != "white" for x in line.get_xdata()}
    assert filled == {
        value
        for side in ("low", "high")
        for value in table[side][table[f"{side}_outcome"] == "converged"]
    }
    assert sum(len(line.get_xdata()) for line in ends) == 10
    assert 0 < len(filled) < 10
    assert axes.get_xlabel() == "prediction"


def test_one_extent_is_drawn_under_its_name(extents) -> None:
    figure = extent_intervals(extents["x2"])
    assert figure.axes[0].get_xlabel() == "x2"
    assert "level held" in figure.get_supxlabel()


def test_many_are_drawn_without_names(extents) -> None:
    many = isoloss.Extents(
        [isoloss.Extent(str(k), one.start, one.low_end, one.high_end)
         for k, one in enumerate([*extents.values()] * 10)]
    )  # fmt: skip
    axes = extent_intervals(many).axes[0]
    assert not axes.get_yticklabels()
    assert axes.get_ylabel().startswith("50 quantities")


def test_what_is_no_extent_is_refused(refuses) -> None:
    with refuses("extents must be"):
        extent_intervals(3)
