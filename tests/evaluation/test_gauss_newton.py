"""The Gauss-Newton part of a dense network's Hessian is torch's in float64, and most of it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.problems import F64, classifier, generator, normal
from torch import Tensor, nn
from torch.nn import functional

from isoloss import SQP, Problem, Stop, traverse
from isoloss.evaluation import GaussNewton
from isoloss.losses import CrossEntropy

FEW = 4


def exponential(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss of a user's own, with a Hessian that is not diagonal."""
    return (outputs.sum(1) - targets).exp() + outputs.square().sum(1)


LOSSES: dict[str, tuple[Any, Callable[[Tensor, Tensor], Tensor], Any]] = {
    "cross_entropy": ("cross_entropy", functional.cross_entropy, lambda n: torch.arange(n) % 2),
    "smoothed": (
        CrossEntropy(label_smoothing=0.1),
        lambda z, t: functional.cross_entropy(z, t, label_smoothing=0.1),
        lambda n: torch.arange(n) % 2,
    ),
    "mse": ("mse", functional.mse_loss, lambda n: normal(n, 2, seed=5)),
    "own": (exponential, lambda z, t: exponential(z, t).mean(), lambda n: normal(n, seed=6)),
}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "tanh": lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)),
    "without bias": lambda: nn.Sequential(
        nn.Linear(3, 4, bias=False), nn.ReLU(inplace=True), nn.Linear(4, 2)
    ),
    "skip": lambda: Skip(),
    "partly frozen": lambda: frozen(nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2))),
}


class Skip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last, self.first = nn.Linear(3, 2), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x + self.first(x).sigmoid())


def frozen(model: nn.Sequential) -> nn.Module:
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    return model


def made(make: Callable[[], nn.Module], dtype: torch.dtype = F64) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return make().to(dtype)


def rows_of(known: GaussNewton, dtype: torch.dtype = F64) -> Tensor:
    """Z itself, row by row."""
    each = np.eye(len(known.gram))
    return torch.stack([known.combined(one).to(dtype) for one in each])


