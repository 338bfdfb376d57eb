"""Curves of a quantity along walks, and their mean and spread over the runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from isoloss.path import Path

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Band:
    """Mean and standard deviation over runs, where all of them are, and what goes on beyond.

    Runs of unequal length are not averaged where one has ended: the mean would jump there for no
    reason but that another set of runs is averaged. Beyond the shortest run each longer one goes on
    as a curve of its own.

    Attributes:
        steps: Step indices that every run reached, ascending.
        mean: Mean over the runs at these steps.
        std: Sample standard deviation (n - 1) there; NaN of one run.
        beyond: For each run longer than the shortest, its (steps, values) from there on.
        runs: Number of runs.
    """

    steps: Array
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


def band(paths: Sequence[Path], column: str) -> Band:
    """Mean and standard deviation of a column over runs, step by step.

    Args:
        paths: The runs, at least one.
        column: A column of `Path.steps`; rows where it was not measured are left out.

    Returns:
        The band.
    """
    curves = [_by_progress(path, column) for path in paths]
    table = pd.concat(curves, axis=1)
    shortest = min((curve.index[-1] for curve in curves if len(curve)), default=0)
    common = table.loc[:shortest].dropna()
    beyond = [
        (_floats(tail.index), _floats(tail))
        for tail in (curve.loc[shortest:] for curve in curves)
        if len(tail) > 1
    ]
    return Band(
        steps=_floats(common.index),
        mean=_floats(common.mean(axis=1)),
        std=_floats(common.std(axis=1, ddof=1)),
        beyond=beyond,
        runs=len(paths),
    )


def _by_progress(path: Path, column: str) -> pd.Series:
    rows = on_level(path).dropna(subset=[column])
    return pd.Series(_floats(rows[column]), index=_floats(rows["progress"]))


def _floats(values: object) -> Array:
    return np.asarray(values, dtype=np.float64)
