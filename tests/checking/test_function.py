"""What makes a loss no function of its parameters is found and named."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from tests.models import kinds
from tests.problems import normal, vector_problem
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, TensorDataset, WeightedRandomSampler

from isoloss import Problem, Stop, traverse
from isoloss.checking import check_function
from isoloss.point import Tolerance

X, Y = normal(20, 3, seed=0).float(), torch.arange(20) % 2
ONE = {"w": torch.ones(())}


def check(model: Any, data: Any = (X, Y), loss: Any = "cross_entropy", **settings: Any) -> None:
    problem = Problem(model, loss, data, **settings)
    check_function(problem, problem.current())


@pytest.mark.parametrize("name", list(kinds()))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_functions_pass(name: str, dtype: torch.dtype) -> None:
    kind = kinds()[name]
    check(kind.model, kind.data, kind.loss, dtype=dtype)
    check(kind.model, kind.data, kind.loss, dtype=dtype, chunk_size=2)


def test_a_forward_that_is_bound_to_the_original_is_refused(refuses) -> None:
    model = nn.Linear(3, 2)
    model.forward = lambda x: nn.functional.linear(x, model.weight, model.bias)  # not the copy's
    with refuses("computed with 'weight' of the given model", "forward use self"):
        check(model)
    own = {"w": torch.ones(3, 2)}
    with refuses("a tensor of shape (2, 3) that requires a gradient", "requires_grad_(False)"):
        elsewhere = nn.Linear(3, 2)
        check(lambda p, x: elsewhere(x), parameters=own)
    with refuses("does not depend on the parameters"):
        check(lambda p, x: x @ p["w"].detach(), parameters=own)


def test_a_loss_that_reaches_one_parameter_of_the_original_is_refused(refuses) -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))

    def penalized(outputs: Tensor, targets: Tensor) -> Tensor:
        losses = functional.cross_entropy(outputs, targets, reduction="none")
        return losses + 0.1 * model[0].weight.square().sum()

    with refuses("computed with '0.weight' of the given model instead of the problem's copy"):
        check(model, loss=penalized)
    model[0].weight.requires_grad_(False)  # frozen: a constant, and meant
    check(model, loss=penalized)


def test_an_evaluation_that_changes_a_parameter_is_refused(refuses) -> None:
    model = nn.Sequential(nn.Embedding(7, 4, max_norm=0.5), nn.Linear(4, 2))
    with refuses("an evaluation changes the parameter 0.weight itself", "max_norm"):
        check(model, (torch.arange(20) % 7, Y))


def test_what_an_example_owes_to_its_neighbors_may_not_exceed_the_tolerance(refuses) -> None:
    class Leaning(nn.Module):
        def __init__(self, by: float) -> None:
            super().__init__()
            self.linear, self.by = nn.Linear(3, 2), by
            weights = {"weight": normal(2, 3, seed=7), "bias": normal(2, seed=8)}
            self.linear.load_state_dict(weights)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) * (1 + self.by * x.mean(0).sum())

    problem = Problem(Leaning(3e-3), loss="cross_entropy", data=(X, Y))
    check_function(problem, problem.current(), Tolerance(1.0))
    with refuses("has the loss", "Leaning"):
        check_function(problem, problem.current(), Tolerance(1e-4))


# ---------------------------------------------------------------- randomness


def test_every_active_dropout_is_named_and_no_other(refuses) -> None:
    model = nn.Sequential(
        nn.Dropout(0.0), nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 2), nn.Dropout(0.1)
    )
    with refuses("2 (Dropout), 4 (Dropout) are random", "model.eval()"):
        check(model)
    for name, words in (
        ("recurrent", ["lstm (LSTM)", "random", "model.eval()"]),
        ("attention", ["layer.self_attn (MultiheadAttention)", "layer.dropout (Dropout)"]),
    ):
        kind = kinds()[name]
        with refuses(*words):
            check(kind.model.train(), kind.data, kind.loss)


class Noise(nn.Module):
    """Random by its own doing, in evaluation mode too."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.01 * torch.randn_like(x)


class Block(nn.Module):
    """Drops by the functional form, within a module that holds others."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(self.linear(x), 0.5)


@pytest.mark.parametrize("culprit", [Noise(), Block(), nn.RReLU()])
def test_any_random_module_is_named(refuses, culprit: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(3, 3), culprit, nn.Linear(3, 2)).eval()
    culprit.train(isinstance(culprit, nn.RReLU))
    with refuses(f"of 1 ({type(culprit).__name__}) are random"):
        check(model)


def test_a_random_model_function_and_a_random_loss_are_told_apart(refuses) -> None:
    with refuses("of the model function are random"):
        check(
            lambda p, x: x @ p["w"] + torch.rand(2), parameters={"w": torch.ones(3, 2)}
        )  # fmt: skip
    with refuses("loss function"):
        check(nn.Linear(3, 2), loss=lambda o, t: o.square().sum(1) * random.random())
    with refuses("loss function"):
        check(nn.Linear(3, 2), loss=lambda o, t: o.square().sum(1) * np.random.rand())  # noqa: NPY002


def test_the_random_states_are_left_as_they_were(refuses) -> None:
    model, noisy = nn.Linear(3, 2), nn.Sequential(nn.Linear(3, 2), Noise())
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    with refuses("random"):
        check(noisy)
    check(model, DataLoader(TensorDataset(X, Y), batch_size=4))
    with refuses("shuffle=False"):
        check(model, DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]  # noqa: NPY002
    assert random.getstate() == states[2]


# ---------------------------------------------------------------- state and batches


@pytest.mark.parametrize("track", [True, False])
def test_batch_statistics_are_named(refuses, track: bool) -> None:
    norm = nn.BatchNorm1d(3, track_running_stats=track)
    model = nn.Sequential(nn.Linear(3, 3), norm, nn.Linear(3, 2))
    with refuses("1 (BatchNorm1d)", "since batch statistics go into it"):
        check(model.train(track))


class Average(nn.Module):
    """Keeps a running mean of what it sees, in evaluation mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.mean.lerp_(x.detach().mean(0), 0.1)
        return x


