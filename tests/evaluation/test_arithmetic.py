"""Which layouts and kernels an evaluation may use."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from isoloss import Problem
from isoloss.problem import inside


def image_problem(shortcut: nn.Module) -> Problem:
    model = nn.Sequential(shortcut, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    channels = shortcut.in_channels
    outputs = torch.zeros(50, shortcut.out_channels)
    return Problem(model, "mse", (torch.randn(50, channels, 8, 8), outputs))


@pytest.mark.parametrize(
    ("layer", "safe"),
    [
        (nn.Conv2d(4, 8, 1, stride=2), False),  # corrupts the heap in torch 2.13, channels last
        (nn.Conv2d(8, 8, 1, stride=2, groups=2), False),
        (nn.Conv2d(8, 16, 1, stride=2), True),
        (nn.Conv2d(4, 8, 1), True),
        (nn.Conv2d(4, 8, 3, stride=2), True),
    ],
)
def test_images_are_channels_last_where_torch_can_do_it(layer: nn.Module, safe: bool) -> None:
    problem = image_problem(layer)
    (inputs, *_) = next(iter(inside(problem).chunks))
    assert inputs.is_contiguous(memory_format=torch.channels_last) is safe


def test_a_strided_convolution_of_few_channels_can_be_differentiated_many_times() -> None:
    problem = image_problem(nn.Conv2d(4, 8, 1, stride=2))
    theta = problem.current()
    first = problem.loss_and_grad(theta)[1]
    for _ in range(20):
        assert torch.equal(problem.loss_and_grad(theta)[1], first)
