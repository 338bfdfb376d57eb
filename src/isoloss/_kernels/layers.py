"""Layers differentiated by hand, each with its buffers for batches of one shape.

Dense layers and activations take one network or many: activations of shape (n, ...) with parameters
as the module has them, or (members, n, ...) with parameters (members, ...). Convolution and pooling
take one network, images channels last, which is how oneDNN convolves fastest; the inputs of the
network stay as they are. `forward` returns a buffer that the next call overwrites; activations work
in place. `backward` takes the gradient of the outputs, writes or adds that of the layer's
parameters, and returns that of the inputs, or None where nothing before the layer has parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

FEW_CHANNELS = 8
"""Up to so many input channels the first convolution is a matrix product."""


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


class ColumnConvolution:
    """The first convolution as one matrix product on patches laid side by side, with few channels
    faster than oneDNN; a last row of ones carries the bias."""

    def __init__(self, place: Place, size: tuple[int, int]) -> None:
        self._weight, self._bias = place.part.weight, place.part.bias
        weight, n = place.at[self._weight], place.shape[0]
        outputs, channels, *kernel = weight.shape
        self._stride = _pair(place.part.module.stride)
        self.shape = (n, outputs, *size)
        entries, positions = channels * kernel[0] * kernel[1], n * size[0] * size[1]
        self.flops = 4 * positions * outputs * entries
        self._columns = weight.new_ones(entries + 1, positions)
        self._patches = self._columns[:-1].view(channels, *kernel, n, *size)
        self._kernel = weight.new_empty(entries + 1, outputs)
        self._rows = weight.new_empty(positions, outputs)
        self._out = self._rows.view(n, *size, outputs).permute(0, 3, 1, 2)

    def forward(self, x: Tensor, at: Tensors) -> Tensor:
        weight, (down, right) = at[self._weight], self._stride
        patches = x.unfold(2, weight.shape[2], down).unfold(3, weight.shape[3], right)
        self._patches.copy_(patches.permute(1, 4, 5, 0, 2, 3))
        self._kernel[:-1].copy_(weight.flatten(1).t())
        self._kernel[-1].copy_(at[self._bias])
        torch.mm(self._columns.t(), self._kernel, out=self._rows)
        return self._out

    def backward(self, grad: Tensor, _: object, into: Tensors, add: bool) -> None:
        rows = grad.permute(0, 2, 3, 1).reshape(self._rows.shape)
        torch.mm(self._columns, rows, out=self._kernel)
        _put(into[self._weight].flatten(1), self._kernel[:-1].t(), add)
        _put(into[self._bias], self._kernel[-1], add)


class Convolution:
    """A convolution by torch's own kernels."""

    def __init__(self, place: Place, size: tuple[int, int]) -> None:
        self._weight, self._bias = place.part.weight, place.part.bias
        weight, module = place.at[self._weight], place.part.module
        self._stride, self._padding = list(_pair(module.stride)), list(_pair(module.padding))
        self.shape = (place.shape[0], len(weight), *size)
        self._wanted = [not place.first, True, True]
        each = 4 if place.first else 6
        self.flops = each * place.shape[0] * size[0] * size[1] * weight.numel()
        self._x = weight

    def forward(self, x: Tensor, at: Tensors) -> Tensor:
        self._x = x
        weight, bias = at[self._weight], at[self._bias]
        return torch.conv2d(x, weight, bias, self._stride, self._padding)

    def backward(self, grad: Tensor, at: Tensors, into: Tensors, add: bool) -> Tensor | None:
        weight, stride, padding = at[self._weight], self._stride, self._padding
        dx, d_weight, d_bias = torch.ops.aten.convolution_backward(
            grad, self._x, weight, [len(weight)], stride, padding, [1, 1], False, [0, 0], 1,
            self._wanted,
        )  # fmt: skip
        _put(into[self._weight], d_weight, add)
        _put(into[self._bias], d_bias, add)
        return dx


