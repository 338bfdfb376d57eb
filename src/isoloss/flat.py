"""A network whose parameters are views of one flat vector."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from isoloss.errors import InputError

Model = nn.Module | Callable[[Mapping[str, Tensor], Any], Tensor]
"""A module, or a function of (dict of parameters, inputs)."""


class FlatNetwork:
    """A private copy of a model whose trainable parameters live in one flat vector.

    Loading a point is one copy of the vector, and nothing of the user's model is touched.

    Args:
        model: A module, or a function of (dict of parameters, inputs).
        parameters: The start of a function's parameters by name; a module brings its own.
        dtype: Type of the flat vector; None takes that of the parameters.
        device: Where the copy lives; None takes where the parameters are.

    Attributes:
        shapes: Shapes of the trainable parameters by name, in the order of `named_parameters()`.
        model: The private copy, or the function.
        size: Number of entries of the flat vector.
        dtype: Type of the flat vector.
        device: Device of the flat vector.

    Raises:
        InputError: There is no trainable parameter, or they are of several types or devices.
    """

    def __init__(
        self,
        model: Model,
        parameters: Mapping[str, Tensor] | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        named = trainable(model, parameters)
        self.shapes = {name: tuple(p.shape) for name, p in named.items()}
        self.size = sum(p.numel() for p in named.values())
        first = next(iter(named.values()))
        self.dtype = dtype or first.dtype
        self.device = torch.device(device) if device is not None else first.device
        if isinstance(model, nn.Module):
            module = copy.deepcopy(model).to(device=self.device, dtype=self.dtype)
            leaves = list(trainable(module, None).values())
            self.model: Model = module
            self._call: Callable[[Any], Tensor] = module
        else:
            leaves = [
                p.detach().to(self.device, self.dtype, copy=True).requires_grad_()
                for p in named.values()
            ]
            held = dict(zip(named, leaves, strict=True))
            self.model = model
            self._call = lambda inputs: model(held, inputs)
        self._leaves = leaves
        self._theta = flatten(leaves)
        for leaf, view in zip(leaves, self.split(self._theta), strict=True):
            leaf.data = view
            leaf.grad = None

    def __call__(self, inputs: Any) -> Tensor:
        """Outputs of the network at the point last loaded."""
        return self._call(inputs)

    def load(self, theta: Tensor) -> None:
        """Make theta, shape (size,), the point at which the network is evaluated.

        Args:
            theta: Flat parameters.

        Raises:
            InputError: Theta has another shape, which would broadcast silently.
        """
        if theta.shape != self._theta.shape:
            raise InputError(
                f"theta has shape {tuple(theta.shape)}, the model has {self.size} trainable "
                f"parameters; give a flat vector in the order of model.named_parameters()"
            )
        self._theta.copy_(theta)

    def gradients(self, total: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        """Gradient of scale * total with respect to each parameter, in order."""
        return torch.autograd.grad(
            total, self._leaves, scale, allow_unused=True, materialize_grads=True
        )

    def split(self, flat: Tensor) -> list[Tensor]:
        """Views of a flat vector in the parameters' shapes, in order."""
        shapes = self.shapes.values()
        pieces = flat.split([math.prod(shape) for shape in shapes])
        return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]


def trainable(model: Model, parameters: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """The parameters that make up theta, by name.

    Args:
        model: A module, or a function of (dict of parameters, inputs).
        parameters: A function's parameters; None for a module.

    Returns:
        A module's parameters that require a gradient, or all of a function's.

    Raises:
        InputError: There is none, or they are of several types or devices.
    """
    if isinstance(model, nn.Module):
        if parameters is not None:
            raise InputError("parameters= is for a model that is a function; a module has its own")
        named: dict[str, Tensor] = {k: p for k, p in model.named_parameters() if p.requires_grad}
    elif parameters is None:
        raise InputError(
            "a model that is a function needs parameters=, a dict of its tensors by name"
        )
    else:
        named = dict(parameters)
    if not named:
        raise InputError(
            "the model has no trainable parameters; set requires_grad=True on those to walk over"
        )
    for what, kinds in (
        ("types", {str(p.dtype) for p in named.values()}),
        ("devices", {str(p.device) for p in named.values()}),
    ):
        if len(kinds) > 1:
            raise InputError(
                f"the model's parameters are of several {what} ({', '.join(sorted(kinds))}); "
                f"bring them together with model.to(...)"
            )
    return named


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """One flat vector of all entries, in order; a new tensor without a gradient."""
    with torch.no_grad():
        return torch.cat([tensor.reshape(-1) for tensor in tensors])


def load_into(model: nn.Module, theta: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Write a flat vector into a model's trainable parameters, in place.

    Args:
        model: The module to change.
        theta: Flat parameters in the order of `shapes`.
        shapes: Shape of each parameter by name.

    Raises:
        InputError: The model's trainable parameters have other names or shapes.
    """
    named = trainable(model, None)
    theirs = {name: tuple(p.shape) for name, p in named.items()}
    if theirs != dict(shapes):
        raise InputError(
            "the model's trainable parameters are not those the walk was made with; give a model "
            "of the same architecture"
        )
    start = 0
    with torch.no_grad():
        for parameter in named.values():
            piece = theta[start : start + parameter.numel()]
            parameter.copy_(piece.view(parameter.shape))
            start += parameter.numel()
