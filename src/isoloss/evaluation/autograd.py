"""The loss and its derivatives by torch's automatic differentiation: right for every model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from isoloss.data import Chunk, Chunks, leaves
from isoloss.errors import DerivativeError, InputError, one_line
from isoloss.evaluation.arithmetic import reproducible, twice_differentiable
from isoloss.evaluation.examples import per_example, weighted_sum
from isoloss.evaluation.second import undifferentiable
from isoloss.flat import FlatNetwork, flatten
from isoloss.losses import Loss

TYPES = re.compile(r"\bd?types?\b|not implemented for")
"""In torch's errors on tensors of types that an operation does not take."""

ALLOCATORS = ("DefaultCPUAllocator: ", "CUDA error: out of memory", "MPS backend out of memory")
"""What torch says where it has no error of its own for memory that ran out."""


class Autograd:
    """Evaluates the loss at the point loaded into a network, in the memory of one chunk.

    Args:
        network: The network.
        chunks: The examples.
        loss: Gives one loss per example.
    """

    def __init__(self, network: FlatNetwork, chunks: Chunks, loss: Loss) -> None:
        self._network = network
        self._chunks = chunks
        self._loss = loss
        self._scale = torch.tensor(
            1 / chunks.total_weight, dtype=torch.float64, device=network.device
        )

    def outputs(self, chunk: Chunk) -> Any:
        """What the model gives for a chunk.

        Raises:
            InputError: The model cannot take its inputs.
        """
        try:
            return self._network(chunk.inputs)
        except (RuntimeError, TypeError, LookupError, ValueError) as error:
            if _out_of_memory(error):
                raise
            raise _explained(chunk.inputs, self._network.dtype, error) from error

    def losses(self, outputs: Any, chunk: Chunk) -> Tensor:
        """The loss of each example, shape (chunk.examples,)."""
        return per_example("loss", self._loss(outputs, chunk.targets), chunk)

    def total(self, chunk: Chunk) -> Tensor:
        """The weighted sum of the losses of a chunk, shape (), float64."""
        return weighted_sum(self.losses(self.outputs(chunk), chunk), chunk)

    def loss(self) -> Tensor:
        """The mean loss, shape (), float64."""
        total = torch.zeros((), dtype=torch.float64, device=self._network.device)
        with torch.no_grad(), reproducible(self._network.device):
            for chunk in self._chunks:
                total += self.total(chunk)
        return total * self._scale

    def loss_and_grad(self) -> tuple[Tensor, Tensor]:
        """The mean loss, shape (), float64, and its flat gradient; summed in the chunks' order."""
        with reproducible(self._network.device):
            chunks = iter(self._chunks)
            value, pieces = self._differentiate(next(chunks))
            grad = flatten(pieces)
            views = self._network.split(grad)
            for chunk in chunks:
                total, pieces = self._differentiate(chunk)
                value = value + total
                for view, piece in zip(views, pieces, strict=True):
                    view.add_(piece)
        return value * self._scale, grad

    def hvp(self, vector: Tensor) -> Tensor:
        """The Hessian of the mean loss times a flat vector; twice the memory of a gradient.

        Raises:
            DerivativeError: An operation of the model cannot be differentiated twice.
        """
        directions = self._network.split(vector)
        product = torch.zeros_like(vector)
        device = self._network.device
        with torch.enable_grad(), reproducible(device), twice_differentiable(device):
            for chunk in self._chunks:
                product += flatten(self._second(chunk, directions))
        return product

    def _differentiate(self, chunk: Chunk) -> tuple[Tensor, tuple[Tensor, ...]]:
        with torch.enable_grad():
            total = self.total(chunk)
        return total.detach(), self._network.gradients(differentiable(total), self._scale)

    def _second(self, chunk: Chunk, directions: Sequence[Tensor]) -> tuple[Tensor, ...]:
        total = differentiable(self.total(chunk))
        try:
            grads = self._network.gradients(total, self._scale, twice=True)
            products = [(g * v).sum() for g, v in zip(grads, directions, strict=True)]
            slope = torch.stack(products).sum()
            if not slope.requires_grad:  # the gradient is constant
                return tuple(torch.zeros_like(grad) for grad in grads)
            return self._network.gradients(slope)
        except RuntimeError as error:
            if not undifferentiable(error):
                raise
            raise DerivativeError(
                f"the model cannot be differentiated twice ({one_line(error)}); write that "
                f"operation out in plain ones"
            ) from error


def differentiable(total: Tensor) -> Tensor:
    """Insist on a loss that torch can differentiate.

    Args:
        total: The sum of some losses.

    Returns:
        It.

    Raises:
        InputError: It does not depend on the parameters.
    """
    if not total.requires_grad:
        raise InputError(
            "the loss does not depend on the parameters in a way torch can differentiate; look "
            "for no_grad, detach, item or integers in the model and the loss"
        )
    return total


def _out_of_memory(error: Exception) -> bool:
    own = isinstance(error, torch.OutOfMemoryError)
    return own or (isinstance(error, RuntimeError) and any(a in str(error) for a in ALLOCATORS))


def _explained(inputs: Any, dtype: torch.dtype, error: Exception) -> InputError:
    """One sentence on a model that failed on its inputs."""
    said = one_line(error)
    named = list(leaves(inputs, "inputs"))
    if isinstance(error, RuntimeError) and TYPES.search(said):
        whole = [name for name, tensor in named if not tensor.is_floating_point()]
        given = ", ".join(f"{name} {tensor.dtype}" for name, tensor in named)
        remedy = (
            f"convert {whole[0]} with .float() unless they are indices"
            if whole
            else "convert what must be integers with .long()"
        )
        return InputError(
            f"the model, in {dtype}, cannot take inputs of these types: {given} ({said}); {remedy}"
        )
    given = ", ".join(f"{name} of shape {tuple(tensor.shape)}" for name, tensor in named)
    return InputError(
        f"the model cannot be evaluated on {given or 'its inputs'} ({said}); give inputs that "
        f"model(inputs) takes: a tuple or list becomes its arguments, a dict its keyword arguments"
    )
