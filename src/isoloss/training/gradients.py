"""Ways to get the gradients of a stack of networks, and which of them is the fastest."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from isoloss.evaluation.chain import Chain as PlainChain
from isoloss.evaluation.chain import plain
from isoloss.evaluation.memory import keep_freed_memory
from isoloss.losses import Loss
from isoloss.training.layers import Layer, Linear, Tanh
from isoloss.training.outputs import output_gradient

Parameters = Mapping[str, Tensor]
"""Each parameter of all members by name, shape (members, ...)."""


class Gradients(Protocol):
    """Evaluates all members of a stack at once."""

    def outputs(self, parameters: Parameters, inputs: Tensor) -> Tensor:
        """Outputs of the networks.

        Args:
            parameters: Of the members.
            inputs: Shape (members, batch, ...); members may share one batch by `expand`.

        Returns:
            Shape (members, batch, ...); overwritten by the next call with a batch as large.
        """
        ...

    def gradient(
        self, parameters: Parameters, inputs: Tensor, targets: Tensor, into: Parameters
    ) -> None:
        """Gradient of each member's mean loss over a batch.

        Args:
            parameters: Of the members.
            inputs: Shape (members, batch, ...).
            targets: Shape (members, batch, ...).
            into: Receives the gradients.
        """
        ...


class Chain:
    """Networks that are one layer after the other, differentiated by hand.

    A step of a small network costs torch more in book-keeping than in arithmetic; here each layer
    of all members is one batched product.

    Args:
        layers: The layers.
        loss: A function of (outputs, targets) giving one loss per example.
    """

    def __init__(self, layers: list[Layer], loss: Loss) -> None:
        self._layers = layers
        self._slope = output_gradient(loss)

    def outputs(self, parameters: Parameters, inputs: Tensor) -> Tensor:
        """See `Gradients`."""
        return self._forward(self._deal(parameters), inputs)[-1]

    def gradient(
        self, parameters: Parameters, inputs: Tensor, targets: Tensor, into: Parameters
    ) -> None:
        """See `Gradients`."""
        dealt, received = self._deal(parameters), self._deal(into)
        values = self._forward(dealt, inputs)
        slope = self._slope(values[-1], targets)
        for k in range(len(self._layers) - 1, -1, -1):
            slope = self._layers[k].backward(
                dealt[k], values[k], values[k + 1], slope, received[k], k > 0
            )

    def _forward(self, dealt: list[list[Tensor]], inputs: Tensor) -> list[Tensor]:
        values = [inputs]
        for layer, parameters in zip(self._layers, dealt, strict=True):
            values.append(layer.forward(parameters, values[-1]))
        return values

    def _deal(self, parameters: Parameters) -> list[list[Tensor]]:
        tensors = iter(parameters.values())
        return [[next(tensors) for _ in range(layer.parameters)] for layer in self._layers]


class Vectorized:
    """Networks of any kind, by `torch.func.vmap` over the members.

    Args:
        model: Gives the architecture.
        loss: A function of (outputs, targets) giving one loss per example.
    """

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        self._model = copy.deepcopy(model)
        self._loss = loss
        self._outputs = vmap(self._call)
        self._gradient = vmap(grad(self._mean))

    def outputs(self, parameters: Parameters, inputs: Tensor) -> Tensor:
        """See `Gradients`."""
        return self._outputs(dict(parameters), inputs)

    def gradient(
        self, parameters: Parameters, inputs: Tensor, targets: Tensor, into: Parameters
    ) -> None:
        """See `Gradients`."""
        found = self._gradient(dict(parameters), inputs, targets)
        for name, tensor in into.items():
            tensor.copy_(found[name])

    def _call(self, parameters: Parameters, inputs: Tensor) -> Tensor:
        return functional_call(self._model, dict(parameters), (inputs,))

    def _mean(self, parameters: Parameters, inputs: Tensor, targets: Tensor) -> Tensor:
        return self._loss(self._call(parameters, inputs), targets).mean()


class OneByOne:
    """Networks of any kind, one after the other.

    Args:
        model: Gives the architecture.
        loss: A function of (outputs, targets) giving one loss per example.
    """

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        self._model = copy.deepcopy(model)
        self._loss = loss

    def outputs(self, parameters: Parameters, inputs: Tensor) -> Tensor:
        """See `Gradients`."""
        return torch.stack(
            [
                functional_call(self._model, {n: p[k] for n, p in parameters.items()}, (x,))
                for k, x in enumerate(inputs)
            ]
        )

    def gradient(
        self, parameters: Parameters, inputs: Tensor, targets: Tensor, into: Parameters
    ) -> None:
        """See `Gradients`."""
        for k in range(len(inputs)):
            mine = {n: p[k].detach().requires_grad_() for n, p in parameters.items()}
            with torch.enable_grad():
                losses = self._loss(functional_call(self._model, mine, (inputs[k],)), targets[k])
                total = losses.sum(dtype=torch.float64) / len(losses)
            found = torch.autograd.grad(
                total, list(mine.values()), allow_unused=True, materialize_grads=True
            )
            for tensor, piece in zip(into.values(), found, strict=True):
                tensor[k].copy_(piece)


class ByHand:
    """Networks that convolve, one after the other, each differentiated by hand.

    torch's kernels for stacked or grouped convolutions are slower on a CPU than one network after
    another, whose intermediates stay in the cache.

    Args:
        layers: The layers of a network, as `evaluation.chain.plain` gives them.
        loss: A function of (outputs, targets) giving one loss per example.
    """

    def __init__(self, layers: list[nn.Module], loss: Loss) -> None:
        keep_freed_memory()
        self._layers = copy.deepcopy(layers)
        self._own = [p.detach() for layer in self._layers for p in layer.parameters()]
        self._slope = output_gradient(loss)
        self._chains: dict[tuple[int, ...], PlainChain] = {}

    def outputs(self, parameters: Parameters, inputs: Tensor) -> Tensor:
        """See `Gradients`."""
        return torch.stack([self._forward(parameters, k, x).clone() for k, x in enumerate(inputs)])

    def gradient(
        self, parameters: Parameters, inputs: Tensor, targets: Tensor, into: Parameters
    ) -> None:
        """See `Gradients`."""
        for k, x in enumerate(inputs):
            outputs = self._forward(parameters, k, x)
            slope = self._slope(outputs.unsqueeze(0), targets[k : k + 1])[0]
            self._chains[tuple(x.shape)].gradient(slope, [g[k] for g in into.values()], add=False)

    def _forward(self, parameters: Parameters, k: int, inputs: Tensor) -> Tensor:
        for own, all_members in zip(self._own, parameters.values(), strict=True):
            own.copy_(all_members[k])
        shape = tuple(inputs.shape)
        if shape not in self._chains:
            self._chains[shape] = PlainChain(self._layers, shape)
        return self._chains[shape].outputs(inputs)


def best_gradients(model: nn.Module, loss: Loss, members: int, batch: tuple[int, ...]) -> Gradients:
    """The fastest way that was measured for a network of this kind.

    Args:
        model: Gives the architecture.
        loss: A function of (outputs, targets) giving one loss per example.
        members: Networks in the stack.
        batch: Shape of a batch of inputs, the examples first.

    Returns:
        All members at once by hand where the network is Linear and Tanh layers in turn; one by one
        where it convolves or is alone, by hand where that can be; else vectorized.
    """
    layers = _chain_of(model)
    if layers is not None and len(batch) == 2:
        return Chain(layers, loss)
    convolves = any(isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) for m in model.modules())
    if not convolves and members > 1:
        return Vectorized(model, loss)
    found = plain(model)
    if found is not None:
        try:
            PlainChain(found, batch)
        except ValueError:  # they do not fit one another, which torch itself may know how to do
            found = None
    return OneByOne(model, loss) if found is None else ByHand(found, loss)


def _chain_of(model: nn.Module) -> list[Layer] | None:
    """The layers of a plain chain; None for a network that is more than that."""
    if type(model) is not nn.Sequential or _hooked(model):
        return None
    modules = list(model)
    layers: list[Layer] = []
    for module, following in zip(modules, [*modules[1:], None], strict=True):
        if type(module) is nn.Linear and _trainable(module):
            layers.append(Linear(doubled=type(following) is nn.Tanh))
        elif type(module) is nn.Tanh and layers and isinstance(layers[-1], Linear):
            layers.append(Tanh())
        else:
            return None
    parameters = sum(layer.parameters for layer in layers)  # fewer where a layer comes twice
    return layers if parameters == len(list(model.parameters())) else None


def _trainable(layer: nn.Linear) -> bool:
    parameters = list(layer.parameters())  # without the bias where there is none
    return len(parameters) == 2 and all(parameter.requires_grad for parameter in parameters)


def _hooked(model: nn.Module) -> bool:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name) for module in model.modules() for name in hooks)
