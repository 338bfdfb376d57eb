"""A network whose parameters are views of one flat vector."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from isoloss.copying import check_apart, copied
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
        self.accumulates = False  # gradients: for models that torch.autograd.grad refuses
        self._given = named
        if isinstance(model, nn.Module):
            check_apart(model)
            module = copied(model)
            module._apply(self._placed)  # pyright: ignore[reportPrivateUsage]
            leaves = list(trainable(module, None).values())
            self.model: Model = module
        else:
            leaves = [self._placed(p.detach()).clone().requires_grad_() for p in named.values()]
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

    def __getstate__(self) -> dict[str, Any]:
        """All, with parameters that are no views: each would bring the whole vector with it."""
        if isinstance(self.model, nn.Module):
            module = copied(self.model)
            return {**vars(self), "model": module, "leaves": list(trainable(module, None).values())}
        leaves = [leaf.detach().clone().requires_grad_() for leaf in self.leaves]
        return {**vars(self), "leaves": leaves}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Tie the parameters to the flat vector again, which a copy or a pickle takes apart."""
        vars(self).update(state)
        self._tie()

    def _placed(self, tensor: Tensor) -> Tensor:
        dtype = self.dtype if tensor.is_floating_point() else None
        return tensor.to(self.device, self.dtype.to_complex() if tensor.is_complex() else dtype)

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
        if self.accumulates and not twice:
            found = self._accumulated(total, scale)
        else:
            found = torch.autograd.grad(
                total,
                self.leaves,
                scale,
                create_graph=twice,
                allow_unused=True,
                materialize_grads=True,
            )
        return tuple(map(dense, found))

    def _accumulated(self, total: Tensor, scale: Tensor | None) -> Sequence[Tensor]:
        held = {name: parameter.grad for name, parameter in self._given.items()}
        try:
            for parameter in self._given.values():
                parameter.grad = None
            total.backward(scale)
            for name, parameter in self._given.items():
                if parameter.grad is not None:
                    raise reached(name)
            return [torch.zeros_like(p) if p.grad is None else p.grad for p in self.leaves]
        finally:
            for leaf in self.leaves:
                leaf.grad = None
            for name, grad in held.items():
                self._given[name].grad = grad

    def products(self, slopes: Sequence[Tensor], vectors: Tensor) -> Tensor:
        """Products of the Jacobian of a gradient, `gradients(..., twice=True)`, with m vectors;
        takes and gives shape (m, size), to be differentiated once more."""
        several = zip(slopes, self.layout.split(vectors), strict=True)
        bent = [(slope, vector) for slope, vector in several if slope.requires_grad]
        if not bent:
            return torch.zeros_like(vectors)
        with torch.autograd.set_detect_anomaly(False):  # which looks at each number
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
    elif type(model).__name__ == "ExportedProgram":
        raise InputError("the model must be a module, got an ExportedProgram; give model.module()")
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


def reached(name: str) -> InputError:
    """An error, to be raised, on a loss with a parameter of the given model in it."""
    return InputError(
        f"the loss is computed with {name!r} of the given model instead of the problem's copy, so "
        f"that it would be constant along the walk: a closure, a bound method or a patched forward "
        f"reaches it; let forward use self, and the loss what forward returns"
    )


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
    if len(vector) <= BLOCK:
        return torch.mv(rows, vector).double()
    pieces = zip(rows.split(BLOCK, dim=1), vector.split(BLOCK), strict=True)
    return torch.stack([torch.mv(part, piece) for part, piece in pieces]).double().sum(0)


def gram(rows: Tensor, others: Tensor) -> Tensor:
    """The inner products of rows with other rows, float64; summed as `inner` does."""
    if rows.shape[1] <= BLOCK:
        return torch.mm(rows, others.t()).double()
    pairs = zip(rows.split(BLOCK, dim=1), others.split(BLOCK, dim=1), strict=True)
    return torch.stack([torch.mm(a, b.t()) for a, b in pairs]).double().sum(0)


def less(a: Tensor, b: Tensor, over: Tensor, under: Tensor) -> Tensor:
    """a - (over / under) b, of numbers that a GPU need not fetch; a where under is 0."""
    if a.device.type == "cpu":
        bottom = under.item()
        return a.sub(b, alpha=over.item() / bottom if bottom > 0 else 0.0)
    share = torch.where(under > 0, over / under, 0.0)
    return torch.addcmul(a, b, share.to(a.dtype), value=-1)


def fetched(*tensors: Tensor) -> list[Any]:
    """Numbers as floats and vectors as arrays of float64, all in one copy from a GPU."""
    if all(tensor.device.type == "cpu" for tensor in tensors):
        return [t.detach().double().numpy() if t.ndim else t.item() for t in tensors]
    device = next(tensor.device for tensor in tensors if tensor.device.type != "cpu")
    together = packed([tensor.detach().to(device) for tensor in tensors])
    ends = np.cumsum([tensor.numel() for tensor in tensors])[:-1]
    pieces = np.split(together.cpu().numpy(), ends)
    return [p if t.ndim else p.item() for p, t in zip(pieces, tensors, strict=True)]


def packed(tensors: Sequence[Tensor]) -> Tensor:
    """The entries of all in one vector of float64, those of float32 converted together."""
    rough = [tensor.flatten() for tensor in tensors if tensor.dtype == torch.float32]
    sizes = [len(one) for one in rough]
    whole = iter(torch.cat(rough).double().split(sizes) if rough else ())
    return torch.cat(
        [next(whole) if t.dtype == torch.float32 else t.double().flatten() for t in tensors]
    )


def fixed(model: Model) -> dict[str, Tensor]:
    """What a module computes with beside theta, by name: its buffers and frozen parameters."""
    if not isinstance(model, nn.Module):
        return {}
    frozen = {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}
    return {**dict(model.named_buffers()), **frozen}


@contextmanager
def buffers_kept(model: Model) -> Generator[None]:
    """Put a module's buffers back at the end, which batch norm changes in training mode."""
    kept = {name: t.clone() for name, t in fixed(model).items()}
    yield
    with torch.no_grad():
        for name, now in fixed(model).items():
            if name in kept and not same(kept[name], now):
                now.copy_(kept[name])


def same(kept: Tensor, now: Tensor) -> bool:
    """Whether a tensor, converted, holds the numbers of another; NaN is as NaN."""
    return torch.equal(dense(kept).nan_to_num(), dense(now.to(kept)).nan_to_num())


def coarse(parameter: Tensor) -> bool:
    """Whether a parameter is of a type below float32, in which no level can be held."""
    return parameter.is_floating_point() and parameter.dtype.itemsize < torch.float32.itemsize


def dense(tensor: Tensor) -> Tensor:
    """A tensor of any layout with all its entries in memory."""
    return tensor if tensor.layout == torch.strided else tensor.to_dense()


def digest(tensor: Tensor) -> str:
    """The first 16 digits of the SHA-256 of a tensor's numbers."""
    content = tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(content).hexdigest()[:16]
