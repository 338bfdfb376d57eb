"""Fronts: the least regularizer at each level of the loss, beside the networks of weight decay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from isoloss.arguments import check_columns, checked
from isoloss.errors import InputError, IsolossError
from isoloss.explore.front import SAME, Front
from isoloss.report.comparison import draw_decay, penalty_bar
from isoloss.report.page import Section, Table, color, count, drawing, number, picture
from isoloss.report.statistics import Array
from isoloss.store import Results
from isoloss.store.folder import runs_in

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Fronts = dict[str, Front]
"""Fronts by the names of their runs."""

WIDE = 200
"""Ratio of an axis's ends above which it has a label at each power of ten alone."""
DIRECTIONS = {"rising": "-", "falling": "--"}


@checked
def front_panels(
    fronts: Front | Sequence[Front], decay: pd.DataFrame | None = None, *, title: str = ""
) -> Figure:
    """The least regularizer at each level of the loss, and the test loss there.

    Thin lines are the two directions of each start; full dots are the best end at each level. The
    test loss has a panel of its own where the fronts have a probe named test.

    Args:
        fronts: A front, or several.
        decay: What `Results.decay` returned, to be drawn as dots colored by the penalty; beside the
            regularizer only where that is the squared norm.
        title: Above all panels.

    Raises:
        InputError: There is no front.
    """
    several = [fronts] if isinstance(fronts, Front) else list(fronts)
    if not several:
        raise InputError("fronts must hold a front at least, got none")
    names = dict.fromkeys(front.regularizer for front in several)
    label = " or ".join(name.replace("_", " ") for name in names)
    panels = {"regularizer": f"regularizer R ({label})"}
    if all("test_loss" in front.table for front in several):
        panels["test_loss"] = "test loss"
    if decay is None or not len(decay):
        decay = pd.DataFrame()
    else:
        check_columns("decay", decay, "penalty", "train_loss", "squared_norm", "test_loss")
        decay = _near(decay, several)
    penalties = sorted(decay["penalty"].unique()) if len(decay) else []
    with drawing(0.9 + 4.3 * len(panels), 4.0, title) as figure:
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for panel, (column, words) in zip(axes, panels.items(), strict=True):
            shown = "squared_norm" if column == "regularizer" else column
            if shown == column or [*names] == [shown]:
                draw_decay(panel, decay, penalties, "train_loss", shown)
            for k, front in enumerate(several):
                _draw(panel, front, column, color(k))
            panel.set(xlabel="training loss c", ylabel=words)
            ends = [front.table[["loss", column]].dropna() for front in several]
            _scale(panel, pd.concat(ends).to_numpy(float))
        figure.legend(handles=_legend(decay=bool(penalties)), loc="outside upper right", ncols=4)
        if penalties:
            penalty_bar(figure, axes, penalties)
    return figure


def read_fronts(results: Results, experiment: str) -> tuple[dict[str, Fronts], dict[str, str]]:
    """The fronts of an experiment by regularizer, and why others could not be read, by run."""
    found: dict[str, Fronts] = {}
    missing: dict[str, str] = {}
    for place in sorted((results.folder / experiment / "front").glob("[!.]*")):
        for folder in runs_in(place)[0]:
            try:
                found.setdefault(place.name, {})[folder.name] = Front.load(folder)
            except IsolossError as error:
                missing[f"front of {place.name}, {folder.name}"] = str(error)
    return {name: fronts for name, fronts in found.items() if fronts}, missing


def fronts_table(fronts: Mapping[str, Fronts]) -> pd.DataFrame:
    """All ends of all fronts below one another, with regularizer's name and run before them."""
    tables: list[pd.DataFrame] = []
    for name, runs in fronts.items():
        for run, front in runs.items():
            table = front.table.copy()
            table.insert(0, "front", name)
            table.insert(1, "run", run)
            tables.append(table)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def shown_fronts(fronts: Mapping[str, Fronts]) -> Table:
    """A row for each front, for people."""
    rows: list[list[str]] = []
    for name, runs in fronts.items():
        for run, front in runs.items():
            best = front.best.to_dict("records")
            first, last = (best[0], best[-1]) if best else ({}, {})
            ends = [
                f"{number(first.get(column))} to {number(last.get(column))}"
                for column in ("loss", "regularizer", "test_loss")
            ]
            counts = (len(best), len(front.folds), front.evaluations)
            rows.append([f"{name}, {run}", *ends, *map(number, counts)])
    return Table(
        title="Every front",
        columns=["front", "loss", "best R", "test loss", "levels", "folds", "evaluations"],
        rows=rows,
        caption="From the lowest level that was reached to the highest. A fold is a level at which "
        "walks from below and from above end at different R.",
    )


