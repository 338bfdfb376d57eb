"""The training loss is a deterministic function of one flat vector, and the module stays as is."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
import re
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.problems import NETS, Net, classifier, normal, regressor, snapshot
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import DataLoader, TensorDataset

from isoloss import InputError, Problem
from isoloss.checking import check_function
from isoloss.errors import DeviceError

DTYPES = (torch.float32, torch.float64)
ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-12}


def close(actual: Tensor, expected: Tensor, relative: float) -> bool:
    return (actual - expected).norm() <= relative * expected.norm()


# ---------------------------------------------------------------- value and gradient


def test_results_are_new_tensors_of_their_types_and_theta_is_neither_changed_nor_kept() -> None:
    problem = classifier().problem(dtype=torch.float32)
    theta = problem.current()
    before = theta.clone()
    value, grad = problem.loss_and_grad(theta)
    assert (value.dtype, value.shape) == (problem.loss(theta).dtype, ()) == (torch.float64, ())
    assert (grad.dtype, grad.shape) == (torch.float32, (44,))
    assert not value.requires_grad
    assert not grad.requires_grad
    kept = value.clone(), grad.clone()
    problem.loss_and_grad(theta + 1)
    assert torch.equal(value, kept[0])
    assert torch.equal(grad, kept[1])
    assert torch.equal(theta, before)
    theta.zero_()
    assert torch.equal(problem.loss(before), value)


@given(seed=st.integers(0, 10**6), hidden=st.integers(1, 6), examples=st.integers(1, 9))
def test_loss_and_grad_are_those_of_backpropagation_by_hand(
    seed: int, hidden: int, examples: int
) -> None:
    for make in NETS.values():
        case = make(sizes=(2, hidden, 3), examples=examples, seed=seed)
        problem = case.problem()
        theta = normal(problem.size, seed=seed + 7)
        value, grad = problem.loss_and_grad(theta)
        expected, expected_grad = case.loss_and_grad(theta.numpy())
        assert value.item() == pytest.approx(expected, rel=1e-11)
        np.testing.assert_allclose(grad.numpy(), expected_grad, rtol=1e-9, atol=1e-13)


def test_loss_is_summed_in_float64_over_many_float32_examples() -> None:
    n = 200_000
    data = (torch.zeros(n), torch.zeros(n))
    problem = Problem(
        lambda p, x: p["w"] + x, lambda o, t: o, data, parameters={"w": torch.tensor([0.1])}
    )
    tenth = torch.tensor(0.1).double().item()
    assert problem.loss(problem.current()).item() == pytest.approx(tenth, rel=1e-12)
    assert problem.loss_and_grad(problem.current())[0].item() == pytest.approx(tenth, rel=1e-12)


@pytest.mark.parametrize("length", [1, 43, 45])
def test_a_theta_of_another_length_is_refused(length: int) -> None:
    problem = classifier().problem()
    theta = torch.zeros(length, dtype=torch.float64)
    for evaluate in (problem.loss, problem.loss_and_grad, problem.evaluate):
        with pytest.raises((InputError, RuntimeError), match=str(length)):
            evaluate(theta)


def test_works_where_gradients_are_switched_off() -> None:
    problem = classifier().problem()
    expected = problem.loss_and_grad(problem.current())[1]
    with torch.no_grad():
        actual = problem.loss_and_grad(problem.current())[1]
    assert torch.equal(actual, expected)


# ---------------------------------------------------------------- theta


def test_current_is_a_copy_of_the_models_present_parameters_in_named_order() -> None:
    net = classifier()
    problem = net.problem()
    assert torch.equal(problem.current(), net.theta)
    assert list(problem.shapes) == [name for name, _ in net.model.named_parameters()]
    problem.current().zero_()
    with torch.no_grad():
        net.model[0].bias.fill_(7.0)
    assert problem.current()[15:20].tolist() == [7.0] * 5


def test_frozen_parameters_are_no_part_of_theta_but_act() -> None:
    net = classifier()
    whole = net.problem()
    value, grad = whole.loss_and_grad(net.theta)
    net.model[0].requires_grad_(False)
    part = net.problem()
    assert part.size == 24
    assert part.loss_and_grad(net.theta[20:])[0] == value
    torch.testing.assert_close(part.loss_and_grad(net.theta[20:])[1], grad[20:])


def test_the_type_is_that_asked_for_or_that_of_the_parameters() -> None:
    net = classifier()
    exact = net.problem(metric=lambda o, t: o.abs().amax(1))
    net.model.float()
    assert net.problem().dtype == torch.float32
    single = net.problem(metric=lambda o, t: o.abs().amax(1))
    theta = net.theta.double()
    expected = exact.loss(theta).item()
    for problem in (net.problem(dtype=torch.float64), single.with_dtype(torch.float64)):
        value, grad = problem.loss_and_grad(theta)
        assert value.item() == pytest.approx(expected, rel=1e-14)
        assert problem.dtype == problem.current().dtype == grad.dtype == torch.float64
    assert single.with_dtype(torch.float64).evaluate(theta) == pytest.approx(exact.evaluate(theta))
    assert next(net.model.parameters()).dtype == torch.float32


def test_a_function_of_parameters_and_inputs_is_a_model() -> None:
    net = classifier()
    parameters = {name: p.detach() for name, p in net.model.named_parameters()}
    problem = Problem(
        lambda p, x: functional_call(net.model, dict(p), x), "cross_entropy", net.data,
        parameters=parameters,
    )  # fmt: skip
    theta = normal(problem.size, seed=4)
    value, grad = problem.loss_and_grad(theta)
    expected, expected_grad = net.problem().loss_and_grad(theta)
    assert torch.equal(problem.current(), net.theta)
    assert torch.equal(value, expected)
    assert torch.equal(grad, expected_grad)


def test_the_losss_own_targets_and_integer_inputs_keep_their_type() -> None:
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2))
    data = (torch.tensor([0, 4, 2]), torch.tensor([1, 0, 1]))
    problem = Problem(model, loss="cross_entropy", data=data, dtype=torch.float64)
    _, grad = problem.loss_and_grad(problem.current())
    used = grad[:15].view(5, 3).abs().sum(1) > 0
    assert used.tolist() == [True, False, True, False, True]


# ---------------------------------------------------------------- data in pieces


@pytest.mark.parametrize("net", NETS.values(), ids=NETS)
@given(cuts=st.lists(st.integers(1, 9), max_size=4))
def test_data_in_pieces_gives_the_loss_of_the_whole(net: Any, cuts: list[int]) -> None:
    case: Net = net()
    inputs, targets = case.data
    bounds = [0, *sorted(set(cuts)), len(inputs)]
    pieces = [(inputs[a:b], targets[a:b]) for a, b in itertools.pairwise(bounds) if b > a]
    theta = case.theta
    whole, split = case.problem(), Problem(case.model, case.loss, pieces)
    value, grad = split.loss_and_grad(theta)
    expected, expected_grad = whole.loss_and_grad(theta)
    assert split.examples == whole.examples == len(inputs)
    assert value.item() == pytest.approx(expected.item(), rel=1e-14)
    assert split.loss(theta).item() == pytest.approx(expected.item(), rel=1e-14)
    assert close(grad, expected_grad, 1e-13)
    assert split.evaluate(theta) == pytest.approx(whole.evaluate(theta), rel=1e-14)


# ---------------------------------------------------------------- determinism and counting


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_point_gives_the_same_bits(dtype: torch.dtype) -> None:
    first, second = (classifier().problem(dtype=dtype) for _ in range(2))
    theta = first.current()
    value, grad = first.loss_and_grad(theta)
    first.loss_and_grad(theta + 1)
    for problem in (first, second):
        again, grad_again = problem.loss_and_grad(theta)
        assert torch.equal(again, value)
        assert torch.equal(grad_again, grad)
        assert torch.equal(problem.loss(theta), value)


def test_only_evaluations_of_loss_and_gradient_count() -> None:
    problem = classifier().problem()
    theta = problem.current()
    problem.loss(theta)
    problem.evaluate(theta)
    check_function(problem, theta)
    assert problem.evaluations == 0
    problem.loss_and_grad(theta)
    problem.loss_and_grad(theta)
    assert problem.evaluations == 2


# ---------------------------------------------------------------- metrics


def test_evaluate_gives_mean_loss_and_mean_metric() -> None:
    for net, metric, expected in (
        (classifier(), None, lambda o, t: (o.argmax(1) == t).double()),
        (regressor(), None, lambda o, t: (o - t).square().mean(1)),
        (regressor(), lambda o, t: (o - t).abs().amax(1), lambda o, t: (o - t).abs().amax(1)),
    ):
        loss, value = net.problem(metric=metric).evaluate(net.theta)
        assert loss == pytest.approx(net.loss_and_grad(net.theta.numpy())[0], rel=1e-12)
        assert value == pytest.approx(expected(net.model(net.data[0]), net.data[1]).mean().item())
    net = classifier()
    own = partial(nn.functional.cross_entropy, reduction="none")
    loss, value = Problem(net.model, own, net.data).evaluate(net.theta)
    assert loss == pytest.approx(net.loss_and_grad(net.theta.numpy())[0], rel=1e-12)
    assert math.isnan(value)  # a function has no metric


# ---------------------------------------------------------------- the user's model


def _noisy_model() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    model(torch.randn(5, 3)).sum().backward()
    model[3].bias.requires_grad_(False)
    return model.train()


PAIR = (torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 2)


def test_the_model_and_the_random_state_survive_evaluations_refusals_and_errors(refuses) -> None:
    def broken(outputs: Tensor, targets: Tensor) -> Tensor:
        raise RuntimeError("broken")

    model = _noisy_model()
    before = snapshot(model)
    with refuses("not a function"):
        problem = Problem(model, "cross_entropy", PAIR)
        check_function(problem, problem.current())
    assert snapshot(model) == before
    before = snapshot(model.eval())
    problem = Problem(model, "cross_entropy", PAIR, dtype=torch.float64)
    check_function(problem, problem.current())
    problem.loss_and_grad(torch.zeros(problem.size, dtype=torch.float64))
    problem.evaluate(problem.current() + 1)
    with refuses("the loss failed", "RuntimeError: broken"):
        Problem(model, broken, PAIR).loss_and_grad(problem.current())
    assert snapshot(model) == before


def test_the_problem_keeps_the_weights_and_the_mode_that_the_model_had() -> None:
    model = _noisy_model().eval()
    problem = Problem(model, "cross_entropy", PAIR)
    theta = problem.current()
    before = problem.loss(theta)
    with torch.no_grad():
        for parameter in model.train().parameters():  # frozen ones too
            parameter.zero_()
    assert torch.equal(problem.loss(theta), before)
    exact = problem.with_dtype(torch.float64).loss(theta.double())
    assert exact.item() == pytest.approx(before.item(), rel=1e-5)
    check_function(problem, theta)


# ---------------------------------------------------------------- one loss per example


def test_example_losses_are_in_the_order_of_the_data_and_average_to_the_loss() -> None:
    net = classifier()
    inputs, targets = net.data
    problem = Problem(net.model, net.loss, [(inputs[:5], targets[:5]), (inputs[5:], targets[5:])])
    losses = problem.example_losses(net.theta)
    expected = nn.functional.cross_entropy(net.model(inputs), targets, reduction="none")
    torch.testing.assert_close(losses, expected.detach(), rtol=1e-12, atol=0)
    assert losses.mean().item() == pytest.approx(problem.loss(net.theta).item(), rel=1e-14)
    assert problem.evaluations == 0


# ---------------------------------------------------------------- bad input

X, Y = PAIR


def linear() -> nn.Module:
    return nn.Linear(3, 2)


BAD: dict[str, tuple[dict[str, Any], list[str]]] = {
    "loss name": ({"loss": "crossentropy"}, ["'crossentropy'", "did you mean cross_entropy?"]),
    "loss type": ({"loss": 3}, ["loss", "3"]),
    "metric name": ({"metric": "acuracy"}, ["'acuracy'", "did you mean accuracy"]),
    "no data": ({"data": ()}, ["no example"]),
    "empty data": ({"data": (X[:0], Y[:0])}, ["no example"]),
    "lengths": ({"data": (X, Y[:4])}, ["6 inputs", "4 targets"]),
    "lengths of a piece": ({"data": [(X, Y), (X[:2], Y[:1])]}, ["2 inputs", "1 targets"]),
    "triple": ({"data": (X, Y, Y)}, ["pair of tensors"]),
    "numpy targets": ({"data": (X, Y.numpy())}, ["targets", "torch.from_numpy(targets)"]),
    "list of two": ({"data": [X, Y]}, ["pair of tensors"]),
    "no pairs": ({"data": 5}, ["pair of tensors"]),
    "numbers": ({"data": [1, 2]}, ["pair of tensors"]),
    "two examples in a list": ({"data": [X[:2], Y[:2]]}, ["pair of tensors"]),
    "a dataset of single examples": (
        {"data": TensorDataset(X, Y)},
        ["pair of tensors", "TensorDataset", "DataLoader("],
    ),
    "a dataset of equal examples": ({"data": TensorDataset(X, X)}, ["TensorDataset"]),
    "half model": ({"model": nn.Linear(3, 2).half()}, ["float16", "torch.float64"]),
    "device": ({"device": "gpu"}, ["device must", "'gpu'", "'cuda:1'"]),
    "device of no numbers": ({"device": "meta"}, ["device must", "'meta'", "'cpu'"]),
    "device that is not there": ({"device": "mps"}, ["device='mps'", "'cpu'"]),
    "no chunk": ({"chunk_size": 0}, ["chunk_size", "0", "at least 1"]),
    "chunk size": ({"chunk_size": 2.5}, ["chunk_size", "2.5", "whole number"]),
    "loss of one": ({"loss": lambda outputs: outputs}, ["the loss", "(outputs, targets)"]),
    "metric of one": ({"metric": lambda outputs: outputs}, ["the metric", "(outputs, targets)"]),
    "half": ({"dtype": torch.float16}, ["torch.float16", "torch.float64"]),
    "frozen": ({"model": nn.Linear(3, 2).requires_grad_(False)}, ["no trainable parameters"]),
    "types": (
        {"model": nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2).double())},
        ["one type", "torch.float32, torch.float64"],
    ),
    "devices": (
        {"model": nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2, device="meta"))},
        ["one device", "cpu, meta", "model.to"],
    ),
    "meta": ({"model": nn.Linear(3, 2, device="meta")}, ["'meta'", "no numbers"]),
    "complex": (
        {"model": nn.Linear(3, 2, dtype=torch.complex64)},
        ["'weight'", "complex64", "view_as_real"],
    ),
    "lazy": ({"model": nn.LazyLinear(2)}, ["'weight'", "no shape", "call the model"]),
    "integer parameters": (
        {"model": lambda p, x: x, "parameters": {"w": torch.ones(3, dtype=torch.int64)}},
        ["'w'", "int64", "float32"],
    ),
    "a class": ({"model": nn.Linear}, ["class Linear", "Linear(...)"]),
    "a name": ({"model": "resnet18"}, ["'resnet18'", "str", "torch.nn.Module"]),
    "listed parameters": (
        {"model": lambda p, x: x, "parameters": {"w": [1.0]}},
        ["'w'", "list", "tensor"],
    ),
    "NaN": (
        {"data": (X.clone().index_fill_(0, torch.tensor([4]), math.nan), Y)},
        ["inputs", "3 NaN", "example 4"],
    ),
    "NaN in a later batch": (
        {"data": [(X, Y.float()), (X[:3], torch.tensor([0, math.nan, 0]))]},
        ["targets", "1 NaN", "example 7"],
    ),
    "NaN within": (
        {"data": ({"a": X, "b": [X * math.nan]}, Y)},
        ["inputs['b'][0]", "18 NaN", "example 0"],
    ),
    "numpy within": ({"data": ((X, X.numpy()), Y)}, ["inputs[1]", "torch.from_numpy"]),
    "lengths within": ({"data": ((X, X[:5]), Y)}, ["5 inputs[1]", "6 targets"]),
    "number within": ({"data": ((X, torch.tensor(1.0)), Y)}, ["inputs[1]", "single number"]),
    "single examples": ({"data": list(zip(X, Y, strict=True))}, ["targets", "DataLoader("]),
    "single labels": ({"data": list(zip(X, Y.tolist(), strict=True))}, ["an int", "DataLoader("]),
    "no targets": ({"data": [(X, None)]}, ["CrossEntropy", "pair of tensors"]),
    "short weights": ({"weights": torch.ones(5)}, ["weights", "(5,)", "6 examples"]),
    "listed weights": ({"weights": [1.0] * 6}, ["weights", "list", "tensor"]),
    "negative weights": ({"weights": torch.tensor([1.0, -1, 1, 1, 1, 1])}, ["not negative"]),
    "zero weights": ({"weights": torch.zeros(6)}, ["not all zero"]),
    "NaN weights": ({"weights": torch.full((6,), math.nan)}, ["finite"]),
    "binary targets": (
        {"loss": "bce_with_logits", "data": (X, torch.full((6, 2), 2))},
        ["0 to 1", "not 2"],
    ),
    "uncopied": (
        {"model": (lambda m: (setattr(m, "kept", threading.Lock()), m)[1])(nn.Linear(3, 2))},
        ["cannot be copied", "_thread.lock", "take out"],
    ),
    "function alone": ({"model": lambda p, x: x}, ["parameters="]),
    "module and parameters": ({"parameters": {"w": X}}, ["parameters=", "module"]),
}


@pytest.mark.parametrize(("settings", "words"), BAD.values(), ids=BAD)
def test_what_cannot_be_a_problem_is_refused(
    refuses, settings: dict[str, Any], words: list[str]
) -> None:
    with refuses(*words):
        Problem(**{"model": linear(), "loss": "cross_entropy", "data": PAIR, **settings})


NONE_EACH: dict[str, tuple[dict[str, Any], list[str]]] = {
    "a mean": (
        {"loss": nn.functional.cross_entropy},
        ["shape ()", "6 examples", "reduction='none'"],
    ),
    "one of each output": ({"loss": lambda o, t: o}, ["(6, 2)", "(6,)"]),
    "a list": ({"loss": lambda o, t: [1.0] * 6}, ["a list", "6 examples"]),
    "flat targets": (
        {"model": nn.Linear(3, 1), "loss": "mse", "data": (X, torch.zeros(6))},
        ["mse", "(6, 1)", "(6,)"],
    ),
    **{
        f"inputs of {kind}": (
            {"data": (X.to(kind), Y)},
            ["inputs", str(kind), "torch.float32", ".float()"],
        )
        for kind in (torch.int64, torch.uint8, torch.bool)
    },
    "images of bytes": (
        {
            "model": nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()),
            "data": (torch.ones(4, 1, 3, 3).byte(), torch.zeros(4).long()),
        },
        ["torch.uint8", ".float()"],
    ),
    "indices that float": (
        {"model": nn.Embedding(3, 2), "data": (torch.zeros(6), Y)},
        ["torch.float32", ".long()"],
    ),
    "width": ({"data": (X[:, :2], Y)}, ["inputs of shape (6, 2)", "shapes cannot be multiplied"]),
    "arguments": ({"data": ((X, X), Y)}, ["inputs[1] of shape (6, 3)", "positional", "tuple"]),
    "keyword": (
        {"data": ({"image": X}, Y)},
        ["inputs['image'] of shape (6, 3)", "unexpected keyword", "dict"],
    ),
    "a model by another name": (
        {"loss": lambda net, batch: net(**batch).sum(1), "data": [{"x": X}]},
        ["inputs['x'] of shape (6, 3)", "lambda model, batch: ..., by these names"],
    ),
    "a cast of its own": (
        {"model": lambda p, x: x.double() @ p["w"], "parameters": {"w": torch.ones(3, 2)}},
        [".long()", "let forward cast to no fixed type"],
    ),
    "a ValueError": ({"model": nn.BatchNorm2d(3).eval()}, ["(6, 3)", "expected 4D input"]),
    "an IndexError": (
        {"model": nn.Embedding(3, 2), "data": (torch.arange(6), Y)},
        ["the model cannot be evaluated on inputs of shape (6,)", "out of range"],
    ),
}


@pytest.mark.parametrize("how", ["loss", "loss_and_grad", "evaluate"])
@pytest.mark.parametrize(("settings", "words"), NONE_EACH.values(), ids=NONE_EACH)
def test_what_gives_no_loss_for_each_example_is_refused_at_the_first_evaluation(
    refuses, settings: dict[str, Any], words: list[str], how: str
) -> None:
    problem = Problem(**{"model": linear(), "loss": "cross_entropy", "data": PAIR, **settings})
    with refuses(*words):
        getattr(problem, how)(problem.current())


def test_a_metric_that_averages_and_a_loss_cut_off_from_the_parameters_are_refused(refuses) -> None:
    problem = Problem(linear(), "cross_entropy", PAIR, metric=lambda o, y: o.double().mean())
    with refuses("metric", "shape ()", "6 examples"):
        problem.evaluate(problem.current())
    problem = Problem(linear(), lambda outputs, y: outputs.detach().sum(1), PAIR)
    with refuses("does not depend on the parameters", "detach"):
        problem.loss_and_grad(problem.current())


class Raising(nn.Linear):
    """Fails with a given error."""

    def __init__(self, error: Callable[[], Any]) -> None:
        super().__init__(3, 2)
        self.error = error

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.error()


def raised(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("fail", "error"),
    [
        (lambda: torch.empty(2**50), DeviceError),  # more than there is: the allocator itself
        (lambda: raised(torch.OutOfMemoryError("CUDA out of memory")), DeviceError),
        (lambda: raised(MemoryError()), MemoryError),
    ],
    ids=["CPU", "CUDA", "Python"],
)
def test_memory_that_runs_out_is_not_blamed_on_the_inputs(
    fail: Callable[[], Any], error: type[Exception]
) -> None:
    problem = Problem(Raising(fail), loss="cross_entropy", data=(X, Y))
    with pytest.raises(error) as caught:
        problem.loss(problem.current())
    assert not isinstance(caught.value, InputError)
    if error is DeviceError:
        assert re.fullmatch(
            r"cpu has too little memory to evaluate 6 examples at once "
            r"\((can't allocate|CUDA out of) memory[^)]*\); give chunk_size=3 to Problem",
            str(caught.value),
        )


def test_a_device_that_is_gone_is_one_sentence() -> None:
    gone = RuntimeError("CUDA error: device-side assert triggered\nCompile with ...")
    problem = Problem(Raising(lambda: raised(gone)), loss="cross_entropy", data=(X, Y))
    with pytest.raises(DeviceError, match=r"cpu failed .* assert triggered\).* last checkpoint$"):
        problem.loss(problem.current())


# ---------------------------------------------------------------- chunks


@pytest.mark.parametrize(
    "error",
    [RuntimeError("the memory of the attention has 3 keys"), KeyError("memory"), KeyError("type")],
    ids=str,
)
def test_the_models_own_error_is_kept_and_its_words_change_nothing(error: Any) -> None:
    problem = Problem(Raising(lambda: raised(error)), loss="cross_entropy", data=(X, Y))
    with pytest.raises(
        InputError, match=r"cannot be evaluated on inputs of shape \(6, 3\)"
    ) as caught:
        problem.loss(problem.current())
    assert str(error) in str(caught.value)
    assert caught.value.__cause__ is error


# ---------------------------------------------------------------- copies


def _images() -> Problem:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 3))
    data = (normal(120, 2, 6, 6, seed=0).float(), torch.arange(120) % 3)
    return Problem(model.eval(), "cross_entropy", data)


def _stream() -> Problem:
    rows = TensorDataset(normal(30, 3, seed=0).float(), torch.arange(30) % 2)
    return Problem(nn.Linear(3, 2), "cross_entropy", DataLoader(rows, batch_size=7))


def _batches() -> Problem:
    x, y, weights = normal(30, 3, seed=0).float(), torch.arange(30) % 2, torch.arange(30.0)
    data = [(x[k : k + 6], y[k : k + 6]) for k in range(0, 30, 6)]
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    return Problem(model, "cross_entropy", data, weights=weights, metric="accuracy")


def _of_parameters() -> Problem:
    parameters = {"w": normal(3, 2, seed=1)}
    return Problem(_product, "cross_entropy", (X, Y), parameters=parameters)


def _product(parameters: Any, inputs: Tensor) -> Tensor:
    return inputs @ parameters["w"]


COPIED: dict[str, Callable[[], Problem]] = {
    "plain": lambda: classifier(examples=400).problem(dtype=torch.float32),
    "in chunks": lambda: classifier(examples=40).problem(chunk_size=7),
    "images": _images,
    "stream": _stream,
    "batches": _batches,
    "function": _of_parameters,
}


def test_an_error_within_the_model_is_told_with_its_type_and_line(refuses) -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.layer({}["weights"])

    line = Fails.forward.__code__.co_firstlineno + 1
    place = f"KeyError: 'weights', in line {line} of test_problem.py"
    data = normal(6, 3, seed=0).float(), torch.zeros(6, dtype=torch.long)
    problem = Problem(Fails(), "cross_entropy", data)
    with refuses(f"cannot be evaluated on inputs of shape (6, 3) ({place})"):
        problem.loss(problem.current())
    with refuses(f"failed on a batch of the data ({place})"):
        Problem(Fails(), lambda model, batch: model(batch[0]).sum(1), [data])


@pytest.mark.parametrize("make", COPIED.values(), ids=COPIED)
@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("copied", [lambda p: pickle.loads(pickle.dumps(p)), copy.deepcopy])
def test_a_pickled_and_a_copied_problem_give_the_same_bits(
    make: Any, used: bool, copied: Any
) -> None:
    problem = make()
    if used:
        problem.loss_and_grad(problem.current() + 1)
    other = copied(problem)
    theta = problem.current()
    assert torch.equal(other.current(), theta)
    for one, two in zip(problem.loss_and_grad(theta), other.loss_and_grad(theta), strict=True):
        assert torch.equal(one, two)
    assert torch.equal(problem.loss(theta), other.loss(theta))
    np.testing.assert_equal(problem.evaluate(theta), other.evaluate(theta))
    assert problem.chunk_size == other.chunk_size
    other.loss(theta + 1)
    with torch.no_grad():  # of its own: neither moves the other
        for parameter in other._inside.network.leaves:
            parameter.zero_()
    assert torch.equal(problem.loss_and_grad(theta)[1], make().loss_and_grad(theta)[1])


def test_a_pickle_holds_every_number_once() -> None:
    """Views of one vector would each bring all of it."""
    model = nn.Sequential(*(nn.Linear(60, 60) for _ in range(20)))
    x, y = normal(3000, 60, seed=0).float(), normal(3000, 60, seed=1).float()
    data = [(x[k : k + 50], y[k : k + 50]) for k in range(0, 3000, 50)]
    problem = Problem(model, "mse", data)
    numbers = 4 * (3 * problem.size + x.numel() + y.numel())  # the user's model, a copy, theta
    assert len(pickle.dumps(problem)) < 1.2 * numbers


@pytest.mark.parametrize("make", COPIED.values(), ids=COPIED)
def test_the_same_type_gives_the_same_bits(make: Any) -> None:
    problem = make()
    theta = problem.current()
    value, grad = problem.loss_and_grad(theta)
    same = problem.with_dtype(problem.dtype)
    assert same.evaluations == 0
    assert torch.equal(same.loss_and_grad(theta)[0], value)
    assert torch.equal(same.loss_and_grad(theta)[1], grad)


def test_another_type_gives_the_bits_of_a_problem_made_in_it() -> None:
    net = classifier(examples=400)
    net.model.float()
    for chunk_size in (None, 7):
        exact = net.problem(chunk_size=chunk_size).with_dtype(torch.float64)
        made = net.problem(chunk_size=chunk_size, dtype=torch.float64)
        theta = made.current()
        assert torch.equal(exact.loss_and_grad(theta)[1], made.loss_and_grad(theta)[1])
        assert torch.equal(exact.loss(theta), made.loss(theta))


def test_another_type_has_a_chunk_size_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {torch.float32: 5, torch.float64: 3}
    monkeypatch.setattr("isoloss.problem.measured_size", lambda network, *_: sizes[network.dtype])
    problem = classifier().problem(dtype=torch.float32)
    assert problem.chunk_size == 5
    assert problem.with_dtype(torch.float32).chunk_size == 5
    assert problem.with_dtype(torch.float64).chunk_size == 3


def test_what_is_large_is_converted_chunk_by_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = classifier().problem(dtype=torch.float32)
    theta = problem.current().double()
    kept = problem.with_dtype(torch.float64)
    monkeypatch.setattr("isoloss.data.chunks.MOST_TWICE", 0)
    converted = problem.with_dtype(torch.float64)
    assert kept._inside.chunks.kept
    assert not converted._inside.chunks.kept
    one, two = (p.loss_and_grad(theta) for p in (kept, converted))
    assert one[0].item() == pytest.approx(two[0].item(), rel=1e-14)
    torch.testing.assert_close(one[1], two[1], rtol=1e-12, atol=1e-15)


def test_threads_take_turns_on_a_problem_and_its_copies_in_other_chunks() -> None:
    problem = classifier(examples=40).problem()
    other = problem.with_chunk_size(7)
    points = [normal(problem.size, seed=k) for k in range(3)]
    expected = [problem.loss(theta).item() for theta in points]
    wrong: list[int] = []

    def evaluate(k: int) -> None:
        one = other if k else problem
        wrong.extend(k for _ in range(300) if one.loss(points[k]).item() != expected[k])

    threads = [threading.Thread(target=evaluate, args=(k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
