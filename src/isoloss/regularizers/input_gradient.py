"""How strongly the outputs depend on the inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from isoloss.data import Chunk, leaves, map_tensors
from isoloss.errors import InputError
from isoloss.evaluation.autograd import Autograd
from isoloss.evaluation.examples import weighted_sum
from isoloss.evaluation.look import suspect
from isoloss.flat import flatten
from isoloss.problem import Problem
from isoloss.regularizers.higher import differentiating
from isoloss.regularizers.regularizer import Regularizer
from isoloss.settings import Settings


class InputGradient(Settings):
    """The squared norm of the Jacobian of a network's outputs by its inputs, at the training set.

    The mean over the training examples of the sum of squares of all d output / d input (Drucker
    and LeCun, IEEE Trans. Neural Netw. 3, 1992, for the loss; here for every output). The outputs
    of an example must depend on its own inputs alone; of these, the floating ones count. An
    evaluation costs some two of the loss for each output.
    """

    @property
    def name(self) -> str:
        """The name shown in tables and figures."""
        return "input_gradient"

    def bind(self, problem: Problem) -> Regularizer:
        """The regularizer for a problem.

        Args:
            problem: The problem.

        Returns:
            The regularizer.

        Raises:
            InputError: No input is floating, or the gradient would be wrong (`DerivativeError`).
        """
        first = next(iter(problem.chunks))
        if not any(tensor.is_floating_point() for _, tensor in leaves(first.inputs, "inputs")):
            raise InputError(
                "input_gradient differentiates by the inputs, and all of them are integers; use "
                "another regularizer, or a model that takes embedded inputs"
            )
        found = suspect(problem, problem.current())
        if found is not None:
            found.check_gradient(_InputGradient)
        return _InputGradient(problem)


class _InputGradient:
    name = "input_gradient"

    def __init__(self, problem: Problem) -> None:
        self._problem = problem

    def value_and_grad(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """R, shape (), and its gradient, shape (n,)."""
        problem = self._problem
        value, grad = theta.new_zeros(()), theta.new_zeros(theta.shape)
        evaluation = problem.autograd(theta)
        with differentiating(problem, self.name):
            for chunk in problem.chunks:
                total = self._total(evaluation, chunk) / problem.chunks.total_weight
                value += total.detach()
                if total.requires_grad:
                    grad += flatten(problem.network.gradients(total))
        return value, grad

    def _total(self, evaluation: Autograd, chunk: Chunk) -> Tensor:
        """The weighted sum over a chunk of squared Jacobians, shape (), differentiable."""
        inputs = map_tensors(_leaf, chunk.inputs)
        by = [tensor for _, tensor in leaves(inputs, "inputs") if tensor.is_floating_point()]
        outputs = evaluation.outputs(chunk._replace(inputs=inputs))
        if not isinstance(outputs, Tensor) or len(outputs) != chunk.examples:
            raise InputError(
                "input_gradient needs a model whose outputs are one tensor with the examples along "
                "the first axis; use another regularizer"
            )
        squares = [
            slope.square().flatten(1).sum(1)
            for column in outputs.flatten(1).unbind(1)
            for slope in _slopes(column, by)
        ]
        return weighted_sum(torch.stack(squares).sum(0), chunk)


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_() if tensor.is_floating_point() else tensor


def _slopes(column: Tensor, by: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(
        column.sum(), by, create_graph=True, allow_unused=True, materialize_grads=True
    )
