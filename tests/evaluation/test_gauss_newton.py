"""The Gauss-Newton part of the loss's Hessian is torch's in float64, and most of it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.problems import F64, classifier, generator, normal, uninformed
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from isoloss import SQP, Problem, Stop, traverse
from isoloss.evaluation import GaussNewton, gauss_newton
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


class Tied(nn.Module):
    """Reads with the weights that it writes with."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 2), nn.Linear(3, 2)
        self.outer.weight = self.inner.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.outer((self.inner(x).tanh() @ self.inner.weight).sin())


class Attention(nn.Module):
    """Three tokens of one number each."""

    def __init__(self) -> None:
        super().__init__()
        self.widen, self.norm, self.last = nn.Linear(1, 4), nn.LayerNorm(4), nn.Linear(4, 2)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.widen(x[..., None]))
        return self.last((y + self.attention(y, y, y, need_weights=False)[0]).mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.last = nn.LSTM(1, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.lstm(x[..., None])[0][:, -1])


OTHERS: dict[str, Callable[[], nn.Module]] = {
    "convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 2, 2), nn.ReLU(True), nn.Flatten(), nn.Linear(4, 2)
    ),
    "layer norm": lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)),
    "batch norm": lambda: nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4).eval(), nn.Tanh(), nn.Linear(4, 2)
    ),
    "attention": Attention,
    "shared": Shared,
    "weight used twice": Twice,
    "tied": Tied,
    "own parameter": lambda: nn.Sequential(nn.Linear(3, 2), nn.PReLU()),
    "parametrized": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)),
    "partly frozen norm": lambda: frozen(
        nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    ),
}
"""Of which not all parameters are those of dense layers that are used once."""


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


@pytest.mark.parametrize(
    ("make", "name"),
    [
        *(
            pytest.param(make, loss, id=f"{k}-{loss}")
            for k, make in MODELS.items()
            for loss in LOSSES
        ),
        *(pytest.param(make, "smoothed", id=k) for k, make in OTHERS.items()),
    ],
)
def test_of_few_examples_it_is_all_of_torchs(make: Callable[[], nn.Module], name: str) -> None:
    model = made(make)
    loss, plain, targets = LOSSES[name]
    X, y = normal(FEW, 3, seed=4), targets(FEW)
    weights = torch.tensor([1.0, 2.0, 0.5, 1.0], dtype=F64)
    problem = Problem(model, loss, (X, y), weights=weights, chunk_size=3)
    known = problem.gauss_newton(problem.current())
    assert known is not None
    assert known.factored == (make in MODELS.values())
    Z = rows_of(known)
    torch.testing.assert_close(Z.T @ Z, by_torch(model, plain, X, y, weights))
    np.testing.assert_allclose(known.gram, (Z @ Z.T).numpy(), atol=1e-12)
    vector = normal(problem.size, seed=7)
    np.testing.assert_allclose(known.products(vector[None])[0], (Z @ vector).numpy(), atol=1e-12)
    shifted = Z @ Z.T + 0.3 * torch.eye(len(Z), dtype=F64)
    image = normal(len(Z), seed=8)
    expected = torch.linalg.solve(shifted, image).numpy()
    np.testing.assert_allclose(known.inverse(0.3) @ image.numpy(), expected, rtol=1e-9, atol=1e-12)
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


@settings(max_examples=8)
@given(seed=st.integers(0, 10**6))
def test_of_many_examples_the_stored_ones_are_a_part_and_the_largest(seed: int) -> None:
    source = np.random.default_rng(seed)
    examples = int(source.integers(70, 90))
    X, y = normal(examples, 3, seed=seed % 1000), torch.arange(examples) % 3
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 3)).double()
    problem = Problem(model, "cross_entropy", (X, y), chunk_size=50)
    known = problem.gauss_newton(problem.current())
    assert known is not None
    assert len(known.gram) <= 150
    Z = rows_of(known)
    whole = by_torch(model, functional.cross_entropy, X, y, torch.ones(examples))
    rest = torch.linalg.eigvalsh(whole - Z.T @ Z)
    assert rest.min() > -1e-7 * whole.trace()
    assert (Z.T @ Z).trace() > 0.6 * whole.trace()


def test_a_function_has_them_as_the_module_has() -> None:
    module = made(OTHERS["layer norm"])

    def function(parameters: dict[str, Tensor], inputs: Tensor) -> Tensor:
        hidden = functional.linear(inputs, parameters["0.weight"], parameters["0.bias"])
        hidden = functional.layer_norm(hidden, (4,), parameters["1.weight"], parameters["1.bias"])
        return functional.linear(hidden, parameters["2.weight"], parameters["2.bias"])

    data = normal(9, 3, seed=1), normal(9, 2, seed=2)
    problems = (
        Problem(module, "mse", data),
        Problem(function, "mse", data, parameters=dict(module.named_parameters())),
    )
    one, two = (problem.gauss_newton(problem.current()) for problem in problems)
    assert one is not None
    assert two is not None
    torch.testing.assert_close(rows_of(one), rows_of(two))


