"""A gradient that is not that of the values is refused before a walk begins."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.models import kinds
from tests.problems import normal
from torch import Tensor, nn

from isoloss import (
    Outcome,
    Outputs,
    Problem,
    Stop,
    at_most,
    check,
    extent,
    traverse,
    walk,
    weighted_sum,
)

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
    assert start(problem, check=False) in (Outcome.STEP_LIMIT, Outcome.STALLED, Outcome.CONVERGED)


class Words(nn.Module):
    """The mean of a text's embeddings, of its padding too."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4, padding_idx=0)
        self.head = nn.Linear(4, 5 if tied else 2)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.embedding(words).mean(1))


def words(*, tied: bool = False) -> tuple[Words, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Words(tied=tied), torch.randint(5, (50, 6))


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_padding_is_a_constant_as_in_training(value: float) -> None:
    """torch gives it no gradient, though the loss depends on it."""
    model, inputs = words()
    nn.init.constant_(model.embedding.weight[0].detach(), value)
    problem = Problem(model, "cross_entropy", (inputs, Y))
    path = traverse(problem, stop=Stop(evaluations=20), progress=False)
    assert check(problem).passed
    path.load_into(model)
    assert bool((model.embedding.weight[0] == value).all())
    loss = nn.functional.cross_entropy(model(inputs), Y).item()
    assert loss == pytest.approx(path.level, rel=1e-3)
    assert path.steps["regularizer"].iloc[-1] < 0.9 * path.steps["regularizer"].iloc[0]


def test_padding_that_a_tied_head_moves_is_refused(refuses) -> None:
    """Its gradient is the head's alone."""
    model, inputs = words(tied=True)
    with refuses("padding_idx", "embedding.weight"):
        start(Problem(model, "cross_entropy", (inputs, Y)))


def test_padding_that_is_masked_may_be_tied_to_the_head() -> None:
    model, inputs = words(tied=True)
    start(Problem(model, "cross_entropy", (inputs.clamp(min=1), Y)))


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


# ---------------------------------------------------------------- jumps


class Counted(nn.Module):
    """As torch's orthogonal does for matrices that are not square."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale.int()


def orthogonal(**settings: Any) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = nn.utils.parametrizations.orthogonal(nn.Linear(3, 8), **settings)
        return nn.Sequential(layer, nn.Tanh(), nn.Linear(8, 2))


JUMPS = {
    "int": (network(Counted()), "in 1.scale"),
    "orthogonal": (orthogonal(), "in 0.parametrizations.weight.original"),
}


@pytest.mark.parametrize(("model", "name"), JUMPS.values(), ids=JUMPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_loss_that_jumps_at_the_start_is_refused(
    model: nn.Module, name: str, dtype: torch.dtype, refuses
) -> None:
    problem = Problem(model, "cross_entropy", (X, Y), dtype=dtype)
    with refuses("the loss jumps at these weights", name, "orthogonal_map=", "check=False"):
        start(problem)


def test_a_stall_in_the_first_steps_says_what_is_wrong_with_the_gradient() -> None:
    model, targets = orthogonal(), (X[:, 0] > 0).long()
    adam = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        adam.zero_grad()
        nn.functional.cross_entropy(model(X), targets).backward()
        adam.step()
    problem = Problem(model, "cross_entropy", (X, targets))
    path = traverse(problem, check=False, progress=False)
    assert path.outcome is Outcome.STALLED
    assert "The loss jumps at these weights" in path.message
    assert "float64" not in path.message
    assert "check=False" not in path.message


def test_a_parameter_that_jumps_may_be_held_by_a_mask() -> None:
    """Householder vectors are walked, the signs on their diagonal stay."""
    model = orthogonal()
    name = "0.parametrizations.weight.original"
    free = ~torch.eye(8, 3, dtype=torch.bool)
    problem = Problem(model, "cross_entropy", (X, Y), mask={name: free})
    path = traverse(problem, stop=Stop(steps=20), progress=False)
    assert path.outcome in (Outcome.STEP_LIMIT, Outcome.CONVERGED)
    path.load_into(model)
    loss = nn.functional.cross_entropy(model.double()(X.double()), Y).item()
    assert loss == pytest.approx(path.level, rel=1.01e-3)


# ---------------------------------------------------------------- norms that training estimates


class Estimated(nn.Module):
    """Divides by a norm that it estimates while it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("norm", torch.ones(()))

    def forward(self, weight: Tensor) -> Tensor:
        if self.training:
            self.norm.copy_(weight.detach().norm())
        return weight / self.norm


def estimated(layer: nn.Linear) -> nn.Linear:
    nn.utils.parametrize.register_parametrization(layer, "weight", Estimated())
    return layer


NORMS = {
    "by a hook": nn.utils.spectral_norm,
    "parametrized": nn.utils.parametrizations.spectral_norm,
    "of one's own": estimated,
}


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_a_norm_that_an_evaluation_keeps_is_warned_of(norm: Any) -> None:
    """The walk holds the loss of the model in evaluation mode, whose weight grows."""
    model = network()
    norm(model[0])
    model.train()(X)
    problem = Problem(model.eval(), "cross_entropy", (X, Y))
    with pytest.warns(
        UserWarning, match=r"^0[.\w]* .*remove_spectral_norm.*remove_parametrizations"
    ):
        start(problem)
    if norm is not nn.utils.spectral_norm:
        nn.utils.parametrize.remove_parametrizations(model[0], "weight")
    else:
        nn.utils.remove_spectral_norm(model[0])
    assert start(Problem(model, "cross_entropy", (X, Y))) is Outcome.STEP_LIMIT


def test_the_true_spectral_norm_grows_where_the_warning_says_so() -> None:
    model = network()
    nn.utils.parametrizations.spectral_norm(model[0])
    model.train()(X)
    problem = Problem(model.eval(), "cross_entropy", (X, Y))
    with pytest.warns(UserWarning, match="true norm grow"):
        path = traverse(problem, stop=Stop(steps=40), progress=False)
    path.load_into(model)
    assert torch.linalg.matrix_norm(model[0].weight.detach(), 2) > 1.2


def test_other_parametrizations_are_not_warned_of() -> None:
    normed = network()
    nn.utils.parametrizations.weight_norm(normed[0])
    for model in (normed, orthogonal(orthogonal_map="cayley")):  # the latter has a buffer
        start(Problem(model.eval(), "cross_entropy", (X, Y)))


# ---------------------------------------------------------------- quantities of the user's own


class Halved:
    """The squared norm with half its gradient."""

    name = "halved"

    def value_and_grad(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        return theta.square().sum(), theta.clone()


def detached(parameters: dict[str, Tensor]) -> Tensor:
    first, *_ = parameters.values()
    return (first * first.detach()).sum() + (first**4).sum()


def half_detached(logits: Tensor) -> Tensor:
    return (logits[:, 0] * logits[:, 1].detach()).mean()


WRONG = {
    "object": lambda: Halved(),
    "function": lambda: detached,
    "outputs": lambda: Outputs(X, half_detached),
    "a part of a sum": lambda: weighted_sum((1.0, "l1"), (-0.5, detached)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("made", WRONG.values(), ids=WRONG)
def test_a_wrong_gradient_of_ones_own_quantity_is_refused(made, dtype, refuses) -> None:
    problem, own = Problem(network(), "cross_entropy", (X, Y), dtype=dtype), made()
    with refuses("the gradient of the regularizer", "is off by", "0.weight", "check=False"):
        traverse(problem, regularizer=own, progress=False)
    with refuses("hold['a']", "is off by", "0.weight"):
        traverse(problem, hold={"a": at_most(own, 1e3)}, progress=False)
    with refuses("the gradient of the quantity", "is off by", "derivative of your own"):
        extent(problem, own, progress=False)
    path = traverse(problem, regularizer=own, stop=Stop(steps=1), check=False, progress=False)
    assert len(path.steps)


def largest(parameters: dict[str, Tensor]) -> Tensor:
    return torch.stack([p.abs().max() for p in parameters.values()]).max()


def absolute(parameters: dict[str, Tensor]) -> Tensor:
    return torch.stack([p.abs().sum() for p in parameters.values()]).sum()


def coarse(parameters: dict[str, Tensor]) -> Tensor:
    return torch.stack([p.float().square().sum() for p in parameters.values()]).sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("own", [largest, absolute, coarse])
def test_kinks_and_rounding_are_no_wrong_gradients(own: Any, dtype: torch.dtype) -> None:
    model = network()
    with torch.no_grad():
        model[0].weight[:4] = 0.0
    problem = Problem(model, "cross_entropy", (X, Y), dtype=dtype)
    assert len(traverse(problem, regularizer=own, stop=Stop(steps=1), progress=False).steps)


def test_a_right_gradient_is_seen_after_a_few_evaluations_of_the_quantity() -> None:
    calls = 0

    def counted(parameters: dict[str, Tensor]) -> Tensor:
        nonlocal calls
        calls += 1
        return torch.stack([p.square().sum() for p in parameters.values()]).sum()

    problem = Problem(network(), "cross_entropy", (X, Y), dtype=torch.float64)
    counts: list[int] = []
    for check_too in (False, True):
        calls = 0
        next(walk(problem, regularizer=counted, check=check_too))
        counts.append(calls)
    assert counts[1] - counts[0] <= 6


def test_a_loss_that_the_model_rounds_to_float32_is_judged_by_its_rounding() -> None:
    """As the language models of transformers do; a wrong gradient is told all the same."""

    def rounded(model: nn.Module, batch: Tensor) -> Tensor:
        return 100 + nn.functional.cross_entropy(model(batch).float(), Y)

    def problem(*more: nn.Module) -> Problem:
        return Problem(network(*more), rounded, [X])

    assert start(problem()) is Outcome.STEP_LIMIT
    checked = check(problem())
    assert checked.passed, checked
    assert "0.0e+00 of L" not in str(checked)
    with pytest.raises(ValueError, match="the gradient of the loss is off"):
        start(problem(Wrong()))
