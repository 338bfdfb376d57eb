"""Layers of a stack of networks with their derivatives, written out by hand.

Activations have shape (members, batch, features). Nothing here allocates in the second step: each
layer keeps its results, a set for each size of batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Layer(Protocol):
    """One layer of all members.

    Attributes:
        parameters: How many tensors of the network's parameters it takes.
    """

    parameters: int

    def forward(self, parameters: Sequence[Tensor], inputs: Tensor) -> Tensor:
        """Outputs; they stay until the next call with a batch as large."""
        ...

    def backward(
        self,
        parameters: Sequence[Tensor],
        inputs: Tensor,
        outputs: Tensor,
        slope: Tensor,
        into: Sequence[Tensor],
        onwards: bool,
    ) -> Tensor:
        """Derivatives of a scalar.

        Args:
            parameters: As in `forward`.
            inputs: As in `forward`.
            outputs: What `forward` returned.
            slope: Derivative with respect to the outputs; it may be overwritten.
            into: Receives the derivatives with respect to the parameters.
            onwards: Whether the derivative with respect to the inputs is wanted.

        Returns:
            That derivative; anything where it is not wanted.
        """
        ...


class Scratch:
    """Tensors to write to, made once for each shape."""

    def __init__(self) -> None:
        self._tensors: dict[tuple[int, ...], Tensor] = {}

    def get(self, like: Tensor, *shape: int) -> Tensor:
        """A tensor of a shape, of type and device of another; what is in it is left over."""
        if shape not in self._tensors:
            self._tensors[shape] = like.new_empty(shape)
        return self._tensors[shape]


class Linear:
    """x W' + b, of all members in one batched product.

    Args:
        doubled: Whether to give twice that, which costs nothing here and which `Tanh` takes.
    """

    parameters = 2

    def __init__(self, doubled: bool) -> None:
        self._factor = 2 if doubled else 1
        self._outputs, self._slopes = Scratch(), Scratch()

    def forward(self, parameters: Sequence[Tensor], inputs: Tensor) -> Tensor:
        """Outputs, shape (members, batch, outputs)."""
        weight, bias = parameters
        outputs = self._outputs.get(weight, *inputs.shape[:2], weight.shape[1])
        factor = self._factor
        return torch.baddbmm(
            bias.unsqueeze(1), inputs, weight.mT, beta=factor, alpha=factor, out=outputs
        )

    def backward(
        self,
        parameters: Sequence[Tensor],
        inputs: Tensor,
        outputs: Tensor,
        slope: Tensor,
        into: Sequence[Tensor],
        onwards: bool,
    ) -> Tensor:
        """Derivatives with respect to weight, bias and, where wanted, inputs."""
        del outputs
        torch.bmm(slope.mT, inputs, out=into[0])
        torch.sum(slope, 1, out=into[1])
        if not onwards:
            return slope
        return torch.bmm(slope, parameters[0], out=self._slopes.get(slope, *inputs.shape))


class Tanh:
    """The hyperbolic tangent of half its inputs, in place, as 2 / (1 + exp(-2x)) - 1.

    torch's own takes three times as long, about as long as the product before it. This form has an
    absolute error of some 1e-7 in float32, that of the rounding of values near one.
    """

    parameters = 0

    def __init__(self) -> None:
        self._minus_one: Tensor | None = None

    def forward(self, parameters: Sequence[Tensor], inputs: Tensor) -> Tensor:
        """Outputs, in the place of the inputs."""
        del parameters
        if self._minus_one is None:
            self._minus_one = inputs.new_full((), -1)
        return torch.add(self._minus_one, inputs.sigmoid_(), alpha=2, out=inputs)

    def backward(
        self,
        parameters: Sequence[Tensor],
        inputs: Tensor,
        outputs: Tensor,
        slope: Tensor,
        into: Sequence[Tensor],
        onwards: bool,
    ) -> Tensor:
        """The slope times 1 - tanh^2, in its place: that with respect to half the inputs."""
        del parameters, inputs, into, onwards
        return torch.ops.aten.tanh_backward.grad_input(slope, outputs, grad_input=slope)
