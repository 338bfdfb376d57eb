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
from isoloss.evaluation.differences import random_direction
from isoloss.methods import Method
from isoloss.outcome import Ending, Outcome
from isoloss.path import Path, Record, Row, Stop
from isoloss.problem import Problem, inside
from isoloss.regularizers import (
    AnyRegularizer,
    Regularizer,
    get_regularizer,
    in_dtype,
    maximize,
)
from isoloss.walking import traverse, walk

PATIENCE = 10
"""Steps over which the gain of a walk is judged."""
ASIDE = 1e-3
"""How far from a start without a gradient, as a share of |theta|, a walk starts instead."""


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
        """How far from stationary the end is: 0 where it is a local optimum on the level set."""
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
        """Walk until the settings' `stop`, a slow gain, or Ctrl-C."""
        quantity = self.quantities[job.name]
        steps = walk(
            self.problem,
            start=job.start,
            regularizer=maximize(quantity) if job.high else quantity,
            record=Record(points_at_most=2),
            check=False,
            **self.settings,
        )
        slow = _Slow(self.gain, job.width)
        slowed = False
        for row in steps:
            if stopping():
                steps.interrupt("Ctrl-C")
            elif slowed := slow(row):
                steps.interrupt("")
        path = steps.path
        if slowed:
            detail = (
                f"{slow.last:.3g} in {PATIENCE} steps, of {slow.width:.3g} in all, KKT residual "
                f"{path.steps['kkt_residual'].iloc[-1]:.3g}"
            )
            message = Ending(Outcome.SLOWED, detail).message(self.problem.dtype)
            path = replace(path, outcome=Outcome.SLOWED, message=message)
        return self._rechecked(path, job)

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


def beside(quantity: Regularizer, problem: Problem, theta: Tensor) -> Tensor:
    """A point where the quantity has a gradient: the one given, or beside it."""
    walked = inside(problem).walked
    value, grad = quantity.value_and_grad(theta)
    if not math.isfinite(value.item()):
        raise InputError(
            f"the quantity {quantity.name!r} must be finite at the start, got {value.item()}"
        )
    if walked(grad).any():
        return theta
    v = walked(random_direction(theta))
    aside = theta + ASIDE * (theta.norm() or 1.0) * v / v.norm()
    if not walked(quantity.value_and_grad(aside)[1]).any():
        raise InputError(
            f"the quantity {quantity.name!r} is constant or has no derivative: its gradient is 0 "
            f"at the start and beside it; use a smooth one, for example a probability in place of "
            f"a class"
        )
    return aside


def share(gain: float) -> float:
    """Insist on a share for `WalkTo.gain`."""
    gain = real("gain", gain)
    if not 0 <= gain < 1:
        raise InputError(f"gain must be a share of the width in [0, 1), got {gain}")
    return gain
