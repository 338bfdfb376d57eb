"""What a regularizer is, how several are combined, and how one is made from a plain function."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from isoloss.arguments import real
from isoloss.errors import InputError, check_takes, kind, placed, unknown
from isoloss.evaluation.failures import explained
from isoloss.flat import Layout, Shapes
from isoloss.problem import Problem
from isoloss.regularizers.metric import Metric, summed

Parameters = Mapping[str, Tensor]
"""The parameters by name, in their shapes, in the order of theta."""


@runtime_checkable
class Regularizer(Protocol):
    """A smooth function R of the flat parameter vector with its gradient.

    An attribute `curvature`, a positive number, says that its Hessian is that number times the
    identity; without one the Hessian is learned, and a walk holds three times the vectors.
    """

    @property
    def name(self) -> str:
        """The name shown in tables and figures."""
        ...

    def value_and_grad(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """R and its gradient.

        Args:
            theta: Flat parameters, shape (n,).

        Returns:
            R, shape (), of theta's type or float64, and its gradient, shape (n,), of theta's.
        """
        ...


@runtime_checkable
class Bindable(Protocol):
    """A regularizer before it has met a problem: what `isoloss.L1(smoothing=1e-4)` gives."""

    def bind(self, problem: Problem) -> Regularizer:
        """The regularizer for a problem's parameters, model and data."""
        ...


class Combinable:
    """Arithmetic of regularizers: `1.0 * L1() + 0.1 * SquaredNorm()`, `-L1()`."""

    def __mul__(self, weight: float) -> Combination:
        """The regularizer times a number."""
        return combine((weight, self))

    __rmul__ = __mul__

    def __neg__(self) -> Combination:
        """The regularizer with its sign changed."""
        return combine((-1.0, self))

    def __add__(self, other: Any) -> Combination:
        """The sum of two regularizers."""
        if not isinstance(other, Bindable):
            return NotImplemented
        return combine((1.0, self), (1.0, other))

    def __sub__(self, other: Any) -> Combination:
        """The difference of two regularizers."""
        if not isinstance(other, Bindable):
            return NotImplemented
        return combine((1.0, self), (-1.0, other))


def combine(*parts: tuple[float, Any]) -> Combination:
    """The weighted sum of regularizers, sums among them taken apart."""
    flat: list[tuple[float, Bindable]] = []
    for weight, part in parts:
        weight = real("the weight of a regularizer", weight, "a finite number")
        if not math.isfinite(weight):
            raise InputError(f"the weight of a regularizer must be finite, got {weight}")
        inner = part.parts if isinstance(part, Combination) else ((1.0, part),)
        flat += [(weight * own, each) for own, each in inner]
        if not all(math.isfinite(product) for product, _ in flat):
            raise InputError(f"the weights of regularizers multiply to infinity, with {weight:g}")
    return Combination(tuple(flat))


@dataclass(frozen=True)
class Combination(Combinable):
    """A weighted sum of regularizers that have not met a problem yet."""

    parts: tuple[tuple[float, Bindable], ...]

    def bind(self, problem: Problem) -> Regularizer:
        """The sum for a problem."""
        return _Sum([(weight, each.bind(problem)) for weight, each in self.parts])


