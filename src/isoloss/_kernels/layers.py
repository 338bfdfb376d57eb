"""Layers differentiated by hand, each with its buffers for batches of one shape.

They take one network or many: activations of shape (n, ...) with parameters as the module has them,
or (members, n, ...) with parameters (members, ...). Images are channels last in memory, which is
how oneDNN convolves fastest; the inputs of the network stay as they are. `forward` returns a buffer
that the next call overwrites; activations work in place. `backward` takes the gradient of the
outputs, writes or adds that of the layer's parameters, and returns that of the inputs, or None
where nothing before the layer has parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

Tensors = Sequence[Tensor]
"""The parameters of a network, or their gradients, in the order of the flat vector."""


@dataclass(frozen=True)
class Part:
    """A layer of a plain network, and the places of its parameters in the flat vector's order."""

    module: Any
    weight: int = -1  # where it has none
    bias: int = -1


@dataclass(frozen=True)
class Place:
    """What a layer is made for."""

    part: Part
    at: Tensors
    shape: tuple[int, ...]  # of the layer's inputs
    first: bool  # nothing before it has parameters
    stacked: bool
    exact: bool  # the hyperbolic tangent to the last digits
    doubled: bool  # between a Linear and the Tanh after it, 2 x is handed on


class Layer(Protocol):
    """One layer, ready for batches of one shape."""

    shape: tuple[int, ...]  # of its outputs
    flops: int  # multiplications and additions of one forward and backward pass over the batch
    room: int  # numbers that its buffers hold

    def forward(self, x: Tensor, at: Tensors, /) -> Tensor: ...
    def backward(self, grad: Tensor, at: Tensors, into: Tensors, add: bool, /) -> Tensor | None: ...


class Linear:
    """y = factor (x W' + b); the gradient leaves the factor, a power of two, to the next layer."""

    def __init__(self, place: Place) -> None:
        self._weight, self._bias = place.part.weight, place.part.bias
        weight, shape = place.at[self._weight], place.shape
        if len(shape) != weight.ndim or shape[-1] != weight.shape[-1]:
            raise ValueError("the inputs have another number of features or of axes")
        self.shape = (*shape[:-1], weight.shape[-2])
        self.flops = (4 if place.first else 6) * torch.Size(self.shape).numel() * shape[-1]
        self._stacked = place.stacked
        self._product = torch.bmm if place.stacked else torch.mm
        self._affine = torch.baddbmm if place.stacked else torch.addmm
        self._factor = 2 if place.doubled else 1
        self._x = weight
        self._out = weight.new_empty(self.shape)
        self._dx = None if place.first else weight.new_empty(shape)
        self.room = self._out.numel() + (0 if self._dx is None else self._dx.numel())

    def forward(self, x: Tensor, at: Tensors) -> Tensor:
        self._x = x
        weight, bias, factor = at[self._weight], at[self._bias], self._factor
        bias = bias.unsqueeze(1) if self._stacked else bias
        return self._affine(bias, x, weight.mT, beta=factor, alpha=factor, out=self._out)

    def backward(self, grad: Tensor, at: Tensors, into: Tensors, add: bool) -> Tensor | None:
        weight, bias = into[self._weight], into[self._bias]
        if add:
            self._affine(weight, grad.mT, self._x, out=weight)
            bias.add_(grad.sum(-2))
        else:
            self._product(grad.mT, self._x, out=weight)
            torch.sum(grad, -2, out=bias)
        return None if self._dx is None else self._product(grad, at[self._weight], out=self._dx)


class Tanh:
    """The hyperbolic tangent, in place: torch's own if exact, else 2 sigmoid(2 x) - 1, in a third
    of the time, within 2e-7 in float32. The gradient is that by x, also where 2 x is given."""

    def __init__(self, place: Place) -> None:
        self.shape, self.flops, self.room = place.shape, 0, 0
        self._exact, self._doubled = place.exact, place.doubled
        self._minus_one = place.at[0].new_full((), -1)
        self._y = self._minus_one

    def forward(self, x: Tensor, *_: object) -> Tensor:
        self._y = x
        if self._exact:
            return x.tanh_()
        if not self._doubled:
            x.mul_(2)
        return torch.add(self._minus_one, x.sigmoid_(), alpha=2, out=x)

    def backward(self, grad: Tensor, *_: object) -> Tensor:
        return torch.ops.aten.tanh_backward.grad_input(grad, self._y, grad_input=grad)


class ReLU:
    """max(x, 0), in place."""

    def __init__(self, place: Place) -> None:
        self.shape, self.flops, self.room = place.shape, 0, 0
        self._y = torch.empty(0)

    def forward(self, x: Tensor, *_: object) -> Tensor:
        self._y = x.relu_()
        return self._y

    def backward(self, grad: Tensor, *_: object) -> Tensor:
        return torch.ops.aten.threshold_backward.grad_input(grad, self._y, 0, grad_input=grad)


class Flatten:
    """All axes after the examples' as one, in the order of channels, rows, columns."""

    def __init__(self, place: Place) -> None:
        self._after = 2 if place.stacked else 1
        if len(place.shape) <= self._after:
            raise ValueError("there is no axis to flatten")
        before, rest = place.shape[: self._after], place.shape[self._after :]
        self.shape = (*before, torch.Size(rest).numel())
        self.flops = 0
        self._dx = None if place.first else image_buffer(place.shape, place.at[0])
        self.room = 0 if self._dx is None else self._dx.numel()

    def forward(self, x: Tensor, *_: object) -> Tensor:
        return x.flatten(self._after)

    def backward(self, grad: Tensor, *_: object) -> Tensor | None:
        return None if self._dx is None else self._dx.copy_(grad.view(self._dx.shape))


def image_buffer(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Room for what a layer gives, images channels last."""
    if len(shape) < 4:
        return like.new_empty(shape)
    *lead, channels, height, width = shape
    return like.new_empty(*lead, height, width, channels).movedim(-1, -3)
