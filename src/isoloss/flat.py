"""A network whose parameters are views of one flat vector."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from isoloss.errors import InputError, kind, one_line, shown

Model = nn.Module | Callable[[Mapping[str, Tensor], Any], Any]
"""A module, or a function of (dict of parameters, inputs)."""

Shapes = Mapping[str, tuple[int, ...]]
"""Shape of each parameter by name, in the order of theta."""

BLOCK = 2**17
"""Entries summed in the vectors' own type; blocks are added up in float64. In float32 the error of
a sum grows with its length: 1e-6 of it over a block, 1e-5 to 1e-4 over a million entries."""


class Layout:
    """Where each parameter lies in the flat vector; the only place that cuts one."""

    def __init__(self, shapes: Shapes) -> None:
        self.shapes = {name: tuple(shape) for name, shape in shapes.items()}
        self._sizes = [math.prod(shape) for shape in self.shapes.values()]
        self.size = sum(self._sizes)

    @staticmethod
    def of(named: Mapping[str, Tensor]) -> Layout:
        """The layout of some parameters."""
        return Layout({name: tuple(p.shape) for name, p in named.items()})

    def split(self, flat: Tensor) -> list[Tensor]:
        """Views of a flat vector, or of each row of a matrix, in the parameters' shapes."""
        pieces = flat.split(self._sizes, dim=-1)
        return [
            piece.unflatten(-1, shape) if shape else piece.squeeze(-1)
            for piece, shape in zip(pieces, self.shapes.values(), strict=True)
        ]

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """The same views by name."""
        return dict(zip(self.shapes, self.split(flat), strict=True))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Layout) and list(self.shapes.items()) == list(other.shapes.items())

    def __hash__(self) -> int:
        return hash(tuple(self.shapes.items()))


