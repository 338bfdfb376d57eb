"""Models as people bring them: what they keep, how they are wrapped, what they compute in."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.problems import F64, normal
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.checkpoint import checkpoint

import isoloss
from isoloss import Problem, Stop

pytestmark = pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec")
"""Of torch, where it copies an exported module."""

X, Y = normal(40, 3, seed=0).float(), torch.arange(40) % 2
TOKENS = torch.arange(120).view(40, 3) % 7


class Net(nn.Module):
    """A body and a head, with anything done between them."""

    def __init__(self, between: Callable[[Any, Tensor], Tensor] = lambda net, h: h) -> None:
        super().__init__()
        self.body, self.middle, self.head = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.between = between
        self.kept: Any = None

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(self, self.body(x).tanh()))


def keeps(net: Any, hidden: Tensor) -> Tensor:
    net.kept = {"last": [hidden]}
    return hidden


def checkpointed(net: Any, hidden: Tensor) -> Tensor:
    return checkpoint(lambda h: net.middle(h).tanh(), hidden, use_reentrant=True)


def scripted(make: Callable[[nn.Module], nn.Module], model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return make(model)


def sequential(first: nn.Module) -> nn.Sequential:
    return nn.Sequential(first, nn.Tanh(), nn.Linear(8, 2))


def old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return sequential(nn.utils.weight_norm(nn.Linear(3, 8)))


def pruned() -> nn.Module:
    model = sequential(nn.Linear(3, 8))
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    return model


def observed() -> nn.Module:
    model, seen = sequential(nn.Linear(3, 8)), dict[str, Tensor]()

    def note(store: dict[str, Tensor], module: Any, inputs: Any, outputs: Tensor) -> None:
        store["outputs"] = outputs

    model[1].register_forward_hook(functools.partial(note, seen))
    return model


def exported() -> nn.Module:
    several = ({0: torch.export.Dim("n")},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(sequential(nn.Linear(3, 8)), (X,), dynamic_shapes=several)
        return program.module()


def embedding() -> nn.Module:
    return nn.Sequential(nn.Embedding(7, 4, sparse=True), nn.Flatten(), nn.Linear(12, 2))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "keeps what it computed": lambda: Net(keeps),
    "observed by a hook": observed,
    "weight norm by a hook": old_weight_norm,
    "weight norm": lambda: sequential(parametrizations.weight_norm(nn.Linear(3, 8))),
    "orthogonal": lambda: sequential(
        parametrizations.orthogonal(nn.Linear(3, 8), orthogonal_map="matrix_exp")
    ),
    "pruned": pruned,
    "checkpointed": lambda: Net(checkpointed),
    "sparse embedding": embedding,
    "sparse bag": lambda: nn.Sequential(
        nn.EmbeddingBag(7, 4, mode="sum", sparse=True), nn.Linear(4, 2)
    ),
    "script": lambda: scripted(torch.jit.script, sequential(nn.Linear(3, 8))),
    "trace": lambda: scripted(
        functools.partial(torch.jit.trace, example_inputs=X), sequential(nn.Linear(3, 8))
    ),
    "DataParallel": lambda: nn.DataParallel(sequential(nn.Linear(3, 8))),
    "complex buffer": lambda: Complex(),
    "exported": exported,
}


class Stepwise(nn.Module):
    """A cell whose first state is made in forward, in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x, torch.zeros(len(x), 8)))


class Sequences(nn.Module):
    """An LSTM over packed sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 8), nn.Linear(8, 2)

    def forward(self, x: PackedSequence) -> Tensor:
        return self.head(self.lstm(x)[1][0][-1])


class Asserting(nn.Module):
    """Insists on its type, and has a matrix that is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.matrix = nn.Linear(8, 2), normal(3, 8, seed=5).float()

    def forward(self, x: Tensor) -> Tensor:
        assert x.dtype == torch.float32
        return self.head((x @ self.matrix).tanh())


class Wrapped:
    """An input that isoloss knows nothing of."""

    def __init__(self, x: Tensor) -> None:
        self.x = x