def fronts_section(
    fronts: Mapping[str, Fronts], decay: pd.DataFrame, experiment: str, folder: FilePath
) -> list[Section]:
    """The section of fronts, where there are any."""
    if not fronts:
        return []
    text = [
        "At each level of the training loss, the least regularizer R that walks from level to "
        "level found, up in loss and down again. Where the front is concave, no penalty's minimum "
        "lies: for each weight of R, loss and weight times R are together lower elsewhere.",
    ]
    pictures = []
    for name, runs in fronts.items():
        said = _concave(name, runs)
        said += _compared(runs, decay) if name == "squared_norm" else ""
        text.append(said)
        pictures.append(
            picture(
                front_panels(list(runs.values()), decay, title=f"{experiment}, {name}"),
                folder,
                f"front-{name.replace('_', '-')}",
                title=f"Least {name.replace('_', ' ')} at each training loss",
                alt=f"Regularizer and test loss of the fronts of {count(len(runs))} against the "
                f"training loss, as curves, beside networks trained with weight decay, as dots. "
                f"{said}",
            )
        )
    table = shown_fronts(fronts)
    return [Section(title="Fronts", text=text, tables=[table], pictures=pictures)]


def _concave(name: str, fronts: Fronts) -> str:
    """How many levels lie on concave parts of their fronts, in a sentence."""
    bests = [front.best for front in fronts.values()]
    above = sum(
        int(above_hull(best["loss"].to_numpy(float), best["regularizer"].to_numpy(float)).sum())
        for best in bests
    )
    return (
        f"Of {sum(map(len, bests))} levels of {name.replace('_', ' ')}, {above} lie on concave "
        f"parts of their fronts. "
    )


def above_hull(level: Array, least: Array) -> NDArray[np.bool_]:
    """Which points of a front, levels ascending, lie above the convex hull of all, by 0.2 %."""
    hull: list[int] = []
    for k in range(len(level)):
        while len(hull) > 1:
            i, j = hull[-2:]
            slope = (least[k] - least[i]) / (level[k] - level[i])
            if least[j] < least[i] + slope * (level[j] - level[i]):
                break
            hull.pop()
        hull.append(k)
    below = np.interp(level, level[hull], least[hull]) if hull else least
    return least - below > SAME * np.abs(least)


def _compared(fronts: Fronts, decay: pd.DataFrame) -> str:
    """How far the networks of weight decay lie above the front of their run, in a sentence."""
    shares: list[float] = []
    for run, front in fronts.items():
        best = front.best
        if not len(best):
            continue
        level, least = (np.log(best[name].to_numpy(float)) for name in ("loss", "regularizer"))
        mine: Any = decay[decay["run"] == int(run.removeprefix("run-"))] if len(decay) else decay
        for row in mine.to_dict("records"):
            at = np.log(row["train_loss"])
            if level[0] <= at <= level[-1]:
                shares.append(row["squared_norm"] / float(np.exp(np.interp(at, level, least))))
    if not shares:
        return ""
    above, least, most = sum(share > 1 for share in shares), min(shares), max(shares)
    return (
        f"Of {len(shares)} networks of weight decay whose training loss is in the range of their "
        f"run's front, {above} lie above it; their squared norm, biases included, is {least:.3g} "
        f"to {most:.3g} times the front's, the median {np.median(shares):.3g} times."
    )


def _near(decay: pd.DataFrame, fronts: Sequence[Front]) -> pd.DataFrame:
    """The networks of weight decay whose loss is near the levels; others would shrink the rest."""
    levels: Array = np.concatenate([front.table["level"].to_numpy(float) for front in fronts])
    loss = decay["train_loss"].to_numpy(float)
    near = (0.5 * levels.min() <= loss) & (loss <= 1.5 * levels.max())
    return decay.loc[near, :]


def _draw(panel: Axes, front: Front, column: str, shade: str) -> None:
    table: Any = front.table
    for _, of_start in table.groupby("start"):
        for direction, style in DIRECTIONS.items():
            # down again it comes from the top, which is not walked anew
            top = of_start["level"] == table["level"].max()
            mine = top | (of_start["direction"] == direction)
            rows = of_start[mine].dropna(subset=["regularizer"])
            panel.plot(rows["loss"], rows[column], style, color=shade, linewidth=0.8, alpha=0.8)
    best = front.best
    panel.plot(best["loss"], best[column], "o", color=shade, markersize=4, zorder=5)


def _scale(panel: Axes, ends: Array) -> None:
    """Logarithmic axes where all ends, shape (ends, 2), are positive, with few labels."""
    from matplotlib.ticker import LogLocator, NullLocator

    axes = (panel.set_xscale, panel.xaxis), (panel.set_yscale, panel.yaxis)
    for (scale, axis), values in zip(axes, ends.T, strict=True):
        if not len(values) or values.min() <= 0:
            continue
        scale("log")
        wide = values.max() > WIDE * values.min()
        axis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter("{x:g}")


def _legend(*, decay: bool) -> list[Any]:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color="0.3", linestyle="none", marker="o", markersize=4, label="best end"),
        Line2D([], [], color="0.3", linewidth=0.8, label="up in loss"),
        Line2D([], [], color="0.3", linewidth=0.8, linestyle="--", label="down in loss"),
    ]
    if decay:
        label = "weight decay, mean of a penalty"
        mark: Any = {"marker": "o", "markeredgecolor": "black"}
        handles.append(Line2D([], [], color="0.6", label=label, **mark))
    return handles
