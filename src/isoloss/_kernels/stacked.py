"""Gradients of a stack of networks of one architecture, each on a batch of its own."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from isoloss._kernels.chain import Chain, dense, keep_freed_memory, plain, slope_of
from isoloss._kernels.layers import Part
from isoloss.errors import one_line
from isoloss.flat import Layout
from isoloss.losses import Loss
from isoloss.names import functional


class Stacked:
    """Several networks' parameters, each one tensor of all members, a view of one buffer."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], members: int, buffer: Tensor) -> None:
        self.buffer = buffer
        self.named = Layout({name: (members, *s) for name, s in shapes.items()}).named(buffer)
        self.all = list(self.named.values())  # each of shape (members, ...)

    @functools.cached_property
    def each(self) -> list[list[Tensor]]:
        """A member's own tensors, for each member."""
        return [list(own) for own in zip(*(view.unbind() for view in self.all), strict=True)]

    @classmethod
    def of(cls, shapes: Mapping[str, tuple[int, ...]], thetas: Tensor) -> Stacked:
        """Copies of flat vectors, shape (members, parameters), in a new buffer."""
        return cls.joined(shapes, Layout(shapes).split(thetas))

    @classmethod
    def joined(cls, shapes: Mapping[str, tuple[int, ...]], pieces: Sequence[Tensor]) -> Stacked:
        """Copies of each parameter's tensor of all members, in a new buffer."""
        return cls(shapes, len(pieces[0]), torch.cat([piece.flatten() for piece in pieces]))


class ByHand:
    """Plain networks: `at_once` in each product, or by one; a ValueError if none fits."""

    def __init__(
        self,
        parts: list[Part],
        loss: Loss,
        at: Stacked,
        inputs: Tensor,
        targets: Tensor,
        at_once: bool,
    ) -> None:
        self._parts = parts
        self._stacked = at_once and len(inputs) > 1
        on_cpu = inputs.device.type == "cpu"
        # on a CPU, of dense networks what tanh loses is lost in float64 too: it costs a third of
        # the time
        self._exact = not on_cpu or (not dense(parts) and inputs.dtype == torch.float64)
        self._chains: dict[tuple[int, ...], Chain] = {}
        lead = 2 if self._stacked else 1
        mine, batch = (at.all, inputs) if self._stacked else (at.each[0], inputs[0])
        shape = self._chain(mine, batch).shape[lead:]
        self._slope = slope_of(loss, shape, targets, inputs.dtype, self._stacked)
        if on_cpu and not dense(parts):
            keep_freed_memory()

    def outputs(self, at: Stacked, inputs: Tensor) -> Tensor:
        if self._stacked:
            return self._chain(at.all, inputs).outputs(at.all, inputs)
        several = zip(at.each, inputs, strict=True)
        return torch.stack([self._chain(mine, x).outputs(mine, x).clone() for mine, x in several])

    def gradient(self, at: Stacked, inputs: Tensor, targets: Tensor, into: Stacked) -> None:
        several = zip(at.each, inputs, targets, into.each, strict=True)
        groups = [(at.all, inputs, targets, into.all)] if self._stacked else several
        for mine, x, y, own in groups:
            chain = self._chain(mine, x)
            chain.gradient(mine, self._slope(chain.outputs(mine, x), y), own)

    def _chain(self, parameters: list[Tensor], inputs: Tensor) -> Chain:
        shape = tuple(inputs.shape)
        if shape not in self._chains:
            self._chains[shape] = Chain(self._parts, parameters, shape, exact=self._exact)
        return self._chains[shape]


class ByAutograd:
    """Networks of any kind: all at once by `torch.func.vmap`, or one after another."""

    def __init__(self, model: nn.Module, loss: Loss, at_once: bool) -> None:
        self._call = functional(copy.deepcopy(model))
        self._loss = loss
        self._at_once = at_once

    def outputs(self, at: Stacked, inputs: Tensor) -> Tensor:
        if self._at_once:
            return vmap(self._call)(at.named, inputs)
        several = zip(at.each, inputs, strict=True)
        return torch.stack([self._call(dict(zip(at.named, m, strict=True)), x) for m, x in several])

    def gradient(self, at: Stacked, inputs: Tensor, targets: Tensor, into: Stacked) -> None:
        if self._at_once:
            found = vmap(grad(self._mean))(at.named, inputs, targets)
            for name, view in into.named.items():
                view.copy_(found[name])
            return
        for mine, x, y, own in zip(at.each, inputs, targets, into.each, strict=True):
            leaves = [tensor.detach().requires_grad_() for tensor in mine]
            with torch.enable_grad():
                mean = self._mean(dict(zip(at.named, leaves, strict=True)), x, y)
            found = torch.autograd.grad(mean, leaves, allow_unused=True, materialize_grads=True)
            for tensor, piece in zip(own, found, strict=True):
                tensor.copy_(piece)

    def _mean(self, parameters: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        losses = self._loss(self._call(parameters, inputs), targets)
        return losses.sum(dtype=torch.float64) / len(losses)


Gradients = ByHand | ByAutograd


def fastest(
    model: nn.Module, loss: Loss, at: Stacked, inputs: Tensor, targets: Tensor, captured: bool
) -> tuple[Gradients, str]:
    """The fastest way that was measured for a network of this kind, from the inputs of a batch and
    all targets, with kernels captured in a graph or not; where it was not to be had, why."""
    parts, members = plain(model), len(inputs)
    if parts and inputs.dtype == at.buffer.dtype:
        at_once = captured or dense(parts)  # a CPU is slower in stacked convolutions
        try:
            return ByHand(parts, loss, at, inputs, targets, at_once), ""
        except ValueError:  # they do not fit, which torch itself may know how to do
            pass
    convolves = any(isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) for m in model.modules())
    if members == 1 or (convolves and not captured):  # a CPU is slower in grouped convolutions
        return ByAutograd(model, loss, at_once=False), ""
    together = ByAutograd(model, loss, at_once=True)
    if convolves:
        try:
            together.gradient(at, inputs, targets[:, : inputs.shape[1]], at)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            why = f"networks are trained one after another, not at once: {one_line(error)}"
            return ByAutograd(model, loss, at_once=False), why
    return together, ""
