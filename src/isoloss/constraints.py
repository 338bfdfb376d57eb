"""What a walk holds beside its level: other losses and functions of the parameters, bounded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from isoloss.arguments import checked, real
from isoloss.errors import InputError, kind, shown
from isoloss.flat import fetched, inner
from isoloss.problem import Problem
from isoloss.regularizers import AnyRegularizer, Regularizer, get_regularizer, problems_in

RTOL = 1e-3
"""Relative tolerance where none is given."""
COLUMNS = ("value", "multiplier", "active", "evaluations")
"""Columns of each constraint, after its name."""


@dataclass(frozen=True)
class Constraint:
    """A bound on a quantity along a walk; `isoloss.at_most` and `isoloss.equal` make it.

    Attributes:
        quantity: Whatever `traverse` takes as a regularizer: another problem, for its loss, a name,
            an object, a function of the parameters by name.
        bound: The bound, in the quantity's unit.
        kind: `"at_most"` or `"equal"`.
        rtol: Relative tolerance of the bound; None where there is `atol`, or for the default.
        atol: Absolute tolerance, in the quantity's unit; None where the tolerance is relative.
    """

    quantity: Any
    bound: float
    kind: Literal["at_most", "equal"]
    rtol: float | None = None
    atol: float | None = None

    @property
    def upper(self) -> bool:
        """Whether values below the bound are allowed too."""
        return self.kind == "at_most"

    @property
    def allowed(self) -> float:
        """How far the quantity may be beyond the bound, in its unit."""
        return (self.rtol or RTOL) * abs(self.bound) if self.atol is None else self.atol

    def meets(self, value: float) -> bool:
        """Whether a value is within the tolerance."""
        beyond = value - self.bound
        return (beyond if self.upper else abs(beyond)) <= self.allowed

    def reaches(self, value: float) -> bool:
        """Whether a value is at the bound, to the tolerance, or beyond it."""
        return not self.upper or value >= self.bound - self.allowed

    @property
    def told(self) -> dict[str, Any]:
        """What a file says of it, beside the quantity's name."""
        relative = None if self.atol is not None else self.rtol or RTOL
        return {"kind": self.kind, "bound": self.bound, "rtol": relative, "atol": self.atol}

    def unmet(self, name: str, value: float) -> str:
        """What a value is and what it has to be, a part of a sentence."""
        word = "at most" if self.upper else "equal to"
        return f"{name} is {value:.6g} and must be {word} {self.bound:.6g}"


@checked
def at_most(
    quantity: AnyRegularizer,
    bound: float | Tensor,
    *,
    rtol: float | Tensor | None = None,
    atol: float | Tensor | None = None,
) -> Constraint:
    """An upper bound on a quantity, for `hold` or `level` of `traverse`.

    A lower bound is an upper one of the quantity with its sign changed, as in
    `at_most(-isoloss.L1(), -3.0, atol=1e-3)`.

    Args:
        quantity: Another problem of the same parameters, for its loss; a name such as
            `"squared_norm"`; an object such as `isoloss.L1()`; or a function of the parameters by
            name that returns a tensor of shape (). For `level`, the problem that is walked.
        bound: The largest value allowed.
        rtol: How far beyond the bound a point may be, as a share of it, in (0, 1); 1e-3 by default
            and, for `level`, what `traverse` is given.
        atol: The same in the quantity's unit, in place of `rtol`; needed where the bound is not
            positive.

    Returns:
        The constraint.

    Raises:
        InputError: A value cannot be used.
    """
    return _constraint("at_most", quantity, bound, rtol, atol)


@checked
def equal(
    quantity: AnyRegularizer,
    value: float | Tensor,
    *,
    rtol: float | Tensor | None = None,
    atol: float | Tensor | None = None,
) -> Constraint:
    """A quantity that is held at a value, for `hold` of `traverse`.

    Args:
        quantity: As for `at_most`.
        value: The value to hold.
        rtol: How far from it a point may be, as a share of it, in (0, 1); 1e-3 by default.
        atol: The same in the quantity's unit, in place of `rtol`; needed where the value is not
            positive.

    Returns:
        The constraint.

    Raises:
        InputError: A value cannot be used.
    """
    return _constraint("equal", quantity, value, rtol, atol)


def _constraint(
    which: Literal["at_most", "equal"], quantity: Any, bound: Any, rtol: Any, atol: Any
) -> Constraint:
    what = "bound" if which == "at_most" else "value"
    number = real(what, bound)
    if not math.isfinite(number):
        raise InputError(f"{what} of {which} must be a finite number, got {number}")
    relative = None if rtol is None else real("rtol", rtol)
    absolute = None if atol is None else real("atol", atol)
    if relative is not None and not 0 < relative < 1:
        raise InputError(f"rtol of {which} must be a relative tolerance in (0, 1), got {relative}")
    if absolute is not None and not 0 < absolute < math.inf:
        raise InputError(f"atol of {which} must be a positive, finite tolerance, got {absolute}")
    if absolute is None and number <= 0:
        raise InputError(
            f"{what} of {which} must be positive to have a relative tolerance, got {number:g}; "
            f"give an absolute one, in the quantity's unit: {which}(..., {number:g}, atol=...)"
        )
    return Constraint(quantity, number, which, relative, absolute)


