"""Walks and weight decay at equal training loss: what the reference could not show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import NullFormatter

from isoloss.path import Path
from isoloss.report.curves import Array, on_level
from isoloss.report.style import COLORS, style

ABSCISSAE = {
    "train_loss": "training loss (without penalty)",
    "squared_norm": "squared norm R (with biases)",
}
OF_WALK = {"train_loss": "loss", "squared_norm": "regularizer"}
MARKS = ("o", "s", "D", "^")
PALETTE = "cividis"
"""Even in lightness, so that it is read in grayscale and by the color-blind."""


def comparison_scatter(
    methods: Mapping[str, Sequence[Path]],
    decay: pd.DataFrame,
    *,
    title: str = "",
    metric: str = "metric",
) -> Figure:
    """Test loss and metric against training loss and against squared norm.

    A walk is a curve from its start (hollow) to its end (full); a network of weight decay is a dot
    colored by its penalty, and the mean of each penalty is a large dot.

    Args:
        methods: The walks of each method, by its name.
        decay: What `Results.decay` returned.
        title: Above all panels.
        metric: Name of the test metric.

    Returns:
        The figure, for the caller to change or save.
    """
    ordinates = {"test_loss": "test loss (without penalty)"}
    if metric != "mse":  # where the metric is the loss once is enough
        ordinates["test_metric"] = f"test {metric}"
    penalties = sorted(decay["penalty"].unique()) if len(decay) else []
    with style():
        figure = Figure(figsize=(9.2, 0.9 + 3.3 * len(ordinates)), layout="constrained")
        axes = figure.subplots(len(ordinates), 2, sharex="col", sharey="row", squeeze=False)
        for row, (y, y_label) in enumerate(ordinates.items()):
            for column, (x, x_label) in enumerate(ABSCISSAE.items()):
                panel: Axes = axes[row, column]
                _draw_decay(panel, decay, penalties, x, y)
                for k, paths in enumerate(methods.values()):
                    for path in paths:
                        _draw_walk(
                            panel, path, x, y, COLORS[k % len(COLORS)], MARKS[k % len(MARKS)]
                        )
                panel.set_xscale("log")
                panel.xaxis.set_minor_formatter(NullFormatter())  # they would overlap
                if y == "test_loss":
                    panel.set_yscale("log")
                if row == len(ordinates) - 1:
                    panel.set_xlabel(x_label)
            axes[row, 0].set_ylabel(y_label)
        figure.legend(handles=_legend(methods, len(decay) > 0), loc="outside upper right", ncols=3)
        if penalties:
            _color_bar(figure, axes, penalties)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    return figure


def decay_history(epochs: pd.DataFrame, *, title: str = "", metric: str = "metric") -> Figure:
    """Losses, metric and squared norm of weight decay against the epoch, mean over the runs.

    Args:
        epochs: What `Results.decay_epochs` returned, not empty.
        title: Above all panels.
        metric: Name of the test metric.

    Returns:
        The figure.
    """
    panels = {
        "train_loss": "training loss",
        "test_loss": "test loss",
        "test_metric": f"test {metric}",
        "squared_norm_weights": "squared norm\nwithout biases",
    }
    penalties = sorted(epochs["penalty"].unique())
    means: Any = epochs.groupby(["penalty", "epoch"])[list(panels)].mean()
    with style():
        figure = Figure(figsize=(9.2, 6.0), layout="constrained")
        axes = figure.subplots(2, 2, sharex=True, squeeze=False)
        for panel, (name, label) in zip(axes.flat, panels.items(), strict=True):
            for k, penalty in enumerate(penalties):
                curve = means.loc[penalty][name]
                dashes = "--" if k % 2 else "-"
                panel.plot(curve.index, curve, color=_colors(penalties)[k], linestyle=dashes)
            panel.set_ylabel(label)
            if name != "test_metric":
                panel.set_yscale("log")
        for panel in axes[-1]:
            panel.set_xlabel("epoch")
        _color_bar(figure, axes, penalties)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    return figure


def _draw_decay(
    panel: Axes, decay: pd.DataFrame, penalties: Sequence[float], x: str, y: str
) -> None:
    colors = _colors(penalties)
    centers: list[tuple[float, float]] = []
    for color, penalty in zip(colors, penalties, strict=True):
        rows = decay.loc[decay["penalty"] == penalty]
        panel.scatter(rows[x], rows[y], s=9, color=color, alpha=0.6, linewidths=0)
        centers.append((rows[x].mean(), rows[y].mean()))
    if centers:
        xs, ys = np.array(centers).T
        panel.plot(xs, ys, color="0.6", linewidth=0.8, zorder=1)
        panel.scatter(xs, ys, s=42, color=colors, edgecolors="black", linewidths=0.6, zorder=3)
        _name(panel, xs, ys, penalties)


def _name(panel: Axes, xs: Array, ys: Array, penalties: Sequence[float]) -> None:
    """Write the penalty beside each dot that is apart from those named before it."""
    named: list[tuple[float, float]] = []
    spread = max(float(np.ptp(np.log(xs))), 1e-9), max(float(np.ptp(ys)), 1e-9)
    for x, y, penalty in zip(xs, ys, penalties, strict=True):
        here = float(np.log(x)) / spread[0], y / spread[1]
        if all(abs(here[0] - a) + abs(here[1] - b) > 0.05 for a, b in named):
            named.append(here)
            panel.annotate(
                _number(penalty),
                (x, y),
                xytext=(0, 6),
                textcoords="offset points",
                ha="center",
                fontsize=7,
                zorder=6,
                path_effects=[withStroke(linewidth=2, foreground="white")],
            )


def _draw_walk(panel: Axes, path: Path, x: str, y: str, color: str, mark: str) -> None:
    if y not in path.steps:
        return
    rows = on_level(path).dropna(subset=[y])
    xs, ys = rows[OF_WALK[x]].to_numpy(), rows[y].to_numpy()
    panel.plot(xs, ys, color=color, linewidth=1.0, alpha=0.9, zorder=4)
    for at, face in ((0, "white"), (-1, color)):
        panel.plot(xs[at], ys[at], mark, color=color, markerfacecolor=face, markersize=6, zorder=5)


def _legend(methods: Mapping[str, Sequence[Path]], decay: bool) -> list[Line2D]:
    handles = [
        Line2D(
            [],
            [],
            color=COLORS[k % len(COLORS)],
            marker=MARKS[k % len(MARKS)],
            label=f"walk by {name}",
        )
        for k, name in enumerate(methods)
    ]
    if methods:
        start = Line2D([], [], color="0.3", marker="o", markerfacecolor="white", linestyle="none")
        start.set_label("start of a walk (end: full)")
        handles.append(start)
    if decay:
        mean = Line2D([], [], color="0.6", marker="o", markeredgecolor="black")
        mean.set_label("weight decay, mean of a penalty")
        handles.append(mean)
    return handles


def _colors(penalties: Sequence[float]) -> list[Any]:
    palette = mpl.colormaps[PALETTE]
    return [palette(k / max(1, len(penalties) - 1)) for k in range(len(penalties))]


def _color_bar(figure: Figure, axes: Any, penalties: Sequence[float]) -> None:
    count = len(penalties)
    norm = BoundaryNorm(np.arange(count + 1) - 0.5, count)
    mapped = ScalarMappable(norm, ListedColormap(_colors(penalties)))
    bar = figure.colorbar(mapped, ax=axes, ticks=range(count), pad=0.01, aspect=40)
    bar.ax.minorticks_off()
    bar.ax.set_yticklabels([_number(penalty) for penalty in penalties])
    bar.set_label("penalty of weight decay")


def _number(penalty: float) -> str:
    """A penalty as short as it can be said: 0, 1e-6, 0.25."""
    digits, _, power = f"{penalty:.2e}".partition("e")
    short = f"{float(digits):g}e{int(power)}"
    return min(f"{penalty:g}", short, key=len)
