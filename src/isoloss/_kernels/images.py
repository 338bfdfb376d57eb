"""Convolution and average pooling, differentiated by hand, images channels last.

As the layers of `layers.py`: each with its buffers for batches of one shape.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from isoloss._kernels.layers import Layer, Place, Tensors, image_buffer

FEW_CHANNELS = 8
"""Up to so many input channels patches are stored one number of all after the other, and the first
convolution is a matrix product on a CPU too."""
SMALL_PATCH = 576
"""Numbers of a patch up to which a convolution is one on a GPU. The deterministic kernels of cuDNN
took 1.2 to 2.9 times as long there (H200); with 128 channels 0.95, with 256 1.3, but in far less
memory."""
ALIGNED = 4
"""Rows of a matrix are filled up to a multiple of so many numbers."""


class PatchConvolution:
    """A convolution as a matrix product, of patches of the images laid side by side with a kernel
    of shape (patch, outputs). A one at the end of each patch carries the bias.

    The gradient of the images is another: of patches of the outputs' gradient, set apart by the
    stride within a border of zeros, with the kernel turned about.
    """

    def __init__(self, place: Place, size: tuple[int, int]) -> None:
        self._weight, self._bias = place.part.weight, place.part.bias
        weight, module, like = place.at[self._weight], place.part.module, place.at[0]
        self._stride, padding = _pair(module.stride), _pair(module.padding)
        *lead, outputs, channels, down, right = weight.shape
        *many, _, height, width = place.shape
        if padding[0] >= down or padding[1] >= right:
            raise ValueError("the padding is as large as the kernel")
        self._kernel_size = down, right
        self.shape = (*many, outputs, *size)
        self._product = torch.bmm if lead else torch.mm
        entries, positions = channels * down * right, many[-1] * size[0] * size[1]
        self._entries, wide = entries, -(-(entries + 1) // ALIGNED) * ALIGNED
        self._padded: tuple[Tensor, Tensor] | None = None  # the images in a border, and the inside
        if padding != (0, 0):
            (top, left), bottom, end = padding, padding[0] + height, padding[1] + width
            padded = like.new_zeros(*many, bottom + top, end + left, channels)
            self._padded = padded, padded[..., top:bottom, left:end, :]
        if channels <= FEW_CHANNELS:  # then a row of an image is longer than that of a patch
            columns = like.new_zeros(*lead, wide, positions)
            self._rows = columns.mT
            whole = columns[..., :entries, :].view(*lead, down, right, channels, many[-1], *size)
            self._patches = whole.movedim((-3, -2, -1), (-6, -5, -4))
        else:
            self._rows = like.new_zeros(*lead, positions, wide)
            self._patches = self._rows[..., :entries].view(*many, *size, down, right, channels)
        self._rows[..., entries] = 1
        self._kernel = like.new_zeros(*lead, wide, outputs)
        self._out = like.new_empty(*lead, positions, outputs)
        self._images = self._out.view(*many, *size, outputs).movedim(-1, -3)
        self._back = None if place.first else _Back(place, size)
        self.flops = (4 if place.first else 6) * self._out.numel() * entries
        buffers = [self._rows, self._out, *([self._padded[0]] if self._padded else [])]
        self.room = sum(b.numel() for b in buffers) + (self._back.room if self._back else 0)

    def forward(self, x: Tensor, at: Tensors) -> Tensor:
        x, weight = x.movedim(-3, -1), at[self._weight]
        if self._padded is not None:
            whole, inside = self._padded
            inside.copy_(x)
            x = whole
        self._patches.copy_(_windows(x, self._kernel_size, self._stride))
        self._of(self._kernel).copy_(weight)
        self._kernel[..., self._entries, :].copy_(at[self._bias])
        self._product(self._rows, self._kernel, out=self._out)
        return self._images

    def backward(self, grad: Tensor, at: Tensors, into: Tensors, add: bool) -> Tensor | None:
        grad = grad.movedim(-3, -1)
        rows = grad.reshape(self._out.shape)
        self._product(self._rows.mT, rows, out=self._kernel)
        _put(into[self._weight], self._of(self._kernel), add)
        _put(into[self._bias], self._kernel[..., self._entries, :], add)
        return None if self._back is None else self._back(grad, at[self._weight])

    def _of(self, kernel: Tensor) -> Tensor:
        """The weights in a matrix, in the module's order: (..., outputs, channels, down, right)."""
        down, right = self._kernel_size
        named = kernel[..., : self._entries, :].unflatten(-2, (down, right, -1))
        return named.movedim((-1, -2), (-4, -3))


