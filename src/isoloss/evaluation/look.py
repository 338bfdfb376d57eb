"""A look at a problem's derivatives of derivatives, on a few examples, where one is needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from isoloss.errors import InputError
from isoloss.evaluation.second import check_slope, own_functions, random_direction

if TYPE_CHECKING:
    from isoloss.problem import Problem
    from isoloss.regularizers.regularizer import Regularizer

EXAMPLES = 4
"""Few enough that no kink of an activation lies within the shortest step."""


@dataclass(frozen=True)
class Suspect:
    """A few examples of a problem that calls functions with a backward of their own.

    Attributes:
        few: The problem of these examples, in float64 if it can be computed in it.
        theta: Where to look, of its type, shape (few.size,).
        names: The functions.
    """

    few: Problem
    theta: Tensor
    names: list[str]

    def check_product(self) -> None:
        """Insist that products with the Hessian of the loss are right.

        Raises:
            DerivativeError: They are not.
        """
        v = random_direction(self.theta)
        product = self.few.autograd(self.theta).hvp(v)
        self._check(
            lambda at: self.few.loss_and_grad(at)[1], product, "a product with the loss's Hessian"
        )

    def check_gradient(self, make: Callable[[Problem], Regularizer]) -> None:
        """Insist that the gradient of a regularizer made of derivatives is that of its values.

        Args:
            make: Gives the regularizer of a problem.

        Raises:
            DerivativeError: It is not.
        """
        made = make(self.few)
        slope = made.value_and_grad(self.theta)[1].dot(random_direction(self.theta))
        self._check(lambda at: made.value_and_grad(at)[0], slope, f"the gradient of {made.name}")

    def _check(self, function: Callable[[Tensor], Tensor], slope: Tensor, what: str) -> None:
        v = random_direction(self.theta)
        check_slope(function, slope, self.theta, v, what, self.names)


def suspect(problem: Problem, theta: Tensor) -> Suspect | None:
    """Whether derivatives of derivatives need a look.

    Args:
        problem: The problem.
        theta: Where, shape (problem.size,).

    Returns:
        What to look at, where the model or the loss calls functions with a backward of their own;
        torch's operations are right or refuse, so else None.
    """
    for dtype in (torch.float64, problem.dtype):
        few, at = problem.first(EXAMPLES, dtype), theta.to(dtype)
        try:
            total = few.autograd(at).total(next(iter(few.chunks)))
        except (RuntimeError, InputError):  # the model holds float32 tensors of its own
            if dtype == problem.dtype:
                raise
            continue
        names = own_functions(total)
        return Suspect(few, at, names) if names else None
    return None
