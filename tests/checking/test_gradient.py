"""A gradient that is not that of the values is refused before a walk begins."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.models import kinds
from tests.problems import normal
from torch import Tensor, nn

from isoloss import Outcome, Problem, Stop, traverse

X, Y = normal(50, 3, seed=0).float(), torch.arange(50) % 2


class Rounded(nn.Module):
    """A straight-through estimator: values are rounded, the gradient says that they are not."""

    def forward(self, x: Tensor) -> Tensor:
        return x + ((4 * x).round() / 4 - x).detach()


class Doubled(torch.autograd.Function):
    """The identity, with twice its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return 2 * grads[0]


class Wrong(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Doubled.apply(x)  # pyright: ignore[reportReturnType]


def network(*more: nn.Module, seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 8), *more, nn.Tanh(), nn.Linear(8, 2))


def embedding() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Embedding(5, 4, scale_grad_by_freq=True), nn.Linear(4, 2))


def start(problem: Problem, **settings: Any) -> Outcome:
    return traverse(problem, stop=Stop(steps=2), progress=False, **settings).outcome


WRONG = {
    "straight-through": (network(Rounded()), X, "in 0.weight"),
    "backward of its own": (network(Wrong()), X, "in 0.weight"),
    "scaled by frequency": (
        embedding(),
        torch.arange(50) % 5,
        "in 0.weight",
    ),
}


@pytest.mark.parametrize(("model", "inputs", "name"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_wrong_gradient_is_refused(
    model: nn.Module, inputs: Tensor, name: str, dtype: torch.dtype, refuses
) -> None:
    problem = Problem(model, "cross_entropy", (inputs, Y), dtype=dtype)
    with refuses("the gradient of the loss is off by", name, "check=False"):
        start(problem)
    assert start(problem, check=False) in (Outcome.STEP_LIMIT, Outcome.STALLED)


@pytest.mark.parametrize("name", list(kinds()))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_right_gradient_passes(name: str, dtype: torch.dtype) -> None:
    kind = kinds()[name]
    start(Problem(kind.model, kind.loss, kind.data, dtype=dtype))


@pytest.mark.parametrize("seed", range(5))
def test_kinks_at_the_start_pass(seed: int) -> None:
    """Biases of zero and inputs of zero put every ReLU of some examples on its kink."""
    x = torch.cat([torch.zeros(25, 3), X[25:]])
    model = network(nn.ReLU(), seed=seed)
    nn.init.zeros_(model[0].bias)
    start(Problem(model, "cross_entropy", (x, Y)))
