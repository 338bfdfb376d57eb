"""The five networks of the paper, with Keras' Glorot normal start."""

from __future__ import annotations

import itertools
import math

import torch
from torch import nn

TRUNCATION = 0.87962566103423978
"""Standard deviation of a unit normal truncated at two, which Keras divides by."""


def dense(*sizes: int) -> nn.Sequential:
    """A feed-forward network with tanh hidden layers and linear outputs.

    Args:
        sizes: Inputs, hidden layers, outputs.

    Returns:
        The network, for inputs of shape (n, sizes[0]).
    """
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def convolutional(channels: int, size: int, filters: int, hidden: int) -> nn.Sequential:
    """Two valid 3x3 convolutions, each averaged over 2x2, then two dense layers to 10 classes.

    Pooling drops an odd last row and column.

    Args:
        channels: Channels of the images.
        size: Height and width of the images, in pixels.
        filters: Channels of both convolutions.
        hidden: Units of the hidden dense layer.

    Returns:
        The network, for inputs of shape (n, channels, size, size).
    """
    side = ((size - 2) // 2 - 2) // 2
    return nn.Sequential(
        nn.Conv2d(channels, filters, 3),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Conv2d(filters, filters, 3),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(filters * side * side, hidden),
        nn.Tanh(),
        nn.Linear(hidden, 10),
    )


def glorot_normal(network: nn.Module, seed: int) -> nn.Module:
    """Start a network as Keras' `glorot_normal` does, biases at zero.

    Weights are normal with standard deviation sqrt(2 / (fan_in + fan_out)) / 0.8796, truncated at
    two standard deviations; the fans of a convolution count its receptive field (Glorot and Bengio,
    AISTATS 2010; Keras' `GlorotNormal`).

    Args:
        network: Changed in place.
        seed: Determines all layers.

    Returns:
        The network.
    """
    generator = torch.Generator().manual_seed(seed)
    for layer in network.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            field = math.prod(layer.weight.shape[2:])
            fans = field * (layer.weight.shape[0] + layer.weight.shape[1])
            std = math.sqrt(2 / fans) / TRUNCATION
            nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std, generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return network
