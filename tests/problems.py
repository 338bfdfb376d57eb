"""Problems with known answers, and oracles that share no code with isoloss."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import optimize
from torch import Tensor, nn

from isoloss import Problem

Vector = NDArray[np.float64]
F64 = torch.float64


# ---------------------------------------------------------------- problems with a known end


@dataclass(frozen=True)
class Known:
    """A level set on which the point of smallest R is known exactly, float64."""

    problem: Problem
    start: Tensor  # on the level set, not an end
    level: float
    end: Tensor  # a point of smallest R
    value: float  # R there
    penalty: float  # the weight of R in the weight decay that is stationary there
    gap: Callable[[Tensor], float]  # how far a point is from all such ends, 0 on them
    regularizer: Any = "squared_norm"


@dataclass(frozen=True)
class LinearRegularizer:
    """R(theta) = <b, theta>."""

    slope: Tensor
    name: str = "linear"

    def value_and_grad(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        return self.slope.dot(theta), self.slope.clone()


def vector_problem(
    loss: Callable[[Tensor], Tensor], start: Tensor, *, dtype: torch.dtype | None = None
) -> Problem:
    """The problem whose training loss is a given function of one vector."""
    nothing = torch.zeros(1)
    return Problem(
        lambda parameters, _: loss(parameters["theta"]).reshape(1),
        loss=lambda outputs, _: outputs,
        data=(nothing, nothing),
        parameters={"theta": start},
        dtype=dtype,
    )


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


def rotation(n: int, seed: int) -> Tensor:
    """A random orthogonal matrix."""
    return torch.linalg.qr(normal(n, n, seed=seed)).Q


def quadratic(
    eigenvalues: tuple[float, ...] = (1.0, 2.0, 5.0),
    constant: float = 0.5,
    level: float = 1.5,
    seed: int = 0,
) -> Known:
    """L = theta'A theta / 2 + constant: the shortest point lies on the top eigenvector."""
    basis = rotation(len(eigenvalues), seed)
    values = torch.tensor(eigenvalues, dtype=F64)
    A = basis @ values.diag() @ basis.T
    top = int(values.argmax())
    squared = 2 * (level - constant) / max(eigenvalues)
    end = math.sqrt(squared) * basis[:, top]
    ray = normal(len(eigenvalues), seed=seed + 1)
    start = ray * math.sqrt(2 * (level - constant) / (ray @ A @ ray).item())
    problem = vector_problem(lambda theta: theta @ A @ theta / 2 + constant, start)
    return Known(
        problem,
        start,
        level,
        end,
        value=squared,
        penalty=-max(eigenvalues) / 2,
        gap=lambda theta: min((theta - end).norm().item(), (theta + end).norm().item()),
    )


