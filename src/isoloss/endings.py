"""When a walk ends, and what is said of its end beside what the method says."""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from isoloss.checking import why_not_finite, with_cause
from isoloss.evaluation import Ranks
from isoloss.methods import State
from isoloss.objective import Objective
from isoloss.outcome import Ending, Outcome
from isoloss.path import Row, Stop, count
from isoloss.point import Tolerance
from isoloss.problem import ALONE
from isoloss.settings import ONLY_IN_PYTHON

FIRST_STEPS = 3
"""Steps up to which a stall may come of a gradient that is wrong."""

LIMITS = {
    Outcome.STEP_LIMIT: "steps",
    Outcome.EVALUATION_LIMIT: "evaluations",
    Outcome.TIME_LIMIT: "seconds",
}
"""Outcomes of walks that may have had more to gain, with what of `Stop` asked for them."""

ASKED = {
    **LIMITS,
    Outcome.SLOWED: "gain",
    Outcome.CONVERGED: "kkt_residual",
    Outcome.REGULARIZER_REACHED: "regularizer_below",
}
"""All outcomes that `Stop` asks for in numbers, with what of it."""

JUDGED, SEEN = 200, 20
"""Evaluations and points from which on it is asked whether a walk has slowed."""

CLOSE = 1e-2
"""KKT residual from which on slow walks are at their tail, and converge."""

BOUNDLESS = 1e6
"""A regularizer that has fallen by so many times its size probably has no least value."""


def asked_for(
    stop: Stop,
    state: State,
    rows: Sequence[Row],
    progress: int,
    seconds: float,
    ranks: Ranks = ALONE,
    *,
    all_steps: bool = False,
) -> Ending | None:
    """The end that the user asked for, on any rank, where the walk is there.

    Args:
        stop: What was asked for.
        state: The last one.
        rows: All so far, the last one of the state.
        progress: Steps so far, corrections not counted.
        seconds: Time so far.
        ranks: Those that walk together.
        all_steps: Whether to take all steps, however short.

    Returns:
        The ending, None where the walk goes on.
    """
    point, below, row = state.point, stop.regularizer_below, rows[-1]
    if state.on_level and point.kkt_residual <= stop.kkt_residual:
        if point.regularizer_grad.any():
            return Ending(Outcome.CONVERGED, f"KKT residual {point.kkt_residual:.3g}")
        return _without_slope(f"it is {point.regularizer:.6g}, and its gradient is 0")
    if state.on_level and below is not None and point.regularizer <= below:
        return Ending(Outcome.REGULARIZER_REACHED, f"{point.regularizer:.6g}")
    when = stop.when
    if when is not None and ranks.any(lambda: when(dict(row))):
        return Ending(Outcome.INTERRUPTED, "Stop(when=...) returned True")
    if progress >= stop.steps and state.on_level:
        return Ending(Outcome.STEP_LIMIT, _so_far(f"{progress} steps", state))
    if stop.evaluations is not None and row["evaluations"] >= stop.evaluations:
        return Ending(
            Outcome.EVALUATION_LIMIT, _so_far(f"{count(row['evaluations'])} evaluations", state)
        )
    if stop.seconds is not None and seconds >= stop.seconds:
        return out_of_time(seconds, state)
    return None if all_steps else slowed(stop.gain, rows)