class _Back:
    """From the gradient by a convolution's outputs to that by its inputs."""

    def __init__(self, place: Place, size: tuple[int, int]) -> None:
        weight, module, like = place.at[place.part.weight], place.part.module, place.at[0]
        stride, padding = _pair(module.stride), _pair(module.padding)
        *lead, outputs, channels, down, right = weight.shape
        *many, _, height, width = place.shape
        self._kernel_size = down, right
        self._product = torch.bmm if lead else torch.mm
        self._spread = like.new_zeros(*many, height + down - 1, width + right - 1, outputs)
        rows, columns = (
            slice(k - 1 - pad, k - 1 - pad + step * count, step)
            for k, pad, step, count in zip((down, right), padding, stride, size, strict=True)
        )
        self._apart = self._spread[..., rows, columns, :]
        self._patches = like.new_empty(*many, height, width, down, right, outputs)
        positions, entries = many[-1] * height * width, down * right * outputs
        self._rows = self._patches.view(*lead, positions, entries)
        self._kernel = like.new_empty(*lead, entries, channels)
        self._turned = self._kernel.view(*lead, down, right, outputs, channels)
        self._dx = like.new_empty(*lead, positions, channels)
        self._images = self._dx.view(*many, height, width, channels).movedim(-1, -3)
        self.room = sum(b.numel() for b in (self._spread, self._patches, self._dx))

    def __call__(self, grad: Tensor, weight: Tensor) -> Tensor:
        self._apart.copy_(grad)
        self._patches.copy_(_windows(self._spread, self._kernel_size, (1, 1)))
        self._turned.copy_(weight.flip(-2, -1).movedim((-4, -3), (-2, -1)))
        self._product(self._rows, self._kernel, out=self._dx)
        return self._images


class Convolution:
    """A convolution by torch's own kernels."""

    def __init__(self, place: Place, size: tuple[int, int]) -> None:
        self._weight, self._bias = place.part.weight, place.part.bias
        weight, module = place.at[self._weight], place.part.module
        self._stride, self._padding = list(_pair(module.stride)), list(_pair(module.padding))
        self.shape = (place.shape[0], len(weight), *size)
        self._wanted = [not place.first, True, True]
        self.room = 0
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


class AveragePool:
    """Averages over windows."""

    def __init__(self, place: Place) -> None:
        module, like = place.part.module, place.at[0]
        pairs = (list(_pair(v)) for v in (module.kernel_size, module.stride, module.padding))
        options = module.ceil_mode, module.count_include_pad, module.divisor_override
        self._settings = (*pairs, *options)
        self._lead = place.shape[:-3]  # members and examples as one axis is what torch takes
        meta = torch.empty((torch.Size(self._lead).numel(), *place.shape[-3:]), device="meta")
        try:
            shape = torch.ops.aten.avg_pool2d(meta, *self._settings).shape
        except RuntimeError as error:
            raise ValueError("the windows do not fit") from error
        self.shape = (*self._lead, *shape[1:])
        self.flops = 0
        self._x = like
        self._out = image_buffer(tuple(shape), like)
        self._dx = None if place.first else image_buffer(tuple(meta.shape), like)
        self.room = self._out.numel() + (0 if self._dx is None else self._dx.numel())

    def forward(self, x: Tensor, *_: object) -> Tensor:
        self._x = x.flatten(0, -4)
        torch.ops.aten.avg_pool2d.out(self._x, *self._settings, out=self._out)
        return self._out.unflatten(0, self._lead)

    def backward(self, grad: Tensor, *_: object) -> Tensor | None:
        if self._dx is None:
            return None
        torch.ops.aten.avg_pool2d_backward.grad_input(
            grad.flatten(0, -4), self._x, *self._settings, grad_input=self._dx
        )
        return self._dx.unflatten(0, self._lead)


