"""The path norm of feed-forward networks."""

from __future__ import annotations

import copy
import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from isoloss.arguments import checked
from isoloss.errors import InputError
from isoloss.names import functional
from isoloss.problem import Problem, inside
from isoloss.regularizers.regularizer import (
    Combinable,
    Differentiated,
    Parameters,
    Regularizer,
)
from isoloss.settings import Settings

WITHOUT_WEIGHTS = (
    nn.Identity,
    nn.Flatten,
    nn.Dropout,
    nn.Tanh,
    nn.Hardtanh,
    nn.Sigmoid,
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.ELU,
    nn.SELU,
    nn.CELU,
    nn.GELU,
    nn.SiLU,
    nn.Softplus,
    nn.Softsign,
)
"""Layers that do not mix entries: on a path they count as one."""
WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)


class PathNorm(Settings, Combinable):
    """The root of the sum over all paths of the squared product of the weights along the path.

    A path goes from an input or a bias to an output (Neyshabur, Tomioka and Srebro, COLT 2015, with
    p = 2): one pass of ones through the network of squared weights without its activations does
    the sum. For an `nn.Sequential` of dense and convolutional layers, activations, average pooling
    and flattening.
    """

    name: ClassVar[str] = "path_norm"

    @checked
    def bind(self, problem: Problem) -> Regularizer:
        """The regularizer for a problem's model.

        Raises:
            InputError: The model is no feed-forward network of known layers.
        """
        model = inside(problem).network.model
        inputs = next(iter(inside(problem).chunks)).inputs
        if not isinstance(model, nn.Module) or not isinstance(inputs, Tensor):
            raise InputError(
                "path_norm is for an nn.Sequential whose input is one tensor, and the model is "
                "another; use squared_norm or a function of the parameters"
            )
        paths = _paths(copy.deepcopy(model))
        with torch.no_grad():
            for weight in (*paths.parameters(), *paths.buffers()):
                weight.data = weight.square()  # those that are frozen keep this
        call, ones = functional(paths), torch.ones_like(inputs[:1], dtype=problem.dtype)

        def value(parameters: Parameters) -> Tensor:
            squares = {name: weight.square() for name, weight in parameters.items()}
            return call(squares, ones).sum().sqrt()

        return Differentiated(self.name, value, problem.shapes)


class _SquaredPool(nn.Module):
    """Average pooling whose fixed weights 1 / k are squared."""

    def __init__(self, pool: nn.Module, size: int) -> None:
        super().__init__()
        self.pool = pool
        self.size = size

    def forward(self, inputs: Tensor) -> Tensor:
        return self.pool(inputs) / self.size


def _paths(module: nn.Module) -> nn.Module:
    """The network along whose edges the squared weights multiply."""
    if isinstance(module, nn.Sequential):
        for place, child in enumerate(module):
            module[place] = _paths(child)
        return module
    if isinstance(module, (nn.Flatten, _SquaredPool)) or (
        isinstance(module, WEIGHTED) and getattr(module, "padding_mode", "zeros") == "zeros"
    ):
        return module
    if isinstance(module, WITHOUT_WEIGHTS):
        return nn.Identity()
    if isinstance(module, POOLS) and not module.ceil_mode and not _padded(module):
        return _SquaredPool(module, _entries(module))
    raise InputError(
        f"path_norm has no paths for a {type(module).__name__}: it is for an nn.Sequential of "
        f"Linear, Conv, activations, AvgPool without padding and Flatten; use squared_norm or a "
        f"function of the parameters"
    )


def _padded(pool: Any) -> bool:
    padding = pool.padding
    return padding != 0 if isinstance(padding, int) else any(padding)


def _entries(pool: Any) -> int:
    """How many entries one pool averages."""
    size = pool.kernel_size
    if not isinstance(size, int):
        return math.prod(size)
    return size ** next(k for k, kind in enumerate(POOLS, 1) if isinstance(pool, kind))
