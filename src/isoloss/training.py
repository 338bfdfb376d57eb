"""Phase 1: Adam over mini-batches in one fixed order, as the reference trains."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from isoloss.errors import InputError
from isoloss.flat import FlatNetwork, flatten, load_into
from isoloss.losses import Loss, get_loss


@dataclass
class Adam:
    """Adam on one flat vector, with epsilon where Keras has it.

    theta -= rate sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(v) + epsilon), the form before section
    2.1 of Kingma and Ba (ICLR 2015); torch.optim.Adam has epsilon outside the bias correction.

    Attributes:
        theta: The flat vector, changed in place.
        learning_rate: Step length.
        beta1: Decay of the mean gradient.
        beta2: Decay of the mean squared gradient.
        epsilon: Added to the root of the mean squared gradient.
    """

    theta: Tensor
    learning_rate: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-7

    def __post_init__(self) -> None:
        self._mean = torch.zeros_like(self.theta)
        self._square = torch.zeros_like(self.theta)
        self._t = 0

    def step(self, grad: Tensor) -> None:
        """Update theta by a gradient of its shape."""
        self._t += 1
        self._mean.lerp_(grad, 1 - self.beta1)
        self._square.mul_(self.beta2).addcmul_(grad, grad, value=1 - self.beta2)
        rate = self.learning_rate * math.sqrt(1 - self.beta2**self._t) / (1 - self.beta1**self._t)
        self.theta.addcdiv_(self._mean, self._square.sqrt().add_(self.epsilon), value=-rate)


def train(
    model: nn.Module,
    loss: str | Loss,
    inputs: Tensor,
    targets: Tensor,
    *,
    epochs: int,
    batch_size: int = 32,
) -> None:
    """Train a model in place by Adam, over the same mini-batches in the same order every epoch.

    Args:
        model: Its trainable parameters are changed.
        loss: `"cross_entropy"`, `"mse"`, or a function giving one loss per example.
        inputs: Training inputs, first axis the examples.
        targets: Training targets.
        epochs: Passes over the examples.
        batch_size: Examples a step; the last batch of an epoch holds what is left.

    Raises:
        InputError: A count is not positive.
    """
    if epochs < 1 or batch_size < 1:
        raise InputError(
            f"epochs={epochs}, batch_size={batch_size} is not possible; both must be at least 1"
        )
    per_example = get_loss(loss)
    network = FlatNetwork(model)
    theta = flatten([p for p in model.parameters() if p.requires_grad])
    adam = Adam(theta)
    batches = [
        (x, y, torch.tensor(1 / len(y), dtype=torch.float64, device=theta.device))
        for x, y in zip(inputs.split(batch_size), targets.split(batch_size), strict=True)
    ]
    for _ in range(epochs):
        for x, y, scale in batches:
            network.load(theta)
            total = per_example(network(x), y).sum(dtype=torch.float64)
            adam.step(flatten(network.gradients(total, scale)))
    load_into(model, theta, network.shapes)
