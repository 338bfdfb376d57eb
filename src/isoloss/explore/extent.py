"""How far quantities go on a level set: walks to both ends, each begun where others have led."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast, overload

import torch
from torch import Tensor

from isoloss.arguments import checked
from isoloss.checking import check_quantity
from isoloss.errors import InputError, shown
from isoloss.evaluation.arithmetic import undisturbed
from isoloss.explore.aside import check_varies
from isoloss.explore.cores import WorkerError, over_cores
from isoloss.explore.ends import End, Job, WalkTo, begin, share
from isoloss.methods import Method
from isoloss.path import Stop
from isoloss.problem import Problem
from isoloss.progress import count_progress
from isoloss.regularizers import AnyRegularizer, Regularizer, get_regularizer

if TYPE_CHECKING:
    import pandas as pd

USUAL = Stop(evaluations=500)
"""When a walk to an end stops by default."""
FIRST = 4
"""Quantities that start from the given network; after them, as many more as there were."""
MOST_STARTS = 32
"""Networks, among those found, that are looked at for a start."""


@dataclass(frozen=True)
class Extent:
    """How far a quantity goes on a level set, at least: networks at both ends were found.

    Attributes:
        name: Of the quantity.
        start: The quantity at the start, once on the level set, in float64.
        low_end: Where it is least.
        high_end: Where it is largest.
    """

    name: str
    start: float
    low_end: End
    high_end: End

    @property
    def low(self) -> float:
        """The least value found."""
        return self.low_end.value

    @property
    def high(self) -> float:
        """The largest value found."""
        return self.high_end.value

    @property
    def networks(self) -> Tensor:
        """The networks at the low and the high end, shape (2, parameters)."""
        return torch.stack([self.low_end.theta, self.high_end.theta])

    def row(self) -> dict[str, Any]:
        """What a row of `Extents.table` says."""
        row: dict[str, Any] = {"start": self.start, "low": self.low, "high": self.high}
        for side, end in (("low", self.low_end), ("high", self.high_end)):
            row[f"{side}_outcome"] = end.outcome.value
            row[f"{side}_kkt_residual"] = end.kkt_residual
            row[f"{side}_evaluations"] = end.evaluations
            row[f"{side}_level_error"] = end.level_error
            row[f"{side}_value_error"] = end.value_error
        return row

    def __repr__(self) -> str:
        """One line: the interval, from where, and why each side ended."""
        low, high = self.low_end.outcome.value, self.high_end.outcome.value
        return (
            f"Extent({self.name} from {self.start:.6g} to [{self.low:.6g}, {self.high:.6g}], "
            f"{low} and {high})"
        )


class Extents(Mapping[str, Extent]):
    """The extents of several quantities by name, in the order given.

    Attributes:
        table: A row for each quantity. Columns: start, low, high; and for both sides, as in
            `low_outcome`: outcome, kkt_residual, evaluations, level_error and value_error.
    """

    table: pd.DataFrame

    def __init__(self, extents: Sequence[Extent]) -> None:
        import pandas as pd  # slow to load

        self._by_name = {one.name: one for one in extents}
        index = pd.Index(list(self._by_name), name="quantity")
        self.table = pd.DataFrame([one.row() for one in extents], index=index)

    def __getitem__(self, name: str) -> Extent:
        """One of them."""
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        """Their names."""
        return iter(self._by_name)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._by_name)

    def __repr__(self) -> str:
        """One line: how many, and how wide."""
        width = (self.table["high"] - self.table["low"]).mean()
        return f"Extents({len(self)} quantities, mean width {width:.6g})"


@overload
def extent(
    problem: Problem, quantity: AnyRegularizer, *, start: Tensor | None = ...,
    level: Any = ..., hold: Any = ..., method: str | Method = ..., rtol: float = ...,
    atol: float | None = ..., stop: Stop | None = ..., gain: float | None = ...,
    workers: int | None = ..., progress: bool = ...,
) -> Extent: ...  # fmt: skip
@overload
def extent(
    problem: Problem, quantity: Mapping[str, Any] | list[Any], *, start: Tensor | None = ...,
    level: Any = ..., hold: Any = ..., method: str | Method = ..., rtol: float = ...,
    atol: float | None = ..., stop: Stop | None = ..., gain: float | None = ...,
    workers: int | None = ..., progress: bool = ...,
) -> Extents: ...  # fmt: skip
@checked
@undisturbed()
def extent(
    problem: Problem,
    quantity: Any,
    *,
    start: Tensor | None = None,
    level: Any = None,
    hold: Any = None,
    method: str | Method = "sqp",
    rtol: float = 1e-3,
    atol: float | None = None,
    stop: Stop | None = None,
    gain: float | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Extent | Extents:
    """How far a quantity goes among the networks of one training loss: its least and largest value.

    Two walks look for the ends. Each end is a network that exists and has the loss that was held,
    so the interval is a lower bound of the true one, whatever the outcome; `Outcome.CONVERGED` says
    that an end is stationary on the level set, which a local optimum is as well. From a stationary
    start, which may be an optimum of the opposite kind, a second walk begins a little beside it,
    and the more extreme of the two ends is kept.

    Of several quantities the first few start at the given network, all others at the one, among
    the networks found by then, that has the most extreme value of theirs. What starts where does
    not depend on the number of workers.

    Args:
        problem: The training loss.
        quantity: Whatever `traverse` takes as a regularizer: `isoloss.Outputs(inputs, function)`
            for a prediction, another `Problem` for its loss, a name, an object, a function of the
            parameters by name. For several, a dict of these by name, or a list.
        start: Where to start, shape (problem.size,); None starts at the model's present weights.
        level: The loss to hold, as for `traverse`; None holds the start's. The walk to it is taken
            once for all.
        hold: Further constraints, as for `traverse`.
        method: As for `traverse`.
        rtol: Relative tolerance of the level.
        atol: Absolute tolerance of the level, in place of `rtol`.
        stop: When a walk to one end stops; `Stop(evaluations=500)` by default. A negative
            `regularizer_below=-b` ends the low side at -b or below and the high side at b or above;
            any other the low side alone.
        gain: A walk also ends, with `Outcome.SLOWED`, once ten steps widen the interval by less
            than this share of its width: at a probability of nearly 1, say. None takes
            `stop.gain`, which is 1e-3 by default and means nothing else here; 0 for no such end.
        workers: Processes at once; 1 for this one alone, None for one a core where there are more
            than eight walks on a CPU, and this one otherwise.
        progress: Show on a terminal how many walks are done.

    Returns:
        The extent; of several quantities, `Extents`: a mapping by name, with a `table`. Ctrl-C
        ends all walks and returns what there is; so does, with a warning, the death of a worker
        process. The outcome of ends that were not reached is `Outcome.INTERRUPTED`.

    Raises:
        InputError: A value cannot be used, the level cannot be reached, or a quantity is constant
            or cannot be differentiated.
        IsolossError: A worker process died before any walk ended.
    """
    stop = stop or USUAL
    gain = share(gain, stop)
    several = isinstance(quantity, Mapping | list | tuple)
    named = _named(quantity) if several else {"": quantity}
    theta, settings = begin(
        problem, start, level=level, hold=hold, method=method, rtol=rtol, atol=atol
    )
    found = _Found(problem, named, theta)
    work = WalkTo(problem, named, {**settings, "stop": stop}, gain)
    if workers is None and problem.device.type != "cpu":
        workers = 1
    with count_progress(enabled=progress, total=2 * len(named), what="extent") as show:
        try:
            for names in _rounds(list(named)):
                jobs = found.jobs(names)
                for index, end in over_cores(work, jobs, workers=workers):
                    job = jobs[index]
                    found.ends[job.name, job.high] = end
                    show(f"{job.name} {end.value:.4g}".strip())
        except KeyboardInterrupt:
            pass
        except WorkerError as error:
            if not found.ends:
                raise
            warnings.warn(str(error), stacklevel=2)
    for job in found.jobs([name for name in named if not found.done(name)]):
        if (job.name, job.high) not in found.ends:
            found.ends[job.name, job.high] = work(job, lambda: True)
    extents = [found.extent(name, work) for name in named]
    return Extents(extents) if several else extents[0]


def _named(quantity: Any) -> dict[str, Any]:
    """Several quantities by name."""
    given = cast("Mapping[Any, Any] | Sequence[Any]", quantity)
    named = dict(given if isinstance(given, Mapping) else enumerate(given))
    if not named:
        raise InputError(
            "quantity must be one or several, got none of them; give a dict, as in "
            '{"first": isoloss.Outputs(inputs[:1], function)}'
        )
    if isinstance(given, Mapping) and not all(isinstance(name, str) for name in given):
        bad = next(name for name in given if not isinstance(name, str))
        raise InputError(f"the name of a quantity must be a string, got {shown(bad)}")
    return {str(name): one for name, one in named.items()}


def _rounds(names: list[str]) -> Generator[list[str]]:
    """The first few, then each time as many more as there were."""
    done = 0
    while done < len(names):
        size = max(FIRST, done)
        yield names[done : done + size]
        done += size


class _Found:
    """The ends found so far, and where to start for the next."""

    def __init__(self, problem: Problem, named: Mapping[str, Any], theta: Tensor) -> None:
        self.ends: dict[tuple[str, bool], End] = {}
        self._theta = theta
        self._bound = {name: _bound(name, one, problem) for name, one in named.items()}
        for name, one in self._bound.items():
            check_varies(one, problem, theta)
            check_quantity(f"the quantity {one.name!r}", named[name], problem, theta, unless="")

    def done(self, name: str) -> bool:
        """Whether both ends were looked for."""
        return (name, False) in self.ends and (name, True) in self.ends

    def extent(self, name: str, work: WalkTo) -> Extent:
        """What was found, once both were."""
        bound, exact = self._bound[name], work.in_float64(name, self._theta)
        start = _value(bound, self._theta) if exact is None else exact[0]
        return Extent(name or bound.name, start, self.ends[name, False], self.ends[name, True])

    def jobs(self, names: Sequence[str]) -> list[Job]:
        """Both walks of each quantity, from the networks where it is most extreme."""
        keys = [(name, high) for name in self._bound for high in (False, True)]
        others = [self.ends[key].theta for key in keys if key in self.ends]
        others = others[:: -(-len(others) // MOST_STARTS) or 1]
        jobs: list[Job] = []
        thetas = [self._theta, *others]
        for name in names:
            values = [_value(self._bound[name], theta) for theta in thetas]
            ranked = sorted(range(len(thetas)), key=values.__getitem__)
            width = values[ranked[-1]] - values[ranked[0]]
            jobs += [Job(name, False, thetas[ranked[0]], width)]
            jobs += [Job(name, True, thetas[ranked[-1]], width)]
        return jobs


def _value(quantity: Regularizer, theta: Tensor) -> float:
    return quantity.value_and_grad(theta)[0].item()


def _bound(name: str, quantity: Any, problem: Problem) -> Regularizer:
    try:
        return get_regularizer(quantity, problem)
    except InputError as error:
        what = f"quantity {name!r}" if name else "the quantity"
        raise type(error)(f"{what} cannot be used: {error}") from error
