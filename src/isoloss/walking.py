"""The one loop: step, record, stop. It knows no method's inside."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from isoloss.arguments import check_kinds, check_probes, level_of, rtol_of, start_of
from isoloss.checking import check_function
from isoloss.checking.noise import check_tolerance
from isoloss.errors import InputError
from isoloss.methods import Method, get_method
from isoloss.methods.method import State
from isoloss.outcome import Ending, Outcome
from isoloss.path import Path, Record, Row, Stop
from isoloss.point import Objective
from isoloss.problem import Problem
from isoloss.progress import walk_progress
from isoloss.recorder import Recorder
from isoloss.regularizers import AnyRegularizer
from isoloss.settings import Settings
from isoloss.snapshot import (
    Keeper,
    Snapshot,
    digest,
    identity,
    identity_of_regularizer,
    state_class,
)


def traverse(
    problem: Problem,
    *,
    start: Tensor | None = None,
    level: float | None = None,
    regularizer: AnyRegularizer = "squared_norm",
    method: str | Method = "sqp",
    rtol: float = 1e-3,
    stop: Stop | None = None,
    record: Record | None = None,
    probes: Mapping[str, Problem] | None = None,
    callback: Callable[[Row], bool | None] | None = None,
    checkpoint: Keeper | None = None,
    progress: bool = True,
) -> Path:
    """Walk a level set of the training loss, making a regularizer as small as it can be there.

    Args:
        problem: The training loss.
        start: Where to start, shape (problem.size,); None starts at the model's present weights.
        level: The loss to hold, positive, in the loss's unit; None holds the start's.
        regularizer: What is made small: a name (`"squared_norm"`, `"l1"`, ...), an object such as
            `isoloss.SquaredNorm(without_biases=True)` or `isoloss.maximize("squared_norm")`, or a
            function of the parameters by name that returns a tensor of shape ().
        method: `"sqp"`, `"paper"`, or an object with settings such as `isoloss.SQP(memory=20)`.
        rtol: Relative tolerance of the level, in (0, 1); `"paper"` has an absolute one of its own.
        stop: When to end; `Stop()` by default.
        record: What to keep; `Record()` by default.
        probes: Problems to measure along the walk, by name, for example the test set's.
        callback: Called with each row (a dict of the columns of `Path.steps`); the walk ends with
            `Outcome.INTERRUPTED` once it returns True.
        checkpoint: Where to keep the walk while it goes on, `isoloss.Checkpoint(folder)`. A walk
            found there goes on from where it was, with the same bits as one never interrupted; one
            that has ended goes on if `stop` now asks for more. One with other settings is refused;
            a function is told by its name and by what it gives. None keeps nothing.
        progress: Show a progress line on a terminal.

    Returns:
        The path. Ctrl-C ends a walk with `Outcome.INTERRUPTED` and returns what there is.

    Raises:
        InputError: A value cannot be used; the text says why and what to do.
    """
    check_kinds(
        problem=problem, stop=stop, record=record, probes=probes, callback=callback,
        checkpoint=checkpoint,
    )  # fmt: skip
    theta = start_of(problem, start)
    level, rtol = level_of(level), rtol_of(rtol)
    check_probes(probes or {}, problem)
    stop, record = stop or Stop(), record or Record()
    walker = get_method(method)
    objective = Objective(problem, regularizer)
    of_regularizer = identity_of_regularizer(regularizer, objective.regularizer.name)
    asked = _asked(problem, theta, level, of_regularizer, walker, rtol, record, probes or {})
    saved = checkpoint.load(state_class(walker), asked) if checkpoint is not None else None
    if saved is None:
        check_function(problem, theta)
        state = walker.init(objective, theta, level, rtol)
        held = state.point.loss if level is None else level
        _check_begin(problem, state)
        check_tolerance(problem, theta, walker.relative_tolerance(held, rtol))
        recorder = Recorder(record, probes or {}, held)
    else:
        problem = problem.with_chunk_size(saved.chunk_size)
        objective = Objective(problem, regularizer)
        _check_goes_on(saved.state, objective)
        state, held, objective.evaluations = saved.state, saved.level, saved.evaluations
        recorder = Recorder(record, probes or {}, held, saved.recorded)

    chunk = problem.chunk_size if checkpoint is not None else None

    def now() -> Snapshot:
        return Snapshot(asked, chunk, held, state, objective.evaluations, recorder.recorded())

    def go() -> Ending:
        nonlocal state, between
        while state.ending is None:
            if checkpoint is not None:
                between = now()
                if checkpoint.due:
                    checkpoint.save(between)
            row = recorder.add(state, objective.evaluations)
            show(row, recorder.progress)
            if callback is not None and callback(row) is True:
                return Ending(Outcome.INTERRUPTED, "the callback returned True")
            ending = _stops(stop, state, row, recorder.progress)
            if ending is not None:
                return ending
            state = walker.step(objective, state)
        between = now()
        return state.ending

    between = now()
    with walk_progress(enabled=progress, steps=stop.steps) as show:
        try:
            ending = go()
        except KeyboardInterrupt:
            ending = Ending(Outcome.INTERRUPTED, "Ctrl-C")
    if checkpoint is not None:
        checkpoint.save(between)
    steps, points, point_steps = recorder.finish()
    return Path(
        steps=steps,
        points=points,
        point_steps=point_steps,
        level=held,
        outcome=ending.outcome,
        message=ending.message(problem.dtype),
        method=walker.name,
        regularizer=objective.regularizer.name,
        shapes=problem.shapes,
    )


def _asked(
    problem: Problem,
    theta: Tensor,
    level: float | None,
    regularizer: Mapping[str, Any],
    walker: Method,
    rtol: float,
    record: Record,
    probes: Mapping[str, Problem],
) -> dict[str, Any]:
    """What determines a walk, as far as it can be compared with that of a checkpoint."""
    settings = walker.model_dump() if isinstance(walker, Settings) else identity(walker)
    return {
        "start": digest(theta),
        "parameters": problem.size,
        "dtype": str(problem.dtype).removeprefix("torch."),
        "problem": identity(problem),
        "level": level,
        "regularizer": dict(regularizer),
        "method": {"name": walker.name, **settings},
        "rtol": rtol,
        "record": record.model_dump(),
        "probes": {name: identity(probes[name]) for name in sorted(probes)},
    }


def _check_goes_on(state: State, objective: Objective) -> None:
    """Insist that a checkpoint's numbers are those of this problem and this regularizer.

    Data, models and a user's functions cannot be compared, but what they give can.
    """
    point = state.point
    loss = objective.problem.loss(point.theta).item()
    value = objective.regularizer.value_and_grad(point.theta)[0].item()
    # room for another machine's rounding
    near = 1e-3 if objective.problem.dtype == torch.float32 else 1e-8
    for what, before, now in (
        ("loss", point.loss, loss),
        (f"regularizer {objective.regularizer.name}", point.regularizer, value),
    ):
        if math.isfinite(before) and not math.isclose(before, now, rel_tol=near, abs_tol=near**3):
            raise InputError(
                f"the checkpoint keeps another walk ({what} at the point it has reached was "
                f"{before:.9g}, now {now:.9g}): the data, the model or a function has changed; "
                f"give another folder"
            )


def _check_begin(problem: Problem, state: State) -> None:
    infinite = "" if math.isfinite(state.point.loss) else problem.chunks.infinite
    if infinite:
        raise InputError(
            f"the loss at the start is {state.point.loss}, and {infinite}; take such examples out "
            f"or fill them in, or, if that is meant (a mask), start from weights whose loss is "
            f"finite"
        )
    if not 0 < state.point.loss < math.inf:
        raise InputError(
            f"the loss at the start is {state.point.loss}, which has no level set to walk; start "
            f"from weights whose loss is positive and finite"
        )
    if not state.point.finite:
        raise InputError(
            f"the regularizer at the start is {state.point.regularizer:g}, and it or a gradient is "
            f"not finite; start elsewhere or use another regularizer"
        )


def _stops(stop: Stop, state: State, row: Row, progress: int) -> Ending | None:
    point = state.point
    if state.on_level and point.kkt_residual <= stop.kkt_residual:
        return Ending(Outcome.CONVERGED, f"KKT residual {point.kkt_residual:.3g}")
    if (
        state.on_level
        and stop.regularizer_below is not None
        and point.regularizer <= stop.regularizer_below
    ):
        return Ending(Outcome.REGULARIZER_REACHED, f"{point.regularizer:.6g}")
    if stop.when is not None and stop.when(row):
        return Ending(Outcome.INTERRUPTED, "Stop(when=...) returned True")
    if progress >= stop.steps and state.on_level:
        return Ending(Outcome.STEP_LIMIT, _so_far(f"{progress} steps", state))
    if stop.evaluations is not None and row["evaluations"] >= stop.evaluations:
        return Ending(Outcome.EVALUATION_LIMIT, _so_far(f"{row['evaluations']} evaluations", state))
    if stop.seconds is not None and row["seconds"] >= stop.seconds:
        return Ending(Outcome.TIME_LIMIT, _so_far(f"{row['seconds']:.3g} s", state))
    return None


def _so_far(used: str, state: State) -> str:
    return f"{used}, KKT residual {state.point.kkt_residual:.3g}"