@pytest.mark.parametrize("make", [MODELS["tanh"], OTHERS["layer norm"]])
def test_entries_that_are_held_are_zero_and_the_others_as_without(
    make: Callable[[], nn.Module],
) -> None:
    model, X, y = made(make), normal(FEW, 3, seed=4), normal(FEW, 2, seed=5)
    weight = next(model.parameters())
    free = torch.arange(weight.numel()).view_as(weight) % 2 == 0
    problem = Problem(model, "mse", (X, y), mask={"0.weight": free})
    known = problem.gauss_newton(problem.current())
    assert known is not None
    Z, whole = rows_of(known), by_torch(model, functional.mse_loss, X, y, torch.ones(FEW))
    walked = torch.ones(problem.size, dtype=F64)
    walked[: free.numel()] = free.flatten().double()
    torch.testing.assert_close(Z.T @ Z, walked[:, None] * whole * walked)


@pytest.mark.parametrize("make", [Attention, Recurrent])
def test_in_float32_they_are_torchs_in_float64_and_nothing_warns(
    make: Callable[[], nn.Module],
) -> None:
    X, y = normal(FEW, 3, seed=1), normal(FEW, 2, seed=2)
    problem = Problem(made(make, torch.float32), "mse", (X.float(), y.float()))
    state = torch.get_rng_state()
    known = problem.gauss_newton(problem.current())
    assert known is not None
    assert torch.equal(torch.get_rng_state(), state)
    Z, exact = rows_of(known), by_torch(made(make), functional.mse_loss, X, y, torch.ones(FEW))
    torch.testing.assert_close(Z.T @ Z, exact, rtol=1e-4, atol=1e-6)


class Centered(nn.Module):
    """What one example gives depends on the others."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(3, 2), nn.LayerNorm(2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return self.norm(y - y.mean(0))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(3, 2), nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return self.scale * (y if y.sum() > 0 else -y)


class Cube(torch.autograd.Function):
    """Of which torch cannot take many at once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return 3 * slope * ctx.saved_tensors[0] ** 2


class Cubed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(3, 2), nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * Cube.apply(self.layer(x))  # type: ignore[no-untyped-call]


NONE: dict[str, Callable[[], nn.Module]] = {
    "examples depend on one another": Centered,
    "batch norm in training": lambda: nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 2)
    ),
    "dropout": lambda: nn.Sequential(nn.Linear(3, 2), nn.Dropout(), nn.PReLU()),
    "numbers decide the path": Branching,
    "function of its own": Cubed,
}


REFUSED = tuple(NONE)[:3]
"""Of which no walk is to be had: the loss is no function of the parameters alone."""


@pytest.mark.parametrize("name", NONE)
def test_other_models_have_none_and_are_walked_without(name: str) -> None:
    paths = []
    for change in (lambda problem: problem, uninformed):
        problem = Problem(made(NONE[name]), "mse", (normal(9, 3, seed=1), normal(9, 2, seed=2)))
        assert problem.gauss_newton(problem.current()) is None
        if name not in REFUSED:
            stop = Stop(steps=2)
            paths.append(traverse(change(problem), stop=stop, check=False, progress=False))
    assert all(len(path.steps) == 3 and path.points.equal(paths[0].points) for path in paths)


def test_sequences_and_losses_without_second_derivatives_have_none() -> None:
    X, y = normal(9, 3, seed=1), normal(9, 2, seed=2)
    sequences = normal(9, 4, 3, seed=1), normal(9, 4, 2, seed=2)
    for make in (MODELS["tanh"], OTHERS["layer norm"]):
        model = made(make)
        along = Problem(model, "mse", sequences)
        kinked = Problem(model, lambda z, t: Once.apply(z - t), (X, y))
        whole = Problem(
            model, lambda model, batch: (model(batch[0]) - batch[1]).square().mean(1), (X, y)
        )
        streamed = Problem(model, "mse", DataLoader(TensorDataset(X, y), 3))
        single = made(make, torch.float32), float32_only, (X.float(), y.float())
        for problem in (along, kinked, whole, streamed, Problem(*single)):
            assert problem.gauss_newton(problem.current()) is None
    pair = Problem(nn.Bilinear(3, 3, 2).double(), "mse", ((X, X), y))
    assert pair.gauss_newton(pair.current()) is None


