"""Models as people bring them: what they keep, how they are wrapped, what they compute in."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path as FilePath
from typing import Any

import pytest
import torch
from tests.problems import F64, normal
from tests.regularizers.checks import assert_gradient_is_the_slope
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.checkpoint import checkpoint

import isoloss
from isoloss import Problem, Stop
from isoloss.regularizers import REGULARIZERS

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
        for deprecated in (DeprecationWarning, FutureWarning):  # by torch 2.13, and by 2.14
            warnings.simplefilter("ignore", deprecated)
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


def under_two_names() -> nn.Module:
    layer, norm = nn.Linear(3, 3), nn.LayerNorm(3)
    return nn.Sequential(layer, nn.Tanh(), norm, layer, nn.Tanh(), norm, nn.Linear(3, 2))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "modules under two names": under_two_names,
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
        with suppress(RuntimeError, AssertionError):
            copy.deepcopy(program.module())(X[:3])
            pytest.skip("copies of this torch's programs take any number of examples")
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


# ---------------------------------------------------------------- what an evaluation leaves behind


class Weights(nn.Module):
    """A product of two matrices, made once, as models do to be fast in evaluation mode."""

    def __init__(self, detach: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4, bias=False), nn.Linear(4, 2)
        self.detach = detach
        self.product: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.product is None:
            product = self.second.weight @ self.first.weight
            self.product = product.detach() if self.detach else product
        return functional.linear(x, self.product, self.second.bias)


class Scaled(nn.Module):
    """Its scale is made from the first batch that it sees."""

    scale: Any

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.register_buffer("scale", None)

    def forward(self, x: Tensor) -> Tensor:
        if self.scale is None:
            self.scale = x.detach().abs().amax(0)
        return self.linear(x / self.scale)


def test_a_cache_of_weights_is_refused(refuses) -> None:
    """The walk would shrink weights that its loss no longer looks at."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        kept, detached = Weights(), Weights(detach=True)
    problem = Problem(detached, "cross_entropy", (X, Y))
    with refuses("not a function of the parameters alone", "never evaluated before", "in every"):
        isoloss.traverse(problem, progress=False)
    problem = Problem(kept, "cross_entropy", (X, Y))
    problem.loss_and_grad(problem.current())
    with refuses("keeps a part of its graph", "in every forward"):
        problem.loss_and_grad(problem.current())
    kept(X)  # now it is a constant of the user's own model, whose parameters are not used
    with refuses("requires a gradient and is none of the problem's parameters"):
        isoloss.traverse(Problem(kept, "cross_entropy", (X, Y)), progress=False)


def test_what_is_made_once_from_data_is_taken_where_it_is_made_before(refuses) -> None:
    model = Scaled()
    with refuses("call the model on its inputs before making the Problem"):
        isoloss.traverse(Problem(model, "cross_entropy", (X, Y)), progress=False)
    model(X)
    path = isoloss.traverse(
        Problem(model, "cross_entropy", (X, Y)), stop=Stop(steps=3), progress=False
    )
    other = Scaled()
    with refuses("'scale' has there the shape (3,), here none", "call it once"):
        path.load_into(other)
    other(X[:1])
    path.load_into(other)
    loss = functional.cross_entropy(other.double()(X.double()), Y).item()
    assert loss == pytest.approx(path.level, rel=1.01e-3)


def test_a_model_that_changes_its_inputs_is_refused(refuses) -> None:
    class Doubling(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.mul_(2))

    problem = Problem(Doubling(), "cross_entropy", (X.clone(), Y))
    with refuses("changes its inputs in place", "x.clone()"):
        isoloss.traverse(problem, progress=False)


# ---------------------------------------------------------------- derivatives by inputs


