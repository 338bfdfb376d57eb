"""The order of weights in Keras' flat vectors, and ours.

Both go layer by layer, weights before bias. A dense kernel is (inputs, outputs) in Keras and
(outputs, inputs) in torch; a convolution's is (rows, columns, inputs, outputs) and (outputs,
inputs, rows, columns). Keras flattens images with channels last, torch with channels first.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from isoloss.errors import InputError


def to_keras(points: Tensor, network: nn.Module) -> Tensor:
    """Points in Keras' order.

    Args:
        points: Flat parameters in the order of `network.named_parameters()`, shape
            (..., parameters).
        network: A chain of dense and convolutional layers.

    Returns:
        The same numbers in the order of the `trainable_variables` of the network's Keras twin.

    Raises:
        InputError: The network has other layers with parameters, or another number of them.
    """
    return points[..., _order(network, points)]


def from_keras(points: Tensor, network: nn.Module) -> Tensor:
    """Points in torch's order, from Keras'; the inverse of `to_keras`, with the same arguments."""
    return points[..., torch.argsort(_order(network, points))]


def weights_only(network: nn.Module) -> Tensor:
    """Which parameters, in torch's order, are weights and no biases, shape (parameters,)."""
    return torch.cat([torch.full((p.numel(),), p.ndim > 1) for p in network.parameters()])


def _order(network: nn.Module, points: Tensor) -> Tensor:
    """Where each of Keras' parameters stands in torch's order."""
    pieces: list[Tensor] = []
    start, channels, flattened = 0, 0, False
    for layer in network.modules():
        if isinstance(layer, nn.Flatten):
            flattened = channels > 0
        own = list(layer.parameters(recurse=False))
        if not own:
            continue
        if not isinstance(layer, (nn.Linear, nn.Conv2d)):
            raise InputError(
                f"a layer {type(layer).__name__} has no place in the reference's files; they hold "
                f"dense and convolutional layers"
            )
        for parameter in own:
            index = torch.arange(start, start + parameter.numel()).view(parameter.shape)
            start += parameter.numel()
            if parameter.ndim == 4:
                index = index.permute(2, 3, 1, 0)
                channels = parameter.shape[0]
            elif parameter.ndim == 2 and flattened:
                index = index.view(len(index), channels, -1).permute(2, 1, 0)
                flattened = False
            elif parameter.ndim == 2:
                index = index.T
            pieces.append(index.reshape(-1))
    if points.shape[-1] != start:
        raise InputError(
            f"points of {points.shape[-1]} parameters are not of this network, which has {start}"
        )
    return torch.cat(pieces)
