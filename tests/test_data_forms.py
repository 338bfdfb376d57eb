"""Losses of (model, batch), data of every form: what is held is what plain torch gives."""

from __future__ import annotations

import copy
import math
from collections import UserDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tests.problems import F64, generator, normal
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import DataLoader, TensorDataset

import isoloss
from isoloss import Path, Problem, Stop, traverse
from isoloss.losses import accuracy

X, Y = normal(12, 3, seed=0), torch.randint(2, (12,), generator=generator(1))


def network(outputs: int = 2, inputs: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, 6), nn.Tanh(), nn.Linear(6, outputs)).double()


def flat_gradient(value: Tensor, model: nn.Module) -> Tensor:
    grads = torch.autograd.grad(value, list(model.parameters()), retain_graph=True)
    return torch.cat([grad.reshape(-1) for grad in grads])


def agrees(problem: Problem, expected: Tensor, model: nn.Module) -> None:
    """Loss, gradient and Hessian of a problem are those of a number that plain torch made."""
    theta = problem.current()
    grad = torch.autograd.grad(expected, list(model.parameters()), create_graph=True)
    flat = torch.cat([g.reshape(-1) for g in grad])
    v = normal(len(flat), seed=5)
    loss, found = problem.loss_and_grad(theta)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(found, flat.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(problem.loss(theta), expected.detach(), rtol=1e-12, atol=0)
    product = flat_gradient(flat.dot(v), model)
    torch.testing.assert_close(problem.hvp(theta, v), product, rtol=1e-9, atol=1e-11)
    assert problem.evaluate(theta)[0] == pytest.approx(expected.item(), rel=1e-12)


def held(problem: Problem, model: nn.Module, plain: Callable[[], Tensor], **asked: Any) -> Path:
    """Walk, and see in plain torch that the level is held at every point."""
    path = traverse(problem, stop=Stop(evaluations=30), progress=False, **asked)
    assert len(path.points) > 3
    assert path.steps["regularizer"].iloc[-1] < path.steps["regularizer"].iloc[0]
    for k in range(len(path.points)):
        path.load_into(model, k)
        error = abs(plain().item() - path.level)
        assert error <= 1.01 * asked.get("atol", 1e-3 * abs(path.level))
    return path


# ---------------------------------------------------------------- one number for the whole set


def cox(model: nn.Module, batch: Any) -> Tensor:
    """Cox's negative partial log likelihood: every risk set goes over many examples."""
    inputs, times, events = batch
    risk = model(inputs)[:, 0]
    order = times.argsort(descending=True)
    sums = risk[order].logcumsumexp(0)
    return -((risk[order] - sums) * events[order]).sum() / events.sum()


def test_a_partial_likelihood_is_one_number_of_all_examples() -> None:
    model = network(1)
    times = torch.rand(12, generator=generator(2), dtype=F64)
    batch = (X, times, (times < 0.7).double())
    problem = Problem(model, cox, batch)
    assert problem.examples == 1
    risk = model(X)[:, 0]
    among = times[:, None] <= times[None]
    sums = torch.where(among, risk[None], -math.inf).logsumexp(1)
    agrees(problem, -((risk - sums) * batch[2]).sum() / batch[2].sum(), model)
    assert problem.example_losses(problem.current()).shape == (1,)
    held(problem, model, lambda: cox(model, batch))
    held(problem, model, lambda: cox(model, batch), atol=1e-4)


def residual(model: nn.Module, batch: Any) -> Tensor:
    """u'' + u = 0 on the inner points, u(0) = 0 and u(1) = 1 by a boundary term."""
    x = batch["inner"].clone().requires_grad_()
    u = model(x)
    (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
    edge = model(batch["edge"]) - batch["edge"]
    return (bend + u).square().mean() + 10 * edge.square().mean()


def test_a_differential_equation_with_its_boundary_is_held() -> None:
    model = network(1, inputs=1)
    batch = {
        "inner": torch.linspace(0.1, 0.9, 7, dtype=F64)[:, None],
        "edge": torch.tensor([[0.0], [1.0]], dtype=F64),
    }
    problem = Problem(model, residual, batch)
    agrees(problem, residual(model, batch), model)
    held(problem, model, lambda: residual(model, batch))
    assert not batch["inner"].requires_grad
    assert isoloss.check(problem).passed


def test_inputs_that_the_loss_itself_marks_to_be_differentiated_by_are_no_parameters() -> None:
    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        batch.requires_grad_()
        (slope,) = torch.autograd.grad(model(batch).sum(), batch, create_graph=True)
        return slope.square().sum(1)

    data = X.clone()
    traverse(Problem(network(), loss, data), stop=Stop(steps=2), progress=False)
    assert not data.requires_grad


class Graph(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(3, 5).double(), nn.Linear(5, 2).double()

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        around = torch.zeros(len(x), 5, dtype=x.dtype).index_add(
            0, edges[1], self.first(x)[edges[0]]
        )
        return self.last(around.tanh())


def nodes(model: nn.Module, batch: Any) -> Tensor:
    outputs = model(batch["x"], batch["edges"])
    return functional.cross_entropy(outputs[batch["train"]], batch["y"][batch["train"]])


def test_a_graph_whose_tensors_have_several_lengths_is_one_batch() -> None:
    model = Graph()
    batch = {
        "x": X,
        "edges": torch.randint(12, (2, 40), generator=generator(3)),
        "y": Y,
        "train": torch.arange(12) < 7,
    }
    problem = Problem(model, nodes, batch)
    agrees(problem, nodes(model, batch), model)
    held(problem, model, lambda: nodes(model, batch))

    def each(model: nn.Module, batch: Any) -> Tensor:
        outputs = model(batch["x"], batch["edges"])
        return functional.cross_entropy(outputs, batch["y"], reduction="none")[batch["train"]]

    counted = torch.rand(7, generator=generator(4), dtype=F64)
    problem = Problem(model, each, [batch], weights=counted)
    assert problem.examples == 7
    agrees(problem, each(model, batch).dot(counted) / counted.sum(), model)


# ---------------------------------------------------------------- one loss per example


def contrast(model: nn.Module, batch: Any) -> Tensor:
    one, other = batch
    return (model(one) - model(other)).square().sum(1)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_loss_that_calls_the_model_twice(weighted: bool) -> None:
    model, other = network(), normal(12, 3, seed=4)
    weights = torch.rand(12, generator=generator(4), dtype=F64) if weighted else None
    each = contrast(model, (X, other))
    share = torch.ones(12, dtype=F64) if weights is None else weights
    for data in ((X, other), [(X[:5], other[:5]), [X[5:], other[5:]]]):
        problem = Problem(model, contrast, data, weights=weights)
        assert problem.examples == 12
        agrees(problem, each.dot(share) / share.sum(), model)
        torch.testing.assert_close(problem.example_losses(problem.current()), each.detach())
    loader = DataLoader(TensorDataset(X, other), batch_size=5)
    agrees(Problem(model, contrast, loader, weights=weights), each.dot(share) / share.sum(), model)


def test_a_model_that_is_a_function_is_called_with_inputs() -> None:
    start = {"w": normal(3, 2, seed=8)}
    problem = Problem(
        lambda p, x: x @ p["w"],
        lambda model, batch: model(batch["x"]).square().sum(1),
        {"x": X},
        parameters=start,
    )
    expected = (X @ start["w"]).square().sum(1).mean()
    assert problem.loss(problem.current()).item() == pytest.approx(expected.item(), rel=1e-13)


def test_a_metric_of_model_and_batch() -> None:
    model = network()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

    problem = Problem(
        model, loss, (X, Y), metric=lambda model, batch: accuracy(model(batch[0]), batch[1])
    )
    expected = (model(X).argmax(1) == Y).double().mean().item()
    assert problem.evaluate(problem.current())[1] == pytest.approx(expected)


class Batch:
    """An object that isoloss knows nothing of."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y


class Movable(Batch):
    """One that says how its tensors are mapped, as the graphs of torch_geometric do."""

    def to(self, device: Any) -> Movable:
        raise NotImplementedError

    def apply(self, function: Callable[[Tensor], Tensor]) -> Movable:
        self.x, self.y = function(self.x), function(self.y)
        return self

    def keys(self) -> list[str]:
        return ["x", "y"]

    def __iter__(self) -> Iterator[Any]:
        return iter([("x", self.x), ("y", self.y)])


def of_object(model: nn.Module, batch: Any) -> Tensor:
    return functional.cross_entropy(model(batch.x), batch.y, reduction="none")


def test_batches_of_objects() -> None:
    model = network()
    expected = functional.cross_entropy(model(X), Y)
    agrees(Problem(model, of_object, [Batch(X[:4], Y[:4]), Batch(X[4:], Y[4:])]), expected, model)
    single = Movable(X.float(), Y)
    problem = Problem(model, of_object, single)
    assert problem.loss(problem.current()).item() == pytest.approx(expected.item(), rel=1e-6)
    assert single.x.dtype == torch.float32  # the user's own is left as it was


# ---------------------------------------------------------------- structures


class Outputs(UserDict[str, Any]):
    """Outputs with attributes, as those of transformers."""

    def __getattr__(self, name: str) -> Any:
        if name == "data":
            raise AttributeError(name)
        return self.data[name]


@dataclass(frozen=True)
class Frozen:
    logits: Tensor
    hidden: Tensor | None = None


@dataclass
class Ordered(dict[str, Any]):
    """A dict and a dataclass in one, as transformers' ModelOutput."""

    logits: Tensor
    loss: Tensor | None = None

    def __post_init__(self) -> None:
        super().__init__(logits=self.logits)

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        super().__setattr__(key, value)


class Language(nn.Module):
    """Called as models of transformers are."""

    def __init__(self, made: Callable[[Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(9, 4), nn.Linear(4, 2)
        self.made = made
        self.double()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None
    ) -> Any:
        assert labels is None or labels.dtype == torch.int64
        mask = attention_mask[:, :, None].to(self.head.weight.dtype)
        mean = (self.embed(input_ids) * mask).sum(1) / mask.sum(1)
        return self.made(self.head(mean))


TOKENS = torch.randint(9, (12, 5), generator=generator(2))
MASK = (torch.arange(5)[None] <= torch.arange(12)[:, None] % 5).long()
MADE: dict[str, Callable[[Tensor], Any]] = {
    "a mapping": lambda logits: Outputs(logits=logits),
    "a dataclass": lambda logits: Frozen(logits),
    "both": lambda logits: Ordered(logits),
}


@pytest.mark.parametrize("made", MADE.values(), ids=MADE)
@pytest.mark.parametrize("kind", [dict, UserDict])
@pytest.mark.parametrize("chunk_size", [None, 5])
def test_dicts_in_and_outputs_with_attributes(
    made: Callable[[Tensor], Any], kind: Callable[..., Any], chunk_size: int | None
) -> None:
    model = Language(made)
    inputs = kind(input_ids=TOKENS, attention_mask=MASK)
    expected = functional.cross_entropy(model(TOKENS, MASK).logits, Y)

    def loss(outputs: Any, targets: Tensor) -> Tensor:
        assert type(outputs) is type(model(TOKENS, MASK))
        return functional.cross_entropy(outputs.logits, targets, reduction="none")

    problem = Problem(model, loss, (inputs, Y), chunk_size=chunk_size)
    agrees(problem, expected, model)

    def whole(model: nn.Module, batch: Any) -> Tensor:
        return functional.cross_entropy(model(**batch).logits, batch["labels"], reduction="none")

    batch = kind(input_ids=TOKENS, attention_mask=MASK, labels=Y)
    agrees(Problem(model, whole, batch), expected, model)
    agrees(Problem(model, whole, [batch]), expected, model)


def test_a_dict_alone_is_inputs_without_targets() -> None:
    model = Language(lambda logits: Outputs(logits=logits))
    data = {"input_ids": TOKENS, "attention_mask": MASK, "labels": None}
    problem = Problem(model, lambda outputs, _: outputs.logits.square().sum(1), data)
    agrees(problem, model(TOKENS, MASK).logits.square().sum(1).mean(), model)


@pytest.mark.parametrize(
    "data",
    [
        X,
        (X,),
        [X[:5], X[5:]],
        DataLoader(TensorDataset(X), batch_size=5),
        (X, None),
        [(X[:5], None), (X[5:], None)],
    ],
)
def test_inputs_alone(data: Any) -> None:
    model = network(3)

    def loss(outputs: Tensor, targets: Any) -> Tensor:
        assert targets is None
        return outputs.square().sum(1)

    problem = Problem(model, loss, data, chunk_size=4)
    assert problem.examples == 12
    agrees(problem, model(X).square().sum(1).mean(), model)


@pytest.mark.parametrize("chunk_size", [None, 5])
def test_data_of_inference_mode(chunk_size: int | None) -> None:
    with torch.inference_mode():
        inputs, targets = X * 2, X[:, :2].clone()
        weights = torch.ones(12, dtype=F64) * 2
    model = network()
    problem = Problem(model, "mse", (inputs, targets), weights=weights, chunk_size=chunk_size)
    agrees(problem, (model(2 * X) - X[:, :2]).square().mean(), model)
    loose = Problem(
        model,
        lambda model, batch: (model(batch[0]) - batch[1]).square().mean(1),
        (inputs, targets),
    )
    agrees(loose, (model(2 * X) - X[:, :2]).square().mean(), model)
    traverse(problem, stop=Stop(steps=2), progress=False)


def test_complex_inputs_are_of_the_problems_precision() -> None:
    class Modulus(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer = nn.Linear(3, 2)

        def forward(self, z: Tensor) -> Tensor:
            return (z @ self.layer.weight.T.to(z.dtype)).abs() + self.layer.bias

    model, inputs = Modulus(), torch.complex(X, 1 - X).to(torch.complex64)
    wide = Problem(model, "mse", (inputs, X[:, :2]), dtype=F64)
    again = Problem(model, "mse", (inputs, X[:, :2])).with_dtype(F64)
    narrow = Problem(model, "mse", (inputs.to(torch.complex128), X[:, :2]))
    exact = copy.deepcopy(model).double()
    plain = functional.mse_loss(exact(inputs.to(torch.complex128)), X[:, :2])
    agrees(wide, plain, exact)
    assert again.loss(again.current()) == wide.loss(wide.current())
    assert narrow.loss(narrow.current()).item() == pytest.approx(plain.item(), rel=1e-6)


def test_packed_sequences_are_of_the_problems_type() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.cell = nn.GRU(3, 2)

        def forward(self, packed: Any) -> Tensor:
            return self.cell(packed)[1][0]

    sequences = [normal(n, 3, seed=n) for n in (4, 2, 3)]
    packed = pack_sequence([s.float() for s in sequences], enforce_sorted=False)
    assert isinstance(packed, PackedSequence)
    model, targets = Recurrent(), normal(3, 2, seed=1)
    problem = Problem(model, "mse", [((packed,), targets)], dtype=F64)
    exact = copy.deepcopy(model).double()
    rounded = pack_sequence([s.float().double() for s in sequences], enforce_sorted=False)
    agrees(problem, (exact(rounded) - targets).square().mean(), exact)


def test_a_stream_is_read_once_an_evaluation() -> None:
    class Stream:
        reads = 0

        def __iter__(self) -> Iterator[Any]:
            self.reads += 1
            return iter([(X[:5], Y[:5]), (X[5:], Y[5:])])

    stream = Stream()
    problem = Problem(network(), "cross_entropy", stream)
    theta, before = problem.current(), stream.reads
    for evaluate in (problem.loss, problem.loss_and_grad, problem.loss_and_grad, problem.evaluate):
        evaluate(theta)
    assert stream.reads - before == 4


# ---------------------------------------------------------------- examples that do not count


@pytest.mark.parametrize("chunk_size", [None, 4])
@pytest.mark.parametrize("form", ["a pair", "batches", "a stream"])
def test_an_example_of_weight_0_may_be_missing(chunk_size: int | None, form: str) -> None:
    model, targets = network(), normal(12, 2, seed=3)
    weights = torch.rand(12, generator=generator(1), dtype=F64)
    weights[[1, 4, 5, 6, 7, 11]] = 0
    used = weights > 0
    missing, inputs = targets.clone(), X.clone()
    missing[[1, 4]], inputs[[5, 11]] = math.nan, math.nan
    data: Any = {
        "a pair": (inputs, missing),
        "batches": [(inputs[k : k + 4], missing[k : k + 4]) for k in (0, 4, 8)],  # one is empty
        "a stream": DataLoader(TensorDataset(inputs, missing), batch_size=4),
    }[form]
    problem = Problem(model, "mse", data, weights=weights, chunk_size=chunk_size)
    assert problem.examples == 12
    each = (model(X) - targets).square().mean(1)
    agrees(problem, each[used].dot(weights[used]) / weights[used].sum(), model)
    found = problem.example_losses(problem.current())
    assert found.isnan().equal(~used)
    torch.testing.assert_close(found[used], each[used].detach())
    single = problem.with_dtype(torch.float32)
    assert single.loss(single.current()).item() == pytest.approx(
        problem.loss(problem.current()).item(), rel=1e-5
    )

    def plain() -> Tensor:
        each = (model(X[used]) - targets[used]).square().mean(1)
        return each.dot(weights[used]) / weights[used].sum()

    held(problem, model, plain)


def test_the_default_names_the_first_missing_number_and_the_remedy(refuses) -> None:
    weights = torch.ones(12)
    weights[2] = 0
    inputs = X.clone()
    inputs[[2, 7]] = math.nan
    with refuses("3 NaN", "example 7", "weight 0"):
        Problem(network(), "cross_entropy", (inputs, Y), weights=weights)


# ---------------------------------------------------------------- what cannot be


def per_example(model: nn.Module, batch: Any) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def mean(model: nn.Module, batch: Any) -> Tensor:
    return per_example(model, batch).mean()


PAIR = (X, Y)
BAD: dict[str, tuple[dict[str, Any], list[str]]] = {
    "one number a batch": (
        {"loss": mean, "data": [(X[:5], Y[:5]), (X[5:], Y[5:])]},
        ["one number for each of 2 batches", "[batch]", "one loss per example"],
    ),
    "weights of one number": (
        {"loss": mean, "weights": torch.ones(12)},
        ["weights", "one number", "within it"],
    ),
    "a matrix": (
        {"loss": lambda model, batch: model(batch[0])},
        ["(model, batch)", "(12, 2)", "shape ()"],
    ),
    "a float": ({"loss": lambda model, batch: 1.0}, ["(model, batch)", "a float"]),
    "an error": (
        {"loss": lambda model, batch: batch.x.sum()},
        ["(model, batch) failed", "attribute", "'x'"],
    ),
    "chunks of a batch": ({"loss": per_example, "chunk_size": 5}, ["chunk_size=5", "as a list"]),
    "its metric": ({"loss": per_example, "metric": "accuracy"}, ["metric", "(model, batch)"]),
    "the other metric": (
        {"metric": lambda model, batch: batch},
        ["metric", "(outputs, targets)"],
    ),
    "arguments": ({"loss": lambda model: model}, ["(model, batch)"]),
    "two batches in a tuple": (
        {"loss": per_example, "data": (PAIR, PAIR)},
        ["two batches", "list"],
    ),
    "a number for the loss": ({"loss": per_example, "data": 5}, ["data must", "batch", "an int"]),
    "an array in a batch": (
        {"loss": per_example, "data": (X, Y.numpy())},
        ["batch[1]", "torch.from_numpy"],
    ),
    "a NaN in a batch": (
        {"loss": per_example, "data": (X.index_fill(0, torch.tensor([3]), math.nan), Y)},
        ["batch[0]", "NaN", "example 3"],
    ),
    "arrays": ({"data": (X.numpy(), Y.numpy())}, ["inputs", "NumPy", "torch.from_numpy(inputs)"]),
    "an array": ({"data": X.numpy()}, ["data must be a pair", "a ndarray"]),
    "a frame": (
        {"data": (pd.DataFrame(X.numpy()), Y)},
        ["inputs is a DataFrame", "torch.tensor(inputs.to_numpy())"],
    ),
    "a frame alone": ({"data": pd.DataFrame(X.numpy())}, ["is a DataFrame", "to_numpy()"]),
    "listed targets": ({"data": (X, Y.tolist())}, ["targets", "a list of 12 ints", "tensor"]),
    "listed inputs": ({"data": (X.tolist(), Y)}, ["inputs", "a list of 12 lists", "tensor"]),
    "triple": ({"data": (X, X, Y)}, ["a tuple of 3 tensors", "((x, mask), y)"]),
    "triples": ({"data": [(X, X, Y)]}, ["a tuple of 3 tensors", "((x, mask), y)"]),
    "inputs alone": ({"data": X}, ["CrossEntropy", "inputs alone", "(inputs, targets)"]),
    "inputs alone of torch": (
        {"data": X, "loss": nn.CrossEntropyLoss()},
        ["CrossEntropyLoss", "inputs alone", "(inputs, targets)"],
    ),
    "a pair in a list": ({"data": [X, Y]}, ["inputs alone", "the tuple (inputs, targets)"]),
    "mixed": (
        {"data": [(X, Y), X], "loss": lambda outputs, targets: outputs.sum(1)},
        ["some batches", "one form"],
    ),
    "nested": (
        {"data": (torch.nested.nested_tensor([X[:6], X[6:]], layout=torch.jagged), Y)},
        ["inputs is a nested tensor", "to_padded_tensor"],
    ),
    "sparse": ({"data": (X.to_sparse(), Y)}, ["inputs is torch.sparse_coo", "to_dense()"]),
    "no numbers": ({"data": (X, Y.to("meta"))}, ["targets is on the device 'meta'"]),
    "structured targets": ({"data": (X, {"y": Y})}, ["CrossEntropy", "one tensor", "a dict"]),
    "complex targets": (
        {"data": (X, X.to(torch.complex64)), "loss": nn.MSELoss()},
        ["MSELoss", "real targets", "complex64"],
    ),
    "empty outputs": ({"data": ({}, Y[:0]), "loss": nn.MSELoss()}, ["no example"]),
    "probabilities of one": (
        {"data": (X, Y.double()), "loss": nn.CrossEntropyLoss()},
        ["CrossEntropyLoss", "float64", "convert the targets"],
    ),
    "a class for the metric": ({"metric": int}, ["metric=int is a class"]),
    "a list for the loss": ({"loss": [nn.MSELoss()]}, ["loss", "a list", "(model, batch)"]),
    "text": ({"data": "train.csv"}, ["data must be a pair", "a str"]),
    "texts": ({"data": (["a", "b", "c"], ["d"])}, ["data must be a pair", "a list of 3 strs"]),
    "a model": ({"data": network()}, ["data must be a pair", "Sequential"]),
    "a function": ({"data": lambda: PAIR}, ["data must be a pair", "a function"]),
    "lengths of a graph": (
        {"data": ({"x": X, "edges": torch.zeros(2, 5)}, Y)},
        ["2 inputs['edges']", "12 targets", "(model, batch)"],
    ),
}


@pytest.mark.parametrize(("settings", "words"), BAD.values(), ids=BAD)
def test_what_cannot_be_data_is_refused(
    refuses, settings: dict[str, Any], words: list[str]
) -> None:
    with refuses(*words):
        problem = Problem(**{"model": network(), "loss": "cross_entropy", "data": PAIR, **settings})
        problem.loss(problem.current())


def test_outputs_that_the_loss_keeps_to_itself_have_no_input_gradient(refuses) -> None:
    problem = Problem(network(), per_example, PAIR)
    with refuses("input_gradient", "(model, batch)"):
        traverse(problem, regularizer="input_gradient", progress=False)
    path = traverse(problem, regularizer="hessian_trace", stop=Stop(steps=2), progress=False)
    assert len(path.steps) > 1


def test_a_tensor_from_outside_is_still_found_in_a_loss_of_the_model(refuses) -> None:
    outer = torch.ones((), dtype=F64, requires_grad=True)
    problem = Problem(network(), lambda model, batch: per_example(model, batch) * outer, PAIR)
    with refuses("requires a gradient", "none of the problem's parameters"):
        traverse(problem, progress=False)
    model = network()
    problem = Problem(model, lambda model, batch, net=model: per_example(net, batch), PAIR)
    with refuses("of the given model"):
        traverse(problem, progress=False)


@pytest.mark.parametrize("loss", [mean, per_example])
def test_batch_norm_in_training_mode_is_refused_by_its_name(loss: Any, refuses) -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), network()).double()
    problem = Problem(model, loss, PAIR)
    with refuses("in training mode are 0 (BatchNorm1d)", "model.eval()"):
        traverse(problem, progress=False)


def test_a_number_that_is_not_for_the_whole_set_says_how_to_write_it(refuses) -> None:
    problem = Problem(network(), lambda outputs, targets: outputs.mean(), PAIR)
    with refuses("one value per example", "(model, batch)"):
        problem.loss(problem.current())
    assert np.isfinite(Problem(network(), mean, PAIR).loss(problem.current()).item())


@pytest.mark.parametrize("data", [(X, X), [{"input": X}]], ids=["pair", "dict"])
def test_a_loss_that_takes_a_model_by_another_name_says_how_to_write_it(data: Any, refuses) -> None:
    def loss(net: Any, batch: Any) -> Tensor:
        return net(**batch).square().mean(1) if batch is None else net(batch[0]).sum(1)

    problem = Problem(network(3), loss, data)
    with refuses("(outputs, targets)", "lambda model, batch"):
        problem.loss(problem.current())
