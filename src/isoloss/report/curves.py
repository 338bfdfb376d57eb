"""Curves of a quantity along walks, and statistics over runs."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from isoloss.errors import unknown
from isoloss.path import Path

Array = NDArray[np.float64]
Methods = Mapping[str, Sequence[Path]]
"""The walks of each method, by its name."""

ABSCISSAE = ("step", "evaluations", "arc_length", "regularizer")
"""What a quantity can be seen against."""
CONFIDENCE = 0.95
RESAMPLES = 9_999
FEW = 6
"""Below as many pairs the exact Wilcoxon test cannot come below p = 0.05, whatever the data."""


@dataclass(frozen=True)
class Band:
    """Mean and standard deviation over runs, where all of them are, and the runs beyond.

    Runs of unequal length are not averaged where one has ended: the mean would jump there for no
    reason but that another set of runs is averaged. Beyond the part that all share, each run
    continues as a curve of its own.

    Attributes:
        x: Where all runs are, ascending, shape (points,).
        mean: Mean over the runs there, shape (points,).
        std: Sample standard deviation (n - 1) there, shape (points,); NaN of one run.
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
        The rows of `path.steps` except those that a corrector step follows, with a further column
        `progress`: the number of steps so far, corrector steps not counted.
    """
    kept, progress = _on_level(path)
    return path.steps.loc[kept].assign(progress=progress[kept])


def _on_level(path: Path) -> tuple[NDArray[np.bool_], Array]:
    """Which rows are on the level set, and the steps so far without the corrector's."""
    kind = path.steps["kind"].to_numpy(dtype=str)
    kept = np.append(kind[1:] != "correct", [True])[: len(kind)]
    return kept, np.cumsum((kind != "start") & (kind != "correct"))


def curve(path: Path, column: str, against: str = "step") -> tuple[Array, Array]:
    """A quantity along a walk.

    Args:
        path: The walk.
        column: A column of `Path.steps`; rows where it was not measured are left out.
        against: `"step"` (corrector steps not counted), `"evaluations"`, `"arc_length"` or
            `"regularizer"`. Against the regularizer only the points at which it is smaller than
            ever before are taken, so that there is one value for each.

    Returns:
        x, strictly ascending, and the values there, shape (points,) each.

    Raises:
        InputError: There is no such column or abscissa.
    """
    if against not in ABSCISSAE:
        raise unknown("abscissa", against, ABSCISSAE)
    if column not in path.steps:
        raise unknown("column", column, [str(name) for name in path.steps.columns])
    kept, progress = _on_level(path)
    x = _floats(progress if against == "step" else path.steps[against])
    y = _floats(path.steps[column])
    kept &= ~np.isnan(y)
    x, y = x[kept], y[kept]
    if against == "regularizer":
        x = -x  # it falls along the walk
    new = np.diff(np.maximum.accumulate(x), prepend=-np.inf) > 0
    x, y = x[new], y[new]
    return (-x[::-1], y[::-1]) if against == "regularizer" else (x, y)


def band(
    paths: Sequence[Path], column: str, against: str = "step", *, at_most: int | None = None
) -> Band:
    """Mean and standard deviation of a column over runs.

    Against the step, runs are averaged step by step where all were measured; against anything else,
    each run is interpolated linearly to every x at which any of them was measured.

    Args:
        paths: The runs, at least one.
        column: A column of `Path.steps`.
        against: As in `curve`.
        at_most: Take every k-th x, so that no more than these and the last one are averaged; None
            takes them all.

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
        grid = thin(_floats(common.index), at_most)
        values = _floats(common.loc[grid])
    else:
        grid = np.unique(np.concatenate([x for x, _ in curves]))
        grid = thin(grid[(low <= grid) & (grid <= high)], at_most)
        values = np.stack([np.interp(grid, x, y) for x, y in curves if len(x)] or [grid], axis=1)
    several = len(paths) > 1 and len(grid) > 0
    return Band(
        x=grid,
        mean=values.mean(axis=1),
        std=values.std(axis=1, ddof=1) if several else np.full(len(grid), np.nan),
        beyond=[part for x, y in curves for part in _outside(x, y, low, high)],
        runs=len(paths),
    )


def thin(values: Array, at_most: int | None) -> Array:
    """Every k-th value, no more than `at_most`, and the last."""
    every = -(-len(values) // at_most) if at_most else 1
    return values if every <= 1 else np.append(values[:-1:every], values[-1])


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


@dataclass(frozen=True)
class Summary:
    """A quantity over runs."""

    mean: float
    std: float  # of the sample (n - 1); NaN of one run
    low: float  # 95 % bootstrap interval of the mean; NaN of one run
    high: float
    interval: str  # how it was made: BCa, percentile where that is degenerate, or none
    runs: int  # without those that have no finite value


def summarize(values: Sequence[float] | Array) -> Summary:
    """Mean, spread and interval of a quantity, one value for each run.

    The interval is the bias-corrected and accelerated bootstrap of Efron (1987). It is degenerate
    where all values but one are equal, and the percentile bootstrap is taken there. From few runs
    either is too narrow.
    """
    array = _floats(values)
    finite = array[np.isfinite(array)]
    runs = len(finite)
    if runs < 2:
        mean = float(finite[0]) if runs else np.nan
        return Summary(mean, np.nan, np.nan, np.nan, "none", runs)
    mean, std = float(finite.mean()), float(finite.std(ddof=1))
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scipy warns where BCa is degenerate
            found: Any = stats.bootstrap(
                (finite,),
                np.mean,
                confidence_level=CONFIDENCE,
                n_resamples=RESAMPLES,
                method=method,
                rng=np.random.default_rng(0),
            ).confidence_interval
        if np.isfinite([found.low, found.high]).all():
            return Summary(mean, std, float(found.low), float(found.high), method, runs)
    return Summary(mean, std, np.nan, np.nan, "none", runs)


@dataclass(frozen=True)
class Change(Summary):
    """A change paired over runs: what is after, less what was before."""

    t_p: float  # paired t-test, two-sided; NaN of fewer than two pairs
    wilcoxon_p: float  # signed-rank test, two-sided, exact for few pairs without ties
    note: str  # what must be said of the tests


def paired_change(before: Sequence[float] | Array, after: Sequence[float] | Array) -> Change:
    """How a quantity changed, run by run; pairs that are not finite are left out."""
    difference = _floats(after) - _floats(before)
    difference = difference[np.isfinite(difference)]
    summary = asdict(summarize(difference))
    if len(difference) < 2:
        return Change(**summary, t_p=np.nan, wilcoxon_p=np.nan, note="one run: no test")
    notes: list[str] = []
    if np.ptp(difference) <= 1e-12 * np.abs(difference).max():
        # the t-test has no spread to divide by, except that of rounding
        t_p = np.nan if difference.any() else 1.0
        notes.append("all runs change alike: no t-test")
    else:
        test: Any = stats.ttest_1samp(difference, 0.0)
        t_p = float(test.pvalue)
    if np.all(difference == 0):
        wilcoxon_p = 1.0
    else:
        tied = len(np.unique(np.abs(difference))) < len(difference) or bool((difference == 0).any())
        ranked: Any = stats.wilcoxon(difference, method="approx" if tied else "exact")
        wilcoxon_p = float(ranked.pvalue)
    if len(difference) < FEW:
        least = 2.0 ** (1 - len(difference))
        notes.append(f"{len(difference)} runs: Wilcoxon's p cannot be below {least:.3g}")
    return Change(**summary, t_p=t_p, wilcoxon_p=wilcoxon_p, note="; ".join(notes))
