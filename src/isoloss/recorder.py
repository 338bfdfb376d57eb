"""Collects the rows and points of a walk."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import pandas as pd
import torch
from torch import Tensor

from isoloss.methods.method import State
from isoloss.path import COLUMNS, Record, Row
from isoloss.problem import Problem


class Recorder:
    """Keeps what `Record` asks for, as the walk goes.

    Args:
        record: What to keep.
        probes: What to measure, by name.
        level: The loss held.
    """

    def __init__(self, record: Record, probes: Mapping[str, Problem], level: float) -> None:
        self._record = record
        self._probes = probes
        self._level = level
        self._unmeasured = {
            f"{name}_{what}": math.nan for name in probes for what in ("loss", "metric")
        }
        self._started = time.perf_counter()
        self._arc = 0.0
        self._on_level = 0
        self._spacing = record.points_every
        self._kept: list[tuple[int, int, Tensor]] = []  # (count on level, step, theta)
        self._last: tuple[int, int, Tensor] | None = None
        self.rows: list[Row] = []
        self.progress = 0

    def add(self, state: State, evaluations: int) -> Row:
        """Record the state after a step.

        Args:
            state: Where the walk is.
            evaluations: Evaluations so far.

        Returns:
            The row.
        """
        point = state.point
        step = len(self.rows)
        self._arc += state.step_length
        self.progress += state.kind not in ("start", "correct")
        row: Row = {
            "step": step,
            "kind": state.kind,
            "evaluations": evaluations,
            "seconds": time.perf_counter() - self._started,
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
            self._last = (count, step, point.theta)
            if count % self._spacing == 0:
                self._keep(self._last)
            if count % self._record.probes_every == 0:
                self._measure(row, point.theta)
        return row

    def finish(self) -> tuple[pd.DataFrame, Tensor, list[int]]:
        """Measure and keep the last point on the level set.

        Returns:
            The steps, the points kept, shape (points, n), and the step of each.
        """
        if self._last is not None:
            row = self.rows[self._last[1]]
            if any(math.isnan(row[column]) for column in self._unmeasured):
                self._measure(row, self._last[2])
            if self._kept[-1] is not self._last:
                self._kept.append(self._last)
                limit = self._record.points_at_most
                if limit is not None and len(self._kept) > limit:
                    del self._kept[-2]
        columns = [*COLUMNS, *self._unmeasured]
        steps = pd.DataFrame(self.rows, columns=columns)
        points = [theta for _, _, theta in self._kept]
        stacked = torch.stack(points) if points else torch.empty(0)
        return steps, stacked, [step for _, step, _ in self._kept]

    def _measure(self, row: Row, theta: Tensor) -> None:
        for name, probe in self._probes.items():
            row[f"{name}_loss"], row[f"{name}_metric"] = probe.evaluate(theta)

    def _keep(self, entry: tuple[int, int, Tensor]) -> None:
        self._kept.append(entry)
        limit = self._record.points_at_most
        if limit is not None and len(self._kept) > limit:
            self._spacing *= 2
            self._kept = [kept for kept in self._kept if kept[0] % self._spacing == 0]
