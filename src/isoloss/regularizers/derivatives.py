"""Regularizers made of derivatives: of the loss by the parameters, of the outputs by the inputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from isoloss.arguments import checked
from isoloss.data import Chunk, leaves, map_tensors
from isoloss.errors import MOST, InputError
from isoloss.evaluation import Autograd
from isoloss.evaluation.autograd import weighted_sum
from isoloss.losses import ModelLoss
from isoloss.problem import PRODUCT, Problem, inside
from isoloss.regularizers.regularizer import Combinable, Regularizer
from isoloss.settings import Settings

EXACT_UP_TO = 200
"""Parameters up to which the trace is computed exactly by default."""
PROBES = 10
"""Probe vectors by default where it is not."""
MOST_PROBES = 10_000
"""Probe vectors at most: all are held."""
AT_ONCE = 25
"""Probe vectors that are differentiated together."""


class HessianTrace(Settings, Combinable):
    """The trace of the Hessian of the training loss: how sharp the loss is, over all directions.

    Exactly, as the sum of all second derivatives, or by Hutchinson's estimate (Commun. Stat. 18,
    1989): the mean of <v, H v> over random vectors v of entries 1 and -1. These are drawn once, so
    that the estimate is a smooth function of theta, and the walk minimizes that function. Its
    relative error is some sqrt(2 / probes) times |H| / trace H. It counts four evaluations for each
    probe and needs third derivatives, which cuDNN's layers do not have.

    Attributes:
        probes: Random vectors; None is exact up to 200 parameters and takes 10 beyond.
        seed: Determines the vectors.
    """

    name: ClassVar[str] = "hessian_trace"
    probes: Annotated[int, Field(ge=1, le=MOST_PROBES)] | None = None
    seed: Annotated[int, Field(ge=0, le=MOST)] = 0

    @checked
    def bind(self, problem: Problem) -> Regularizer:
        """The regularizer for a problem."""
        n = problem.size
        if self.probes is None and n <= EXACT_UP_TO:
            vectors, scale = torch.eye(n, device="cpu"), 1.0
        else:
            source = torch.Generator().manual_seed(self.seed)
            count = self.probes or PROBES
            vectors = 2.0 * torch.randint(0, 2, (count, n), generator=source, device="cpu") - 1
            scale = 1 / count
        return _Trace(problem, vectors, scale)


class _Trace:
    """The sum of <v, H v> over given vectors, times a scale."""

    name = HessianTrace.name

    def __init__(self, problem: Problem, vectors: Tensor, scale: float) -> None:
        self._problem = problem
        self._vectors = vectors
        self._scale = scale / inside(problem).chunks.divisor

    def value_and_grad(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """R, shape (), and its gradient, shape (n,)."""
        counts = 2 * PRODUCT * len(self._vectors)
        return self._problem.sum_of(theta, self.name, self._term, counts)

    def _term(self, evaluation: Autograd, chunk: Chunk) -> Iterator[Tensor]:
        network = evaluation.network
        for block in self._vectors.split(AT_ONCE):
            block = block.to(network.device, network.dtype)
            slopes = network.gradients(evaluation.total(chunk), twice=True)
            yield self._scale * (network.products(slopes, block) * block).sum()


class GradientNorm(Settings, Combinable):
    """The squared norm of the gradient of the training loss.

    Large where the loss is steep; what gradient descent of finite steps penalizes implicitly
    (Barrett and Dherin, ICLR 2021). Its gradient is 2 H g, one Hessian-vector product; both count
    three evaluations.
    """

    name: ClassVar[str] = "gradient_norm"

    @checked
    def bind(self, problem: Problem) -> Regularizer:
        """The regularizer for a problem."""
        return _GradientNorm(problem)


class _GradientNorm:
    name = GradientNorm.name

    def __init__(self, problem: Problem) -> None:
        self._problem = problem

    def value_and_grad(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """R, shape (), and its gradient, shape (n,)."""
        _, g = self._problem.loss_and_grad(theta)
        return g.dot(g), 2 * self._problem.hvp(theta, g)


class InputGradient(Settings, Combinable):
    """The squared norm of the Jacobian of a network's outputs by its inputs, at the training set.

    The mean over the training examples of the sum of squares of all d output / d input (Drucker
    and LeCun, IEEE Trans. Neural Netw. 3, 1992, for the loss; here for every output). The outputs
    of an example must depend on its own inputs alone; of these, the floating ones count. It counts
    two evaluations for each output.
    """

    name: ClassVar[str] = "input_gradient"

    @checked
    def bind(self, problem: Problem) -> Regularizer:
        """The regularizer for a problem.

        Raises:
            InputError: No input is floating, or the outputs are not one tensor.
        """
        own = inside(problem)
        if isinstance(own.loss, ModelLoss):
            raise InputError(
                "input_gradient needs the outputs of the model, which a loss of (model, batch) "
                "keeps to itself; give a loss of (outputs, targets), or use another regularizer"
            )
        first = next(iter(own.chunks)).first(1)
        if not any(tensor.is_floating_point() for _, tensor in leaves(first.inputs, "inputs")):
            raise InputError(
                "input_gradient differentiates by the inputs, and all of them are integers; use "
                "another regularizer, or a model that takes embedded inputs"
            )
        outputs = _outputs(own.autograd, first)
        return _InputGradient(problem, own.chunks.total_weight, outputs[0].numel())


class _InputGradient:
    name = InputGradient.name

    def __init__(self, problem: Problem, weight: float, outputs: int) -> None:
        self._problem = problem
        self._weight = weight
        self._counts = 2 * outputs

    def value_and_grad(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """R, shape (), and its gradient, shape (n,)."""
        return self._problem.sum_of(theta, self.name, self._term, self._counts)

    def _term(self, evaluation: Autograd, chunk: Chunk) -> Iterator[Tensor]:
        inputs = map_tensors(_leaf, chunk.inputs)
        by = [tensor for _, tensor in leaves(inputs, "inputs") if tensor.is_floating_point()]
        outputs = _outputs(evaluation, chunk._replace(inputs=inputs))
        squares = [
            slope.square().flatten(1).sum(1)
            for column in outputs.flatten(1).unbind(1)
            for slope in _slopes(column, by)
        ]
        yield weighted_sum(torch.stack(squares).sum(0), chunk) / self._weight


def _outputs(evaluation: Autograd, chunk: Chunk) -> Tensor:
    outputs = evaluation.forward(chunk, by_inputs=True)
    if not isinstance(outputs, Tensor) or len(outputs) != chunk.examples:
        raise InputError(
            "input_gradient needs a model whose outputs are one tensor with the examples along "
            "the first axis; use another regularizer"
        )
    return outputs


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_() if tensor.is_floating_point() else tensor


def _slopes(column: Tensor, by: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(
        column.sum(), by, create_graph=True, allow_unused=True, materialize_grads=True
    )