def ends_later(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether all that one `Stop` asks for, as JSON has it, is met no earlier than by another."""
    falling = {"kkt_residual", "regularizer_below", "gain"}  # met where the walk is below them

    def end(value: float | None, key: str) -> float:
        if value is None:
            return math.inf
        return -value if key in falling else value

    same = before.keys() == now.keys()
    return same and all(end(now[key], key) >= end(value, key) for key, value in before.items())


def out_of_time(seconds: float, state: State) -> Ending:
    """The end of a walk whose time is over, between two steps or within one."""
    return Ending(Outcome.TIME_LIMIT, _so_far(f"{seconds:.3g} s", state))


def told(
    ending: Ending,
    objective: Objective,
    state: State,
    *,
    level: float,
    tolerance: Tolerance,
    rows: Sequence[Row],
    points: int,
    steps: int,
) -> Ending:
    """An ending with what the whole walk tells of it.

    Args:
        ending: What the method or `asked_for` says.
        objective: What was evaluated last.
        state: The last one.
        level: The loss to hold.
        tolerance: Of the level.
        rows: All so far.
        points: Points on the level set so far.
        steps: Steps so far, corrections not counted.

    Returns:
        The ending, with another outcome where that is truer.
    """
    outcome, point = ending.outcome, state.point
    short = outcome is Outcome.CONSTRAINT_UNREACHABLE
    if short or (outcome.success and not points and not objective.plain):
        detail = "; ".join([*objective.unmet(point, level, tolerance), ending.detail])
        remedy = ending.remedy if short else outcome.remedy
        return Ending(Outcome.CONSTRAINT_UNREACHABLE, detail, remedy)
    if outcome.success and not points:
        detail = f"{ending.detail}; the loss was {point.loss:.6g} on the way to {level:.6g}"
        return Ending(Outcome.LEVEL_UNREACHABLE, detail, outcome.remedy)
    if outcome in LIMITS:
        return replace(ending, detail=f"{ending.detail}{_gained_of_late(rows)}")
    first: float = rows[0]["regularizer"]
    went = f"it went from {first:.6g} to {point.regularizer:.6g}"
    lost = outcome in (Outcome.STALLED, Outcome.NON_FINITE)
    if lost and point.regularizer < -BOUNDLESS * abs(first):
        detail = f"{ending.detail}; the regularizer may have no least value, {went}"
        return replace(ending, detail=detail, remedy="End it by Stop(regularizer_below=...).")
    nothing = torch.finfo(point.theta.dtype).eps * abs(first)
    if outcome is Outcome.STALLED and abs(point.regularizer) <= nothing:
        return _without_slope(f"{went}, which is 0 to rounding")
    flat = point.grad_norm * point.norm <= tolerance.relative(point.loss) * abs(point.loss)
    if outcome in (Outcome.STALLED, Outcome.SLOWED) and flat:
        detail = (
            f"it is {point.grad_norm:.3g}, by which a step as long as theta changes the loss by "
            f"less than its tolerance"
        )
        return Ending(Outcome.GRADIENT_VANISHED, detail)
    if outcome is Outcome.STALLED and steps <= FIRST_STEPS:
        return with_cause(ending, objective.problem, point.theta)
    if outcome is Outcome.NON_FINITE and objective.stray is not None:
        why, remedy = why_not_finite(objective, objective.stray)
        return replace(ending, detail="; ".join(filter(None, (ending.detail, why))), remedy=remedy)
    return ending


def _without_slope(detail: str) -> Ending:
    remedy = "Nothing is left to gain; for another end, take another regularizer or level."
    return Ending(Outcome.CONVERGED, detail, remedy)


def _gained_of_late(rows: Sequence[Row]) -> str:
    """How far R went in the second half, by which to judge whether to go on.

    A KKT residual does not tell: where the model has kinks, it does not vanish.
    """
    half = rows[_half(rows)]
    if half is rows[-1] or half["kind"] == "correct":
        return ""
    before, now = half["regularizer"], rows[-1]["regularizer"]
    return f"; in the second half the regularizer went from {before:.4g} to {now:.4g}"


def slowed(gain: float, rows: Sequence[Mapping[str, Any]]) -> Ending | None:
    """The end of a walk whose second half gained next to nothing, neither in R nor in angle.

    Less than a share `gain` of R is next to nothing; rows are a walk's, by column.
    """
    used = rows[-1]["evaluations"]
    if not gain or used < JUDGED or rows[-1]["kkt_residual"] <= CLOSE:
        return None
    half = _half(rows)
    if not half or len(rows) - half < SEEN:
        return None
    before, now = rows[half]["regularizer"], rows[-1]["regularizer"]
    if rows[half]["kind"] == "correct" or before - now >= gain * abs(before):
        return None
    least = [min(row["kkt_residual"] for row in part) for part in (rows[:half], rows[half:])]
    if least[1] <= max(0.5 * least[0], CLOSE):
        return None
    share = (before - now) / (abs(before) or 1.0)
    gained = f"fell by a share of {share:.2g}, less than gain={gain:g}"
    if now > before:  # within the tolerance of the level
        gained = f"rose by a share of {-share:.2g}"
    detail = (
        f"in the second half of {count(used)} evaluations the regularizer {gained}; least KKT "
        f"residual {least[1]:.3g}, before {least[0]:.3g}"
    )
    return Ending(Outcome.SLOWED, detail)


def _half(rows: Sequence[Mapping[str, Any]]) -> int:
    """The first row of the second half of the evaluations."""
    return bisect_left(rows, rows[-1]["evaluations"] / 2, key=lambda row: row["evaluations"])


def _so_far(used: str, state: State) -> str:
    return f"{used}, KKT residual {state.point.kkt_residual:.3g}"


IN_PYTHON = re.compile(r"\b(?:Stop|Paper|SQP|Record)\((\w+)=([^()]*)\)|\b(dtype)=torch\.(\w+)")
"""Settings as sentences have them."""


def for_commands(sentence: str) -> str:
    """What is said of a walk, for whoever called a command: a setting is given by `--set`."""

    def pair(found: re.Match[str]) -> str:
        key, value = found[1] or found[3], found[2] or found[4]
        value = "N" if value == "..." else value
        return found[0] if key in ONLY_IN_PYTHON else f"--set {key}={value}"

    again = "To go on, call the same command again."
    return IN_PYTHON.sub(pair, sentence.replace(Outcome.INTERRUPTED.remedy, again))
