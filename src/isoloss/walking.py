"""The one loop: step, record, stop. It knows no method's inside."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass, replace
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec

import torch
from torch import Tensor, nn

from isoloss.arguments import checked, real
from isoloss.checking import (
    check_function,
    check_gradient,
    check_held,
    check_memory,
    check_quantity,
    check_start,
    check_tolerance,
)
from isoloss.constraints import RTOL, Constraint, bind, level_of
from isoloss.endings import asked_for, out_of_time, told
from isoloss.errors import InputError, check_takes
from isoloss.evaluation.arithmetic import undisturbed
from isoloss.flat import digest, fixed, vector
from isoloss.methods import Method, State, get_method
from isoloss.names import check_same_network, state_keys
from isoloss.objective import Objective, OutOfTime
from isoloss.outcome import Ending, Outcome
from isoloss.path import Path, Record, Row, Stop
from isoloss.point import Tolerance
from isoloss.problem import Problem, inside
from isoloss.recorder import Recorder
from isoloss.regularizers import AnyRegularizer
from isoloss.settings import ONLY_IN_PYTHON
from isoloss.snapshot import (
    Keeper,
    Snapshot,
    check_agree,
    check_continues,
    identity_of_regularizer,
    state_class,
    walk_identity,
    with_own_rows,
    with_whole_rows,
)
from isoloss.trackers import Callback, Callbacks

P = ParamSpec("P")

TAKEN = {"level", "step", "arc", "kkt", "angle"}
"""No names of probes: their columns would be the walk's own."""


@checked
def traverse(
    problem: Problem,
    *,
    start: Tensor | None = None,
    level: float | Tensor | Constraint | None = None,
    regularizer: AnyRegularizer = "squared_norm",
    hold: Mapping[str, Constraint] | None = None,
    method: str | Method = "sqp",
    rtol: float | Tensor = 1e-3,
    atol: float | Tensor | None = None,
    stop: Stop | None = None,
    record: Record | None = None,
    probes: Mapping[str, Problem] | None = None,
    callback: Callback | Sequence[Callback] | None = None,
    checkpoint: Keeper | None = None,
    check: bool = True,
    progress: bool = True,
) -> Path:
    """Walk a level set of the training loss, making a regularizer as small as it can be there.

    Args:
        problem: The training loss.
        start: Where to start, shape (problem.size,); None starts at the model's present weights.
        level: The loss to hold, in the loss's unit, positive unless there is `atol`; None holds the
            start's; `isoloss.at_most(problem, c)` keeps it at or below c.
        regularizer: What is made small: a name (`"squared_norm"`, `"l1"`, ...), an object such as
            `isoloss.SquaredNorm(without_biases=True)`, a sum such as
            `1.0 * isoloss.SquaredNorm() + 0.1 * isoloss.L1()`, `isoloss.maximize("squared_norm")`,
            or a function of the parameters by name that returns a tensor of shape ().
        hold: What is held beside the level, by name: `isoloss.at_most(validation, 0.3)`,
            `isoloss.equal("l1", 12.0)`, each with its own tolerance. A start that does not meet all
            of it is brought there first. None for nothing; `"paper"` holds nothing beside a level.
        method: `"sqp"`, `"paper"`, or an object with settings such as `isoloss.SQP(memory=20)`.
        rtol: Relative tolerance of the level, in (0, 1); `"paper"` has an absolute one of its own.
        atol: Absolute tolerance of the level, positive, in the loss's unit, in place of `rtol`: for
            losses that may be negative or zero. The column `level_error` is then L - c. None for
            none.
        stop: When to end; `Stop()` by default. With a `group`, by the first rank's clock, and where
            `when` or `callback` says so on any rank.
        record: What to keep; `Record()` by default.
        probes: Problems to measure along the walk, by name, for example the test set's.
        callback: Called with each row (a dict of the columns of `Path.steps`); the walk ends with
            `Outcome.INTERRUPTED` once it returns True. If it has a method `begin`, that is called
            first, with `walk.settings`; if it has `end`, that is called last, with the path, or
            with None where an error ends the walk. `isoloss.trackers` has some. A list of several
            is called in its order.
        checkpoint: Where to keep the walk while it runs, `isoloss.Checkpoint(folder)`. A walk found
            there continues from where it was, with the same bits as one never interrupted; one that
            has ended continues if `stop` now asks for more. One with other settings is refused;
            a function is told by its name and by what it gives. None keeps nothing. With a
            `group`, the first rank writes there and all read it.
        check: Compare the gradients of the loss, on a few examples, and of a regularizer or a
            held quantity that you wrote with differences of their values first, and refuse one
            that is not that of the values.
        progress: Show a progress line on a terminal, with a `group` the first rank's.

    Returns:
        The path. Ctrl-C ends a walk with `Outcome.INTERRUPTED` and returns what there is.

    Raises:
        InputError: A value cannot be used; the text says why and what to do.
    """
    from isoloss.progress import walk_progress  # loads rich

    callbacks, path, ranks = Callbacks(callback), None, inside(problem).ranks
    steps = walk(
        problem, start=start, level=level, regularizer=regularizer, hold=hold, method=method,
        rtol=rtol, atol=atol, stop=stop, record=record, probes=probes, checkpoint=checkpoint,
        check=check,
    )  # fmt: skip
    try:
        shown = progress and ranks.number == 0
        with ranks.interrupts() as pressed:
            with walk_progress(enabled=shown, steps=steps.stop.steps) as show:
                try:
                    with ranks.together():
                        callbacks.begin(steps.settings)
                    for row in steps:
                        show(row, steps.progress)
                        heard = ranks.total(partial(_heard, callbacks, row, pressed))
                        if any(heard):
                            steps.interrupt("the callback returned True" if heard[0] else "Ctrl-C")
                except KeyboardInterrupt:
                    if not steps._recorder.rows:  # pyright: ignore[reportPrivateUsage]
                        raise
                    steps.interrupt("Ctrl-C")
            try:
                path = steps.path
            except KeyboardInterrupt:  # in a probe of the last row
                path = steps.path
        return path
    finally:
        callbacks.end(path)


