"""Adam on one flat vector, with epsilon where Keras has it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.adam import adam

LEARNING_RATE = 1e-3
BETA1 = 0.9
BETA2 = 0.999
EPSILON = 1e-7


@dataclass
class Adam:
    """Adam's state, of which `step` changes the tensors in place.

    theta -= rate sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(v) + epsilon), the form before section
    2.1 of Kingma and Ba (ICLR 2015). torch adds its epsilon after the bias correction, so that
    epsilon / sqrt(1 - beta2^t) given to torch is epsilon here.

    Attributes:
        theta: The flat vector.
        mean: Decaying mean of the gradient, m.
        square: Decaying mean of the squared gradient, v.
        steps: Steps so far, t.
    """

    theta: Tensor
    mean: Tensor
    square: Tensor
    steps: int = 0

    def __post_init__(self) -> None:
        self._steps = torch.tensor(float(self.steps), device=self.theta.device)

    @classmethod
    def at(cls, theta: Tensor) -> Adam:
        """The state before the first step."""
        return cls(theta, torch.zeros_like(theta), torch.zeros_like(theta))

    def step(self, grad: Tensor) -> None:
        """Update theta by a gradient of its shape."""
        self.steps += 1
        adam(
            [self.theta],
            [grad],
            [self.mean],
            [self.square],
            [],
            [self._steps],  # which torch counts up itself
            fused=True,
            amsgrad=False,
            maximize=False,
            weight_decay=0.0,
            lr=LEARNING_RATE,
            beta1=BETA1,
            beta2=BETA2,
            eps=EPSILON / math.sqrt(1 - BETA2**self.steps),
        )
