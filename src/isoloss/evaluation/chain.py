"""A plain `nn.Sequential` as a chain of layers that is differentiated by hand.

Autograd spends a third of an evaluation of a small network on bookkeeping, and allocates every
intermediate anew. The chain does the same arithmetic into buffers that it keeps, and writes the
gradient straight into the flat vector.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from isoloss.evaluation import layers
from isoloss.evaluation.arithmetic import channels_last_is_safe
from isoloss.evaluation.layers import Layer

FEW_CHANNELS = 8
"""Up to so many input channels the first convolution is a matrix product."""

LAYERS = (nn.Linear, nn.Conv2d, nn.Tanh, nn.ReLU, nn.AvgPool2d, nn.Flatten)
OVERWRITABLE = (nn.Linear, nn.Conv2d, nn.AvgPool2d)
"""Layers whose outputs an activation may overwrite: they need them no more."""

HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)


class Chain:
    """The layers of a network with buffers for chunks of one shape; for one thread at a time.

    Args:
        network: The layers, as `plain` gives them; their parameters are read at every pass.
        shape: Shape of a chunk of inputs, the examples first.

    Attributes:
        shape: Shape of the outputs.
        flops: Multiplications and additions of one pass forward and backward.

    Raises:
        ValueError: The layers do not fit one another or the inputs.
    """

    def __init__(self, network: Sequence[nn.Module], shape: tuple[int, ...]) -> None:
        self._layers: list[tuple[Layer, int]] = []
        first = True
        dtype = next(p.dtype for module in network for p in module.parameters())
        for k, module in enumerate(network):
            doubled = dtype == torch.float32 and _linear_then_tanh(network, k)
            layer = _build(module, shape, dtype, first, doubled)
            count = sum(1 for _ in module.parameters())
            self._layers.append((layer, count))
            first = first and count == 0
            shape = layer.shape
        self.shape = shape
        self.flops = sum(layer.flops for layer, _ in self._layers)

    def outputs(self, inputs: Tensor) -> Tensor:
        """Outputs of the network at its present parameters; the next call overwrites them."""
        for layer, _ in self._layers:
            inputs = layer.forward(inputs)
        return inputs

    def gradient(self, grad: Tensor, into: Sequence[Tensor], add: bool) -> None:
        """Gradient of a function of the last outputs with respect to the parameters.

        Args:
            grad: Its gradient with respect to the outputs; overwritten.
            into: Where to write, a tensor per parameter in their order.
            add: Add to what is there instead.
        """
        end = len(into)
        back: Tensor | None = grad
        for layer, count in reversed(self._layers):
            if back is None:
                break
            back = layer.backward(back, into[end - count : end], add)
            end -= count


def plain(model: object) -> list[nn.Module] | None:
    """The layers of a model that a `Chain` can stand in for, or None where it cannot.

    Args:
        model: Plain are an `nn.Sequential`, also nested, of `Linear`, `Conv2d` (no groups, no
            dilation, padded by zeros if at all, safe with channels last), `Tanh`, `ReLU`,
            `AvgPool2d` and `Flatten`, with biases, all parameters trainable, none shared, without
            hooks or parametrizations, an activation directly after a layer that does not need its
            own outputs again.

    Returns:
        The layers in order.
    """
    found = _flat(model)
    if not found or not all(_admitted(module) for module in found):
        return None
    parameters = [p for module in found for p in module.parameters()]
    if not parameters or len({p.data_ptr() for p in parameters}) < len(parameters):
        return None
    if not all(p.requires_grad and p.device.type == "cpu" for p in parameters):
        return None
    for before, module in itertools.pairwise([None, *found]):
        if isinstance(module, (nn.Tanh, nn.ReLU)) and not isinstance(before, OVERWRITABLE):
            return None
    return found


def _flat(model: object) -> list[nn.Module]:
    if type(model) is not nn.Sequential or not _bare(model):
        return [cast("nn.Module", model)] if type(model) in LAYERS else [nn.Identity()]
    return [layer for module in model for layer in _flat(module)]


def _bare(module: nn.Module) -> bool:
    own = vars(module)
    return "forward" not in own and not any(own.get(hooks) for hooks in HOOKS)


def _admitted(module: nn.Module) -> bool:
    if type(module) not in LAYERS or not _bare(module):
        return False
    names = {name for name, _ in module.named_parameters()}
    if isinstance(module, (nn.Linear, nn.Conv2d)) and names != {"weight", "bias"}:
        return False
    if isinstance(module, nn.Conv2d):
        usual = module.groups == 1 and module.dilation == (1, 1)
        padded = module.padding_mode == "zeros" and not isinstance(module.padding, str)
        return usual and padded and channels_last_is_safe(module)
    if isinstance(module, nn.Flatten):
        return module.start_dim == 1 and module.end_dim == -1
    return True


def _linear_then_tanh(network: Sequence[nn.Module], k: int) -> bool:
    """Whether layer k is one of such a pair, between which x is handed on as 2 x."""
    if isinstance(network[k], nn.Linear):
        return isinstance(network[min(k + 1, len(network) - 1)], nn.Tanh)
    return isinstance(network[k], nn.Tanh) and isinstance(network[k - 1], nn.Linear)


def _build(
    module: nn.Module, shape: tuple[int, ...], dtype: torch.dtype, first: bool, doubled: bool
) -> Layer:
    if isinstance(module, nn.Linear):
        if shape[1:] != (module.in_features,):
            raise ValueError
        return layers.Linear(module, shape, first, factor=2 if doubled else 1)
    if isinstance(module, nn.Conv2d):
        if len(shape) != 4 or shape[1] != module.in_channels:
            raise ValueError
        few = first and shape[1] <= FEW_CHANNELS and module.padding == (0, 0)
        layer = layers.ColumnConvolution if few else layers.Convolution
        built = layer(module, shape, first)
        if min(built.shape) < 1:
            raise ValueError
        return built
    if isinstance(module, nn.AvgPool2d):
        return layers.AveragePool(module, shape, dtype, first)
    if isinstance(module, nn.Flatten):
        return layers.Flatten(shape, dtype, first)
    if isinstance(module, nn.Tanh):
        return layers.Tanh(shape, dtype, doubled)
    return layers.ReLU(shape)