def _jointly(
    begin: Callable[Concatenate[Any, Problem, P], None],
) -> Callable[Concatenate[Any, Problem, P], None]:
    """What fails in it on one of the problem's ranks fails on all."""

    @wraps(begin)
    def call(self: Any, problem: Problem, *args: P.args, **kwargs: P.kwargs) -> None:
        with inside(problem).ranks.together():
            begin(self, problem, *args, **kwargs)

    return call


class walk(Iterator[Row]):  # noqa: N801  # called as the function that it stands for
    """The same walk as `traverse` takes, a step at a time: `for row in isoloss.walk(problem): ...`.

    An iterator of the rows of `Path.steps`, dicts of the columns, the start's first. The checkpoint
    is written to as the iteration advances, and when `path` is asked for.

    Args:
        problem: The training loss.
        **settings: `start`, `level`, `regularizer`, `hold`, `method`, `rtol`, `atol`, `stop`,
            `record`, `probes`, `checkpoint` and `check`, as for `traverse`.

    Attributes:
        stop: When the walk ends.

    Raises:
        InputError: A value cannot be used; the text says why and what to do.
    """

    @checked
    @_jointly
    @undisturbed()
    def __init__(
        self,
        problem: Problem,
        *,
        start: Tensor | None = None,
        level: float | Tensor | Constraint | None = None,
        regularizer: AnyRegularizer = "squared_norm",
        hold: Mapping[str, Constraint] | None = None,
        method: str | Method = "sqp",
        rtol: float | Tensor = 1e-3,
        atol: float | Tensor | None = None,
        stop: Stop | None = None,
        record: Record | None = None,
        probes: Mapping[str, Problem] | None = None,
        checkpoint: Keeper | None = None,
        check: bool = True,
    ) -> None:
        if stop is not None and stop.when is not None:
            check_takes("Stop(when=...)", stop.when, "row")
        ranks = inside(problem).ranks
        began = ranks.clock()
        upper = level_of(level, problem)
        tolerance = _tolerance_of(rtol, atol, upper)
        theta = _start_of(problem, start)
        level = _level_of(level.bound if isinstance(level, Constraint) else level, tolerance)
        method, record = get_method(method), record or Record()
        probes = checked_probes(probes or {}, problem)
        bounds = bind(hold, problem)
        upper = None if upper is None or not upper.upper else upper
        if (bounds or upper) and not getattr(method, "holds", False):
            raise InputError(
                f"the method {method.name!r} holds a level and nothing else; leave hold= and "
                f"at_most out, or give method='sqp'"
            )
        if (bounds or upper) and ranks.count > 1:
            raise InputError(
                f"a walk of {ranks.count} processes that share the examples holds a level and "
                f"nothing else; leave hold= and at_most out, or walk in one process"
            )
        self.stop = stop or Stop()
        self._method, self._checkpoint = method, checkpoint
        self._ranks = ranks
        objective = Objective(problem, regularizer, bounds, upper)
        check_memory(problem, method, objective.curvature is not None, len(bounds))
        of_regularizer = identity_of_regularizer(regularizer, objective.regularizer.name)
        self._asked = walk_identity(
            problem, theta, level, of_regularizer, method, tolerance, record, probes,
            {**(hold or {}), **({} if upper is None else {"level": upper})},
        )  # fmt: skip
        options = {"stop": self.stop.model_dump(exclude=ONLY_IN_PYTHON), "check": check}
        options["checkpoint"] = checkpoint is not None
        check_agree(ranks, self._asked, options, probes)
        saved = None if checkpoint is None else self._found(checkpoint, problem.device)
        if saved is None:
            kept = method.kept_tolerance(tolerance)
            state = method.init(objective, theta, level, tolerance)
            held = state.point.loss if level is None else level
            check_held(objective, state.point, gradient=check)
            check_start(objective, state.point, tolerance)
            check_function(problem, theta, kept)
            check_tolerance(problem, theta, kept, held)
            if check:
                check_gradient(problem, theta)
                name = f"the regularizer {objective.regularizer.name!r}"
                check_quantity(name, regularizer, problem, theta)
            recorder = Recorder(record, probes, held, tolerance, began=began, clock=ranks.clock)
        else:
            problem = problem.with_chunk_size(saved.chunk_size)
            bounds = bind(hold, problem)
            objective = Objective(problem, regularizer, bounds, upper)
            check_continues(saved.state, objective)
            state, held = saved.state, saved.level
            objective.continues(state.point, saved.evaluations, saved.apart, saved.examples)
            recorder = Recorder(
                record, probes, held, tolerance, saved.recorded, began=began, clock=ranks.clock
            )
        self._problem, self._objective, self._level = problem, objective, held
        self._tolerance = tolerance
        self._recorder = recorder
        if self.stop.seconds is not None:
            objective.deadline = began + self.stop.seconds - recorder.before
        self._state: State = state
        self._recorded = False  # whether the state is among the rows
        self._ending: Ending | None = None
        self._chunk_size = problem.chunk_size if checkpoint is not None else None
        # not yet kept; without a checkpoint none, since it would hold the basis of its state
        self._unkept = self._now() if checkpoint is not None else None

    def __next__(self) -> Row:
        """Take a step and record it; the start is the first row."""
        with self._ranks.together(), undisturbed():
            return self._next()

    def _next(self) -> Row:
        if self._ending is None and self._recorded:
            self._step()
        if self._ending is None and self._state.ending is not None:
            self._ending = self._state.ending
            self._unkept = self._now() if self._checkpoint is not None else None
        if self._ending is not None:
            raise StopIteration
        if self._checkpoint is not None:
            self._unkept, due = self._now(), self._checkpoint.due
            if self._ranks.numbers(lambda: [due])[0][0]:  # by the first rank's clock
                self._keep(self._checkpoint)
        objective, point = self._objective, self._state.point
        row = self._recorder.add(self._state, objective.cost, objective.columns(point))
        self._recorded = True
        seconds: float = row["seconds"]
        if self.stop.seconds is not None:
            seconds = self._recorder.seconds  # later than the row's, by its probes
        ending = asked_for(
            self.stop, self._state, self._recorder.rows, self.progress, seconds, self._ranks,
            all_steps=self._method.takes_all_steps,
        )  # fmt: skip
        self._ending = None if ending is None else self._told(ending)
        return dict(row)  # the caller's own

    @property
    def settings(self) -> dict[str, Any]:
        """What determines the walk, as far as JSON can tell, for example to log it."""
        return {
            **self._asked,
            "level": self._level,
            "stop": self.stop.model_dump(exclude=ONLY_IN_PYTHON),
            "device": str(self._problem.device),
        }

    @property
    def progress(self) -> int:
        """Steps so far, corrections not counted."""
        return self._recorder.progress

    @checked
    def interrupt(self, detail: str) -> None:
        """End the walk here with `Outcome.INTERRUPTED`.

        Args:
            detail: Why, for the outcome's message.
        """
        self._ending = Ending(Outcome.INTERRUPTED, detail)

    @checked
    def moved(
        self, level: float | Tensor, *, stop: Stop | None = None, checkpoint: Keeper | None = None
    ) -> walk:
        """A walk along another level, from where this one is and by what it has learned.

        It goes to the level and along it in far fewer evaluations than a walk that begins there
        with nothing; these are counted anew, and its first row is where this walk is.

        Args:
            level: The loss to hold, as for `traverse`.
            stop: When to end; None ends it as this one.
            checkpoint: Where to keep it, as for `traverse`, in place of what is kept there.

        Returns:
            The walk; this one can go on, too.

        Raises:
            InputError: The level cannot be held, or the method cannot go on from another level:
                `sqp` can.
        """
        move = getattr(self._method, "moved", None)
        if move is None:
            raise InputError(
                f"a walk by {self._method.name} cannot go on along another level; use 'sqp', or "
                f"start a walk from the last point"
            )
        if self._objective.upper is not None:
            raise InputError(
                "a walk whose level is an upper bound cannot go on along another level; start a "
                "walk from the last point"
            )
        other = copy.copy(self)
        to = _level_of(level, self._recorder.tolerance)
        other._asked = {**self._asked, "level": to}
        other._level = to = self._state.point.loss if to is None else to
        other._state, other._recorded, other._ending = move(self._state, to), False, None
        other._objective, other._recorder = copy.copy(self._objective), self._recorder.anew(to)
        other._objective.continues(self._state.point, 0, [0] * len(self._objective.held), 0)
        other.stop = stop or self.stop
        seconds = other.stop.seconds
        other._objective.deadline = math.inf if seconds is None else self._ranks.clock() + seconds
        other._checkpoint, other._unkept = checkpoint, None
        if checkpoint is not None:
            other._found(checkpoint, self._problem.device)  # it is asked before it keeps
            other._chunk_size = self._problem.chunk_size
            other._unkept = other._now()
        return other

    @property
    def path(self) -> Path:
        """The walk so far, from its first row on; `Outcome.INTERRUPTED` where it has not ended."""
        if not self._recorder.rows:
            raise InputError(
                "the walk has no row yet, so that there is no path; take a step first, next(walk)"
            )
        if self._checkpoint is not None:
            self._keep(self._checkpoint)
        ending = self._ending or Ending(Outcome.INTERRUPTED, "the iteration was left")
        steps, points, point_steps = self._recorder.finish()
        model = inside(self._problem).network.model
        beside = fixed(model)
        buffers = dict(model.named_buffers()) if isinstance(model, nn.Module) else {}
        return Path(
            steps=steps,
            points=points,
            point_steps=point_steps,
            level=self._level,
            outcome=ending.outcome,
            message=ending.message(self._problem.dtype),
            method=self._method.name,
            regularizer=self._objective.regularizer.name,
            constraints=self._objective.told,
            shapes=self._problem.shapes,
            buffers={name: buffer.detach().cpu().clone() for name, buffer in buffers.items()},
            frozen={name: digest(t) for name, t in beside.items() if name not in buffers},
            state_keys=state_keys(model, self._problem.shapes),
        )

    def _step(self) -> None:
        try:
            state = self._method.step(self._objective, self._state)
        except OutOfTime:
            self._ending = self._told(out_of_time(self._recorder.seconds, self._state))
            return
        if state.ending is not None and is_dataclass(state):  # told once, and kept so
            state = replace(state, ending=self._told(state.ending))
        self._state, self._recorded = state, False

    def _told(self, ending: Ending) -> Ending:
        recorder = self._recorder
        return told(
            ending,
            self._objective,
            self._state,
            level=self._level,
            tolerance=self._tolerance,
            rows=recorder.rows,
            points=recorder.points,
            steps=recorder.progress,
        )

    def _keep(self, keeper: Keeper) -> None:
        if self._unkept is not None:
            whole = with_whole_rows(self._unkept, self._ranks)
            with self._ranks.together():
                if self._ranks.number == 0:
                    keeper.save(whole)
            self._unkept = None

    def _found(self, keeper: Keeper, device: torch.device) -> Snapshot | None:
        """What a checkpoint keeps, the same on all ranks; the first mends what is damaged."""
        ranks = self._ranks
        kind = state_class(self._method)
        saved = ranks.in_turn(lambda: keeper.load(kind, self._asked))
        seen = ranks.gather(None if saved is None else digest(saved.state.point.theta))
        if any(one != seen[0] for one in seen):
            raise InputError(
                "the ranks find different checkpoints; give them one folder that all of them see"
            )
        return None if saved is None else with_own_rows(saved, ranks, device)

    def _now(self) -> Snapshot:
        return Snapshot(
            self._asked,
            self._chunk_size,
            self._level,
            self._state,
            self._objective.evaluations,
            self._recorder.recorded(),
            tuple(self._objective.apart),
            self._objective.examples,
        )


