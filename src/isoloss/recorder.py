"""Collects the rows and points of a walk."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from isoloss.methods import State
from isoloss.path import COLUMNS, Record, Row
from isoloss.problem import Problem


@dataclass(frozen=True, slots=True)
class Kept:
    """Weights that are kept.

    Attributes:
        count: Points on the level set before this one.
        step: The step.
        theta: The weights, shape (n,).
    """

    count: int
    step: int
    theta: Tensor


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a recorder holds between two steps; another one goes on from it.

    Attributes:
        rows: At least the rows so far; the recorder may append to them.
        length: How many of these there are so far.
        seconds: Time used.
        arc_length: Sum of the step lengths.
        on_level: Points on the level set.
        progress: Steps, corrections not counted.
        spacing: Points on the level set from one that is kept to the next, now.
        kept: Weights that are kept.
        last: The last point on the level set.
    """

    rows: list[Row]
    length: int
    seconds: float
    arc_length: float
    on_level: int
    progress: int
    spacing: int
    kept: tuple[Kept, ...]
    last: Kept | None


class Recorder:
    """Keeps what `Record` asks for, as the walk goes."""

    def __init__(
        self,
        record: Record,
        probes: Mapping[str, Problem],
        level: float,
        before: Recorded | None = None,
    ) -> None:
        if before is None:
            before = Recorded([], 0, 0.0, 0.0, 0, 0, record.points_every, (), None)
        self._record = record
        self._probes = probes
        self._level = level
        self._unmeasured = {
            f"{name}_{what}": math.nan for name in probes for what in ("loss", "metric")
        }
        self._started = time.perf_counter() - before.seconds
        self._arc = before.arc_length
        self._on_level = before.on_level
        self._spacing = before.spacing
        self._kept = before.kept
        self._last = before.last
        self.rows = before.rows[: before.length]
        self.progress = before.progress

    def recorded(self) -> Recorded:
        """What there is so far; what is added later does not change it."""
        return Recorded(
            rows=self.rows,
            length=len(self.rows),
            seconds=self._seconds(),
            arc_length=self._arc,
            on_level=self._on_level,
            progress=self.progress,
            spacing=self._spacing,
            kept=self._kept,
            last=self._last,
        )

    def add(self, state: State, evaluations: int) -> Row:
        """Record the state after a step."""
        point = state.point
        step = len(self.rows)
        self._arc += state.step_length
        self.progress += state.kind not in ("start", "correct")
        row: Row = {
            "step": step,
            "kind": state.kind,
            "evaluations": evaluations,
            "seconds": self._seconds(),
            "loss": point.loss,
            "level_error": (point.loss - self._level) / self._level,
            "regularizer": point.regularizer,
            "angle_degrees": point.angle_degrees,
            "kkt_residual": point.kkt_residual,
            "equivalent_penalty": point.equivalent_penalty,
            "step_length": state.step_length,
            "arc_length": self._arc,
            **self._unmeasured,
        }
        self.rows.append(row)
        if state.on_level:
            count, self._on_level = self._on_level, self._on_level + 1
            # kept before the probes run, so that Ctrl-C in one of them loses nothing
            self._last = Kept(count, step, point.theta)
            if count % self._spacing == 0:
                self._keep(self._last)
            if count % self._record.probes_every == 0:
                self._measure(row, point.theta)
        return row

    def finish(self) -> tuple[pd.DataFrame, Tensor, list[int]]:
        """The steps, the points kept, shape (points, n), and the step of each.

        The last point on the level set is measured and among them; recording may continue.
        """
        kept = self._kept
        if self._last is not None:
            row = self.rows[self._last.step]
            if any(math.isnan(row[column]) for column in self._unmeasured):
                self._measure(row, self._last.theta)
            if kept[-1].step != self._last.step:
                limit = self._record.points_at_most
                full = limit is not None and len(kept) == limit
                kept = (*kept[: -1 if full else None], self._last)
        steps = pd.DataFrame(self.rows, columns=[*COLUMNS, *self._unmeasured])
        points = [one.theta for one in kept]
        stacked = torch.stack(points) if points else torch.empty(0)
        return steps, stacked, [one.step for one in kept]

    def _seconds(self) -> float:
        return time.perf_counter() - self._started

    def _measure(self, row: Row, theta: Tensor) -> None:
        for name, probe in self._probes.items():
            row[f"{name}_loss"], row[f"{name}_metric"] = probe.evaluate(theta)

    def _keep(self, entry: Kept) -> None:
        self._kept = (*self._kept, entry)
        limit = self._record.points_at_most
        if limit is not None and len(self._kept) > limit:
            self._spacing *= 2
            self._kept = tuple(kept for kept in self._kept if kept.count % self._spacing == 0)
