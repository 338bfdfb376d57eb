"""Regularizers by name, and everything else that a user may give as one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from isoloss.errors import InputError, unknown
from isoloss.problem import Problem
from isoloss.regularizers.flatness import GradientNorm, HessianTrace
from isoloss.regularizers.input_gradient import InputGradient
from isoloss.regularizers.nuclear_norm import NuclearNorm
from isoloss.regularizers.path_norm import PathNorm
from isoloss.regularizers.regularizer import Bindable, Regularizer, from_function
from isoloss.regularizers.sparsity import L1, GroupLasso
from isoloss.regularizers.squared_norm import SquaredNorm

REGULARIZERS: dict[str, type[Bindable]] = {
    "squared_norm": SquaredNorm,
    "l1": L1,
    "group_lasso": GroupLasso,
    "nuclear_norm": NuclearNorm,
    "path_norm": PathNorm,
    "hessian_trace": HessianTrace,
    "gradient_norm": GradientNorm,
    "input_gradient": InputGradient,
}


AnyRegularizer = str | Regularizer | Bindable | Problem | Callable[[dict[str, Tensor]], Any]
"""Whatever a user may give as a regularizer; see `get_regularizer`."""


class _OtherLoss:
    """The loss of another problem of the same parameters."""

    name = "other_loss"

    def __init__(self, other: Problem) -> None:
        self.value_and_grad = other.loss_and_grad


def get_regularizer(regularizer: AnyRegularizer, problem: Problem) -> Regularizer:
    """The regularizer that a user means, for a problem.

    Args:
        regularizer: A name; an object with settings such as `isoloss.L1(smoothing=1e-4)`; an
            object with `name` and `value_and_grad`; a function of the parameters by name that
            returns a tensor of shape (); or another problem, for its loss.
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
        raise InputError(
            f"regularizer is the class {regularizer.__name__}; give {regularizer.__name__}()"
        )
    if isinstance(regularizer, Problem):
        if regularizer.shapes != problem.shapes or regularizer.dtype != problem.dtype:
            raise InputError(
                "the problem given as regularizer has other parameters than the one walked; make "
                "it from the same model, in the same dtype"
            )
        return _OtherLoss(regularizer)
    if isinstance(regularizer, Bindable):
        return regularizer.bind(problem)
    if isinstance(regularizer, Regularizer):
        return regularizer
    if callable(regularizer):
        return from_function(regularizer, problem)
    raise InputError(
        f"regularizer is a {type(regularizer).__name__}; give a name such as 'squared_norm', an "
        f"object such as isoloss.L1(), or a function of the parameters by name"
    )
