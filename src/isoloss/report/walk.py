"""Walks as curves: panels against step, cost, length or regularizer, and close-ups of them."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from isoloss.errors import InputError
from isoloss.path import Path
from isoloss.report.curves import Array, Band, band
from isoloss.report.style import COLORS, DASHES, style

MOST_VERTICES = 1500
CAPTION_CHARACTERS = 15.5  # of the captions' size, in an inch
X_LABELS = {
    "step": "step",
    "evaluations": "evaluations of loss and gradient",
    "arc_length": "arc length in parameter space",
    "regularizer": "regularizer R, falling",
}
LEGEND: dict[str, Any] = {"frameon": False, "loc": "lower left", "bbox_to_anchor": (-0.02, 1.0)}
STEP_LABELS = {"paper": "predictor step"}
Methods = Mapping[str, Sequence[Path]]


def walk_panels(
    methods: Methods,
    *,
    against: str = "step",
    title: str = "",
    metric: str = "metric",
    unit: str = "",
) -> Figure:
    """Stacked panels of what was measured along walks (the paper's Fig. 2).

    Mean over the runs with a band of one standard deviation. Where runs have different lengths the
    mean ends with the shortest; what not all runs share goes on as thin curves of their own.

    Against the step each method has a column of panels of its own, since the steps of different
    methods are different things; against anything else the methods share the panels.

    Args:
        methods: The walks of each method, by its name.
        against: `"step"`, `"evaluations"`, `"arc_length"` or `"regularizer"`.
        title: Above all panels.
        metric: Name of the probes' metric.
        unit: Unit of the losses, for example `"nats"`.

    Returns:
        The figure, for the caller to change or save.

    Raises:
        InputError: There is no walk, or no such abscissa.
    """
    if not any(methods.values()):
        raise InputError("there is no walk to draw; give at least one")
    methods = {name: paths for name, paths in methods.items() if paths}
    panels = _panels(methods, against, metric, unit)
    columns = len(methods) if against == "step" else 1
    width = 0.9 + 3.9 * columns
    with style():
        figure = Figure(figsize=(width, 0.8 + 1.7 * len(panels)), layout="constrained")
        axes = figure.subplots(len(panels), columns, sharex="col", sharey="row", squeeze=False)
        for k, (method, paths) in enumerate(methods.items()):
            column = axes[:, k if columns > 1 else 0]
            for panel, name in zip(column, panels, strict=True):
                if _measured(paths, name):
                    _draw(panel, band(paths, name, against), k, f"{method}, {_count(paths)}")
            if against == "step":
                column[0].set_title(f"method {method}, {_count(paths)}", loc="left")
                column[-1].set_xlabel(STEP_LABELS.get(method, X_LABELS["step"]))
        for panel, (name, label) in zip(axes[:, 0], panels.items(), strict=True):
            panel.set_ylabel(label)
            if name == "evaluations":
                panel.set_yscale("log")
        for column in axes.T:
            _scale(column[-1], against, methods)
        if against != "step":
            axes[0, 0].legend(ncols=len(methods), **LEGEND)
        figure.align_ylabels()
        say(figure, title, _caption(methods, against))
    return figure


def close_up(
    methods: Methods,
    column: str,
    interval: tuple[float, float],
    *,
    against: str = "step",
    title: str = "",
    label: str = "",
) -> Figure:
    """One quantity over an interval: each run as a thin curve, their mean and its band.

    Args:
        methods: The walks of each method, by its name.
        column: A column of `Path.steps`, for example `"test_loss"`.
        interval: First and last x.
        against: As in `walk_panels`.
        title: Above the panel.
        label: Of the quantity; the column's name by default.

    Returns:
        The figure, for the caller to change or save.

    Raises:
        InputError: There is no such column or abscissa, or no measured point in the interval.
    """
    first, last = interval
    if not first < last:
        raise InputError(f"interval=({first}, {last}) is not possible; give the smaller end first")
    with style():
        figure = Figure(figsize=(4.8, 3.4), layout="constrained")
        axes = figure.subplots()
        seen: list[Array] = []
        for k, (method, paths) in enumerate(methods.items()):
            singles = [band([path], column, against) for path in paths]
            for one in singles:
                inside = (first <= one.x) & (one.x <= last)
                seen.append(one.mean[inside])
                axes.plot(one.x, one.mean, color=_color(k), linewidth=0.6, alpha=0.5)
            if paths:
                _draw(axes, band(paths, column, against), k, f"{method}, {_count(paths)}", False)
        values = np.concatenate([np.empty(0), *seen])
        if not len(values):
            raise InputError(
                f"interval=({first:g}, {last:g}) is not possible: no walk was measured there"
            )
        margin = 0.08 * np.ptp(values) or 0.01 * abs(values[0]) or 1.0
        axes.set(
            ylabel=label or column.replace("_", " "),
            ylim=(values.min() - margin, values.max() + margin),
        )
        _scale(axes, against, methods)
        axes.set_xlim((last, first) if against == "regularizer" else (first, last))
        axes.legend(ncols=len(methods), **LEGEND)
        lines = "Thin lines are single runs; thick their mean, where all runs are, with a band of "
        say(figure, title, [lines + "one standard deviation."])
    return figure


def _panels(methods: Methods, against: str, metric: str, unit: str) -> dict[str, str]:
    """Label of each panel by its column: what was measured, except what is the abscissa."""
    panels = {
        "angle_degrees": "angle between\ngradients (degrees)",
        "regularizer": f"regularizer R\n({_regularizer(methods)})",
    }
    if against == "regularizer":
        del panels["regularizer"]
        panels["evaluations"] = "evaluations\nneeded"
    loss = f"loss\n({unit})" if unit else "loss"
    for paths in methods.values():
        for name in paths[0].steps.columns:
            probe, _, what = str(name).rpartition("_")
            if probe and what in ("loss", "metric") and _measured(paths, str(name)):
                panels[str(name)] = f"{probe} {loss if what == 'loss' else metric}"
    return panels


def _measured(paths: Sequence[Path], column: str) -> bool:
    return all(column in path.steps and path.steps[column].notna().any() for path in paths)


def _draw(axes: Axes, drawn: Band, k: int, label: str, beyond: bool = True) -> None:
    x, mean, std = (_thin(values) for values in (drawn.x, drawn.mean, drawn.std))
    axes.plot(x, mean, color=_color(k), linestyle=DASHES[k % len(DASHES)], label=label)
    if drawn.runs > 1:
        axes.fill_between(x, mean - std, mean + std, color=_color(k), alpha=0.22, linewidth=0)
    for u, v in drawn.beyond if beyond else []:
        axes.plot(_thin(u), _thin(v), color=_color(k), linewidth=0.7, alpha=0.8)


def _scale(axes: Axes, against: str, methods: Methods) -> None:
    if against == "evaluations":
        axes.set_xscale("log")
    elif against == "regularizer":
        if axes.dataLim.x0 > 0:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter("{x:g}")
        axes.invert_xaxis()  # walks go from left to right
    else:
        axes.set_xlim(left=0)
    label = X_LABELS[against].replace(" R,", f" R ({_regularizer(methods)}),")
    axes.set_xlabel(axes.get_xlabel() or label)


def _regularizer(methods: Methods) -> str:
    """The name of what the walks made small, for people."""
    names = {path.regularizer.replace("_", " ") for paths in methods.values() for path in paths}
    return " or ".join(sorted(names))


def _color(k: int) -> str:
    return COLORS[k % len(COLORS)]


def say(figure: Figure, title: str, caption: Sequence[str]) -> None:
    """Title above, caption below, broken to the figure's width."""
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    width = int(figure.get_figwidth() * CAPTION_CHARACTERS)
    text = "\n".join(textwrap.fill(line, width) for line in caption)
    figure.supxlabel(text, x=0.01, ha="left", fontsize=8)


def _thin(values: Array) -> Array:
    """Every k-th value and the last: more vertices than pixels only make the file large."""
    every = -(-len(values) // MOST_VERTICES)
    return values if every <= 1 else np.append(values[:-1:every], values[-1])


def _count(paths: Sequence[Path]) -> str:
    return "1 run" if len(paths) == 1 else f"{len(paths)} runs"


def _caption(methods: Methods, against: str) -> list[str]:
    lines = [
        f"Method {name}: mean over {_count(paths)}, band of one standard deviation."
        if len(paths) > 1
        else f"Method {name}: 1 run, so no band."
        for name, paths in methods.items()
    ]
    uneven = [
        name for name, paths in methods.items() if band(paths, "angle_degrees", against).beyond
    ]
    if uneven:
        lines.append(
            f"Runs of {', '.join(uneven)} differ in length: the mean ends with the shortest; "
            f"thin lines are single runs that go on."
            if against != "regularizer"
            else f"Runs of {', '.join(uneven)} begin and end at different R: the mean covers what "
            f"all share; thin lines are single runs."
        )
    return lines
