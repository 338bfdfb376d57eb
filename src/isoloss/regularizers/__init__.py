"""Regularizers R(theta), what a walk makes small on the level set, by name and combined."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from isoloss.arguments import checked
from isoloss.errors import InputError, shown, unknown
from isoloss.names import check_same_network
from isoloss.problem import Problem, inside
from isoloss.regularizers.derivatives import GradientNorm, HessianTrace, InputGradient
from isoloss.regularizers.outputs import Outputs
from isoloss.regularizers.parity import ParityGap
from isoloss.regularizers.path_norm import PathNorm
from isoloss.regularizers.regularizer import (
    Bindable,
    Combination,
    Own,
    Regularizer,
    combine,
    from_function,
)
from isoloss.regularizers.sharpness import AdaptiveSharpness
from isoloss.regularizers.sparsity import L1, GroupLasso, NuclearNorm
from isoloss.regularizers.squared_norm import SquaredNorm

__all__ = [
    "L1",
    "REGULARIZERS",
    "AdaptiveSharpness",
    "AnyRegularizer",
    "GradientNorm",
    "GroupLasso",
    "HessianTrace",
    "InputGradient",
    "NuclearNorm",
    "Outputs",
    "ParityGap",
    "PathNorm",
    "Regularizer",
    "SquaredNorm",
    "get_regularizer",
    "in_dtype",
    "is_own",
    "maximize",
    "problems_in",
    "weighted_sum",
]

REGULARIZERS: dict[str, type[Bindable]] = {
    "squared_norm": SquaredNorm,
    "l1": L1,
    "group_lasso": GroupLasso,
    "nuclear_norm": NuclearNorm,
    "path_norm": PathNorm,
    "hessian_trace": HessianTrace,
    "gradient_norm": GradientNorm,
    "input_gradient": InputGradient,
    "adaptive_sharpness": AdaptiveSharpness,
}

AnyRegularizer = str | Regularizer | Bindable | Problem | Callable[[dict[str, Tensor]], Any]
"""Whatever a user may give as a regularizer; see `get_regularizer`."""


class _OtherLoss:
    """The loss of another problem of the same parameters."""

    name = "other_loss"

    def __init__(self, other: Problem) -> None:
        self.value_and_grad = other.loss_and_grad


@dataclass(frozen=True)
class _Given:
    """What a user gave as a part of a combination, looked at once there is a problem."""

    regularizer: Any

    def bind(self, problem: Problem) -> Regularizer:
        return get_regularizer(self.regularizer, problem)


def _bindable(regularizer: Any) -> Bindable:
    known = isinstance(regularizer, Bindable) and not isinstance(regularizer, type)
    return regularizer if known else _Given(regularizer)


@checked
def get_regularizer(regularizer: AnyRegularizer, problem: Problem) -> Regularizer:
    """The regularizer that a user means, for a problem.

    Args:
        regularizer: Whatever `traverse` takes: a name; an object with settings such as
            `isoloss.L1(smoothing=1e-4)`, or a sum of such; an object with `name` and
            `value_and_grad`; a function of the parameters by name that returns a tensor of shape
            (); or another problem, for its loss.
        problem: The problem that is walked.

    Returns:
        The regularizer.

    Raises:
        InputError: It is none of these, or does not fit the problem.
    """
    if isinstance(regularizer, str):
        if regularizer not in REGULARIZERS:
            raise unknown("regularizer", regularizer, REGULARIZERS)
        return REGULARIZERS[regularizer]().bind(problem)
    if isinstance(regularizer, type):
        name = regularizer.__name__
        raise InputError(f"regularizer must be an object, got the class {name}; give {name}()")
    if isinstance(regularizer, Problem):
        check_same_network(
            "the problem given as regularizer", inside(regularizer).network, inside(problem).network
        )
        if regularizer.dtype != problem.dtype:
            raise InputError(
                f"the problem given as regularizer is in {str(regularizer.dtype)!r}, and the one "
                f"that is walked in {str(problem.dtype)!r}; make it in the same dtype"
            )
        _check_mask(regularizer, problem)
        return _OtherLoss(regularizer)
    if isinstance(regularizer, Bindable):
        return regularizer.bind(problem)
    if isinstance(regularizer, Own):
        return regularizer
    if isinstance(regularizer, Regularizer):
        return Own(regularizer)
    return from_function(regularizer, problem)


def _check_mask(other: Problem, problem: Problem) -> None:
    """Insist that another problem has a gradient in every entry that is walked over."""
    theirs, ours = inside(other).held, inside(problem).held
    if theirs is not None and (ours is None or bool((theirs & ~ours).any())):
        raise InputError(
            "the problem given as regularizer holds entries of theta that the walk moves, by its "
            "mask=, so that its gradient would be wrong there; make both with the same mask"
        )


def problems_in(regularizer: Any) -> tuple[Problem, ...]:
    """The problems whose losses a regularizer is made of, as a user gave it."""
    if isinstance(regularizer, Problem):
        return (regularizer,)
    if isinstance(regularizer, _Given):
        return problems_in(regularizer.regularizer)
    if isinstance(regularizer, Combination):
        return tuple(dict.fromkeys(p for _, part in regularizer.parts for p in problems_in(part)))
    return ()


def is_own(regularizer: Any) -> bool:
    """Whether a user wrote what a regularizer, as it was given, differentiates."""
    match regularizer:
        case str() | Problem():
            return False
        case _Given():
            return is_own(regularizer.regularizer)
        case Combination():
            return any(is_own(part) for _, part in regularizer.parts)
        case Outputs():
            return True
        case ParityGap():
            return regularizer.probability is not None
        case _:
            return not isinstance(regularizer, Bindable)


def in_dtype(regularizer: AnyRegularizer, dtype: torch.dtype) -> AnyRegularizer:
    """What a user gave as a regularizer, for problems of another type."""
    match regularizer:
        case Problem():
            return regularizer.with_dtype(dtype)
        case _Given():
            return _Given(in_dtype(regularizer.regularizer, dtype))
        case Combination():
            parts = ((weight, in_dtype(part, dtype)) for weight, part in regularizer.parts)
            return weighted_sum(*parts)
        case _:
            return regularizer


def weighted_sum(*parts: tuple[float, Any] | Combination) -> Combination:
    """The weighted sum of regularizers.

    isoloss's own need no function: `1.0 * isoloss.SquaredNorm() + 0.1 * isoloss.L1()` is the same.

    Args:
        *parts: Such sums, or pairs of a weight and a regularizer: a name, an object or a function,
            as in `weighted_sum((1.0, "squared_norm"), (0.1, my_function))`.

    Returns:
        The regularizer, for `traverse`.

    Raises:
        InputError: There is no part, or a weight is not a finite number.
    """
    if not parts:
        raise InputError(
            'weighted_sum must have a part, got none; give pairs, as in (1.0, "squared_norm")'
        )
    pairs: list[tuple[float, Any]] = []
    for part in parts:
        if isinstance(part, Combination):
            pairs.append((1.0, part))
        elif isinstance(part, tuple) and len(part) == 2:  # pyright: ignore[reportUnnecessaryIsInstance]
            pairs.append((part[0], _bindable(part[1])))
        else:
            raise InputError(
                f"a part of weighted_sum must be a pair of a weight and a regularizer, as in "
                f'(1.0, "squared_norm"), got {shown(part)}'
            )
    return combine(*pairs)


def maximize(regularizer: Any) -> Combination:
    """Make a regularizer as large as it can be: the walk to the worst network of a training loss.

    Walks minimize, so the value recorded is the regularizer's with its sign changed. There may
    be no largest value: ask for an end, as in `Stop(steps=200)`.

    Args:
        regularizer: A name, an object, a function, or a `Problem` such as the test set's.

    Returns:
        The regularizer, for `traverse`.
    """
    return combine((-1.0, _bindable(regularizer)))
