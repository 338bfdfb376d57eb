"""A branch of a front followed from level to level, kept on disk while it goes on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path as FilePath
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from isoloss.checking.exact import in_float64
from isoloss.disk import ResultsError, quarantine, remove_folder
from isoloss.errors import InputError
from isoloss.explore.aside import beside
from isoloss.files import OUTCOME, read_ending, read_table, read_tensors, write_folder
from isoloss.flat import digest
from isoloss.methods import SQP
from isoloss.outcome import Outcome
from isoloss.path import POINTS, Path, Record, Row, Stop
from isoloss.problem import Problem
from isoloss.regularizers import AnyRegularizer, get_regularizer
from isoloss.settings import ONLY_IN_PYTHON
from isoloss.snapshot import differences, identity, identity_of_regularizer
from isoloss.store.checkpoint import Checkpoint
from isoloss.store.folder import FRONT
from isoloss.walking import walk

RISING, FALLING = "rising", "falling"
MEASURED = ("loss", "level_error", "regularizer", "kkt_residual", "equivalent_penalty")
COLUMNS = ("level", "start", "direction", *MEASURED, "outcome", "evaluations")
SAME_LOSS = 1e-6
"""Relative difference of losses up to which another machine may have rounded otherwise."""

Tell = Callable[[int, Row], bool]
"""Receives how many levels are done and the last row of the walk; True stops it."""


@dataclass(frozen=True)
class Plan:
    """What all branches of a front are followed by."""

    problem: Problem
    regularizer: AnyRegularizer
    levels: tuple[float, ...]  # ascending
    stop: Stop  # of each level's walk
    method: SQP
    rtol: float
    probes: Mapping[str, Problem]
    also: Mapping[str, Any]  # further arguments of `walk`
    folder: FilePath | None = None  # where branches are kept while they are followed
    every: float = 30.0  # seconds between two checkpoints of a walk

    @property
    def legs(self) -> list[tuple[float, str]]:
        """The levels in the order in which a branch takes them, up in loss and down again."""
        back = [(level, FALLING) for level in reversed(self.levels[:-1])]
        return [(level, RISING) for level in self.levels] + back

    def asked(self, start: Tensor) -> dict[str, Any]:
        """What determines a branch, as far as JSON can tell."""
        name = get_regularizer(self.regularizer, self.problem).name
        return {
            "start": digest(start),
            "problem": identity(self.problem),
            "regularizer": identity_of_regularizer(self.regularizer, name),
            "levels": list(self.levels),
            "stop": self.stop.model_dump(exclude=ONLY_IN_PYTHON),
            "method": self.method.model_dump(),
            "rtol": self.rtol,
            "probes": {name: identity(self.probes[name]) for name in sorted(self.probes)},
            **{name: identity(value) for name, value in self.also.items()},
        }


@dataclass
class Branch:
    """Where walks ended, level by level."""

    rows: list[Row]
    points: list[Tensor]  # NaN where the level was not reached

    @property
    def done(self) -> int:
        """Levels that were walked to their end."""
        return len(self.rows) - self.interrupted

    @property
    def interrupted(self) -> bool:
        """Whether the last walk was interrupted."""
        return bool(self.rows) and self.rows[-1]["outcome"] == Outcome.INTERRUPTED.value

    @property
    def last(self) -> int | None:
        """The last level that was reached; from there the next one is."""
        reached = [k for k in range(self.done) if not math.isnan(self.rows[k]["regularizer"])]
        return reached[-1] if reached else None

    @property
    def ended(self) -> bool:
        """Whether it does not reach further down: the next level has no end."""
        return any(
            row["direction"] == FALLING and math.isnan(row["regularizer"])
            for row in self.rows[-1:]
            if row["outcome"] != Outcome.INTERRUPTED.value
        )


def follow(plan: Plan, number: int, start: Tensor, tell: Tell) -> Branch:
    """Walk along each level, from where the walk along the one before has ended.

    Args:
        plan: What is asked of every branch.
        number: Of the start, which names its folder.
        start: Where to begin, shape (n,); beside it, where it is stationary on its own level.
        tell: Called with each row.

    Returns:
        The ends, up to the last level, to one that is not reached on the way down, or to where
        `tell` returned True.
    """
    start = beside(
        plan.problem, plan.regularizer, start, level=None, hold=plan.also.get("hold"),
        kkt_residual=plan.stop.kkt_residual,
    )  # fmt: skip
    kept = None if plan.folder is None else _Kept(plan.folder / f"start-{number:03d}", plan, start)
    branch = Branch([], []) if kept is None else kept.load()
    legs, before = plan.legs, None if kept is None else kept.walk(branch.last)
    for k in () if branch.ended else range(branch.done, len(legs)):
        level, direction = legs[k]
        current = None if kept is None else kept.walk(k)
        if current is None:
            keeper = None if kept is None else kept.keeper(k)
            begin = partial(_begin, plan, start) if before is None else before.moved
            current = begin(level, checkpoint=keeper)
        for row in current:
            if tell(k, row):
                current.interrupt("it was told to stop")
        path = current.path
        branch.rows.append(_end(plan, path, number, level, direction))
        missed = torch.full((plan.problem.size,), math.nan, dtype=plan.problem.dtype, device="cpu")
        branch.points.append(path.points[-1].cpu() if len(path.points) else missed)
        before = current if len(path.points) else before
        if branch.interrupted:
            break
        if kept is not None:
            kept.save(branch)
        if branch.ended:
            break
    return branch


def _begin(plan: Plan, start: Tensor, level: float, *, checkpoint: Checkpoint | None) -> walk:
    return walk(
        plan.problem, start=start, level=level, regularizer=plan.regularizer, method=plan.method,
        rtol=plan.rtol, stop=plan.stop, record=Record(points_at_most=2), checkpoint=checkpoint,
        **plan.also,
    )  # fmt: skip


def _end(plan: Plan, path: Path, number: int, level: float, direction: str) -> Row:
    """A row of the front's table."""
    last: Row = path.steps.iloc[-1].to_dict()
    row: Row = dict.fromkeys(COLUMNS, math.nan)
    row |= {"level": level, "start": number, "direction": direction}
    row |= {"outcome": path.outcome.value, "evaluations": last["evaluations"]}
    unmeasured = (f"{name}_{what}" for name in plan.probes for what in ("loss", "metric"))
    row |= dict.fromkeys(unmeasured, math.nan)
    row["loss"] = last["loss"]
    if len(path.points):
        theta = path.points[-1]
        at: Row = path.steps.iloc[path.point_steps[-1]].to_dict()
        row |= {name: at[name] for name in MEASURED}
        row["loss"] = _loss(plan.problem, theta)
        for name, probe in plan.probes.items():
            row[f"{name}_loss"], row[f"{name}_metric"] = probe.evaluate(theta)
    row["level_error"] = row["loss"] / level - 1
    return row