class _Sum:
    def __init__(self, parts: Sequence[tuple[float, Regularizer]]) -> None:
        self._parts = parts
        self.name = " + ".join(_term(*one) for one in parts).replace("+ -", "- ")

    @property
    def curvature(self) -> float | None:
        """The Hessian is this times the identity, where it is so for every part."""
        known = [(weight, getattr(part, "curvature", None)) for weight, part in self._parts]
        total = math.nan
        if all(c is not None for _, c in known):
            total = sum(weight * c for weight, c in known if c is not None)
        return total if total > 0 else None

    def metric_at(self, theta: Tensor) -> Metric | None:
        """The sum of the parts' metrics, where all have one and none is subtracted."""
        found = [(weight, metric_of(part, theta)) for weight, part in self._parts]
        known = [(weight, metric) for weight, metric in found if metric and weight > 0]
        return summed(known) if len(known) == len(found) else None

    def value_and_grad(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        total, whole = theta.new_zeros(()), theta.new_zeros(theta.shape)
        for weight, part in self._parts:
            value, grad = part.value_and_grad(theta)
            total = total + weight * value
            whole.add_(grad, alpha=weight)
        return total, whole


def _term(weight: float, part: Regularizer) -> str:
    size = {1.0: "", -1.0: "-"}.get(weight, f"{weight:g} ")
    return size + part.name


def metric_of(regularizer: Regularizer, theta: Tensor) -> Metric | None:
    """A regularizer's metric at theta; None where it has none."""
    curvature: float | None = getattr(regularizer, "curvature", None)
    if curvature:
        return Metric(torch.full_like(theta, 1 / curvature))
    measured = getattr(regularizer, "metric_at", None)
    return None if measured is None else measured(theta)


class Differentiated:
    """A regularizer from a function of the parameters by name; autograd gives its gradient."""

    def __init__(
        self,
        name: str,
        function: Callable[[dict[str, Tensor]], Any],
        shapes: Shapes,
        measured: Callable[[dict[str, Tensor], Layout], Metric] | None = None,
    ) -> None:
        self.name = name
        self._function = function
        self._layout = Layout(shapes)
        self._measured = measured

    def metric_at(self, theta: Tensor) -> Metric | None:
        """The P of a weighted squared norm that touches R from above; None where none is known."""
        return self._measured and self._measured(self._layout.named(theta.detach()), self._layout)

    def value_and_grad(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """R, shape (), and its gradient, shape (n,)."""
        leaf = theta.detach().requires_grad_()
        with torch.enable_grad():
            value = one_number(self.name, self._function(self._layout.named(leaf)))
            grad = None
            if value.requires_grad:
                (grad,) = torch.autograd.grad(value, leaf, allow_unused=True)
        if grad is None:
            raise InputError(
                f"the regularizer {self.name!r} does not depend on the parameters; compute it by "
                f"torch operations from the tensors it is given, without .item() or .detach()"
            )
        return value.detach(), grad


def one_number(name: str, value: Any) -> Tensor:
    """Insist that a user's function gave one real number, a tensor of shape ()."""
    if not isinstance(value, Tensor):
        raise InputError(
            f"the regularizer {name!r} must return a tensor of shape (), computed by torch "
            f"operations from the tensors it is given, got {kind(value)}"
        )
    if value.shape != () or not value.is_floating_point():
        raise InputError(
            f"the regularizer {name!r} must return one real number, shape (), for example with "
            f".sum(), got shape {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
        )
    return value


class Own:
    """A regularizer that a user wrote: it works on a copy of theta, and gives what it is to give.

    What it writes into theta would else be in the walk's own point, and what it writes into its
    gradient at the next point in those that the walk remembers.
    """

    def __init__(self, given: Regularizer) -> None:
        self.given = given
        self.name = given.name

    @property
    def curvature(self) -> float | None:
        """As the user's says, None where it says nothing."""
        return getattr(self.given, "curvature", None)

    def metric_at(self, theta: Tensor) -> Metric | None:
        """The user's own metric, None where there is none."""
        return metric_of(self.given, theta.clone())

    def value_and_grad(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """R, shape (), and its gradient, shape (n,)."""
        with explained(
            lambda error: (
                f"the regularizer {self.name!r} failed on the parameters ({placed(error)}); "
                f"correct it"
            )
        ):
            found: Any = self.given.value_and_grad(theta.detach().clone())
        pair = list(found) if isinstance(found, tuple | list) else []
        shapes = [tuple(one.shape) if isinstance(one, Tensor) else kind(one) for one in pair]
        if shapes != [(), tuple(theta.shape)]:
            got = " and ".join(map(str, shapes)) if pair else kind(found)
            raise InputError(
                f"value_and_grad of the regularizer {self.name!r} must return R, a tensor of shape "
                f"(), and its gradient, a tensor of shape {tuple(theta.shape)}, got {got}"
            )
        value, grad = pair
        return value.detach().clone(), grad.detach().to(theta, copy=True)


def from_function(function: Callable[[dict[str, Tensor]], Any], problem: Problem) -> Regularizer:
    """A regularizer from a user's function, after a look at what it returns."""
    name = getattr(function, "__name__", type(function).__name__)
    name = "function" if name == "<lambda>" else name
    made = Own(Differentiated(name, function, problem.shapes))
    check_takes(f"the regularizer {made.name!r}", function, "parameters")
    theta = problem.current()
    try:
        first, second = (made.value_and_grad(theta)[0].item() for _ in range(2))
    except InputError as error:
        cause = error.__cause__
        key = str(cause.args[0]) if isinstance(cause, KeyError) and cause.args else ""
        if not isinstance(cause, KeyError) or key in problem.shapes:
            raise
        what = f"parameter in the regularizer {made.name!r}:"
        raise unknown(what, key, problem.shapes) from cause
    if first != second and not (math.isnan(first) and math.isnan(second)):
        raise InputError(
            f"the regularizer {made.name!r} is not a function of the parameters alone: two calls "
            f"at one point gave {first:.9g} and {second:.9g}; remove what is random in it"
        )
    return made