def test_of_larger_models_fewer_are_stored_and_then_none(monkeypatch: pytest.MonkeyPatch) -> None:
    data = normal(9, 3, seed=1), normal(9, 2, seed=2)
    problem = Problem(made(OTHERS["layer norm"]), "mse", data)
    module = importlib.import_module(gauss_newton.__module__)
    monkeypatch.setattr(module, "AT_ONCE", 4)
    monkeypatch.setattr(module, "MOST_STORED", 16)
    for numbers, rows in ((18, 16), (11, 11), (8, 8), (7, None)):
        monkeypatch.setattr(module, "MOST_NUMBERS", numbers * problem.size + 1)
        known = problem.gauss_newton(problem.current())
        assert (None if known is None else len(known.gram)) == rows


def test_more_outputs_than_memory_is_meant_for_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = classifier((3, 6, 3), 20, seed=1).problem()
    module = importlib.import_module(gauss_newton.__module__)
    monkeypatch.setattr(module, "MOST_ENTRIES", 20 * 9)
    assert problem.gauss_newton(problem.current()) is not None
    monkeypatch.setattr(module, "MOST_ENTRIES", 20 * 9 - 1)
    assert problem.gauss_newton(problem.current()) is None


def test_outputs_that_rows_cannot_use_are_not_gathered() -> None:
    passes = []

    def for_each_token(x: Tensor) -> Tensor:
        passes.append(len(x))
        return x[:, :, None]

    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2)).double()
    model.register_forward_hook(lambda _module, _given, found: for_each_token(found))
    problem = Problem(model, "mse", (normal(9, 3, seed=1), normal(9, 2, 1, seed=2)), chunk_size=3)
    theta = problem.current()
    passes.clear()
    assert problem.gauss_newton(theta) is None
    assert passes == [3]


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


def test_a_walk_that_knows_it_has_a_smaller_norm_after_twenty_evaluations() -> None:
    norms = []
    for seed in range(3):
        X, y = labeled(100, seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            hidden = nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 30), nn.Tanh()
            model = nn.Sequential(*hidden, nn.Linear(30, 4)).double()
        fit(model, X, y)
        for one in both(Problem(model, "cross_entropy", (X, y))):
            rows = traverse(one, stop=Stop(evaluations=40), check=False, progress=False).steps
            norms.append(rows.loc[rows["evaluations"] <= 20, "regularizer"].iloc[-1])
    shares = np.divide(norms[::2], norms[1::2])
    assert np.log(shares).mean() < -0.03


def test_one_of_a_convolution_takes_fewer_evaluations() -> None:
    counts = []
    for seed in range(3):
        X, y = labeled(60, seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            convolution = nn.Unflatten(1, (1, 20)), nn.Conv1d(1, 6, 5), nn.Tanh(), nn.Flatten()
            model = nn.Sequential(*convolution, nn.Linear(96, 4)).double()
        fit(model, X, y)
        counts.append(both_walked(Problem(model, "cross_entropy", (X, y)), 0.1))
    known, unknown = np.sum(counts, axis=0)
    assert known < 0.85 * unknown


def test_it_is_made_anew_after_twenty_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a basis that does not fill up before."""
    problem, made = classifier(examples=40, seed=2).problem(), []
    real = Problem.gauss_newton

    def counted(self: Problem, theta: Tensor) -> GaussNewton | None:
        made.append(self.evaluations)
        return real(self, theta)

    monkeypatch.setattr(Problem, "gauss_newton", counted)
    stop = Stop(evaluations=60, kkt_residual=0)
    traverse(problem, method=SQP(memory=400), stop=stop, check=False, progress=False)
    assert len(made) > 2
    assert set(np.diff(made)) == {20}


def labeled(examples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random inputs with random labels of four classes."""
    y = torch.randint(0, 4, (examples,), generator=generator(10 * seed + 2))
    return normal(examples, 20, seed=10 * seed + 1), y


def fit(model: nn.Module, X: Tensor, y: Tensor) -> None:
    """A hundred steps of Adam."""
    adam = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(100):
        adam.zero_grad()
        functional.cross_entropy(model(X), y).backward()
        adam.step()


def both(problem: Problem) -> tuple[Problem, Problem]:
    """A problem as it is, and with nothing known."""
    return problem, uninformed(problem)


def both_walked(problem: Problem, residual: float) -> list[int]:
    """Evaluations of both to a KKT residual."""
    used = []
    for one in both(problem):
        stop = Stop(kkt_residual=residual)
        path = traverse(one, method=SQP(), stop=stop, check=False, progress=False)
        assert path.outcome.value == "converged", path.message
        used.append(path.steps["evaluations"].iloc[-1])
    return used


def test_rows_have_products_with_no_vectors_too() -> None:
    """As with a basis in which nothing is yet."""
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    data = normal(12, 3, seed=0).float(), torch.arange(12) % 2
    problem = Problem(model, "cross_entropy", data)
    rows = problem.gauss_newton(problem.current())
    assert rows is not None
    assert rows.products(torch.zeros(0, problem.size)).shape == (0, len(rows.gram))