class Tanh:
    """The hyperbolic tangent, in place: torch's own if exact, else 2 sigmoid(2 x) - 1, in a third
    of the time, within 2e-7 in float32. The gradient is that by x, also where 2 x is given."""

    def __init__(self, place: Place) -> None:
        self.shape, self.flops = place.shape, 0
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
        self.shape, self.flops = place.shape, 0
        self._y = torch.empty(0)

    def forward(self, x: Tensor, *_: object) -> Tensor:
        self._y = x.relu_()
        return self._y

    def backward(self, grad: Tensor, *_: object) -> Tensor:
        return torch.ops.aten.threshold_backward.grad_input(grad, self._y, 0, grad_input=grad)


class AveragePool:
    """Averages over windows."""

    def __init__(self, place: Place) -> None:
        module, like = place.part.module, place.at[0]
        pairs = (list(_pair(v)) for v in (module.kernel_size, module.stride, module.padding))
        options = module.ceil_mode, module.count_include_pad, module.divisor_override
        self._settings = (*pairs, *options)
        meta = torch.empty(place.shape, device="meta")
        try:
            self.shape = tuple(torch.ops.aten.avg_pool2d(meta, *self._settings).shape)
        except RuntimeError as error:
            raise ValueError("the windows do not fit") from error
        self.flops = 0
        self._x = like
        self._out = _images(self.shape, like)
        self._dx = None if place.first else _images(place.shape, like)

    def forward(self, x: Tensor, *_: object) -> Tensor:
        self._x = x
        return torch.ops.aten.avg_pool2d.out(x, *self._settings, out=self._out)

    def backward(self, grad: Tensor, *_: object) -> Tensor | None:
        if self._dx is None:
            return None
        return torch.ops.aten.avg_pool2d_backward.grad_input(
            grad, self._x, *self._settings, grad_input=self._dx
        )


class Flatten:
    """All axes after the examples' as one, in the order of channels, rows, columns."""

    def __init__(self, place: Place) -> None:
        self._after = 2 if place.stacked else 1
        if len(place.shape) <= self._after:
            raise ValueError("there is no axis to flatten")
        before, rest = place.shape[: self._after], place.shape[self._after :]
        self.shape = (*before, torch.Size(rest).numel())
        self.flops = 0
        self._dx = None if place.first else _images(place.shape, place.at[0])

    def forward(self, x: Tensor, *_: object) -> Tensor:
        return x.flatten(self._after)

    def backward(self, grad: Tensor, *_: object) -> Tensor | None:
        return None if self._dx is None else self._dx.copy_(grad.view(self._dx.shape))


def convolution(place: Place) -> Layer:
    """The faster of the two ways to convolve."""
    weight, module, shape = place.at[place.part.weight], place.part.module, place.shape
    if len(shape) != 4 or shape[1] != weight.shape[1]:
        raise ValueError("the inputs have another number of channels or of axes")
    padding = _pair(module.padding)
    sides = zip(shape[2:], padding, weight.shape[2:], _pair(module.stride), strict=True)
    height, width = ((side + 2 * pad - size) // step + 1 for side, pad, size, step in sides)
    if min(height, width) < 1:
        raise ValueError("the kernel is larger than the images")
    few = place.first and shape[1] <= FEW_CHANNELS and padding == (0, 0)
    return (ColumnConvolution if few else Convolution)(place, (height, width))


LAYERS = {
    nn.Linear: Linear,
    nn.Conv2d: convolution,
    nn.Tanh: Tanh,
    nn.ReLU: ReLU,
    nn.AvgPool2d: AveragePool,
    nn.Flatten: Flatten,
}
"""What stands in for each module."""


def _put(view: Tensor, piece: Tensor, add: bool) -> None:
    _ = view.add_(piece) if add else view.copy_(piece)


def _images(shape: tuple[int, ...], like: Tensor) -> Tensor:
    layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])
