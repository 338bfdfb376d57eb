"""A network whose parameters are views of one flat vector."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from isoloss.errors import InputError, one_line

Model = nn.Module | Callable[[Mapping[str, Tensor], Any], Any]
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
        leaves: The trainable parameters, views of the flat vector, in order.

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
        self.device = first.device if device is None else _device(device)
        if isinstance(model, nn.Module):
            module = _copied(model).to(device=self.device, dtype=self.dtype)
            leaves = list(trainable(module, None).values())
            self.model: Model = module
            self._call: Callable[[Any], Any] = partial(_call, module)
        else:
            leaves = [
                p.detach().to(self.device, self.dtype, copy=True).requires_grad_()
                for p in named.values()
            ]
            held = dict(zip(named, leaves, strict=True))
            self.model = model
            self._call = lambda inputs: model(held, inputs)
        self.leaves = leaves
        self._theta = flatten(leaves)
        for leaf, view in zip(leaves, self.split(self._theta), strict=True):
            leaf.data = view
            leaf.grad = None

    def __call__(self, inputs: Any) -> Any:
        """Outputs of the network at the point last loaded.

        A function gets the inputs whole. A module gets a tuple or list as its arguments, a dict as
        its keyword arguments, anything else whole.
        """
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

    def gradients(
        self, total: Tensor, scale: Tensor | None = None, *, twice: bool = False
    ) -> tuple[Tensor, ...]:
        """Gradient of scale * total with respect to each parameter, in order.

        Args:
            total: Shape ().
            scale: Shape (), of total's type; None for 1.
            twice: Whether the gradients are to be differentiated again.

        Returns:
            A tensor of each parameter's shape.
        """
        return torch.autograd.grad(
            total,
            self.leaves,
            scale,
            create_graph=twice,
            allow_unused=True,
            materialize_grads=True,
        )

    def products(self, slopes: Sequence[Tensor], vectors: Tensor) -> Tensor:
        """Products of the Jacobian of a gradient with vectors, to be differentiated once more.

        Args:
            slopes: What `gradients(..., twice=True)` gave.
            vectors: Shape (m, size).

        Returns:
            Shape (m, size).
        """
        several = zip(slopes, self.split(vectors), strict=True)
        bent = [(slope, vector) for slope, vector in several if slope.requires_grad]
        if not bent:
            return torch.zeros_like(vectors)
        found: Any = torch.autograd.grad(
            [slope for slope, _ in bent],
            self.leaves,
            [vector for _, vector in bent],
            is_grads_batched=True,
            create_graph=True,
            allow_unused=True,
        )
        # torch would make up the missing ones itself, without the axis of the vectors
        whole = [
            vectors.new_zeros(len(vectors), math.prod(shape)) if piece is None else piece.flatten(1)
            for piece, shape in zip(found, self.shapes.values(), strict=True)
        ]
        return torch.cat(whole, dim=1)

    def split(self, flat: Tensor) -> list[Tensor]:
        """Views of a flat vector, or of a matrix's rows, in the parameters' shapes, in order."""
        shapes = self.shapes.values()
        pieces = flat.split([math.prod(shape) for shape in shapes], dim=-1)
        return [
            piece.unflatten(-1, shape) if shape else piece.squeeze(-1)
            for piece, shape in zip(pieces, shapes, strict=True)
        ]


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
    elif isinstance(model, type):
        name = model.__name__
        raise InputError(f"the model is the class {name}; give a module of it, {name}(...)")
    elif not callable(model):
        raise InputError(
            f"the model {model!r} is a {type(model).__name__}; give a torch.nn.Module or a function"
        )
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
    for name, parameter in named.items():
        _check_parameter(name, parameter)
    for what, kinds in (
        ("types", {str(p.dtype) for p in named.values()}),
        ("devices", {str(p.device) for p in named.values()}),
    ):
        if len(kinds) > 1:
            raise InputError(
                f"the model's parameters are of several {what} ({', '.join(sorted(kinds))}); "
                f"bring them together with model.to(...)"
            )
    if next(iter(named.values())).is_meta:
        raise InputError(
            "the model's parameters are on the device 'meta', which holds no numbers; make the "
            "model on the CPU or a GPU"
        )
    return named


def _device(given: torch.device | str) -> torch.device:
    try:
        found = torch.device(given)
    except (RuntimeError, TypeError):
        found = None
    if found is None or found.type == "meta":
        raise InputError(f"device={given!r} is not possible; give 'cpu', 'cuda' or 'cuda:1'")
    try:
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"device={str(found)!r} is not possible here ({one_line(error)}); give 'cpu', or a "
            f"device that torch finds"
        ) from error
    return found


def _check_parameter(name: str, parameter: Any) -> None:
    if not isinstance(parameter, Tensor):
        raise InputError(
            f"parameter {name!r} is a {type(parameter).__name__}; give a dict of tensors by name"
        )
    if isinstance(parameter, UninitializedParameter):
        raise InputError(
            f"parameter {name!r} has no shape yet (a lazy module); call the model once on its "
            f"inputs"
        )
    if not parameter.is_floating_point():
        raise InputError(
            f"parameter {name!r} is {parameter.dtype}; theta holds real floating numbers, so use "
            f"float32 or float64 (torch.view_as_real for complex ones)"
        )


def _copied(model: nn.Module) -> nn.Module:
    try:
        module = copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        raise InputError(
            f"the model cannot be copied ({one_line(error)}); delete the tensors it keeps from "
            f"earlier computations, or pass a function of (parameters, inputs) and parameters="
        ) from error
    for part in module.modules():
        if isinstance(part, nn.RNNBase) and not part.training:
            # cuDNN differentiates recurrent layers in training mode alone, where they differ from
            # evaluation by their dropout
            part.dropout = 0.0
            part.training = True
    return module


def _call(module: nn.Module, inputs: Any) -> Any:
    if type(inputs) in (tuple, list):  # DataLoader makes lists of tuples
        return module(*inputs)
    if isinstance(inputs, Mapping):
        return module(**cast("Mapping[str, Any]", inputs))
    return module(inputs)


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
