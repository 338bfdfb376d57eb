"""What a regularizer is, and how one is made from a plain function."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from isoloss.errors import InputError, check_takes, unknown
from isoloss.problem import Problem

Parameters = Mapping[str, Tensor]
"""The parameters by name, in their shapes, in the order of theta."""


@runtime_checkable
class Regularizer(Protocol):
    """A smooth function R of the flat parameter vector with its gradient.

    An attribute `curvature`, a positive number, says that its Hessian is that number times the
    identity; without one the Hessian is learned.
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
            R, shape (), and its gradient, shape (n,), both of theta's type.
        """
        ...


@runtime_checkable
class Bindable(Protocol):
    """A regularizer before it has met a problem: what `isoloss.L1(smoothing=1e-4)` gives."""

    def bind(self, problem: Problem) -> Regularizer:
        """The regularizer for a problem's parameters, model and data.

        Args:
            problem: The problem.

        Returns:
            The regularizer.
        """
        ...


class Differentiated:
    """A regularizer from a function of the parameters; autograd gives its gradient.

    Args:
        name: The name shown in tables and figures.
        function: Takes the parameters by name and returns R, a tensor of shape ().
        shapes: Shapes of the parameters by name, in the order of theta.
    """

    def __init__(
        self,
        name: str,
        function: Callable[[dict[str, Tensor]], Any],
        shapes: Mapping[str, tuple[int, ...]],
    ) -> None:
        self.name = name
        self._function = function
        self._shapes = dict(shapes)

    def value_and_grad(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """R and its gradient.

        Args:
            theta: Flat parameters, shape (n,).

        Returns:
            R, shape (), and its gradient, shape (n,).

        Raises:
            InputError: The function returns no single number that depends on the parameters.
        """
        leaf = theta.detach().requires_grad_()
        with torch.enable_grad():
            value = self._checked(self._function(named(leaf, self._shapes)))
            grad = None
            if value.requires_grad:
                (grad,) = torch.autograd.grad(value, leaf, allow_unused=True)
        if grad is None:
            raise InputError(
                f"the regularizer {self.name!r} does not depend on the parameters; compute it by "
                f"torch operations from the tensors it is given, without .item() or .detach()"
            )
        return value.detach(), grad

    def _checked(self, value: Any) -> Tensor:
        if not isinstance(value, Tensor):
            raise InputError(
                f"the regularizer {self.name!r} returned a {type(value).__name__}; return a tensor "
                f"of shape (), computed by torch operations from the tensors it is given"
            )
        if value.shape != () or not value.is_floating_point():
            raise InputError(
                f"the regularizer {self.name!r} returned shape {tuple(value.shape)} of "
                f"{str(value.dtype).removeprefix('torch.')}; return one real number, shape (), for "
                f"example with .sum()"
            )
        return value


def from_function(function: Callable[[dict[str, Tensor]], Any], problem: Problem) -> Regularizer:
    """A regularizer from a user's function, after a look at what it returns.

    Args:
        function: Takes the parameters by name and returns R, a tensor of shape ().
        problem: The problem whose parameters it takes.

    Returns:
        The regularizer; its name is the function's.

    Raises:
        InputError: It takes something else, asks for a parameter that there is not, returns no
            single number that depends on the parameters, or another number when it is called again.
    """
    name = getattr(function, "__name__", type(function).__name__)
    made = Differentiated("function" if name == "<lambda>" else name, function, problem.shapes)
    check_takes(f"the regularizer {made.name!r}", function, "parameters")
    theta = problem.current()
    try:
        first, second = (made.value_and_grad(theta)[0].item() for _ in range(2))
    except KeyError as error:
        key = str(error.args[0]) if error.args else ""
        if key in problem.shapes:
            raise
        what = f"parameter in the regularizer {made.name!r}:"
        raise unknown(what, key, problem.shapes) from error
    if first != second and not (math.isnan(first) and math.isnan(second)):
        raise InputError(
            f"the regularizer {made.name!r} is not a function of the parameters alone: two calls "
            f"at one point gave {first:.9g} and {second:.9g}; remove what is random in it"
        )
    return made


def named(theta: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Views of a flat vector in the parameters' shapes, by name.

    Args:
        theta: Flat parameters, shape (n,).
        shapes: Shapes by name, in the order of theta.

    Returns:
        The views.
    """
    pieces = theta.split([math.prod(shape) for shape in shapes.values()])
    return {
        name: piece.view(shape) for piece, (name, shape) in zip(pieces, shapes.items(), strict=True)
    }
