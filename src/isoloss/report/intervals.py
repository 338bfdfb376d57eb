"""Intervals of quantities on a level set, as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from isoloss.arguments import checked
from isoloss.explore.extent import Extent, Extents
from isoloss.outcome import Outcome
from isoloss.report.page import caption, color, drawing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_NAMES = 40
"""Quantities up to which each has its name beside its interval."""
STATIONARY = {Outcome.CONVERGED}


@checked
def extent_intervals(extents: Extent | Extents, *, title: str = "", label: str = "") -> Figure:
    """A bar from the least to the largest value of each quantity, with the value at the start.

    In the order of the values at the start. An end is filled where it is stationary on the level
    set, and open where the walk stopped before, so that the interval may be wider.

    Args:
        extents: What `isoloss.extent` returns.
        title: Above the panel.
        label: Of the quantity and its unit; by default the name of the only one, or "quantity".

    Returns:
        A matplotlib figure, to change, to save, or to show in a notebook.

    Raises:
        InputError: matplotlib is not installed.
    """
    several = [extents] if isinstance(extents, Extent) else list(extents.values())
    ranked = sorted(several, key=lambda one: one.start)
    at = np.arange(len(ranked))
    named = len(ranked) <= MOST_NAMES
    height = 1.3 + (0.24 * len(ranked) if named else 4.0)
    with drawing(6.4, height, title) as figure:
        axes = figure.subplots()
        low, high, start = (
            np.array([getattr(one, what) for one in ranked]) for what in ("low", "high", "start")
        )
        size = 4.5 if named else 2.5
        axes.hlines(at, low, high, color=color(0), linewidth=2.4 if named else 1.0, alpha=0.45)
        stopped = False
        for values, side in ((low, "low_end"), (high, "high_end")):
            done = np.array([getattr(one, side).outcome in STATIONARY for one in ranked])
            stopped = stopped or not done.all()
            for which, face in ((done, color(0)), (~done, "white")):
                axes.plot(
                    values[which], at[which], "o", markersize=size, color=color(0),
                    markerfacecolor=face, markeredgewidth=0.9,
                )  # fmt: skip
        axes.plot(start, at, "|", markersize=3 * size, color=color(1), markeredgewidth=1.6)
        axes.set_ylim(len(ranked) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.set_yticks(at if named else [], [one.name for one in ranked] if named else [])
        if not named:
            axes.set_ylabel(f"{len(ranked)} quantities, by the value at the start")
        axes.set_xlabel(label or (ranked[0].name if len(ranked) == 1 else "quantity"))
        said = "Vertical marks: the start. Bars: values of networks found at the level held."
        ends = (
            "Filled ends are stationary on the level set; open ones are where a walk stopped, "
            "so that the interval may be wider."
            if stopped
            else "All ends are stationary on the level set."
        )
        caption(figure, [said, ends])
    return figure
