"""One walk to an extreme of a quantity on a level set, and what float64 says of its end."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from isoloss.arguments import real
from isoloss.errors import InputError
from isoloss.explore.aside import beside
from isoloss.methods import Method
from isoloss.outcome import Ending, Outcome
from isoloss.path import Path, Record, Row, Stop
from isoloss.problem import Problem, inside
from isoloss.regularizers import AnyRegularizer, get_regularizer, in_dtype, maximize
from isoloss.walking import traverse, walk

PATIENCE = 10
"""Steps over which the gain of a walk is judged."""


@dataclass(frozen=True)
class End:
    """Where a walk to the least or the largest value of a quantity ended.

    Attributes:
        value: The quantity there, computed in float64 by the model's own forward pass.
        value_error: The quantity as the walk computed it, less `value`; NaN where the model or the
            quantity cannot be computed in float64, so that `value` and `loss` are the walk's.
        loss: The training loss there, likewise in float64.
        level_error: (loss - level) / level, or loss - level under `atol`.
        held: What `hold` bounds, likewise, by its names.
        path: The walk that led there, its first and its last point kept.
    """

    value: float
    value_error: float
    loss: float
    level_error: float
    held: dict[str, float]
    path: Path

    @property
    def theta(self) -> Tensor:
        """The network, shape (parameters,)."""
        return self.path.points[-1]

    @property
    def outcome(self) -> Outcome:
        """Why the walk ended."""
        return self.path.outcome

    @property
    def kkt_residual(self) -> float:
        """How far from stationary on the level set the end is: 0 at local optima and saddles."""
        return float(self.path.steps["kkt_residual"].iloc[-1])

    @property
    def evaluations(self) -> int:
        """Evaluations of loss and gradient that the walk took."""
        return int(self.path.steps["evaluations"].iloc[-1])


@dataclass(frozen=True)
class Job:
    """An end to find."""

    name: str  # of the quantity
    high: bool  # the largest value, not the least
    start: Tensor  # on the level set, shape (n,)
    width: float  # of the interval as far as it is known


@dataclass(frozen=True)
class WalkTo:
    """Walks to the ends of quantities; other processes may be sent one."""

    problem: Problem
    quantities: Mapping[str, AnyRegularizer]
    settings: Mapping[str, Any]  # of the walks
    gain: float  # share of the width below which `PATIENCE` steps are too slow; 0 for none

    def __call__(self, job: Job, stopping: Callable[[], bool]) -> End:
        """Walk until the settings' `stop`, a slow gain, or Ctrl-C.

        Where the start is stationary, as the other kind of optimum is too, another walk begins
        beside it; the more extreme of the two ends is the end.
        """
        path = self._walked(job, job.start, stopping)
        end = self._rechecked(path, job)
        if path.outcome is not Outcome.CONVERGED or len(path.points) > 1:
            return end
        start = beside(
            self.problem, self._sought(job), job.start, level=self.settings["level"],
            hold=self.settings.get("hold"), kkt_residual=self._stop(job).kkt_residual,
        )  # fmt: skip
        if start is job.start:
            return end
        path = self._walked(job, start, stopping)
        if not len(path.points):
            return end
        other = self._rechecked(path, job)
        if (other.value > end.value) if job.high else (other.value < end.value):
            return other
        if other.outcome is Outcome.CONVERGED:  # it came back
            return end
        return replace(end, path=replace(end.path, outcome=path.outcome, message=path.message))

    def _sought(self, job: Job) -> AnyRegularizer:
        """What a walk makes small."""
        quantity = self.quantities[job.name]
        return maximize(quantity) if job.high else quantity

    def _stop(self, job: Job) -> Stop:
        """When a walk ends; whether it has slowed, `gain` of the interval's width says."""
        stop: Stop = self.settings["stop"]
        below = stop.regularizer_below
        # R is minus the quantity on the high side, which is above -b nearly everywhere for b >= 0
        if job.high and below is not None and below >= 0:
            below = None
        return stop.model_copy(update={"gain": 0.0, "regularizer_below": below})

    def _walked(self, job: Job, start: Tensor, stopping: Callable[[], bool]) -> Path:
        settings: dict[str, Any] = {**self.settings, "stop": self._stop(job)}
        steps = walk(
            self.problem,
            start=start,
            regularizer=self._sought(job),
            record=Record(points_at_most=2),
            check=False,
            **settings,
        )
        slow = _Slow(self.gain, job.width)
        slowed = False
        for row in steps:
            if stopping():
                steps.interrupt("Ctrl-C")
            elif slowed := slow(row):
                steps.interrupt("")
        path = steps.path
        if not slowed:
            return path
        gained = f"{slow.last:.3g}" if slow.last > 0 else "nothing"
        detail = (
            f"{gained} in {PATIENCE} steps, of {slow.width:.3g} in all, KKT residual "
            f"{path.steps['kkt_residual'].iloc[-1]:.3g}"
        )
        ending = Ending(Outcome.SLOWED, detail, "To go on, lower gain=, or give 0 for no such end.")
        message = ending.message(self.problem.dtype)
        return replace(path, outcome=Outcome.SLOWED, message=message)

    @cached_property
    def _exact(self) -> tuple[Problem, dict[str, Any], dict[str, Any]]:
        """The problem, the quantities and what is held, in float64."""
        exact = torch.float64
        held = self.settings.get("hold", {})
        return (
            self.problem.with_dtype(exact),
            {name: in_dtype(one, exact) for name, one in self.quantities.items()},
            {name: in_dtype(one.quantity, exact) for name, one in held.items()},
        )

    def in_float64(self, name: str, theta: Tensor) -> tuple[float, float, dict[str, float]] | None:
        """A quantity, the loss and what is held, by the model's own forward pass in float64."""
        try:
            theta = theta.to(self.problem.device, torch.float64)
            problem, quantities, held = self._exact
            value, loss = (_plain(one, problem, theta) for one in (quantities[name], problem))
            return value, loss, {name: _plain(one, problem, theta) for name, one in held.items()}
        except Exception:  # whatever a model raises that holds float32 tensors of its own
            return None

    def _rechecked(self, path: Path, job: Job) -> End:
        last = path.steps.iloc[-1]
        walked = -float(last["regularizer"]) if job.high else float(last["regularizer"])
        found = self.in_float64(job.name, path.points[-1])
        if found is None:
            held = {name: float(last[f"{name}_value"]) for name in self.settings.get("hold", {})}
            value, loss = walked, float(last["loss"])
        else:
            value, loss, held = found
        absolute = self.settings["atol"] is not None
        away = loss - path.level if absolute else (loss - path.level) / path.level
        error = math.nan if found is None else walked - value
        return End(value, error, loss, away, held, path)