class Unwrapping(Net):
    def forward(self, x: Any) -> Tensor:
        return super().forward(x.x)


SINGLE: dict[str, Callable[[], nn.Module]] = {
    "cast": lambda: Cast(),
    "stepwise": Stepwise,
    "asserting": Asserting,
    "packed": Sequences,
    "opaque": Unwrapping,
}
"""Models that compute in float32 alone."""


class Cast(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float())


class Complex(nn.Module):
    """Its outputs depend on the imaginary part of a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 2)
        self.register_buffer("phase", torch.exp(1j * torch.arange(8.0)))

    def forward(self, x: Tensor) -> Tensor:
        turned = torch.fft.fft(self.first(x) * self.phase)
        return self.last(turned.real * turned.imag)


SLOW = {"checkpointed", "exported"}  # torch loads much for these
NAMES = [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in MODELS]


def made(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return (MODELS | SINGLE)[name]()


def inputs_of(name: str) -> Tensor:
    return TOKENS if "sparse" in name else X


def exact_loss(model: nn.Module, name: str) -> Tensor:
    """In plain torch, in float64."""
    inputs = inputs_of(name)
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    return functional.cross_entropy(model.double()(inputs), Y)


@pytest.mark.parametrize("name", NAMES)
def test_loss_and_gradient_are_those_of_plain_torch(name: str) -> None:
    model = made(name)
    exact = exact_loss(made(name), name)
    if name != "exported":
        model(inputs_of(name))  # what it keeps of this is no part of the problem
    problem = Problem(model, "cross_entropy", (inputs_of(name), Y), dtype=F64)
    value, grad = problem.loss_and_grad(problem.current())
    assert value.item() == pytest.approx(exact.item(), rel=1e-12)
    other = made(name)
    exact_loss(other, name).backward()
    named = dict(other.named_parameters())
    pieces = [named[key].grad for key in problem.shapes]
    flat = torch.cat(
        [
            (torch.zeros(shape) if piece is None else piece.to_dense()).flatten()
            for piece, shape in zip(pieces, problem.shapes.values(), strict=True)
        ]
    )
    torch.testing.assert_close(grad, flat.double(), rtol=1e-10, atol=1e-14)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_walk_holds_the_level_of_the_users_own_model(name: str, dtype: torch.dtype) -> None:
    model = made(name)
    problem = Problem(model, "cross_entropy", (inputs_of(name), Y), dtype=dtype)
    path = isoloss.traverse(problem, stop=Stop(steps=3), progress=False)
    assert path.steps["regularizer"].iloc[-1] < 0.9 * path.steps["regularizer"].iloc[0]
    other = made(name).double()
    path.load_into(other)
    rounding = 1e-10 if dtype == F64 else 1e-5
    loss = exact_loss(other, name).item()
    assert loss == pytest.approx(path.steps["loss"].iloc[-1], rel=rounding)
    assert loss == pytest.approx(path.level, rel=1.01e-3)


@pytest.mark.parametrize("name", list(SINGLE))
def test_models_that_compute_in_float32_alone_are_walked_and_checked_in_it(name: str) -> None:
    model, inputs, targets = made(name), X, Y
    if name == "packed":
        inputs = pack_sequence([X[:5], X[5:9], X[9:12], X[12:15]])
        targets = Y[:4]
    elif name == "opaque":
        inputs = Wrapped(X)
    problem = Problem(model, "cross_entropy", [(inputs, targets)])
    path = isoloss.traverse(problem, stop=Stop(steps=3), progress=False)
    assert path.steps["regularizer"].iloc[-1] < path.steps["regularizer"].iloc[0]
    path.load_into(model)
    loss = functional.cross_entropy(model(inputs), targets).item()
    assert loss == pytest.approx(path.steps["loss"].iloc[-1], rel=1e-5)
    assert isoloss.check(problem).passed


def test_what_a_model_keeps_and_uses_is_refused_as_a_constant(refuses) -> None:
    """Made once from parameters, it would not change with them."""
    model = Net(lambda net, hidden: hidden @ net.kept)
    model.kept = model.middle(torch.eye(8))
    problem = Problem(model, "cross_entropy", (X, Y))
    with refuses("a tensor of shape (8, 8) that requires a gradient", "requires_grad_(False)"):
        isoloss.traverse(problem, progress=False)
    assert model.kept.grad_fn is not None


def test_sparse_gradients_have_second_derivatives_too() -> None:
    layer = nn.Embedding(7, 4, sparse=True)
    model = nn.Sequential(layer, nn.Flatten(), nn.Tanh(), nn.Linear(12, 2))
    problem = Problem(model, "cross_entropy", (TOKENS, Y), dtype=F64)
    theta, v = problem.current(), normal(problem.size, seed=3)
    ahead, behind = (problem.loss_and_grad(theta + s * 1e-5 * v)[1] for s in (1, -1))
    torch.testing.assert_close(problem.hvp(theta, v), (ahead - behind) / 2e-5, rtol=1e-6, atol=1e-8)


def test_a_function_with_sparse_gradients_is_a_model() -> None:
    start = {"table": normal(7, 2, seed=1)}
    problem = Problem(
        lambda p, x: functional.embedding(x, p["table"], sparse=True).sum(1),
        "cross_entropy",
        (TOKENS, Y),
        parameters=start,
    )
    table = start["table"].clone().requires_grad_()
    functional.cross_entropy(table[TOKENS].sum(1), Y).backward()
    _, grad = problem.loss_and_grad(problem.current())
    torch.testing.assert_close(grad, table.grad.flatten(), rtol=1e-12, atol=0)


@pytest.mark.slow
def test_reentrant_checkpoints_have_no_second_derivative_and_say_so(refuses) -> None:
    problem = Problem(made("checkpointed"), "cross_entropy", (X, Y))
    with refuses("differentiated twice", "use_reentrant=False"):
        problem.hvp(problem.current(), problem.current())


@pytest.mark.slow
def test_a_closure_within_a_checkpoint_is_refused_and_no_gradient_is_left(refuses) -> None:
    other = nn.Linear(8, 8)
    model = Net(lambda net, h: checkpoint(lambda z: other(z).tanh(), h, use_reentrant=True))
    model.middle = other
    other.bias.grad = torch.ones(8)
    with refuses("computed with 'middle.weight' of the given model", "use self"):
        isoloss.traverse(Problem(model, "cross_entropy", (X, Y)), progress=False)
    assert other.weight.grad is None
    assert other.bias.grad.sum() == 8


@pytest.mark.slow
@pytest.mark.parametrize("what", ["a fixed number of examples", "an ExportedProgram"])
def test_exported_programs_that_cannot_be_walked_say_why(refuses, what: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(sequential(nn.Linear(3, 8)), (X,))
        if what == "an ExportedProgram":
            with refuses("an ExportedProgram", "model.module()"):
                Problem(program, "cross_entropy", (X, Y))
            return
        problem = Problem(program.module(), "cross_entropy", (X, Y))
        with refuses("a chunk of 3 of its examples cannot be evaluated", "Guard failed"):
            isoloss.traverse(problem, progress=False)


def test_a_model_that_is_copied_as_itself_is_refused(refuses) -> None:
    class Single(Net):
        def __deepcopy__(self, memo: Any) -> Single:
            return self

    with refuses("cannot be copied", "gives its own parameters"):
        Problem(Single(), "cross_entropy", (X, Y))


# ---------------------------------------------------------------- what it is not


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_hook_on_all_modules_acts(dtype: torch.dtype) -> None:
    """The layers are plain, yet their outputs are not theirs alone."""
    model = made("DataParallel").module

    def twice(module: nn.Module, inputs: Any, outputs: Tensor) -> Tensor | None:
        return 2 * outputs if isinstance(module, nn.Tanh) else None

    handle = nn.modules.module.register_module_forward_hook(twice)
    try:
        problem = Problem(model, "cross_entropy", (X, Y), dtype=dtype)
        value = problem.loss_and_grad(problem.current())[0].item()
        assert value == pytest.approx(functional.cross_entropy(model(X), Y).item(), rel=1e-6)
    finally:
        handle.remove()
