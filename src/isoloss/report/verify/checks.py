"""A check, and columns of a run held against the same computed again in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from isoloss.experiments.catalog import Data, Experiment
from isoloss.problem import Problem

AGREEMENT = {"float32": 1e-3, "float64": 1e-9}
"""Largest relative difference of a recorded number from the same in float64. Rounding of a float32
forward pass grows with the layers and as the loss nears zero; a wrong number is off by far more."""
DIRECTION = {"float32": 2e-4, "float64": 1e-9}
"""Largest difference of an angle, in radians, of its sine, and of the slope of R over that of L."""
NOT_DONE = "not done"
OF_SLOPES = ("angle_degrees", "kkt_residual", "equivalent_penalty")

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Check:
    """One thing that was checked of a run."""

    run: str  # where it is, below the folder that was given
    what: str
    found: str  # the worst
    allowed: str  # the most that is right; empty where there is nothing to judge
    problem: str = ""  # what is wrong, a sentence


def facts(run: str, what: str, problems: list[str], right: str = "consistent") -> Iterator[Check]:
    """A check for each problem; one that there is none."""
    if not problems:
        yield Check(run, what, right, right)
    for problem in problems:
        yield Check(run, what, "wrong", right, problem)


def problems(known: Experiment, seed: int, data: Data) -> tuple[Problem, Problem, float | None]:
    """The training and test loss in float64, and how much an accuracy may be off."""
    model, metric = known.network(seed), known.metric
    training, test = (
        Problem(model, known.loss, pair, metric=metric, dtype=torch.float64)
        for pair in ((data.inputs, data.targets), (data.test_inputs, data.test_targets))
    )
    # an example whose two best classes are equal to rounding may change sides
    fewest = min(training.examples, test.examples)
    return training, test, max(1.5 / fewest, 5e-4) if metric == "accuracy" else None


def columns(
    run: str,
    recorded: pd.DataFrame,
    again: pd.DataFrame,
    needed: Mapping[str, NDArray[np.bool_]],
    dtype: str,
    flips: float | None,
    rounded: Callable[[], pd.DataFrame] | None = None,
    prefix: str = "",
) -> Iterator[Check]:
    """Each column against the same computed again, wherever it was measured or is needed; that in
    the type of the walk, which `rounded` gives, is for where rounding matters more than usual."""
    for column in map(str, again.columns.drop("slope", errors="ignore")):
        what = prefix + column
        if column not in recorded:
            yield Check(run, what, "missing", "recorded", f"{what} is not recorded")
            continue
        measured = recorded[column].notna().to_numpy()
        absent = int((needed.get(column, measured) & ~measured).sum())
        if absent:
            wrong = f"{what} is not a number at {absent} of the kept points that need it"
            yield Check(run, what, f"{absent} not a number", "0", wrong)
        if not measured.any():
            continue
        before = recorded.loc[measured, column].to_numpy(float)
        now: pd.DataFrame = again.loc[measured]
        off, allowed = _off(column, before, now), np.full(len(before), AGREEMENT[dtype])
        if column in OF_SLOPES:
            allowed[:] = DIRECTION[dtype]
            if rounded is not None and not (off <= allowed).all():
                there = _off(column, rounded().loc[measured, column].to_numpy(float), now)
                allowed = np.maximum(allowed, 10 * there)
        elif column.endswith("_metric") and flips is not None:
            off, allowed[:] = np.abs(before - now[column].to_numpy(float)), flips
        worst = int(np.argmax(np.where(np.isnan(off), np.inf, off - allowed)))
        yield bound(run, what, float(off[worst]), float(allowed[worst]), len(before))


def _off(column: str, before: Array, now: pd.DataFrame) -> Array:
    """How far numbers of a column are from the same computed again."""
    right = now[column].to_numpy(float)
    if column == "angle_degrees":
        return np.radians(np.abs(before - right))
    if column == "kkt_residual":
        return np.abs(before - right)
    if column == "equivalent_penalty":
        return np.abs(1 / before - 1 / right) * now["slope"].to_numpy()
    return np.abs(before - right) / np.maximum(np.abs(right), 1e-12)


def bound(run: str, what: str, worst: float, allowed: float, count: int) -> Check:
    wrong = "" if worst <= allowed else f"{what} is off by {worst:.3g}, {allowed:.3g} is allowed"
    return Check(run, f"{what} ({count})", f"{worst:.2g}", f"{allowed:.2g}", wrong)