def ridge(examples: int = 12, features: int = 4, seed: int = 0) -> Known:
    """Linear least squares: the end is the ridge solution whose mean squared error is c."""
    X, y = normal(examples, features, seed=seed), normal(examples, seed=seed + 1)
    gram, moment = X.T @ X / examples, X.T @ y / examples

    def solution(penalty: float) -> Tensor:
        return torch.linalg.solve(gram + penalty * torch.eye(features, dtype=F64), moment)

    def loss(theta: Tensor) -> float:
        return (X @ theta - y).square().mean().item()

    best = solution(0.0)
    level = (loss(best) + loss(torch.zeros(features, dtype=F64))) / 2
    log_penalty = optimize.brentq(
        lambda log: loss(solution(math.exp(log))) - level, -20, 20, xtol=1e-15, rtol=1e-15
    )
    end = solution(math.exp(log_penalty))
    away = normal(features, seed=seed + 2)
    away *= math.sqrt((level - loss(best)) / (X @ away).square().mean().item())
    model = nn.Linear(features, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(best + away)
    return Known(
        Problem(model, "mse", (X, y[:, None])),
        best + away,
        level,
        end,
        value=end.dot(end).item(),
        penalty=math.exp(log_penalty),
        gap=lambda theta: (theta - end).norm().item(),
    )


def sphere(n: int = 4, radius: float = 1.5, seed: int = 0) -> Known:
    """L = |theta|^2 with R = <b, theta>: the end is -radius b / |b|."""
    slope = normal(n, seed=seed)
    end = -radius * slope / slope.norm()
    start = normal(n, seed=seed + 1)
    start *= radius / start.norm()
    return Known(
        vector_problem(lambda theta: theta.dot(theta), start),
        start,
        radius**2,
        end,
        value=-radius * slope.norm().item(),
        penalty=2 * radius / slope.norm().item(),
        gap=lambda theta: (theta - end).norm().item(),
        regularizer=LinearRegularizer(slope),
    )


def two_factor(hidden: int = 3, target: float = 2.0, level: float = 0.25, seed: int = 0) -> Known:
    """A linear network <u, v> with one example: every end is balanced, u = v, R = 2 <u, v>."""
    product = target - math.sqrt(level)
    u, v = normal(hidden, seed=seed), normal(hidden, seed=seed + 1)
    v += (product - u.dot(v)) / u.dot(u) * u
    model = nn.Sequential(
        nn.Linear(1, hidden, bias=False), nn.Linear(hidden, 1, bias=False)
    ).double()
    one = torch.ones(1, 1, dtype=F64)
    side = u / u.norm() * math.sqrt(product)

    def gap(theta: Tensor) -> float:
        left, right = theta[:hidden], theta[hidden:]
        return ((left - right).norm() + abs(left.dot(left) - product)).item()

    return Known(
        Problem(model, "mse", (one, target * one)),
        torch.cat([u, v]),
        level,
        torch.cat([side, side]),
        value=2 * product,
        penalty=math.sqrt(level),
        gap=gap,
    )


KNOWN: dict[str, Callable[[], Known]] = {
    "quadratic": quadratic,
    "ridge": ridge,
    "sphere": sphere,
    "two_factor": two_factor,
}


# ---------------------------------------------------------------- small networks


@dataclass(frozen=True)
class Net:
    """A tanh network with random weights and data, float64, and its loss by hand in NumPy."""

    model: nn.Sequential
    loss: str
    data: tuple[Tensor, Tensor]
    sizes: tuple[int, ...]  # inputs, hidden layers, outputs

    def problem(self, **settings: Any) -> Problem:
        return Problem(self.model, self.loss, self.data, **settings)

    @property
    def theta(self) -> Tensor:
        return torch.cat([p.detach().reshape(-1) for p in self.model.parameters()])

    def loss_and_grad(self, theta: Vector) -> tuple[float, Vector]:
        """Mean loss and its gradient by textbook back-propagation, float64."""
        weights, biases, start = [], [], 0
        for a, b in itertools.pairwise(self.sizes):
            weights.append(theta[start : start + a * b].reshape(b, a))
            biases.append(theta[start + a * b : start + a * b + b])
            start += a * b + b
        layers = [self.data[0].double().numpy()]
        for W, b in zip(weights[:-1], biases[:-1], strict=True):
            layers.append(np.tanh(layers[-1] @ W.T + b))
        out = layers[-1] @ weights[-1].T + biases[-1]
        targets, n = self.data[1].numpy(), len(out)
        if self.loss == "mse":
            loss = np.mean((out - targets) ** 2)
            back = 2 * (out - targets) / out.size
        else:
            shifted = out - out.max(1, keepdims=True)
            p = np.exp(shifted) / np.exp(shifted).sum(1, keepdims=True)
            normalizer = np.log(np.exp(shifted).sum(1))
            loss = np.mean(normalizer - shifted[np.arange(n), targets])
            back = p.copy()
            back[np.arange(n), targets] -= 1
            back /= n
        pieces: list[Vector] = []
        for k in reversed(range(len(weights))):
            pieces = [(back.T @ layers[k]).ravel(), back.sum(0), *pieces]
            if k:
                back = (back @ weights[k]) * (1 - layers[k] ** 2)
        return float(loss), np.concatenate(pieces)


def _tanh_network(sizes: tuple[int, ...], seed: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    source = generator(seed)
    for a, b in itertools.pairwise(sizes):
        layer = nn.utils.skip_init(nn.Linear, a, b, dtype=F64)
        for parameter in layer.parameters():
            nn.init.normal_(parameter, std=a**-0.5, generator=source)
        layers += [layer, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def classifier(sizes: tuple[int, ...] = (3, 5, 4), examples: int = 12, seed: int = 0) -> Net:
    """A tanh network for classification, with random inputs and random classes."""
    classes = torch.randint(0, sizes[-1], (examples,), generator=generator(seed + 1))
    inputs = normal(examples, sizes[0], seed=seed + 2)
    return Net(_tanh_network(sizes, seed), "cross_entropy", (inputs, classes), sizes)


def regressor(sizes: tuple[int, ...] = (3, 5, 2), examples: int = 10, seed: int = 0) -> Net:
    """A tanh network for regression, with random inputs and targets."""
    inputs = normal(examples, sizes[0], seed=seed + 2)
    targets = normal(examples, sizes[-1], seed=seed + 1)
    return Net(_tanh_network(sizes, seed), "mse", (inputs, targets), sizes)


NETS: dict[str, Callable[[], Net]] = {"classifier": classifier, "regressor": regressor}


def uninformed(problem: Problem) -> Problem:
    """The same problem, of whose Hessian nothing is known before a walk."""

    class Uninformed(Problem):
        def gauss_newton(self, theta: Tensor) -> None:
            del theta

    other = object.__new__(Uninformed)
    vars(other).update(vars(problem))
    return other


# ---------------------------------------------------------------- is the user's model untouched?


def snapshot(model: nn.Module) -> list[Any]:
    """All of a module that a user could see change, and the global random state."""
    seen: list[Any] = [torch.get_rng_state().tolist()]
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        grad = None if tensor.grad is None else tensor.grad.tolist()
        place = (name, id(tensor), tensor.data_ptr(), str(tensor.dtype), tensor.requires_grad)
        seen.append((*place, tensor.tolist(), grad))
    return [*seen, *((name, module.training) for name, module in model.named_modules())]