def by_torch(model: nn.Module, loss: Any, X: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """The sum of J' H J over the examples, in float64."""
    moving = [p for p in model.parameters() if p.requires_grad]
    total = torch.zeros(())
    for x, target, weight in zip(X, y, weights, strict=True):
        outputs = model(x[None])[0]
        slopes = [torch.autograd.grad(z, moving, retain_graph=True) for z in outputs]
        J = torch.stack([torch.cat([g.flatten() for g in slope]) for slope in slopes])
        z = outputs.detach()
        H = torch.autograd.functional.hessian(lambda z, t=target: loss(z[None], t[None]), z)
        assert isinstance(H, Tensor)
        total = total + weight / weights.sum() * J.T @ H @ J
    return total


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_of_few_examples_it_is_all_of_torchs(make: Callable[[], nn.Module], name: str) -> None:
    model = made(make)
    loss, plain, targets = LOSSES[name]
    X, y = normal(FEW, 3, seed=4), targets(FEW)
    weights = torch.tensor([1.0, 2.0, 0.5, 1.0], dtype=F64)
    problem = Problem(model, loss, (X, y), weights=weights, chunk_size=3)
    known = problem.gauss_newton(problem.current())
    assert known is not None
    Z = rows_of(known)
    torch.testing.assert_close(Z.T @ Z, by_torch(model, plain, X, y, weights))
    np.testing.assert_allclose(known.gram, (Z @ Z.T).numpy(), atol=1e-12)
    vector = normal(problem.size, seed=7)
    np.testing.assert_allclose(known.products(vector), (Z @ vector).numpy(), atol=1e-12)
    shifted = Z @ Z.T + 0.3 * torch.eye(len(Z), dtype=F64)
    image = normal(len(Z), seed=8)
    expected = torch.linalg.solve(shifted, image).numpy()
    np.testing.assert_allclose(known.solved(image.numpy(), 0.3), expected, rtol=1e-9, atol=1e-12)
    double = rows_of(known.scaled(2.0))
    torch.testing.assert_close(double.T @ double, 2 * Z.T @ Z)


@given(seed=st.integers(0, 10**6))
def test_of_many_examples_it_is_a_part_and_the_largest(seed: int) -> None:
    source = np.random.default_rng(seed)
    examples = int(source.integers(20, 60))
    net = classifier((3, 6, 3), examples, seed=seed % 1000)
    problem = net.problem()
    known = problem.gauss_newton(problem.current())
    assert known is not None
    assert len(known.gram) == max(8, examples // 2)
    Z = rows_of(known)
    whole = by_torch(net.model, functional.cross_entropy, *net.data, torch.ones(examples))
    rest = torch.linalg.eigvalsh(whole - Z.T @ Z)
    assert rest.min() > -1e-9 * whole.trace()
    assert (Z.T @ Z).trace() > 0.2 * whole.trace()


def test_examples_that_bend_alike_are_drawn_the_same_way_at_any_scale() -> None:
    X, y = normal(40, 3, seed=1), normal(40, 2, seed=2)
    model = made(MODELS["tanh"])
    found = []
    for factor in (1.0, 3.0, 1e-6):
        problem = Problem(model, lambda z, t, f=factor: f * (z - t).square().mean(1), (X, y))
        known = problem.gauss_newton(problem.current())
        assert known is not None
        found.append(rows_of(known) / factor**0.5)
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(self.layer(x).tanh()))


class Twice(nn.Module):
    """Uses the weight of a layer beside the layer itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + (x @ self.layer.weight.T).tanh()


NONE: dict[str, Callable[[], nn.Module]] = {
    "norm": lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)),
    "shared": Shared,
    "weight used twice": Twice,
    "own parameter": lambda: nn.Sequential(nn.Linear(3, 2), nn.PReLU()),
    "parametrized": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)),
}


@pytest.mark.parametrize("make", NONE.values(), ids=NONE)
def test_other_models_have_none_and_are_walked_without(make: Callable[[], nn.Module]) -> None:
    problem = Problem(made(make), "mse", (normal(9, 3, seed=1), normal(9, 2, seed=2)))
    assert problem.gauss_newton(problem.current()) is None
    path = traverse(problem, stop=Stop(steps=2), check=False, progress=False)
    assert len(path.steps) == 3


def test_sequences_masks_and_losses_without_second_derivatives_have_none() -> None:
    model, X, y = made(MODELS["tanh"]), normal(9, 3, seed=1), normal(9, 2, seed=2)
    along = Problem(model, "mse", (normal(9, 4, 3, seed=1), normal(9, 4, 2, seed=2)))
    mask = {"0.weight": torch.arange(15).reshape(5, 3) % 2 == 0}
    masked = Problem(model, "mse", (X, y), mask=mask)
    kinked = Problem(model, lambda z, t: Once.apply(z - t), (X, y))
    whole = Problem(
        model, lambda model, batch: (model(batch[0]) - batch[1]).square().mean(1), (X, y)
    )
    single = made(MODELS["tanh"], torch.float32), float32_only, (X.float(), y.float())
    for problem in (along, masked, kinked, whole, Problem(*single)):
        assert problem.gauss_newton(problem.current()) is None


def test_more_outputs_than_memory_is_meant_for_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = classifier((3, 6, 3), 20, seed=1).problem()
    module = importlib.import_module(GaussNewton.__module__)
    monkeypatch.setattr(module, "MOST_ENTRIES", 20 * 9)
    assert problem.gauss_newton(problem.current()) is not None
    monkeypatch.setattr(module, "MOST_ENTRIES", 20 * 9 - 1)
    assert problem.gauss_newton(problem.current()) is None


def float32_only(outputs: Tensor, targets: Tensor) -> Tensor:
    if outputs.dtype != torch.float32:
        raise ValueError("float32, please")
    return (outputs - targets).square().mean(1)


class Once(torch.autograd.Function):
    """The sum of squares, which cannot be differentiated twice."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square().sum(1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return 2 * slope[:, None] * ctx.saved_tensors[0]


def test_a_walk_that_knows_it_takes_fewer_evaluations_to_the_end() -> None:
    X = normal(60, 20, seed=1)
    y = torch.randint(0, 4, (60,), generator=generator(2))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 4)).double()
    informed = Problem(model, "cross_entropy", (X, y))
    used = []
    for problem in (informed, without(informed)):
        path = traverse(
            problem, method=SQP(), stop=Stop(kkt_residual=1e-4), check=False, progress=False
        )
        assert path.outcome.value == "converged", path.message
        used.append(path.steps["evaluations"].iloc[-1])
    assert used[0] < used[1]


def without(problem: Problem) -> Problem:
    """The same problem, of which nothing is known."""

    class Unknown(Problem):
        def gauss_newton(self, theta: Tensor) -> None:
            del theta

    other = object.__new__(Unknown)
    vars(other).update(vars(problem))
    return other
