"""Collects the rows and points of a walk."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from isoloss.methods import State
from isoloss.path import COLUMNS, Record, Row
from isoloss.point import Tolerance
from isoloss.problem import Problem

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class Kept:
    """Weights that are kept."""

    count: int  # points on the level set before this one
    step: int
    theta: Tensor  # shape (n,)


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a recorder holds between two steps, for another one to continue from."""

    rows: list[Row]  # at least the rows so far; the recorder may append to them
    length: int  # how many of these there are so far
    seconds: float
    arc_length: float  # sum of the step lengths
    on_level: int  # points on the level set
    progress: int  # steps, corrections not counted
    spacing: int  # points on the level set from one that is kept to the next, now
    kept: tuple[Kept, ...]
    last: Kept | None  # the last point on the level set


class Recorder:
    """Keeps what `Record` asks for, as the walk goes."""

    def __init__(
        self,
        record: Record,
        probes: Mapping[str, Problem],
        level: float,
        tolerance: Tolerance,
        before: Recorded | None = None,
        began: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        first = Recorded([], 0, 0.0, 0.0, 0, 0, record.points_every, (), None)
        self._now = before or first  # but for rows and seconds
        self._record = record
        self._probes = probes
        self._level, self.tolerance = level, tolerance
        self._unmeasured = {
            f"{name}_{what}": math.nan for name in probes for what in ("loss", "metric")
        }
        self._clock = clock
        began = clock() if began is None else began
        self.before = self._now.seconds
        self._started = began - self.before
        self.rows = self._now.rows[: self._now.length]

    def anew(self, level: float) -> Recorder:
        """A recorder of the same things along another level."""
        return Recorder(self._record, self._probes, level, self.tolerance, clock=self._clock)

    @property
    def progress(self) -> int:
        """Steps so far, corrections not counted."""
        return self._now.progress

    @property
    def points(self) -> int:
        """Points on the level set so far."""
        return self._now.on_level

    @property
    def seconds(self) -> float:
        """Wall-clock time since the walk began, that before a checkpoint included."""
        return self._clock() - self._started

    def recorded(self) -> Recorded:
        """What there is so far; what is added later does not change it."""
        length = len(self.rows)
        return replace(self._now, rows=self.rows, length=length, seconds=self.seconds)

    def add(self, state: State, evaluations: float, held: Row | None = None) -> Row:
        """Record the state after a step, with the columns of what is held beside the level."""
        point, step = state.point, len(self.rows)
        arc_length = self._now.arc_length + state.step_length
        progress = self._now.progress + (state.kind not in ("start", "correct"))
        row: Row = {
            "step": step,
            "kind": state.kind,
            "evaluations": evaluations,
            "seconds": self.seconds,
            "loss": point.loss,
            "level_error": self.tolerance.error(point.loss, self._level),
            "regularizer": point.regularizer,
            "angle_degrees": point.angle_degrees,
            "kkt_residual": point.kkt_residual,
            "equivalent_penalty": point.equivalent_penalty,
            "step_length": state.step_length,
            "arc_length": arc_length,
            **(held or {}),
            **self._unmeasured,
        }
        self.rows.append(row)
        # kept before the probes run, so that Ctrl-C in one of them loses nothing
        count = self._now.on_level
        last = Kept(count, step, point.theta) if state.on_level else None
        self._now = replace(
            self._now,
            arc_length=arc_length,
            progress=progress,
            on_level=count + (last is not None),
            last=last or self._now.last,
        )
        if last is not None and count % self._now.spacing == 0:
            self._keep(last)
        if last is not None and count % self._record.probes_every == 0:
            self._measure(row, point.theta)
        return row

    def finish(self) -> tuple[pd.DataFrame, Tensor, list[int]]:
        """The steps, the points kept, shape (points, n), and the step of each; more may follow."""
        import pandas as pd  # slow to load

        kept, last = self._now.kept, self._now.last
        if last is not None:
            row = self.rows[last.step]
            if any(math.isnan(row[column]) for column in self._unmeasured):
                self._measure(row, last.theta)
            if kept[-1].step != last.step:
                full = len(kept) == self._record.points_at_most
                kept = (*kept[: -1 if full else None], last)
        known = {*COLUMNS, *self._unmeasured}
        held = [name for name in (self.rows[0] if self.rows else ()) if name not in known]
        steps = pd.DataFrame(self.rows, columns=[*COLUMNS, *held, *self._unmeasured])
        points = torch.stack([one.theta for one in kept]) if kept else torch.empty(0, device="cpu")
        return steps, points, [one.step for one in kept]

    def _measure(self, row: Row, theta: Tensor) -> None:
        for name, probe in self._probes.items():
            row[f"{name}_loss"], row[f"{name}_metric"] = probe.evaluate(theta)

    def _keep(self, entry: Kept) -> None:
        kept, spacing = (*self._now.kept, entry), self._now.spacing
        limit = self._record.points_at_most
        if limit is not None and len(kept) > limit:
            spacing *= 2
            kept = tuple(one for one in kept if one.count % spacing == 0)
        self._now = replace(self._now, kept=kept, spacing=spacing)
