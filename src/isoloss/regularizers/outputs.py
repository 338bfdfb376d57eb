"""Regularizers that are functions of a model's outputs on given inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from isoloss.arguments import check_fields
from isoloss.data import leaves
from isoloss.errors import InputError, check_takes, kind, placed
from isoloss.evaluation import Autograd
from isoloss.evaluation.differences import random_direction
from isoloss.evaluation.failures import explained
from isoloss.problem import Problem, inside
from isoloss.regularizers.regularizer import Combinable, Regularizer, one_number

ASIDE = 1e-2
"""How far, as a share of |theta|, a second look is taken where a gradient vanishes."""


@dataclass(frozen=True, eq=False)
class Outputs(Combinable):
    """A function of the model's outputs on given inputs: a prediction, a gap between groups.

    The model is the problem's, with its buffers and its mode, in the problem's type on its device,
    and as many inputs are evaluated at once as `chunk_size` of the problem says; where these are
    several chunks, one pass more computes the outputs first. Derivatives are computed in full
    whatever the problem's `precision`. Evaluations of these inputs are not counted: one costs
    (inputs / training examples) of an evaluation.

    Args:
        inputs: As the model takes them: a tensor or a structure of tensors with the examples along
            the first axis; a tuple or list becomes the model's arguments, a dict its keyword
            arguments.
        function: From the outputs for all of the inputs together, as the model gives them, to a
            tensor of shape (), by torch operations that can be differentiated:
            `lambda logits: logits.softmax(1)[0, 1]`.
        name: Shown in tables; by default the function's own, or `outputs` for a lambda.

    Raises:
        InputError: The inputs hold no tensor or no example, or the function is none.
    """

    inputs: Any
    function: Callable[[Any], Tensor]
    name: str = ""

    def __post_init__(self) -> None:
        """Look at what can be looked at without a model."""
        check_fields(self)
        check_inputs("Outputs", self.inputs)
        own = getattr(self.function, "__name__", "<lambda>")
        if not self.name:
            object.__setattr__(self, "name", "outputs" if own == "<lambda>" else own)
        check_takes(f"the function {self.name!r} of Outputs", self.function, "outputs")

    def bind(self, problem: Problem) -> Regularizer:
        """The regularizer for a problem's model.

        Raises:
            InputError: The model does not take the inputs; the function fails on its outputs, gives
                no tensor of shape (), is not the same in two calls, or does not depend on the
                parameters in a way torch can differentiate.
        """
        own = inside(problem)
        evaluation = own.autograd.on(own.chunks.alike(self.inputs))
        made = _OfOutputs(self.name, problem, evaluation, self.function)
        made.check(problem.current())
        return made


def check_inputs(what: str, inputs: Any) -> None:
    """Insist on inputs for a model, with an example."""
    named = [*leaves(inputs, "inputs")]
    if not named and not hasattr(inputs, "to"):
        raise InputError(
            f"inputs of {what} must be a tensor or a structure of tensors, as the model takes "
            f"them, with the examples along the first axis, got {kind(inputs)}"
        )
    for name, tensor in named:
        if tensor.ndim == 0 or len(tensor) == 0:
            raise InputError(
                f"inputs of {what} must hold examples along the first axis, got {name} of shape "
                f"{tuple(tensor.shape)}; give one at least, as in inputs[:1]"
            )


class _OfOutputs:
    def __init__(
        self,
        name: str,
        problem: Problem,
        evaluation: Autograd,
        function: Callable[[Any], Tensor],
    ) -> None:
        self.name = name
        self._problem = problem
        self._evaluation = evaluation
        self._function = function

    def value_and_grad(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """R, shape (), and its gradient, shape (n,)."""
        value, grad = self._problem.of_outputs(theta, self._evaluation, self._number)
        return value, inside(self._problem).walked(grad)

    def _number(self, outputs: Any) -> Tensor:
        value = one_number(self.name, self._function(outputs))
        if not value.requires_grad:
            raise self._constant("torch has no derivative of it by the outputs")
        return value

    def _constant(self, why: str) -> InputError:
        return InputError(
            f"the function of outputs {self.name!r} does not depend on the parameters in a way "
            f"that can be differentiated ({why}); use a smooth one, for example probabilities in "
            f"place of classes, without argmax, round, comparisons, .item() or .detach()"
        )

    def check(self, theta: Tensor) -> None:
        """Insist on a differentiable function of the parameters alone."""
        with explained(
            lambda error: (
                f"the function of outputs {self.name!r} failed on what the model gives for the "
                f"inputs ({placed(error)}); correct it"
            )
        ):
            (first, grad), (second, _) = (self.value_and_grad(theta) for _ in range(2))
        if first.item() != second.item() and not (math.isnan(first) and math.isnan(second)):
            raise InputError(
                f"the function of outputs {self.name!r} is not a function of the parameters alone: "
                f"two calls at one point gave {first.item():.9g} and {second.item():.9g}; call "
                f"model.eval(), and remove what else is random"
            )
        if not grad.any():
            v = inside(self._problem).walked(random_direction(theta))
            aside = theta + ASIDE * (theta.norm() or 1.0) * v / v.norm()
            value, slope = self.value_and_grad(aside)
            if not slope.any():
                moved = "though it changes" if value.item() != first.item() else "as of a constant"
                raise self._constant(f"its gradient is 0, {moved}")
