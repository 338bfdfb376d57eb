"""Layers differentiated by hand, each with its buffers for chunks of one shape.

Images are held channels last, which is how oneDNN convolves fastest; the inputs of the network
stay as they are. `forward` returns a buffer that the next call overwrites; activations work in
place. `backward` takes the gradient of the outputs, writes or adds that of the layer's parameters,
and returns that of the inputs, or None where nothing before the layer has parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

Pair = tuple[int, int]


class Layer(Protocol):
    """One layer of a chain, ready for chunks of one shape."""

    shape: tuple[int, ...]
    """Of its outputs, the examples first."""

    flops: int
    """Multiplications and additions of one forward and backward pass over the chunk."""

    def forward(self, x: Tensor) -> Tensor:
        """Outputs for inputs x."""
        ...

    def backward(self, grad: Tensor, into: Sequence[Tensor], add: bool) -> Tensor | None:
        """Write the parameters' gradient into `into`, or add it; return that of the inputs."""
        ...


class Linear:
    """y = factor (x W' + b); the gradient leaves the factor, a power of two, to the next layer."""

    def __init__(
        self, layer: nn.Linear, shape: tuple[int, ...], first: bool, factor: int = 1
    ) -> None:
        self._weight, self._bias = layer.weight.detach(), layer.bias.detach()
        n, outputs, inputs = shape[0], *self._weight.shape
        self.shape = (n, outputs)
        self.flops = (4 if first else 6) * n * outputs * inputs
        self._turned = self._weight.t()
        self._factor = factor
        self._x = self._weight
        self._out = self._weight.new_empty(self.shape)
        self._dx = None if first else self._weight.new_empty(n, inputs)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs for inputs x."""
        self._x = x
        factor = self._factor
        return torch.addmm(self._bias, x, self._turned, beta=factor, alpha=factor, out=self._out)

    def backward(self, grad: Tensor, into: Sequence[Tensor], add: bool) -> Tensor | None:
        """See `Layer`."""
        weight, bias = into
        if add:
            weight.addmm_(grad.t(), self._x)
            bias.add_(grad.sum(0))
        else:
            torch.mm(grad.t(), self._x, out=weight)
            torch.sum(grad, 0, out=bias)
        return None if self._dx is None else torch.mm(grad, self._weight, out=self._dx)


class ColumnConvolution:
    """The first convolution as one matrix product, on the patches of the inputs laid side by side.

    Few input channels leave oneDNN's kernels nearly idle, and the gradient of the inputs, which
    would have to be folded back, is not needed here. A last patch row of ones carries the bias.
    """

    def __init__(self, layer: nn.Conv2d, shape: tuple[int, ...], first: bool) -> None:
        assert first  # noqa: S101
        self._weight, self._bias = layer.weight.detach(), _bias(layer).detach()
        self._stride = _pair(layer.stride)
        n, channels, size = shape[0], shape[1], _convolved(layer, shape)
        outputs, entries = len(self._bias), self._weight[0].numel()
        self.shape = (n, outputs, *size)
        positions = n * size[0] * size[1]
        self.flops = 4 * positions * outputs * entries
        self._columns = self._weight.new_ones(entries + 1, positions)
        kernel = _pair(layer.kernel_size)
        self._patches = self._columns[:-1].view(channels, *kernel, n, *size)
        self._kernel = self._weight.new_empty(entries + 1, outputs)
        self._rows = self._weight.new_empty(positions, outputs)
        self._out = self._rows.view(n, *size, outputs).permute(0, 3, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs for inputs x."""
        (rows, columns), (down, right) = self._weight.shape[2:], self._stride
        patches = x.unfold(2, rows, down).unfold(3, columns, right)
        self._patches.copy_(patches.permute(1, 4, 5, 0, 2, 3))
        self._kernel[:-1].copy_(self._weight.flatten(1).t())
        self._kernel[-1].copy_(self._bias)
        torch.mm(self._columns.t(), self._kernel, out=self._rows)
        return self._out

    def backward(self, grad: Tensor, into: Sequence[Tensor], add: bool) -> None:
        """See `Layer`."""
        rows = grad.permute(0, 2, 3, 1).reshape(self._rows.shape)
        torch.mm(self._columns, rows, out=self._kernel)
        weight, bias = into
        _put(weight.flatten(1), self._kernel[:-1].t(), add)
        _put(bias, self._kernel[-1], add)