class FlatNetwork:
    """A private copy of a model whose trainable parameters live in one flat vector; loading a point
    is one copy of the vector."""

    def __init__(
        self,
        model: Model,
        parameters: Mapping[str, Tensor] | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        named = trainable(model, parameters)
        self.layout = Layout.of(named)
        self.size = self.layout.size
        first = next(iter(named.values()))
        self.dtype = dtype or first.dtype
        self.device = first.device if device is None else usable_device(device)
        if isinstance(model, nn.Module):
            module = _copied(model).to(device=self.device, dtype=self.dtype)
            leaves = list(trainable(module, None).values())
            self.model: Model = module
        else:
            leaves = [
                p.detach().to(self.device, self.dtype, copy=True).requires_grad_()
                for p in named.values()
            ]
            self.model = model
        self.leaves = leaves
        self._theta = flatten(leaves)
        self._tie()

    def __call__(self, inputs: Any) -> Any:
        """Outputs at the point last loaded."""
        if not isinstance(self.model, nn.Module):
            return self.model(dict(zip(self.layout.shapes, self.leaves, strict=True)), inputs)
        if type(inputs) in (tuple, list):  # DataLoader makes lists of tuples
            return self.model(*inputs)
        if isinstance(inputs, Mapping):
            return self.model(**cast("Mapping[str, Any]", inputs))
        return self.model(inputs)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Tie the parameters to the flat vector again, which a copy or a pickle takes apart."""
        vars(self).update(state)
        self._tie()

    def _tie(self) -> None:
        for leaf, view in zip(self.leaves, self.layout.split(self._theta), strict=True):
            leaf.data = view
            leaf.grad = None

    def in_dtype(self, dtype: torch.dtype) -> FlatNetwork:
        """Another private copy, in another type."""
        own = None if isinstance(self.model, nn.Module) else self.layout.named(self._theta)
        return FlatNetwork(self.model, own, dtype=dtype, device=self.device)

    def load(self, theta: Tensor) -> None:
        """Make theta, shape (size,), the point at which the network is evaluated."""
        self._theta.copy_(vector("theta", theta, self.size))

    def gradients(
        self, total: Tensor, scale: Tensor | None = None, *, twice: bool = False
    ) -> tuple[Tensor, ...]:
        """Gradient of scale * total by each parameter, to be differentiated again if `twice`."""
        return torch.autograd.grad(
            total,
            self.leaves,
            scale,
            create_graph=twice,
            allow_unused=True,
            materialize_grads=True,
        )

    def products(self, slopes: Sequence[Tensor], vectors: Tensor) -> Tensor:
        """Products of the Jacobian of a gradient, `gradients(..., twice=True)`, with m vectors;
        takes and gives shape (m, size), to be differentiated once more."""
        several = zip(slopes, self.layout.split(vectors), strict=True)
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
            vectors.new_zeros(len(vectors), leaf.numel()) if piece is None else piece.flatten(1)
            for piece, leaf in zip(found, self.leaves, strict=True)
        ]
        return torch.cat(whole, dim=1)


def trainable(model: Model, parameters: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """The parameters that make up theta, by name: those of a module that require a gradient."""
    if isinstance(model, nn.Module):
        if parameters is not None:
            raise InputError("parameters= is for a model that is a function; a module has its own")
        named: dict[str, Tensor] = {k: p for k, p in model.named_parameters() if p.requires_grad}
    elif isinstance(model, type):
        name = model.__name__
        raise InputError(f"the model must be a module, got the class {name}; give {name}(...)")
    elif not callable(model):
        raise InputError(
            f"the model must be a torch.nn.Module or a function, got {model!r} of type "
            f"{type(model).__name__}"
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
        ("type", {str(p.dtype) for p in named.values()}),
        ("device", {str(p.device) for p in named.values()}),
    ):
        if len(kinds) > 1:
            raise InputError(
                f"the model's parameters must have one {what}, got {', '.join(sorted(kinds))}; "
                f"bring them together with model.to(...)"
            )
    if next(iter(named.values())).is_meta:
        raise InputError(
            "the model's parameters are on the device 'meta', which holds no numbers; make the "
            "model on the CPU or a GPU"
        )
    return named


def usable_device(given: torch.device | str) -> torch.device:
    """The device that a user means, if torch can use it."""
    try:
        found = torch.device(given)
    except (RuntimeError, TypeError):
        found = None
    if found is None or found.type == "meta":
        raise InputError(f"device must be 'cpu', 'cuda', 'cuda:1' or the like, got {shown(given)}")
    try:
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"device={str(found)!r} cannot be used here ({one_line(error)}); give 'cpu', or a "
            f"device that torch finds"
        ) from error
    return found


def _check_parameter(name: str, parameter: Any) -> None:
    if not isinstance(parameter, Tensor):
        raise InputError(
            f"parameter {name!r} must be a tensor, got {kind(parameter)}; give a dict "
            f"of tensors by name"
        )
    if isinstance(parameter, UninitializedParameter):
        raise InputError(
            f"parameter {name!r} has no shape yet (a lazy module); call the model once on its "
            f"inputs"
        )
    if not parameter.is_floating_point():
        raise InputError(
            f"parameter {name!r} must be real and floating, got {parameter.dtype}; use float32 or "
            f"float64 (torch.view_as_real for complex ones)"
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


def vector(name: str, value: Any, size: int) -> Tensor:
    """Insist on a flat vector of real numbers, one for each parameter."""
    if not isinstance(value, Tensor):
        raise InputError(f"{name} must be a tensor, as torch.from_numpy gives, got {kind(value)}")
    if value.shape != (size,):
        raise InputError(
            f"{name} must be a flat vector of the problem's {size} parameters in the order of "
            f"model.named_parameters(), got shape {tuple(value.shape)}"
        )
    if not value.is_floating_point() or value.layout != torch.strided or value.is_meta:
        raise InputError(
            f"{name} must hold real floating numbers, got a tensor of {value.dtype}, "
            f"{value.layout}, on the device {value.device}; convert it with .to_dense().float()"
        )
    return value


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """One flat vector of all entries, in order; a new tensor without a gradient."""
    with torch.no_grad():
        return torch.cat([tensor.reshape(-1) for tensor in tensors])


def inner(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of two vectors, shape (): of long ones, blocks are summed in float64."""
    if len(a) <= BLOCK:
        return a.dot(b)
    pieces = zip(a.split(BLOCK), b.split(BLOCK), strict=True)
    return torch.stack([x.dot(y) for x, y in pieces]).double().sum()


def products(rows: Tensor, vector: Tensor) -> Tensor:
    """The inner products of rows with a vector, shape (rows,), float64; summed as `inner` does."""
    pieces = zip(rows.split(BLOCK, dim=1), vector.split(BLOCK), strict=True)
    return torch.stack([torch.mv(part, piece) for part, piece in pieces]).double().sum(0)


def less(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """a - share b with a number, shape (), of which NaN counts as 0; a GPU need not fetch it."""
    if a.device.type == "cpu":
        alpha = share.item()
        return a.sub(b, alpha=0.0 if math.isnan(alpha) else alpha)
    return torch.addcmul(a, b, torch.where(share.isnan(), 0.0, share).to(a.dtype), value=-1)


def fetched(*tensors: Tensor) -> list[NDArray[np.float64]]:
    """Numbers and vectors as arrays, all in one copy from a GPU."""
    if all(tensor.device.type == "cpu" for tensor in tensors):
        return [tensor.detach().double().numpy() for tensor in tensors]
    device = next(tensor.device for tensor in tensors if tensor.device.type != "cpu")
    together = torch.cat(
        [tensor.detach().to(device, torch.float64).flatten() for tensor in tensors]
    )
    ends = np.cumsum([tensor.numel() for tensor in tensors])[:-1]
    return np.split(together.cpu().numpy(), ends)


def load_into(model: nn.Module, theta: Tensor, shapes: Shapes) -> None:
    """Write a flat vector into a model's trainable parameters, in place."""
    named, layout = trainable(model, None), Layout(shapes)
    if Layout.of(named) != layout:
        raise InputError(
            "the model's trainable parameters are not those of the walk; give a model of the same "
            "architecture"
        )
    with torch.no_grad():
        for parameter, piece in zip(named.values(), layout.split(theta), strict=True):
            parameter.copy_(piece)


def fixed(model: Model) -> dict[str, Tensor]:
    """What a module computes with beside theta, by name: its buffers and frozen parameters."""
    if not isinstance(model, nn.Module):
        return {}
    frozen = {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}
    return {**dict(model.named_buffers()), **frozen}


def state_keys(model: Model, names: Mapping[str, Any]) -> dict[str, str]:
    """For each key of `model.state_dict()`, the name of its tensor in `named_parameters()`: another
    where it is used in several places. A function has the names alone."""
    if not isinstance(model, nn.Module):
        return {name: name for name in names}
    first = {id(t): n for n, t in [*model.named_buffers(), *model.named_parameters()]}
    kept: dict[str, Any] = model.state_dict(keep_vars=True)
    return {key: first[id(t)] for key, t in kept.items() if id(t) in first}


def digest(tensor: Tensor) -> str:
    """The first 16 digits of the SHA-256 of a tensor's numbers."""
    content = tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(content).hexdigest()[:16]