def test_a_buffer_written_in_forward_is_named(refuses) -> None:
    model = nn.Sequential(nn.Linear(3, 3), Average(), nn.Linear(3, 2)).eval()
    with refuses("'1.mean'", "1 (Average)", "forward"):
        check(model)


def test_a_buffer_that_is_filled_once_and_an_undefined_loss_are_taken() -> None:
    class Cached(nn.Module):
        scale: Any

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", None)

        def forward(self, x: Tensor) -> Tensor:
            if self.scale is None:
                self.scale = torch.full((3,), 2.0)
            return x * self.scale

    check(nn.Sequential(Cached(), nn.Linear(3, 2)))
    problem = vector_problem(lambda t: t.dot(t) * float("nan"), torch.ones(3))
    check_function(problem, torch.ones(3))


class Center(nn.Module):
    """Batch statistics of one's own making."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class Running(nn.Module):
    """Mixes an example with those before it."""

    def forward(self, x: Tensor) -> Tensor:
        return x.cumsum(0)


@pytest.mark.parametrize("culprit", [Center(), Running(), nn.Softmax(dim=0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mixing_of_examples_is_named(refuses, culprit: nn.Module, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Tanh(), culprit), nn.Linear(3, 2))
    with refuses("begins in 1.1 ", type(culprit).__name__, "in its chunk"):
        check(model, dtype=dtype)


def test_a_recurrent_layer_along_the_wrong_axis_is_named(refuses) -> None:
    class Wrong(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(3, 4)  # batch_first was forgotten

        def forward(self, x: Tensor) -> Tensor:
            return self.lstm(x)[0][:, -1]

    with refuses("lstm (LSTM)", "batch_first"):
        check(Wrong(), (normal(20, 5, 3, seed=0).float(), Y * 2))


def test_examples_that_cannot_be_parted_are_told_how_to_stay_together(refuses) -> None:
    graph = torch.eye(20)
    with refuses("inputs[None]"):
        check(lambda p, x: graph @ x @ p["w"], parameters={"w": torch.ones(3, 2)})


# ---------------------------------------------------------------- data


class Augmented(Dataset[Any]):
    def __init__(self, source: Any) -> None:
        self.source = source

    def __len__(self) -> int:
        return 20

    def __getitem__(self, k: int) -> Any:
        return X[k] + 0.1 * self.source(), Y[k]


@pytest.mark.parametrize(
    "source",
    [lambda: torch.randn(3), lambda: torch.tensor(np.random.rand(3)).float(), random.random],  # noqa: NPY002
    ids=["torch", "numpy", "python"],
)
def test_random_augmentation_is_found(refuses, source: Any) -> None:
    with refuses("example 0", "augmentation", "list(data)"):
        Problem(
            nn.Linear(3, 2), loss="cross_entropy", data=DataLoader(Augmented(source), batch_size=6)
        )


class Shuffled:
    """Shuffles without saying so, and gives less each time if it shrinks."""

    def __init__(self, shrinks: bool) -> None:
        self.n, self.shrinks = 20, shrinks

    def __iter__(self) -> Any:
        self.n -= self.shrinks
        for k in torch.arange(self.n) if self.shrinks else torch.randperm(20):
            yield X[k][None], Y[k][None]


def test_streams_that_differ_are_refused_by_what_differs(refuses) -> None:
    rows = TensorDataset(X, Y)
    shuffled = DataLoader(rows, batch_size=6, shuffle=True)
    sampled = DataLoader(rows, batch_size=6, sampler=WeightedRandomSampler([1.0] * 20, 20))
    for data, words in (
        (shuffled, ["another order", "Sampler", "shuffle=False"]),
        (sampled, ["another order", "Sampler", "shuffle=False"]),
        (Shuffled(shrinks=False), ["another order", "shuffled"]),
        (Shuffled(shrinks=True), ["19 examples", "18", "list(data)"]),
    ):
        with refuses(*words):
            check(nn.Linear(3, 2), data)
    check(nn.Linear(3, 2), list(shuffled))  # one reading of it


def test_two_pairs_that_may_be_structures_or_batches_are_refused(refuses) -> None:
    x = (X, X)
    with refuses("one pair of structures or two batches", "[(x, y), (x2, y2)], a list"):
        Problem(nn.Linear(3, 2), loss="cross_entropy", data=((X, Y), (X, Y)))
    assert Problem(nn.Linear(3, 2), "cross_entropy", [(X, Y), (X, Y)]).examples == 40
    structures = Problem(lambda p, x: p["w"] * x[0], lambda o, t: o[:, 0], [(x, x)], parameters=ONE)
    assert structures.examples == 20


# ---------------------------------------------------------------- cost


def test_the_checks_of_a_walk_cost_few_passes_over_the_data() -> None:
    seen, x = 0, normal(4000, 3, seed=3).float()

    def model(p: Any, x: Tensor) -> Tensor:
        nonlocal seen
        seen += len(x)
        return x @ p["w"]

    problem = Problem(
        model,
        loss="cross_entropy",
        data=(x, torch.arange(4000) % 2),
        parameters={"w": normal(3, 2, seed=1).float()},
    )
    path = traverse(problem, stop=Stop(steps=3), progress=False)
    passes = seen / 4000 - path.steps["evaluations"].iloc[-1]
    # forward only: two for the losses, two for the noise, one for what bends most, samples
    assert passes <= 5.4
