"""What a walk evaluates: the problem's loss, a regularizer, and what is held beside the level."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isoloss._kernels.capture import records
from isoloss.constraints import COLUMNS, Bound, Constraint, balanced
from isoloss.evaluation import Replayed
from isoloss.flat import fetched, inner, less, packed, products
from isoloss.point import NUMBERS, Array, Change, Held, Origin, Point, Seen, Tolerance, point_of
from isoloss.problem import Problem, inside, made_here, recount
from isoloss.regularizers import AnyRegularizer, get_regularizer
from isoloss.regularizers.metric import Metric
from isoloss.regularizers.regularizer import metric_of

LEAST_SLOPE = 0.01
"""Least |r| that a KKT residual over several constraints is divided by, as a share of that at the
start: where no bound is reached at the end, r itself vanishes."""

LEVEL_COLUMNS = ("level_multiplier", "level_active")
"""Columns of the level where more than that is held."""

RECORDED = 2**23
"""Entries of a basis up to which launching kernels is what a trial on a GPU costs."""
LAUNCHES = 2**17
"""Parameters up to which it is what a point without a trial costs."""

Tried = tuple[Sequence[Tensor], Sequence[float], Sequence[Seen]]
"""The vectors of a trial, its numbers as `point_of` takes them and how far it is from home, and
what is seen of the change."""


class OutOfTime(Exception):  # noqa: N818  # no error: an evaluation would begin too late
    """The deadline is over."""


class Objective:
    """Evaluates points: the problem's loss, a regularizer, what is held, with what it costs.

    Attributes:
        held: What is held beside the level.
        upper: The level's bound where it is an upper one, None where the level is held.
        evaluations: Evaluations of the problem made through this object, the regularizer's
            included.
        apart: Evaluations that each of what is held took.
        examples: Examples of other problems in these.
        steepest: |r| at the start of the walk, where more than a level is held.
        deadline: When the last evaluation may begin, by the clock of `ranks`.
        ranks: The processes that share the examples, and the vectors of a basis.
        stray: Where the last evaluation was, if something was not finite there.
    """

    def __init__(
        self,
        problem: Problem,
        regularizer: AnyRegularizer,
        held: Sequence[Bound] = (),
        upper: Constraint | None = None,
    ) -> None:
        self.problem = problem
        self.ranks = inside(problem).ranks
        self.regularizer = get_regularizer(regularizer, problem)
        self.held, self.upper = tuple(held), upper
        self.evaluations = self.examples = 0
        self.apart = [0] * len(self.held)
        self.steepest = 0.0
        self._each = 0  # evaluations that a point costs
        self._recording: Replayed | None = None  # of a trial
        self._measuring: Replayed | None = None  # of a point
        self.deadline = math.inf
        self.stray: Tensor | None = None

    @property
    def curvature(self) -> float | None:
        """The number c for which the regularizer's Hessian is c I; None where it is no such."""
        return getattr(self.regularizer, "curvature", None)

    def metric(self, theta: Tensor) -> Metric | None:
        """The regularizer's metric at theta; None where it has none that can be used."""
        if self.ranks.count > 1:  # each has a part of the rows, and this mixes them
            return None
        found = metric_of(self.regularizer, theta)
        mixes = found is not None and found.blocks and inside(self.problem).held is not None
        usable = found is not None and bool(torch.isfinite(found.inverse).all())
        return found if usable and not mixes else None

    @property
    def plain(self) -> bool:
        """Whether a level is held and nothing else."""
        return not self.held and self.upper is None

    @property
    def cost(self) -> float:
        """Evaluations in all; those of other problems by their examples over the training set's."""
        if not self.examples:
            return self.evaluations
        return self.evaluations + self.examples / self.problem.examples

    def continues(
        self, point: Point, evaluations: int, apart: Sequence[int], examples: int
    ) -> None:
        """Take over the counts of a walk that is continued from a point."""
        self.evaluations, self.apart, self.examples = evaluations, list(apart), examples
        self.steepest = 0.0 if point.held is None else point.held.steepest

    @property
    def told(self) -> dict[str, dict[str, Any]]:
        """What a file says of each constraint, by name, where more than a level is held."""
        found = {b.name: {"quantity": b.quantity.name, **b.constraint.told} for b in self.held}
        if self.upper is not None:
            found["level"] = {"quantity": "loss", **self.upper.told}
        return found

    def unmet(self, point: Point, level: float, tolerance: Tolerance) -> list[str]:
        """What is not met at a point, the level included, a part of a sentence each."""
        held = Constraint(None, level, "equal", tolerance.rtol, tolerance.atol)
        values = () if point.held is None else point.held.values
        every = [("the loss", self.upper or held, point.loss)]
        every += [(b.name, b.constraint, v) for b, v in zip(self.held, values, strict=True)]
        return [one.unmet(name, value) for name, one, value in every if not one.meets(value)]

    def columns(self, point: Point) -> dict[str, float]:
        """What the row of a point says of all that is held, where that is more than a level."""
        if point.held is None:
            return {}
        held = point.held
        mine = (held.multipliers[0], held.active[0])
        row: dict[str, float] = dict(zip(LEVEL_COLUMNS, mine, strict=True))
        for k, bound in enumerate(self.held):
            found = (held.values[k], held.multipliers[k + 1], held.active[k + 1], self.apart[k])
            row |= {f"{bound.name}_{c}": one for c, one in zip(COLUMNS, found, strict=True)}
        return row

    def evaluate(self, theta: Tensor) -> Point:
        """Loss, regularizer and gradients at theta, shape (n,).

        One evaluation, and more where the regularizer is made of derivatives of the loss.
        """
        self._begin()
        before = made_here(self.problem)
        # methods that make trials come here for the first point alone
        again = self.evaluations and self.ranks.count == 1
        if again and theta.numel() <= LAUNCHES and records(self.problem.device):
            if self._measuring is None:
                self._measuring = Replayed(self._measured, self.problem.device)
            *vectors, together = self._measuring(theta)
            point = point_of([theta, *vectors], together.tolist())
        else:
            vectors, numbers = self._measure(theta, self.problem.loss_and_grad)
            point = point_of(vectors, fetched(*numbers))
        recount(self.problem, before, self._each)  # to record takes further ones
        self.evaluations += self._each
        return self._seen(self._beside(point))

    def trial(self, origin: Origin, shares: Array) -> tuple[Point, Change]:
        """The point that lies so much of each row from an origin, compared with it.

        Its loss is rounded where the problem's gradients are. All numbers come from the device in
        one copy; where launching kernels is what takes the time, one recording launches them.
        """
        self._begin()
        problem = self.problem
        # what ranks tell one another cannot be recorded
        alone = self.ranks.count == 1 and origin.metric is None
        small = alone and origin.rows.numel() <= RECORDED and records(problem.device)
        numbers = np.append(origin.loss or 0.0, shares)
        self.ranks.note(numbers.tolist())
        before = made_here(problem)
        vectors, found, seen = (self._replayed if small else self._launched)(origin, numbers)
        recount(problem, before, self._each)  # to record takes further ones
        self.evaluations += self._each
        point = self._seen(self._beside(point_of(vectors, found)))
        return point, Change(vectors[-1], found[NUMBERS], seen)

    @property
    def rough(self) -> bool:
        """Whether the loss of a trial is rounded, so that `strict` may give another."""
        return self.problem.precision != "exact"

    def strict(self, point: Point) -> Point:
        """A trial with its loss in full precision."""
        return replace(point, loss=self.problem.loss(point.theta).item())

    def _begin(self) -> None:
        if self.deadline < math.inf and self.ranks.clock() >= self.deadline:
            raise OutOfTime

    def _beside(self, point: Point) -> Point:
        """The point with all that is held beside the level, and the KKT residual over all."""
        if self.plain or not point.finite:
            return point
        theta, own = point.theta, inside(self.problem)
        values: list[float] = []
        grads: list[Tensor] = []
        for k, bound in enumerate(self.held):
            problems = (self.problem, *bound.others)
            before = [made_here(one) for one in problems]
            value, grad = bound.quantity.value_and_grad(theta)
            mine, *others = (made_here(p) - b for p, b in zip(problems, before, strict=True))
            self.evaluations += mine
            self.apart[k] += mine + sum(others)
            shares = zip(others, bound.others, strict=True)
            self.examples += sum(count * other.examples for count, other in shares)
            values.append(value.item())
            grads.append(own.walked(grad))
        steep = math.sqrt(inner(point.regularizer_grad, point.regularizer_grad).item())
        self.steepest = self.steepest or steep
        bounds = [self.upper, *(bound.constraint for bound in self.held)]
        reached = [
            one is None or one.reaches(value)
            for one, value in zip(bounds, (point.loss, *values), strict=True)
        ]
        slopes = [g for g, there in zip((point.grad, *grads), reached, strict=True) if there]
        free = [
            one is None or not one.upper
            for one, there in zip(bounds, reached, strict=True)
            if there
        ]
        found, rest = balanced(point.regularizer_grad, slopes, free)
        multipliers = np.zeros(len(reached))
        multipliers[reached] = found
        held = Held(
            tuple(values), tuple(grads), tuple(multipliers.tolist()), tuple(reached), self.steepest
        )
        scale = max(steep, LEAST_SLOPE * self.steepest)
        residual = rest / scale if scale else 0.0
        if not all(map(math.isfinite, values)):
            residual = math.nan
        return replace(point, kkt_residual=residual, held=held)

    def _seen(self, point: Point) -> Point:
        numbers = (point.loss, point.regularizer, point.norm, point.grad_norm, point.tangent_norm)
        self.ranks.note(numbers)
        self.stray = None if point.finite else point.theta
        return point

    def _measure(
        self, theta: Tensor, evaluate: Callable[[Tensor], tuple[Tensor, Tensor]]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The vectors and the numbers of a point, in the order in which `point_of` takes them."""
        before = made_here(self.problem)
        loss, g = evaluate(theta)
        value, r = self.regularizer.value_and_grad(theta)
        r = inside(self.problem).walked(r)
        self._each = made_here(self.problem) - before
        gg, rr, rg = (inner(a, b) for a, b in ((g, g), (r, r), (r, g)))
        tangent = less(r, g, rg, gg)
        numbers = (loss, value, gg, rr, rg, inner(tangent, tangent), inner(theta, theta))
        return (theta, g, r, tangent), numbers

    def _try(
        self,
        logs: bool,
        numbers: Tensor,
        place: Tensor,
        grad: Tensor,
        home: Tensor,
        rows: Tensor,
        metric: Metric | None = None,
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The same for a trial, `numbers` being the origin's loss and the shares of rows."""
        ranks, shares = self.ranks, numbers[1:].to(rows.dtype)
        if metric is None:
            theta = ranks.whole(torch.addmv(ranks.cut(place), rows.t(), shares), len(place))
        else:
            theta = place + metric.solve(torch.mv(rows.t(), shares))
        vectors, found = self._measure(theta, self.problem.rough)
        change = less(vectors[1], grad, found[0], numbers[0]) if logs else vectors[1] - grad
        dual = change if metric is None else metric.solve(change)
        (along,) = ranks.sums(products(rows, ranks.cut(dual)))
        also = (torch.dist(theta, home), inner(change, dual), along)
        return (*vectors, change), (*found, *also)

    def _measured(self, theta: Tensor) -> tuple[Tensor, ...]:
        """What `_measure` gives but theta, with its numbers in one tensor."""
        (_, *vectors), numbers = self._measure(theta, self.problem.loss_and_grad)
        return *vectors, packed(numbers)

    def _launched(self, origin: Origin, numbers: Array) -> Tried:
        """A trial, and what `Change` holds of its change."""
        rows, place = origin.rows[: len(numbers) - 1], origin.point
        given = torch.from_numpy(numbers).to(rows.device), place.theta, place.grad, origin.home
        logs = origin.loss is not None
        vectors, several = self._try(logs, *given, rows, origin.metric)
        *found, square, along = fetched(*several)
        return vectors, found, [(self.ranks.cut(vectors[-1]), square, along)]

    def _replayed(self, origin: Origin, numbers: Array) -> Tried:
        """The same by a recording, of as many rows as there is storage for."""
        used, capacity = len(numbers) - 1, origin.rows.shape[0]
        padded = np.zeros(1 + capacity + capacity**2)
        padded[: 1 + used] = numbers
        padded[1 + capacity :].reshape(capacity, capacity)[:used, :used] = origin.inverse
        if self._recording is None:
            logs = origin.loss is not None  # all along a walk
            self._recording = Replayed(partial(self._packed, logs), self.problem.device)
        place = origin.point
        *vectors, rest, together = self._recording(
            torch.from_numpy(padded).to(self.problem.device, non_blocking=True),
            place.theta,
            place.grad,
            origin.home,
            origin.rows,
        )
        array = together.cpu().numpy()
        several = zip((vectors[-1], rest), array[NUMBERS + 1 :].reshape(2, -1), strict=True)
        seen = [(vector, float(one[0]), one[1 : 1 + used]) for vector, one in several]
        return vectors, array[: NUMBERS + 1].tolist(), seen

    def _packed(
        self, logs: bool, numbers: Tensor, place: Tensor, grad: Tensor, home: Tensor, rows: Tensor
    ) -> tuple[Tensor, ...]:
        """What `_try` gives with its numbers in one tensor, and what the rows leave of the change.

        A basis asks for that next, most of the time.
        """
        capacity = rows.shape[0]
        inverse = numbers[1 + capacity :].view(capacity, capacity)
        vectors, found = self._try(logs, numbers[: 1 + capacity], place, grad, home, rows)
        shares = inverse.t().mv(inverse.mv(found[-1]))
        rest = torch.addmv(vectors[-1], rows.t(), shares.to(rows.dtype), alpha=-1)
        found = (*found, inner(rest, rest), products(rows, rest))
        return *vectors, rest, packed(found)