@dataclass(frozen=True)
class Bound:
    """A constraint of a walk's parameters, under the name that its columns have."""

    name: str
    constraint: Constraint
    quantity: Regularizer
    others: tuple[Problem, ...]  # problems that it evaluates beside the one that is walked


def bind(hold: Mapping[str, Constraint] | None, problem: Problem) -> tuple[Bound, ...]:
    """What is held, for the problem that is walked."""
    bounds: list[Bound] = []
    for name, constraint in (hold or {}).items():
        if not name.strip() or not name.isprintable() or name == "level":
            raise InputError(
                f"the name of what is held must be text of one line, such as 'validation', and not "
                f"'level', got {shown(name)}"
            )
        bounds.append(_bound(name, constraint, problem))
    return tuple(bounds)


def _bound(name: str, constraint: Constraint, problem: Problem) -> Bound:
    where, quantity = f"hold[{name!r}]", constraint.quantity
    if quantity is problem:
        raise InputError(
            f"{where} is the loss of the problem that is walked, which the level holds; leave it "
            f"out, or bound that loss by level=isoloss.at_most(problem, {constraint.bound:g})"
        )
    try:
        bound = get_regularizer(quantity, problem)
    except InputError as error:
        raise InputError(f"{where} cannot be held: {error}") from error
    others = tuple(one for one in problems_in(quantity) if one is not problem)
    return Bound(name, constraint, bound, others)


def level_of(given: object, problem: Problem) -> Constraint | None:
    """The constraint that is given as a level, None for a number."""
    if not isinstance(given, Constraint):
        return None
    if given.quantity is not problem:
        raise InputError(
            f"level must bound the loss of the problem that is walked, got a bound on "
            f"{kind(given.quantity)}; give level=isoloss.at_most(problem, {given.bound:g}), and "
            f"bounds on anything else as hold="
        )
    return given


def balanced(
    r: Tensor, slopes: Sequence[Tensor], free: Sequence[bool]
) -> tuple[NDArray[np.float64], float]:
    """Multipliers, not negative but where free, with which r + their sum of slopes is shortest.

    Also the length of that. All have the shape (n,).
    """
    if not slopes:
        return np.zeros(0), math.sqrt(inner(r, r).item())
    every = (r, *slopes)
    pairs = [(i, j) for i in range(len(every)) for j in range(i + 1)]
    gram = np.zeros((len(every), len(every)))
    for (i, j), number in zip(
        pairs, fetched(*(inner(every[i], every[j]) for i, j in pairs)), strict=True
    ):
        gram[i, j] = gram[j, i] = number
    if not np.isfinite(gram).all():
        return np.full(len(slopes), math.nan), math.nan
    found = nonnegative(gram[1:, 1:], -gram[1:, 0], gram[0, 0], np.asarray(free))
    rest = r.clone()
    for multiplier, slope in zip(found.tolist(), slopes, strict=True):
        rest.add_(slope, alpha=multiplier)
    return found, math.sqrt(inner(rest, rest).item())


def nonnegative(
    gram: NDArray[np.float64],
    moment: NDArray[np.float64],
    square: float,
    free: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """Least squares by its normal equations, gram x = moment, with x >= 0 but where it is free.

    `square` is the squared length of what is fitted.
    """
    size = np.sqrt(np.diag(gram))
    size[size == 0] = 1.0
    gram, moment = gram / np.outer(size, size), moment / size
    kept = np.ones(len(gram), dtype=bool)
    if not free.all():
        kept = free | (_nnls(gram, moment, square, free) > 0)
    found = np.zeros(len(gram))
    found[kept] = np.linalg.lstsq(gram[np.ix_(kept, kept)], moment[kept], rcond=1e-12)[0]
    return np.where(free, found, np.maximum(found, 0.0)) / size


def _nnls(
    gram: NDArray[np.float64],
    moment: NDArray[np.float64],
    square: float,
    free: NDArray[np.bool_],
) -> NDArray[np.float64]:
    from scipy.optimize import nnls  # slow to load

    values, vectors = np.linalg.eigh(
        np.block([[np.array([[square]]), moment[None]], [moment[:, None], gram]])
    )
    root = (vectors * np.sqrt(np.maximum(values, 0.0))).T  # of the same inner products
    columns, target = root[:, 1:], root[:, 0]
    found = nnls(np.column_stack([columns, -columns[:, free]]), target)[0]
    return found[: len(gram)]