class TilingPool:
    """Averages over windows that lie side by side, as sums of strided views: what torch has for
    images channels last on a GPU divides 64-bit numbers for every entry."""

    def __init__(self, place: Place) -> None:
        module, like, shape = place.part.module, place.at[0], place.shape
        self._window = _pair(module.kernel_size)
        counts = [side // size for side, size in zip(shape[-2:], self._window, strict=True)]
        if min(counts) < 1:
            raise ValueError("the windows do not fit")
        self.shape = (*shape[:-2], *counts)
        self.flops = 0
        self._share = 1 / (module.divisor_override or self._window[0] * self._window[1])
        self._out = image_buffer(self.shape, like)
        self._dx = None if place.first else image_buffer(shape, like)
        self.room = self._out.numel() + (0 if self._dx is None else self._dx.numel())

    def forward(self, x: Tensor, *_: object) -> Tensor:
        tiles = self._tiles(x)
        first, *others = (
            tiles[..., i, :, j] for i in range(self._window[0]) for j in range(self._window[1])
        )
        self._out.copy_(first)
        for one in others:
            self._out.add_(one)
        return self._out.mul_(self._share)

    def backward(self, grad: Tensor, *_: object) -> Tensor | None:
        if self._dx is None:
            return None
        tiles = self._tiles(self._dx)
        if tiles.numel() < self._dx.numel():  # what no window reaches
            self._dx.zero_()
        torch.mul(grad[..., None, :, None].expand_as(tiles), self._share, out=tiles)
        return self._dx

    def _tiles(self, images: Tensor) -> Tensor:
        """The windows, shape (..., h, rows, w, columns)."""
        (h, w), (rows, columns) = self.shape[-2:], self._window
        covered = images[..., : h * rows, : w * columns]
        return covered.unflatten(-1, (w, columns)).unflatten(-3, (h, rows))


def convolution(place: Place) -> Layer:
    """The faster of the two ways to convolve."""
    weight, module, shape = place.at[place.part.weight], place.part.module, place.shape
    if len(shape) != weight.ndim or shape[-3] != weight.shape[-3]:
        raise ValueError("the inputs have another number of channels or of axes")
    pairs = _pair(module.padding), weight.shape[-2:], _pair(module.stride)
    sides = zip(shape[-2:], *pairs, strict=True)
    height, width = ((side + 2 * pad - size) // step + 1 for side, pad, size, step in sides)
    if min(height, width) < 1:
        raise ValueError("the kernel is larger than the images")
    return (PatchConvolution if _by_patches(place) else Convolution)(place, (height, width))


def _by_patches(place: Place) -> bool:
    """Whether a product of patches is faster; a ValueError where autograd is as fast as either."""
    weight = place.at[place.part.weight]
    if place.stacked:
        return True
    if weight.device.type == "cpu":
        few = weight.shape[1] <= FEW_CHANNELS
        return place.first and few and _pair(place.part.module.padding) == (0, 0)
    if weight[0].numel() > SMALL_PATCH:
        raise ValueError("autograd convolves as fast")
    return True


def average_pool(place: Place) -> Layer:
    """The faster of the two ways to average."""
    return (TilingPool if _by_tiles(place) else AveragePool)(place)


def _by_tiles(place: Place) -> bool:
    return place.at[0].device.type != "cpu" and tile(place.part.module)


def tile(module: nn.AvgPool2d) -> bool:
    """Whether windows lie side by side, all within the images."""
    kernel, padding = _pair(module.kernel_size), _pair(module.padding)
    return _pair(module.stride) == kernel and padding == (0, 0) and not module.ceil_mode


def _put(view: Tensor, piece: Tensor, add: bool) -> None:
    _ = view.add_(piece) if add else view.copy_(piece)


def _windows(images: Tensor, kernel: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """All patches of images (..., rows, columns, channels): (..., h, w, *kernel, channels)."""
    windows = images.unfold(-3, kernel[0], stride[0]).unfold(-3, kernel[1], stride[1])
    return windows.movedim(-3, -1)


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])