def _plain(quantity: Any, problem: Problem, theta: Tensor) -> float:
    if isinstance(quantity, Problem):  # not by the faster code that walks it
        return inside(quantity).autograd.loss(theta).item()
    return get_regularizer(quantity, problem).value_and_grad(theta)[0].item()


class _Slow:
    """Whether the last steps gained too little, as rows come."""

    def __init__(self, gain: float, width: float) -> None:
        self._gain = gain
        self._values: list[float] = []
        self._known = width
        self.width = width
        self.last = math.inf

    def __call__(self, row: Row) -> bool:
        if row["kind"] == "correct":  # on the way to the level
            return False
        self._values.append(row["regularizer"])
        self.width = self._known + self._values[0] - self._values[-1]
        if len(self._values) > PATIENCE:
            self.last = self._values[-1 - PATIENCE] - self._values[-1]
        return self._gain > 0 and self.last < self._gain * self.width


def begin(
    problem: Problem,
    start: Tensor | None,
    *,
    level: Any,
    hold: Any,
    method: str | Method,
    rtol: float,
    atol: float | None,
) -> tuple[Tensor, dict[str, Any]]:
    """Where all walks along a level set start, and their settings.

    The first step of a walk checks the problem and comes to the level, once for all.
    """
    settings: dict[str, Any] = {"level": level, "method": method, "rtol": rtol, "atol": atol}
    if hold is not None:
        settings["hold"] = hold
    path = traverse(problem, start=start, stop=Stop(steps=1), progress=False, **settings)
    if path.outcome is Outcome.INTERRUPTED:
        raise KeyboardInterrupt
    if not len(path.points):
        raise InputError(f"no start on the level set was found: {path.message}")
    if level is None or isinstance(level, float | int | Tensor):
        settings["level"] = path.level
    return path.points[0], settings


def share(gain: float | None, stop: Stop) -> float:
    """Insist on a share for `WalkTo.gain`; that of `stop` where none is given."""
    if gain is None:
        return stop.gain
    gain = real("gain", gain)
    if not 0 <= gain < 1:
        raise InputError(f"gain must be a share of the width in [0, 1), got {gain}")
    return gain