class Sloped(nn.Module):
    """Outputs and their slopes by the inputs, as networks for differential equations have them."""

    def __init__(self, fresh: bool) -> None:
        super().__init__()
        self.net, self.fresh = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)), fresh

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone().requires_grad_() if self.fresh else x.requires_grad_()
        value = self.net(x)
        (slope,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        return torch.cat([value, slope], 1)


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_model_may_differentiate_by_its_inputs(fresh: bool, dtype: torch.dtype) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Sloped(fresh)
    inputs, targets = X.clone(), normal(40, 4, seed=3)
    problem = Problem(model, "mse", (inputs, targets), dtype=dtype)
    path = isoloss.traverse(problem, stop=Stop(steps=3), progress=False)
    assert not inputs.requires_grad
    path.load_into(model)
    loss = functional.mse_loss(model.double()(X.double()), targets).item()
    assert loss == pytest.approx(path.level, rel=1.01e-3)
    assert isoloss.check(problem).passed


def test_inputs_that_require_a_gradient_are_data() -> None:
    model, inputs = Net(), X.clone().requires_grad_()
    path = isoloss.traverse(
        Problem(model, "cross_entropy", (inputs, Y)), stop=Stop(steps=3), progress=False
    )
    path.load_into(model)
    assert inputs.grad is None
    loss = functional.cross_entropy(model.double()(X.double()), Y).item()
    assert loss == pytest.approx(path.level, rel=1.01e-3)


# ---------------------------------------------------------------- memory


def shared_by_data() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.Linear(3, 2))
    model[2].weight.data = model[0].weight.data
    return model


def in_a_buffer() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 2))
    model.register_buffer("copy", model[0].weight.data[1:])
    return model


def expanded() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 2))
    model[0].bias = nn.Parameter(torch.zeros(1).expand(2))
    return model


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (shared_by_data, ["'0.weight' and '2.weight'", "share memory", "tie them"]),
        (in_a_buffer, ["'0.weight' and 'copy'", "share memory"]),
        (expanded, ["'0.bias'", "expand", "clone()"]),
    ],
)
def test_parameters_that_share_memory_are_refused(refuses, make: Any, words: list[str]) -> None:
    """A copy has each of its own, so that a point could not be loaded back."""
    with refuses(*words):
        Problem(make(), "cross_entropy", (X, Y))


def test_parameters_that_lie_between_one_another_share_nothing() -> None:
    whole = normal(8, 6, seed=4).float()
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    model[0].weight = nn.Parameter(whole[:, :3])
    model.register_buffer("rest", whole[:, 3:])
    before = whole[:, 3:].clone()
    path = isoloss.traverse(
        Problem(model, "cross_entropy", (X, Y)), stop=Stop(steps=3), progress=False
    )
    path.load_into(model)
    assert torch.equal(model.rest, before)
    loss = functional.cross_entropy(model.double()(X.double()), Y).item()
    assert loss == pytest.approx(path.level, rel=1.01e-3)


class Graph(nn.Module):
    """Its features are mixed by a sparse matrix."""

    def __init__(self, layout: torch.layout) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 2)
        self.register_buffer("edges", normal(8, 8, seed=6).relu().float().to_sparse(layout=layout))

    def forward(self, x: Tensor) -> Tensor:
        return self.last((self.edges @ self.first(x).T).T.tanh())


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_sparse_buffers_are_constants(layout: torch.layout, dtype: torch.dtype, tmp_path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Graph(layout)
    problem = Problem(model, "cross_entropy", (X, Y), dtype=dtype)
    path = isoloss.traverse(problem, stop=Stop(steps=3), progress=False)
    path.save(tmp_path)
    other = Graph(layout)
    other.edges = (2 * other.edges.to_dense()).to_sparse(layout=layout)
    isoloss.Path.load(tmp_path).load_into(other)
    assert other.edges.layout == layout
    assert torch.equal(other.edges.to_dense(), model.edges.to_dense())
    loss = functional.cross_entropy(other(X), Y).item()
    assert loss == pytest.approx(path.steps["loss"].iloc[-1], rel=1e-5)


def test_a_model_made_in_inference_mode_is_walked_and_loaded() -> None:
    with torch.inference_mode(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)).eval()
    path = isoloss.traverse(
        Problem(model, "cross_entropy", (X, Y)), stop=Stop(steps=3), progress=False
    )
    path.load_into(model)
    with torch.inference_mode():
        loss = functional.cross_entropy(model.double()(X.double()), Y).item()
    assert loss == pytest.approx(path.level, rel=1.01e-3)


AROUND: list[Any] = [
    lambda: torch.autocast("cpu", torch.bfloat16), torch.inference_mode, torch.no_grad,
    lambda: torch.device("meta"),  # torch's default device, where the model is not
]  # fmt: skip


