"""Walks as curves: panels against step, cost, length or regularizer, and close-ups of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from isoloss.arguments import checked
from isoloss.errors import InputError, unknown
from isoloss.explore.front import Front
from isoloss.path import Path
from isoloss.report.drawn import MOST_VERTICES, few, single, thin
from isoloss.report.fronts import front_panels
from isoloss.report.page import (
    DASHES,
    Section,
    Table,
    caption,
    color,
    count,
    drawing,
    number,
    picture,
)
from isoloss.report.statistics import Array
from isoloss.report.tables import Methods, Runs, ends_table, on_level, walk_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Walks = Path | Iterable[Path] | Mapping[str, Path | Iterable[Path]]

X_LABELS = {
    "step": "step",
    "evaluations": "evaluations of loss and gradient",
    "arc_length": "arc length in parameter space",
    "regularizer": "regularizer R, falling",
}
LEGEND: dict[str, Any] = {"frameon": False, "loc": "lower left", "bbox_to_anchor": (-0.02, 1.0)}
TITLES = {
    "step": "Along the steps",
    "evaluations": "Against what it cost",
    "arc_length": "Against the length of the walk",
    "regularizer": "At equal regularizer",
}
CAPTIONS = {
    "step": "Steps of different methods are of different length and cost.",
    "evaluations": "An evaluation is one loss and gradient over the full training set.",
    "arc_length": "The sum of the Euclidean lengths of all steps, corrections included.",
    "regularizer": "This is how to compare methods: at each R, what each found there and what it "
    "had cost. Only new lows of R are drawn.",
}


@checked
def plot(walks: Walks | Front, against: str = "step") -> Figure:
    """Angle, regularizer and probes along walks, in stacked panels.

    Several walks of one name are drawn as their mean with a band of one standard deviation.

    A front is drawn as `isoloss.report.front_panels` does it.

    Args:
        walks: A walk; several walks, which are named by their methods; a dict from the name to
            draw under to a walk or several; or a front.
        against: `"step"`, `"evaluations"`, `"arc_length"` or `"regularizer"`.

    Returns:
        A matplotlib figure, to change, to save, or to show in a notebook.

    Raises:
        InputError: There is no walk, or no such abscissa; or matplotlib is not installed.
    """
    if isinstance(walks, Front):
        return front_panels(walks)
    named: dict[str, list[Path]] = {}
    labeled: Any = walks.items() if isinstance(walks, Mapping) else [("", walks)]
    for label, given in labeled:
        for path in given if isinstance(given, Iterable) else [given]:  # a Path is not
            if not isinstance(path, Path):
                kind = type(path).__name__
                raise InputError(f"walks must be a Path, a list or a dict of them, got {kind}")
            named.setdefault(str(label) or path.method, []).append(path)
    return walk_panels(named, against=against)


@checked
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
    mean ends with the shortest; what not all runs share continues as thin curves.

    Against the step each method has its own column of panels, since the steps of different methods
    cannot be compared; against anything else the methods share the panels.

    Args:
        methods: The walks of each method, by its name.
        against: `"step"`, `"evaluations"`, `"arc_length"` or `"regularizer"`.
        title: Above all panels.
        metric: Name of the probes' metric.
        unit: Unit of the losses, for example `"nats"`.

    Raises:
        InputError: There is no walk, or no such abscissa.
    """
    methods = {name: paths for name, paths in methods.items() if paths}
    if not methods:
        raise InputError("there is no walk to draw: methods must hold at least one")
    panels = _panels(methods, against, metric, unit)
    columns = len(methods) if against == "step" else 1
    uneven: list[str] = []
    with drawing(0.9 + 3.9 * columns, 0.8 + 1.7 * len(panels), title) as figure:
        axes = figure.subplots(len(panels), columns, sharex="col", sharey="row", squeeze=False)
        for k, (method, paths) in enumerate(methods.items()):
            column = axes[:, k if columns > 1 else 0]
            for panel, name in zip(column, panels, strict=True):
                if _measured(paths, name):
                    drawn = band(paths, name, against, at_most=MOST_VERTICES)
                    _draw(panel, drawn, k, f"{method}, {count(len(paths))}")
                    if drawn.beyond and method not in uneven:
                        uneven.append(method)
            if against == "step":
                column[0].set_title(f"{_name(method, paths)}, {count(len(paths))}", loc="left")
                predicted = all(path.method == "paper" for path in paths)
                column[-1].set_xlabel("predictor step" if predicted else X_LABELS["step"])
        for panel, (name, label) in zip(axes[:, 0], panels.items(), strict=True):
            panel.set_ylabel(label)
            if name == "evaluations":
                panel.set_yscale("log")
        for column in axes.T:
            _scale(column[-1], against, methods)
        if against != "step":
            axes[0, 0].legend(ncols=len(methods), **LEGEND)
        figure.align_ylabels()
        caption(figure, _caption(methods, against, uneven))
    return figure


