"""Regularizers made of others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from isoloss.errors import InputError
from isoloss.problem import Problem
from isoloss.regularizers.names import get_regularizer
from isoloss.regularizers.regularizer import Bindable, Regularizer


def weighted_sum(*parts: tuple[float, Any]) -> Bindable:
    """The weighted sum of regularizers.

    Args:
        *parts: Pairs of a weight and a regularizer: a name, an object or a function, as in
            `weighted_sum((1.0, "squared_norm"), (0.1, isoloss.L1()))`.

    Returns:
        The regularizer, for `traverse`.

    Raises:
        InputError: There is no pair, or a weight is not a finite number.
    """
    if not parts:
        raise InputError('weighted_sum is of nothing; give pairs, as in (1.0, "squared_norm")')
    for part in parts:
        if not (isinstance(part, tuple) and len(part) == 2):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError(
                f"{part!r} is no part of a weighted_sum; give pairs of a weight and a regularizer, "
                f'as in (1.0, "squared_norm")'
            )
        weight = part[0]
        if not isinstance(weight, int | float) or not math.isfinite(weight):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError(f"{weight!r} is no weight of a weighted_sum; give a finite number")
    return _Parts(tuple((float(weight), regularizer) for weight, regularizer in parts))


def maximize(regularizer: Any) -> Bindable:
    """Make a regularizer as large as it can be: the walk to the worst network of a training loss.

    Walks minimize, so the value recorded is the regularizer's with its sign changed. There may
    be no largest value: ask for an end, as in `Stop(steps=200)`.

    Args:
        regularizer: A name, an object, a function, or a `Problem` such as the test set's.

    Returns:
        The regularizer, for `traverse`.
    """
    return _Parts(((-1.0, regularizer),))


@dataclass(frozen=True)
class _Parts:
    parts: tuple[tuple[float, Any], ...]

    def bind(self, problem: Problem) -> Regularizer:
        return _Sum([(weight, get_regularizer(each, problem)) for weight, each in self.parts])


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