@pytest.mark.parametrize("around", AROUND)
def test_what_is_switched_on_around_a_walk_does_not_reach_it(around: Any) -> None:
    model = made("modules under two names")
    found: list[isoloss.Path] = []
    for context in (suppress, around):
        with context():
            problem = Problem(model, "cross_entropy", (X, Y))
            test = Problem(model, "cross_entropy", (X[:9], Y[:9]))
            path = isoloss.traverse(
                problem, stop=Stop(steps=3), probes={"test": test}, progress=False
            )
            found.append(path)
            assert problem.loss(problem.current()).item() == path.level
    assert torch.equal(found[0].points, found[1].points)
    assert found[0].steps["test_loss"].tolist() == found[1].steps["test_loss"].tolist()


@pytest.mark.parametrize("around", AROUND)
def test_what_is_switched_on_around_a_call_does_not_reach_it(around: Any) -> None:
    stop, own = Stop(evaluations=5), nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    problem = Problem(own, "cross_entropy", (X, Y))
    level = problem.loss(problem.current()).item()

    def all_of_them() -> list[Any]:
        odds = isoloss.Outputs(X[:1], lambda z: z[0, 0] - z[0, 1])
        widest = isoloss.extent(problem, odds, stop=stop, progress=False)
        other = isoloss.different(problem, X, 1, stop=stop, progress=False)
        front = isoloss.front(problem, levels=[level, 1.05 * level], progress=False)
        return [
            isoloss.check(problem).passed,
            isoloss.traverse(problem, stop=stop, progress=False).points.tolist(),
            problem.hvp(problem.current(), problem.current()).tolist(),
            (widest.low, widest.high, other.networks.tolist()),
            front.table.drop(columns="seconds", errors="ignore").to_csv(),
        ]

    alone = all_of_them()
    with around():
        assert all_of_them() == alone


ELSEWHERE: dict[str, Any] = {
    **{name: {"regularizer": name} for name in REGULARIZERS},
    "without biases": {"regularizer": isoloss.SquaredNorm(without_biases=True)},
    "probes of the trace": {"regularizer": isoloss.HessianTrace(probes=2)},
    "a parity gap": {"regularizer": isoloss.ParityGap(X, torch.arange(len(X)) % 2)},
    "a function": {"regularizer": lambda p: p["0.weight"].square().sum()},
    "paper": {"method": "paper"},
    "a bound that is not met": {"hold": {"norm": isoloss.at_most("l1", 1.0)}},
}


@pytest.mark.parametrize("settings", ELSEWHERE.values(), ids=ELSEWHERE)
def test_no_part_of_a_walk_is_on_torchs_default_device(
    settings: dict[str, Any], tmp_path: FilePath
) -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    mask = {"0.weight": torch.arange(24).view(8, 3) % 2 > 0}
    weights = torch.linspace(0.5, 1, len(X))
    found: list[isoloss.Path] = []
    for around in (nullcontext(), torch.device("meta")):
        with around:
            loss = nn.CrossEntropyLoss(label_smoothing=0.1)
            problem = Problem(model, loss, (X, Y), weights=weights, mask=mask)
            path = isoloss.traverse(problem, stop=Stop(evaluations=8), progress=False, **settings)
            path.save(tmp_path / "path")
            found.append(isoloss.Path.load(tmp_path / "path"))
    assert torch.equal(found[0].points, found[1].points)
    assert found[0].message == found[1].message


@pytest.mark.parametrize("dim", [0, 1, -1, None])
@pytest.mark.parametrize("layer", [nn.Linear(3, 8), nn.Conv1d(3, 8, 1)])
def test_second_derivatives_behind_weight_norm_are_right(layer: nn.Module, dim: int | None) -> None:
    """torch's own are off by some 10 %, without a word."""
    normed = parametrizations.weight_norm(copy.deepcopy(layer), dim=dim)
    rest = [] if isinstance(layer, nn.Linear) else [nn.Flatten()]
    inputs = X if isinstance(layer, nn.Linear) else X[..., None]
    model = nn.Sequential(normed, *rest, nn.Tanh(), nn.Linear(8, 2))
    problem = Problem(model, "cross_entropy", (inputs, Y), dtype=F64)
    theta, v, h = problem.current(), normal(problem.size, seed=1), 1e-5
    ahead, behind = (problem.loss_and_grad(theta + s * h * v)[1] for s in (1, -1))
    torch.testing.assert_close(
        problem.hvp(theta, v), (ahead - behind) / (2 * h), rtol=1e-6, atol=1e-8
    )
    assert_gradient_is_the_slope("gradient_norm", problem)