@checked
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

    Raises:
        InputError: There is no such column or abscissa, or no measured point in the interval.
    """
    first, last = interval
    if not first < last:
        raise InputError(f"interval must have its smaller end first, got ({first}, {last})")
    with drawing(4.8, 3.4, title) as figure:
        axes = figure.subplots()
        seen: list[Array] = [np.empty(0)]
        for k, (method, paths) in enumerate(methods.items()):
            for path in few(paths):
                x, y = curve(path, column, against)
                seen.append(y[(first <= x) & (x <= last)])
                axes.plot(x, y, color=color(k), linewidth=0.6, alpha=0.5)
            if paths:
                mean = band(paths, column, against)
                _draw(axes, mean, k, f"{method}, {count(len(paths))}", beyond=False)
        values = np.concatenate(seen)
        if not len(values):
            raise InputError(f"interval must hold a measured point, got ({first:g}, {last:g})")
        margin = 0.08 * np.ptp(values) or 0.01 * abs(values[0]) or 1.0
        axes.set(
            ylabel=label or column.replace("_", " "),
            ylim=(values.min() - margin, values.max() + margin),
        )
        _scale(axes, against, methods)
        axes.set_xlim((last, first) if against == "regularizer" else (first, last))
        axes.legend(ncols=len(methods), **LEGEND)
        lines = single(max(methods.values(), key=len))
        said = f"Thin lines are {lines}; the thick line is the mean, where all runs are"
        caption(figure, [f"{said}, with a band of one standard deviation."])
    return figure


@dataclass(frozen=True)
class Band:
    """Mean and sample standard deviation over runs where all of them are, and the runs beyond."""

    x: Array
    mean: Array
    std: Array  # NaN of one run
    beyond: list[tuple[Array, Array]]  # (x, values) of each part of a run that not all share
    runs: int


def curve(path: Path, column: str, against: str = "step") -> tuple[Array, Array]:
    """x, strictly ascending (new lows alone of the regularizer), and a column where measured."""
    if against not in X_LABELS:
        raise unknown("abscissa", against, X_LABELS)
    if column not in path.steps:
        raise unknown("column", column, [str(name) for name in path.steps.columns])
    rows = on_level(path)
    x = rows["progress" if against == "step" else against].to_numpy(dtype=float)
    y = rows[column].to_numpy(dtype=float)
    measured = ~np.isnan(y)
    x, y = x[measured], y[measured]
    if against == "regularizer":
        x = -x  # it falls along the walk
    new = np.diff(np.maximum.accumulate(x), prepend=-np.inf) > 0
    x, y = x[new], y[new]
    return (-x[::-1], y[::-1]) if against == "regularizer" else (x, y)


def band(
    paths: Sequence[Path], column: str, against: str = "step", *, at_most: int | None = None
) -> Band:
    """Over runs, interpolated to every x at which any of them was measured: every k-th of these,
    `at_most` and the last."""
    curves = [curve(path, column, against) for path in paths]
    low = max((x[0] if len(x) else np.inf for x, _ in curves), default=np.inf)
    high = min((x[-1] if len(x) else -np.inf for x, _ in curves), default=-np.inf)
    grid = np.unique(np.concatenate([x for x, _ in curves]))
    grid = thin(grid[(low <= grid) & (grid <= high)], at_most)
    values = np.stack([np.interp(grid, x, y) for x, y in curves if len(x)] or [grid], axis=1)
    several = len(paths) > 1 and len(grid) > 0
    return Band(
        x=grid,
        mean=values.mean(axis=1),
        std=values.std(axis=1, ddof=1) if several else np.full(len(grid), np.nan),
        beyond=[part for x, y in few(curves) for part in _outside(x, y, low, high)],
        runs=len(paths),
    )


def _outside(x: Array, y: Array, low: float, high: float) -> list[tuple[Array, Array]]:
    """The parts of a curve below `low` and above `high`, up to the points there."""
    if low > high:
        return [(x, y)] if len(x) > 1 else []
    parts: list[tuple[Array, Array]] = []
    for outside, edge in ((x < low, low), (x > high, high)):
        if outside.any():
            ends = np.unique(np.append(x[outside], edge))
            parts.append((ends, np.interp(ends, x, y)))
    return parts


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
        for name in map(str, paths[0].steps.columns):
            probe, _, what = name.rpartition("_")
            if probe and what in ("loss", "metric") and _measured(paths, name):
                panels[name] = f"{probe} {loss if what == 'loss' else metric}"
    return panels


def _measured(paths: Sequence[Path], column: str) -> bool:
    return all(
        column in path.steps and not np.isnan(path.steps[column].to_numpy(dtype=float)).all()
        for path in paths
    )


def _draw(axes: Axes, drawn: Band, k: int, label: str, *, beyond: bool = True) -> None:
    x, mean, std = drawn.x, drawn.mean, drawn.std
    axes.plot(x, mean, color=color(k), linestyle=DASHES[k % len(DASHES)], label=label)
    if drawn.runs > 1:
        axes.fill_between(x, mean - std, mean + std, color=color(k), alpha=0.22, linewidth=0)
    for u, v in drawn.beyond if beyond else []:
        u, v = thin(u, MOST_VERTICES), thin(v, MOST_VERTICES)
        axes.plot(u, v, color=color(k), linewidth=0.7, alpha=0.8)


def _scale(axes: Axes, against: str, methods: Methods) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

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
        axes.xaxis.set_major_locator(MaxNLocator(5))  # panels are narrow
        axes.xaxis.set_major_formatter("{x:,g}")
    label = X_LABELS[against].replace(" R,", f" R ({_regularizer(methods)}),")
    axes.set_xlabel(axes.get_xlabel() or label)


def _regularizer(methods: Methods) -> str:
    """The name of what the walks made small, for people."""
    names = {path.regularizer.replace("_", " ") for paths in methods.values() for path in paths}
    return " or ".join(sorted(names))


def _name(name: str, paths: Sequence[Path]) -> str:
    return f"method {name}" if all(path.method == name for path in paths) else name


def _caption(methods: Methods, against: str, uneven: Sequence[str]) -> list[str]:
    lines: list[str] = []
    for name, paths in methods.items():
        named = _name(name, paths).replace("method ", "Method ", 1)
        several = f"mean over {count(len(paths))}, band of one standard deviation"
        lines.append(f"{named}: {several if len(paths) > 1 else '1 run, so no band'}.")
    if uneven:
        thin_lines = single(max((methods[name] for name in uneven), key=len))
        lines.append(
            f"Runs of {', '.join(uneven)} differ in length: the mean ends with the shortest; "
            f"thin lines are {thin_lines} that continue."
            if against != "regularizer"
            else f"Runs of {', '.join(uneven)} begin and end at different R: the mean covers what "
            f"all share; thin lines are {thin_lines}."
        )
    return lines


def walks_section(runs: Runs, folder: FilePath) -> Section:
    """Draw the walks into a folder, below the table of where they start and end."""
    table = walk_table(runs.methods)
    words = {"title": runs.experiment, "metric": runs.metric, "unit": runs.unit}
    each = {"step": "a column of panels for each method"}
    pictures = [
        picture(
            walk_panels(runs.methods, against=against, **words),
            folder,
            "walk" if against == "step" else f"walk-{against.replace('_', '-')}",
            title=title,
            alt=f"Curves of the walks, {each.get(against, 'all methods together')}, against "
            f"the {X_LABELS[against]}. {_told(table)}",
            caption=CAPTIONS[against],
            folded=against == "arc_length",
        )
        for against, title in TITLES.items()
    ]
    return Section(title="The walks", tables=[walks_table(runs)], pictures=pictures)


def walks_table(runs: Runs) -> Table:
    """Where the walks start and end."""
    single = [name for name, paths in runs.methods.items() if len(paths) == 1]
    spread = "Mean ± sample standard deviation over the runs."
    if single:
        spread += f" There is only one run of {' and '.join(single)}, so no standard deviation."
    return ends_table(walk_table(runs.methods), "Start and end", spread)


def _told(table: pd.DataFrame) -> str:
    """What the curves say, in numbers: where R and the test loss begin and end."""
    means = table.set_index(["method", "quantity", "place"])["mean"]
    return " ".join(
        f"By {method}, mean {quantity} goes from {number(means[method, quantity, 'start'])} to "
        f"{number(means[method, quantity, 'end'])}."
        for method in dict.fromkeys(table["method"])
        for quantity in ("R", "test loss")
        if (method, quantity, "end") in means.index
    )
