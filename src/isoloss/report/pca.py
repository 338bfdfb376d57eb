"""Principal components of walks: how much each explains, and views of six of them (Fig. 7)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, MultipleLocator, PercentFormatter

from isoloss.report.components import PCA, Array
from isoloss.report.style import COLORS, style
from isoloss.report.walk import say

VIEWS = ((1, 3), (4, 6))
"""First and last component of each 3-D view."""


def position_colors() -> Colormap:
    """Colors from the start to the end of a walk: dark to light, but none lost on white."""
    return ListedColormap(mpl.colormaps["viridis"](np.linspace(0, 0.74, 256)))


def explained_variance(*pcas: PCA, title: str = "") -> Figure:
    """Share of the variance that each component explains, as bars, and all up to it, as a line.

    Args:
        pcas: Of the same points, for example scaled and unscaled; a panel each.
        title: Above the panels.

    Returns:
        The figure, for the caller to change or save.
    """
    with style():
        figure = Figure(figsize=(1.2 + 3.6 * len(pcas), 3.4), layout="constrained")
        panels = figure.subplots(1, len(pcas), sharey=True, squeeze=False)[0]
        for axes, pca in zip(panels, pcas, strict=True):
            _bars(axes, pca.explained_variance_ratio)
            axes.set_title("scaled coordinates" if pca.scaled else "coordinates as they are")
        panels[0].set_ylabel("explained share of the variance")
        panels[-1].legend(frameon=False, loc="center right")
        say(figure, title, [points_sentence(pcas[0]), *map(scaling_sentence, pcas)])
    return figure


def pca_views(pca: PCA, *, ends: Mapping[str, Array] | None = None, title: str = "") -> Figure:
    """3-D views of components 1 to 3 and 4 to 6.

    Every kept point is colored by its position along its walk; crosses are the runs' means, and
    the mean end point of the walks and further ones have marks of their own.

    Args:
        pca: Of the points of walks.
        ends: Scores of further points to mark, shape (components,), by their label; for example
            `{"weight decay 1e-3": pca.transform(point)[0]}`.
        title: Above the views.

    Returns:
        The figure, for the caller to change or save.
    """
    views = [view for view in VIEWS if view[0] <= pca.scores.shape[1]]
    marks = {"mean end of the walks": mean_end(pca), **(ends or {})}
    colors = position_colors()
    with style():
        figure = Figure(figsize=(4.4 * len(views) + 0.2, 5.4), layout="constrained")
        points = None
        grid = figure.subplots(1, len(views), squeeze=False, subplot_kw={"projection": "3d"})[0]
        axes_3d: list[Any] = list(grid)  # Axes3D has methods that Axes has not
        for axes, (first, last) in zip(axes_3d, views, strict=True):
            for run in pca.runs:
                x = _three(run, first)
                axes.plot(*x.T, color="0.6", linewidth=0.5, zorder=1)
                points = axes.scatter(
                    *x.T, c=positions(len(run)), cmap=colors, vmin=0, vmax=1, s=7, linewidth=0,
                    depthshade=False,
                )  # fmt: skip
            means = np.array([_three(run, first).mean(axis=0) for run in pca.runs if len(run)])
            axes.scatter(
                *means.T, marker="x", color="black", s=28, depthshade=False, label="mean of a run"
            )
            for (label, mark), shape, color in zip(marks.items(), "D*^s", COLORS[1:] * 2):  # noqa: B905
                axes.scatter(
                    *_three(mark[None], first).T, marker=shape, color=color, s=60,
                    edgecolor="black", linewidth=0.6, label=label, depthshade=False,
                )  # fmt: skip
            ratio = pca.explained_variance_ratio[first - 1 : last]
            axes.set_title(
                f"components {first} to {last}: {percent(ratio.sum())} of the variance",
                fontsize=9,
            )
            for axis, number in zip((axes.xaxis, axes.yaxis, axes.zaxis), range(first, last + 1)):  # noqa: B905
                axis.set_major_locator(MaxNLocator(4))
                axis.set_label_text(f"component {number}", fontsize=8)
                axis.set_tick_params(labelsize=7, pad=0)
                axis.labelpad = 0
            axes.set_box_aspect(None, zoom=0.9)
        if points is not None:
            bar = figure.colorbar(
                points,
                ax=axes_3d,
                location="bottom",
                shrink=0.5,
                aspect=40,
                pad=0,
                ticks=[0, 0.5, 1],
            )
            bar.ax.set_xticklabels(["start", "half", "end"])
            bar.set_label("position along the walk (kept points)")
        axes_3d[0].legend(loc="upper left", frameon=False, fontsize=8, borderaxespad=0)
        say(figure, title, [caption(pca)])
    return figure


def positions(count: int) -> Array:
    """Position of each kept point along its walk: 0 at the start, 1 at the end, shape (count,)."""
    return np.linspace(0.0, 1.0, count)


def mean_end(pca: PCA) -> Array:
    """Scores of the mean of the runs' last points, shape (components,)."""
    return np.mean([run[-1] for run in pca.runs if len(run)], axis=0)


def caption(pca: PCA) -> str:
    """What the views are of, how the coordinates are scaled, and how much they show."""
    shares = [
        f"{_range(pca.length_share(first, last))} (components {first} to {last})"
        for first, last in VIEWS
        if first <= pca.scores.shape[1]
    ]
    return (
        f"{points_sentence(pca)} {scaling_sentence(pca)} Of each walk's length the views hold "
        f"{' and '.join(shares)}: what looks short or straight here may not be so. Axes are scaled "
        f"separately."
    )


def points_sentence(pca: PCA) -> str:
    """Of how many points and runs a PCA is."""
    count = len(pca.counts)
    runs = "1 run" if count == 1 else f"{count} runs"
    return f"PCA of the {sum(pca.counts):,} kept points of {runs}."


def scaling_sentence(pca: PCA) -> str:
    """How the coordinates were scaled."""
    if pca.scaled:
        return "Every coordinate is divided by its standard deviation, as in the paper."
    return "Coordinates are not scaled: distances are those of the parameters."


def percent(share: float) -> str:
    """A share for people, to two figures or the whole percent: 0.9417 is 94 %."""
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def _bars(axes: Axes, ratio: Array) -> None:
    number = np.arange(1, len(ratio) + 1)
    axes.bar(number, ratio, color=COLORS[0], label="each")
    axes.plot(
        number, ratio.cumsum(), color=COLORS[1], marker="o", markersize=4, label="all up to it"
    )
    for x, r in zip(number.tolist(), ratio.tolist(), strict=True):
        if r < 0.001:
            continue  # nothing is seen, and long figures would run into each other
        inside = r > 0.12  # where the line would cross the figure above the bar
        axes.text(
            x, r - 0.04 if inside else r + 0.01, f"{100 * r:.2g}" if r < 0.995 else "100",
            ha="center", va="top" if inside else "bottom", fontsize=6.5,
            color="white" if inside else "black",
        )  # fmt: skip
    axes.set(ylim=(0, 1.04), xlabel="component")
    axes.xaxis.set_major_locator(MultipleLocator(1))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(visible=False, axis="x")
    axes.set_axisbelow(True)


def _range(shares: Array) -> str:
    shares = shares[np.isfinite(shares)]
    if not len(shares):
        return "nothing"
    low, high = percent(shares.min()), percent(shares.max())
    return low if low == high else f"{low} to {high}"


def _three(scores: Array, first: int) -> Array:
    """Three components from the first on, shape (points, 3); zeros where there are no more."""
    shown = scores[:, first - 1 : first + 2]
    return np.pad(shown, ((0, 0), (0, 3 - shown.shape[1])))