class Convolution:
    """A convolution by torch's own kernels."""

    def __init__(self, layer: nn.Conv2d, shape: tuple[int, ...], first: bool) -> None:
        self._weight, self._bias = layer.weight.detach(), _bias(layer).detach()
        self._stride, self._padding = list(_pair(layer.stride)), list(_padding(layer))
        size = _convolved(layer, shape)
        self.shape = (shape[0], len(self._bias), *size)
        self._wanted = [not first, True, True]
        self.flops = (4 if first else 6) * shape[0] * size[0] * size[1] * self._weight.numel()
        self._x = self._weight

    def forward(self, x: Tensor) -> Tensor:
        """Outputs for inputs x."""
        self._x = x
        return torch.conv2d(x, self._weight, self._bias, self._stride, self._padding)

    def backward(self, grad: Tensor, into: Sequence[Tensor], add: bool) -> Tensor | None:
        """See `Layer`."""
        dx, *pieces = torch.ops.aten.convolution_backward(
            grad,
            self._x,
            self._weight,
            [len(self._bias)],
            self._stride,
            self._padding,
            [1, 1],
            False,
            [0, 0],
            1,
            self._wanted,
        )
        for view, piece in zip(into, pieces, strict=True):
            _put(view, piece, add)
        return dx


class Tanh:
    """The hyperbolic tangent, in place.

    In float32 as 2 sigmoid(2 x) - 1, a third of the cost of torch's tanh. Its absolute error stays
    below 2e-7, about what rounding leaves in x; the noise of the loss is the same. In float64
    torch's own.

    Args:
        shape: Of the inputs.
        dtype: Of the inputs.
        doubled: Whether the layer before gives 2 x, which costs it nothing; its gradient is that
            with respect to x all the same. In float32 only.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, doubled: bool = False) -> None:
        self.shape, self.flops = shape, 0
        self._exact = dtype == torch.float64
        self._doubled = doubled
        self._minus_one = torch.tensor(-1, dtype=dtype)
        self._y = self._minus_one

    def forward(self, x: Tensor) -> Tensor:
        """Outputs for inputs x, which they overwrite."""
        self._y = x
        if self._exact:
            return x.tanh_()
        if not self._doubled:
            x.mul_(2)
        return torch.add(self._minus_one, x.sigmoid_(), alpha=2, out=x)

    def backward(self, grad: Tensor, into: Sequence[Tensor], add: bool) -> Tensor:
        """See `Layer`; overwrites the gradient of its outputs."""
        del into, add
        return torch.ops.aten.tanh_backward.grad_input(grad, self._y, grad_input=grad)


class ReLU:
    """max(x, 0), in place."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape, self.flops = shape, 0
        self._y = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs for inputs x, which they overwrite."""
        self._y = x.relu_()
        return self._y

    def backward(self, grad: Tensor, into: Sequence[Tensor], add: bool) -> Tensor:
        """See `Layer`; overwrites the gradient of its outputs."""
        del into, add
        return torch.ops.aten.threshold_backward.grad_input(grad, self._y, 0, grad_input=grad)


class AveragePool:
    """Averages over windows."""

    def __init__(
        self, layer: nn.AvgPool2d, shape: tuple[int, ...], dtype: torch.dtype, first: bool
    ) -> None:
        self._settings = (
            list(_pair(layer.kernel_size)),
            list(_pair(layer.stride)),
            list(_pair(layer.padding)),
            layer.ceil_mode,
            layer.count_include_pad,
            layer.divisor_override,
        )
        self.flops = 0
        self.shape = tuple(
            torch.ops.aten.avg_pool2d(torch.empty(shape, device="meta"), *self._settings).shape
        )
        self._x = torch.empty(0)
        self._out = _images(self.shape, dtype)
        self._dx = None if first else _images(shape, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs for inputs x."""
        self._x = x
        return torch.ops.aten.avg_pool2d.out(x, *self._settings, out=self._out)

    def backward(self, grad: Tensor, into: Sequence[Tensor], add: bool) -> Tensor | None:
        """See `Layer`."""
        del into, add
        if self._dx is None:
            return None
        return torch.ops.aten.avg_pool2d_backward.grad_input(
            grad, self._x, *self._settings, grad_input=self._dx
        )


class Flatten:
    """All axes but the first as one, in the order of channels, rows, columns."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, first: bool) -> None:
        self.flops = 0
        self.shape = (shape[0], torch.Size(shape[1:]).numel())
        self._dx = None if first else _images(shape, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs for inputs x."""
        return x.flatten(1)

    def backward(self, grad: Tensor, into: Sequence[Tensor], add: bool) -> Tensor | None:
        """See `Layer`."""
        del into, add
        return None if self._dx is None else self._dx.copy_(grad.view(self._dx.shape))


def _put(view: Tensor, piece: Tensor, add: bool) -> None:
    if add:
        view.add_(piece)
    else:
        view.copy_(piece)


def _images(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, memory_format=layout)


def _pair(value: int | Sequence[int]) -> Pair:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _padding(layer: nn.Conv2d) -> Pair:
    assert not isinstance(layer.padding, str)  # noqa: S101  # chain.py admits no other
    return _pair(layer.padding)


def _bias(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None  # noqa: S101  # chain.py admits no other
    return layer.bias


def _convolved(layer: nn.Conv2d, shape: tuple[int, ...]) -> Pair:
    sides = zip(shape[2:], _padding(layer), layer.kernel_size, _pair(layer.stride), strict=True)
    height, width = ((side + 2 * pad - size) // step + 1 for side, pad, size, step in sides)
    return height, width