def _loss(problem: Problem, theta: Tensor) -> float:
    """The loss in float64, where the model can be computed in it."""
    exact = in_float64(problem, theta, lambda p, x: p.loss(x).item())
    return problem.loss(theta).item() if exact is None else exact


class _Kept:
    """A branch in a folder: the ends so far, and the walk from which it goes on."""

    def __init__(self, folder: FilePath, plan: Plan, start: Tensor) -> None:
        self._folder, self._plan, self._start = folder, plan, start
        self._asked = plan.asked(start)

    def keeper(self, leg: int) -> Checkpoint:
        """What keeps the walk along a level."""
        return Checkpoint(self._place(leg), self._plan.every)

    def walk(self, leg: int | None) -> walk | None:
        """The walk along a level as it was left, where it is kept."""
        if leg is None or not self._place(leg).exists():
            return None
        (level, _), keeper = self._plan.legs[leg], self.keeper(leg)
        return None if keeper.empty else _begin(self._plan, self._start, level, checkpoint=keeper)

    def load(self) -> Branch:
        """The ends so far; those of another front are refused."""
        if not (self._folder / OUTCOME).exists():
            return Branch([], [])
        try:
            found = read_ending(self._folder)
            table = read_table(self._folder / FRONT, found.stamps[FRONT])
            points = read_tensors(self._folder / POINTS, found.stamps[POINTS])["points"]
        except (ResultsError, KeyError):  # nothing but time is lost
            quarantine(self._folder, self._folder.parent)
            return Branch([], [])
        different = differences(found.content.get("asked"), self._asked)
        rows = [
            {str(name): value for name, value in row.items()} for row in table.to_dict("records")
        ]
        branch = Branch(rows, [*points])
        if not different and branch.rows:
            different = self._otherwise(branch)
        if different:
            raise InputError(
                f"{self._folder} keeps another front ({'; '.join(different)}); give another folder"
            )
        last = branch.last
        whole = branch.done == len(self._plan.legs) or branch.ended
        there = whole or last is None or not self.keeper(last).empty
        return branch if there else Branch([], [])

    def save(self, branch: Branch) -> None:
        """Write the ends, and let go of walks from which none goes on."""
        ending = {"outcome": "unfinished", "message": "a front that is followed"}
        tensors = {"points": torch.stack(branch.points)}
        table = pd.DataFrame(branch.rows)
        write_folder(
            self._folder, {**ending, "asked": self._asked}, {FRONT: table, POINTS: tensors}
        )
        whole = branch.done == len(self._plan.legs) or branch.ended
        for leg in range(branch.done):
            if whole or leg != branch.last:
                remove_folder(self._place(leg))

    def _place(self, leg: int) -> FilePath:
        return self._folder / f"checkpoint-{leg:03d}"

    def _otherwise(self, branch: Branch) -> list[str]:
        """Whether the data or the model has changed: where the loss of an end is another."""
        if branch.last is None:
            return []
        problem, before = self._plan.problem, branch.rows[branch.last]["loss"]
        now = _loss(problem, branch.points[branch.last].to(problem.device))
        same = math.isclose(now, before, rel_tol=SAME_LOSS)
        return [] if same else [f"the loss at its last end was {before:.9g}, now {now:.9g}"]