def _heard(callbacks: Callbacks, row: Row, pressed: Callable[[], bool]) -> tuple[bool, bool]:
    """Whether a callback asks for the end, and whether Ctrl-C was pressed."""
    return callbacks(row), pressed()


def _level_of(level: float | Tensor | None, tolerance: Tolerance) -> float | None:
    if level is None:
        return None
    number = real("level", level)
    if not math.isfinite(number):
        raise InputError(f"level must be a finite loss to hold, got {number}")
    if tolerance.atol is None and number <= 0:
        raise InputError(
            f"level must be positive to be held by a relative tolerance, got {number}; give an "
            f"absolute one, atol=, or another level"
        )
    return number


def _tolerance_of(
    rtol: float | Tensor, atol: float | Tensor | None, upper: Constraint | None
) -> Tolerance:
    """The level's; that of a constraint given as the level goes before the walk's."""
    if upper is not None and (upper.rtol is not None or upper.atol is not None):
        return Tolerance(upper.rtol or RTOL, upper.atol)
    relative = real("rtol", rtol)
    if not 0 < relative < 1:
        raise InputError(f"rtol must be a relative tolerance in (0, 1), got {relative}")
    if atol is None:
        return Tolerance(relative)
    absolute = real("atol", atol)
    if not 0 < absolute < math.inf:
        raise InputError(f"atol must be a positive, finite tolerance, got {absolute}")
    return Tolerance(relative, absolute)


def _start_of(problem: Problem, start: Tensor | None) -> Tensor:
    """A copy of where the walk starts, of the problem's type on its device."""
    if start is None:
        theta, what = problem.current(), "the model"
    else:
        given = vector("start", start, problem.size).detach()
        theta, what = given.to(problem.device, problem.dtype, copy=True), "start"
    if not torch.isfinite(theta).all():
        bad = int((~torch.isfinite(theta)).sum())
        raise InputError(
            f"{what} must have finite weights, got {bad} entries that are NaN or infinite"
        )
    return theta


def checked_probes(probes: Mapping[str, Problem], problem: Problem) -> Mapping[str, Problem]:
    """Problems of the same parameters, under names that can be columns."""
    for name, probe in probes.items():
        check_same_network(f"the probe {name!r}", inside(probe).network, inside(problem).network)
        if not str(name).isidentifier() or name in TAKEN:
            raise InputError(
                f"the name of a probe must be plain, such as 'test', and none of "
                f"{', '.join(sorted(TAKEN))}, got {name!r}"
            )
    return probes
