"""No more than is drawn: a walk's steps as far as a picture and the tables need them, of many
runs a few."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from isoloss.path import Path
from isoloss.report.statistics import Array
from isoloss.report.tables import on_level
from isoloss.store import Results

MOST_VERTICES = 1500  # of a curve: more than there are pixels only make the file large
MOST_ROWS = 150_000  # of all walks by a method, as far as a curve keeps its shape
FEWEST_ROWS = 100
MOST_SINGLE = 50  # runs drawn one by one, beside the mean over all

T = TypeVar("T")


class Drawn(Results):
    """Results of which no more is kept in memory than a report draws."""

    def _keep(self, path: Path, runs: int) -> Path:
        return thinned(path, min(MOST_VERTICES, max(FEWEST_ROWS, MOST_ROWS // runs)))


def thinned(path: Path, at_most: int) -> Path:
    """A walk with the rows that curves of so many vertices and all tables need: of each column
    evenly chosen ones where it was measured, the first, the last, the least and the greatest."""
    rows, steps = on_level(path), path.steps
    here = np.searchsorted(steps.index.to_numpy(), rows.index.to_numpy())
    progress, wanted = np.full(len(steps), -1), np.zeros(len(steps), dtype=bool)
    progress[here] = rows["progress"]
    wanted[[0, here[0], here[-1]]] = True
    for values in rows.select_dtypes("number").to_numpy(dtype=float).T:
        measured = np.flatnonzero(~np.isnan(values))
        if len(measured):
            values = values[measured]
            extremes = measured[[values.argmin(), values.argmax()]]
            wanted[here[measured[evenly(len(measured), at_most)]]] = True
            wanted[here[extremes]] = True
    kept = np.asarray(path.point_steps, dtype=int)
    wanted[kept[evenly(len(kept), at_most)]] = True
    return replace(path, steps=steps.assign(progress=progress)[wanted])


def evenly(count: int, at_most: int) -> NDArray[np.intp]:
    """Positions of `at_most` of so many, the first and the last among them; or of all."""
    return np.linspace(0, count - 1, min(count, at_most)).round().astype(np.intp)


def thin(values: Array, at_most: int | None) -> Array:
    """Every k-th value, no more than `at_most`, and the last."""
    every = -(-len(values) // at_most) if at_most else 1
    return values if every <= 1 else np.append(values[:-1:every], values[-1])


def few(runs: Iterable[T]) -> list[T]:
    """Those that are drawn one by one: all, or evenly chosen ones of very many."""
    every = list(runs)
    return [every[k] for k in evenly(len(every), MOST_SINGLE)]


def single(runs: Sequence[object]) -> str:
    """What thin lines are, for people."""
    many = len(runs) > MOST_SINGLE
    return f"{MOST_SINGLE} of the {len(runs):,} single runs" if many else "single runs"
