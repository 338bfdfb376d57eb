"""Curves of a quantity along walks, and their mean and spread over the runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from isoloss.errors import unknown
from isoloss.path import Path

Array = NDArray[np.float64]

ABSCISSAE = ("step", "evaluations", "arc_length", "regularizer")
"""What a quantity can be seen against."""


@dataclass(frozen=True)
class Band:
    """Mean and standard deviation over runs, where all of them are, and what goes on beyond.

    Runs of unequal length are not averaged where one has ended: the mean would jump there for no
    reason but that another set of runs is averaged. Beyond the part that all share, each run goes
    on as a curve of its own.

    Attributes:
        x: Where all runs are, ascending.
        mean: Mean over the runs there.
        std: Sample standard deviation (n - 1) there; NaN of one run.
        beyond: (x, values) of each part of a run that not all share.
        runs: Number of runs.
    """

    x: Array
    mean: Array
    std: Array
    beyond: list[tuple[Array, Array]]
    runs: int


def on_level(path: Path) -> pd.DataFrame:
    """The rows of a walk's points on the level set, numbered by the steps along it.

    Args:
        path: A walk.

    Returns:
        Its rows but those that a corrector step follows, with a column `progress`: the number of
        steps so far without the corrector's.
    """
    steps = path.steps
    progress = (~steps["kind"].isin(["start", "correct"])).cumsum()
    corrected = steps["kind"].shift(-1) == "correct"
    return steps.assign(progress=progress).loc[~corrected]


def curve(path: Path, column: str, against: str = "step") -> tuple[Array, Array]:
    """A quantity along a walk.

    Args:
        path: The walk.
        column: A column of `Path.steps`; rows where it was not measured are left out.
        against: `"step"` (the corrector's not counted), `"evaluations"`, `"arc_length"` or
            `"regularizer"`. Against the regularizer only the points at which it is smaller than at
            all before are taken, so that there is one value for each.

    Returns:
        x, strictly ascending, and the values there, shape (points,) each.

    Raises:
        InputError: There is no such column or abscissa.
    """
    if against not in ABSCISSAE:
        raise unknown("abscissa", against, ABSCISSAE)
    if column not in path.steps:
        raise unknown("column", column, [str(name) for name in path.steps.columns])
    rows = on_level(path).dropna(subset=[column])
    x, y = _floats(rows["progress" if against == "step" else against]), _floats(rows[column])
    if against == "regularizer":
        x, y = -x, y  # it falls along the walk
    new = np.diff(np.maximum.accumulate(x), prepend=-np.inf) > 0
    x, y = x[new], y[new]
    return (-x[::-1], y[::-1]) if against == "regularizer" else (x, y)


def band(paths: Sequence[Path], column: str, against: str = "step") -> Band:
    """Mean and standard deviation of a column over runs.

    Against the step, runs are averaged step by step where all were measured; against anything else,
    each run is interpolated linearly to every x at which any of them was measured.

    Args:
        paths: The runs, at least one.
        column: A column of `Path.steps`.
        against: As in `curve`.

    Returns:
        The band.

    Raises:
        InputError: There is no such column or abscissa.
    """
    curves = [curve(path, column, against) for path in paths]
    low = max((x[0] if len(x) else np.inf for x, _ in curves), default=np.inf)
    high = min((x[-1] if len(x) else -np.inf for x, _ in curves), default=-np.inf)
    if against == "step":
        table = pd.concat([pd.Series(y, index=x) for x, y in curves], axis=1).loc[low:high]
        common = table.dropna()
        grid, values = _floats(common.index), _floats(common)
    else:
        grid = np.unique(np.concatenate([x for x, _ in curves]))
        grid = grid[(low <= grid) & (grid <= high)]
        values = np.stack([np.interp(grid, x, y) for x, y in curves if len(x)] or [grid], axis=1)
    several = len(paths) > 1 and len(grid) > 0
    return Band(
        x=grid,
        mean=values.mean(axis=1),
        std=values.std(axis=1, ddof=1) if several else np.full(len(grid), np.nan),
        beyond=[part for x, y in curves for part in _outside(x, y, low, high)],
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


def _floats(values: object) -> Array:
    return np.asarray(values, dtype=np.float64)
