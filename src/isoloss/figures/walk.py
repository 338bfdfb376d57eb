"""The walk against the step: angle, regulariser, test loss, test metric (the paper's Fig. 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from isoloss.analysis import Band, band
from isoloss.analysis.curves import Array
from isoloss.figures.style import COLOURS, style
from isoloss.path import Path

MOST_VERTICES = 1500
STEP_LABELS = {"paper": "predictor step", "sqp": "step"}


def walk_panels(
    methods: Mapping[str, Sequence[Path]], *, title: str = "", metric: str = "metric"
) -> Figure:
    """Four stacked panels per method, mean over the runs with a band of one standard deviation.

    Where runs have different lengths the mean ends with the shortest; longer ones go on as thin
    curves of their own.

    Args:
        methods: The walks of each method, by its name; a column of panels each.
        title: Above all panels.
        metric: Name of the test metric.

    Returns:
        The figure, for the caller to change or save.
    """
    panels = {
        "angle_degrees": "angle between\ngradients (degrees)",
        "regularizer": "regulariser R\n(squared norm)",
        "test_loss": "test loss",
        "test_metric": f"test {metric}",
    }
    with style():
        figure = Figure(figsize=(1.1 + 3.9 * len(methods), 7.6), layout="constrained")
        axes = figure.subplots(len(panels), len(methods), sharex="col", sharey="row", squeeze=False)
        for column, (method, paths) in enumerate(methods.items()):
            bands = {name: band(paths, name) for name in panels}
            for row, (name, label) in enumerate(panels.items()):
                _draw(axes[row, column], bands[name], COLOURS[column % len(COLOURS)])
                if column == 0:
                    axes[row, column].set_ylabel(label)
            axes[0, column].set_title(f"method {method}, {_count(paths)}", loc="left")
            axes[-1, column].set_xlabel(STEP_LABELS.get(method, "step"))
            axes[-1, column].set_xlim(left=0)
        figure.align_ylabels()
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=12)
        figure.supxlabel(_caption(methods), x=0.01, ha="left", fontsize=8)
    return figure


def _draw(axes: Axes, curve: Band, colour: str) -> None:
    steps, mean, std = (_thin(values) for values in (curve.steps, curve.mean, curve.std))
    axes.plot(steps, mean, color=colour)
    if curve.runs > 1:
        axes.fill_between(steps, mean - std, mean + std, color=colour, alpha=0.22, linewidth=0)
    for x, y in curve.beyond:
        axes.plot(_thin(x), _thin(y), color=colour, linewidth=0.7, alpha=0.8)


def _thin(values: Array) -> Array:
    """Every k-th value and the last: more vertices than pixels only make the file large."""
    every = -(-len(values) // MOST_VERTICES)
    return values if every <= 1 else np.append(values[:-1:every], values[-1])


def _caption(methods: Mapping[str, Sequence[Path]]) -> str:
    lines = [
        f"Method {name}: mean over {_count(paths)}, band of one standard deviation."
        if len(paths) > 1
        else f"Method {name}: 1 run, so no band."
        for name, paths in methods.items()
    ]
    uneven = [name for name, paths in methods.items() if band(paths, "regularizer").beyond]
    if uneven:
        lines.append(
            f"Runs of {', '.join(uneven)} differ in length: the mean ends with the shortest; "
            f"thin lines are single runs that go on."
        )
    return "\n".join(lines)


def _count(paths: Sequence[Path]) -> str:
    return "1 run" if len(paths) == 1 else f"{len(paths)} runs"
