"""Regularisers R(theta): what a walk makes small on the level set."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from isoloss.errors import unknown


class Regularizer(Protocol):
    """A smooth function of the flat parameter vector with its gradient.

    An attribute `curvature`, a positive number, says that its Hessian is that number times the
    identity; without one the Hessian is learnt.
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


class SquaredNorm:
    """R(theta) = sum of theta squared, biases included, as in the paper."""

    name = "squared_norm"
    curvature = 2.0

    def value_and_grad(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """The squared norm and its gradient 2 theta.

        Args:
            theta: Flat parameters, shape (n,).

        Returns:
            R, shape (), and its gradient, shape (n,).
        """
        return theta.dot(theta), 2 * theta


REGULARIZERS: dict[str, type[Regularizer]] = {"squared_norm": SquaredNorm}


def get_regularizer(regularizer: str | Regularizer) -> Regularizer:
    """The regulariser of that name, or the object itself.

    Args:
        regularizer: `"squared_norm"`, or an object with `name` and `value_and_grad`.

    Returns:
        The regulariser.

    Raises:
        InputError: There is no regulariser of that name.
    """
    if not isinstance(regularizer, str):
        return regularizer
    if regularizer not in REGULARIZERS:
        raise unknown("regularizer", regularizer, REGULARIZERS)
    return REGULARIZERS[regularizer]()
