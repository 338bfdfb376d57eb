"""torchdiffeq: a neural ODE in fixed steps, in adaptive ones, and with the adjoint's gradient.

The adjoint solves another equation for the gradient, which in coarse steps is not that of the loss.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.ecosystem.walks import trained, walked
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

import isoloss

ode = pytest.importorskip("torchdiffeq")


class Flow(nn.Module):
    def __init__(self, method: str, solve: Any = ode.odeint) -> None:
        super().__init__()
        self.field = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))
        self.head = nn.Linear(2, 1)
        self.register_buffer("times", torch.linspace(0, 1, 5))
        self.method, self.solve = method, solve

    def forward(self, x: Tensor) -> Tensor:
        solve: Any = self.solve
        states = solve(_Field(self.field), x, self.times, method=self.method)
        return self.head(states[-1])


class _Field(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.net(x)


def rings() -> tuple[Tensor, Tensor]:
    x = torch.randn(60, 2, generator=torch.Generator().manual_seed(2))
    return x, (x.norm(dim=1, keepdim=True) > 1.2).float()


def classify(model: nn.Module, data: Any) -> Tensor:
    return binary_cross_entropy_with_logits(model(data[0]), data[1])


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_fixed_and_adaptive_steps(method: str) -> None:
    data = rings()
    walked(trained(Flow(method), classify, data), "bce_with_logits", data, classify)


@pytest.mark.parametrize("whole", [False, True])
def test_adaptive_steps_in_float64(whole: bool) -> None:
    """Steps are chosen for all examples together: by far less than a tolerance, losses of an
    example differ from chunk to chunk. One number for the whole set has none of its own."""
    data = tuple(tensor.double() for tensor in rings())
    model = trained(Flow("dopri5").double(), classify, data)
    if not whole:
        walked(model, "bce_with_logits", data, classify)
        return

    def own_loss(model: nn.Module, batch: Any) -> Tensor:
        return classify(model, batch)

    def plain(model: nn.Module, data: Any) -> Tensor:
        return classify(model, data[0])

    walked(model, own_loss, [data], plain)


def test_the_adjoint_where_it_is_the_gradient() -> None:
    data, model = rings(), Flow("rk4", ode.odeint_adjoint)
    walked(trained(model, classify, data), "bce_with_logits", data, classify)


@pytest.mark.parametrize("method", ["euler", "midpoint"])
def test_the_adjoint_where_it_is_not_the_gradient_of_the_values(method: str, refuses) -> None:
    data = rings()
    model = trained(Flow(method, ode.odeint_adjoint), classify, data, steps=80)
    with refuses("gradient", "field.0.weight"):
        isoloss.traverse(isoloss.Problem(model, "bce_with_logits", data), progress=False)
