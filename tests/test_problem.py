"""The training loss is a deterministic function of one flat vector, and the module stays as is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.problems import NETS, Net, classifier, normal, regressor, snapshot, vector_problem
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import DataLoader, TensorDataset

from isoloss import InputError, Problem
from isoloss.checking import check_function
from isoloss.losses import cross_entropy

DTYPES = (torch.float32, torch.float64)
ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-12}


def close(actual: Tensor, expected: Tensor, relative: float) -> bool:
    return (actual - expected).norm() <= relative * expected.norm()


# ---------------------------------------------------------------- value and gradient


@pytest.mark.parametrize("net", NETS.values(), ids=NETS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_loss_and_grad_are_those_of_plain_autograd(net: Any, dtype: torch.dtype) -> None:
    case: Net = net()
    problem = case.problem(dtype=dtype)
    model = case.model.to(dtype)
    inputs, targets = case.data
    outputs = model(inputs.to(dtype))
    if case.loss == "mse":
        expected = nn.functional.mse_loss(outputs, targets.to(dtype))
    else:
        expected = nn.functional.cross_entropy(outputs, targets)
    expected.backward()
    grad = torch.cat([p.grad.reshape(-1) for p in model.parameters()])
    theta = problem.current()
    value, actual = problem.loss_and_grad(theta)
    assert value.item() == pytest.approx(expected.item(), rel=ROUNDING[dtype])
    assert close(actual, grad, ROUNDING[dtype])
    assert problem.loss(theta).item() == pytest.approx(expected.item(), rel=ROUNDING[dtype])


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


@pytest.mark.parametrize("net", NETS.values(), ids=NETS)
def test_grad_is_the_central_difference_of_loss(net: Any) -> None:
    problem = net().problem()
    theta = problem.current()
    h = 1e-5 * torch.eye(problem.size, dtype=torch.float64)
    rows = [(problem.loss(theta + e) - problem.loss(theta - e)) / 2e-5 for e in h]
    assert close(problem.loss_and_grad(theta)[1], torch.stack(rows), 1e-8)


def test_loss_is_a_float64_scalar_and_grad_has_the_problems_type() -> None:
    problem = classifier().problem(dtype=torch.float32)
    value, grad = problem.loss_and_grad(problem.current())
    assert (value.dtype, value.shape) == (torch.float64, ())
    assert (grad.dtype, grad.shape) == (torch.float32, (44,))
    assert problem.loss(problem.current()).dtype == torch.float64
    assert not value.requires_grad
    assert not grad.requires_grad


def test_loss_is_summed_in_float64_over_many_float32_examples() -> None:
    n = 200_000
    data = (torch.zeros(n), torch.zeros(n))
    problem = Problem(
        lambda p, x: p["w"] + x, lambda o, t: o, data, parameters={"w": torch.tensor([0.1])}
    )
    tenth = torch.tensor(0.1).double().item()
    assert problem.loss(problem.current()).item() == pytest.approx(tenth, rel=1e-12)
    assert problem.loss_and_grad(problem.current())[0].item() == pytest.approx(tenth, rel=1e-12)


def test_results_are_new_tensors() -> None:
    problem = classifier().problem()
    theta = problem.current()
    value, grad = problem.loss_and_grad(theta)
    kept = value.clone(), grad.clone()
    problem.loss_and_grad(theta + 1)
    assert torch.equal(value, kept[0])
    assert torch.equal(grad, kept[1])


def test_theta_is_not_changed_nor_kept() -> None:
    problem = classifier().problem()
    theta = problem.current()
    before = theta.clone()
    value = problem.loss(theta)
    problem.loss_and_grad(theta)
    assert torch.equal(theta, before)
    theta.zero_()
    assert torch.equal(problem.loss(before), value)


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


def test_current_is_the_models_parameters_in_named_order() -> None:
    net = classifier()
    expected = torch.cat([p.detach().reshape(-1) for _, p in net.model.named_parameters()])
    assert torch.equal(net.problem().current(), expected)
    assert list(net.problem().shapes) == [name for name, _ in net.model.named_parameters()]


def test_current_follows_the_model_and_is_a_copy() -> None:
    net = classifier()
    problem = net.problem()
    problem.current().zero_()
    with torch.no_grad():
        net.model[0].bias.fill_(7.0)
    assert problem.current()[15:20].tolist() == [7.0] * 5


def test_frozen_parameters_are_no_part_of_theta_but_act() -> None:
    net = classifier()
    whole = net.problem()
    _, full = whole.loss_and_grad(net.theta)
    net.model[0].requires_grad_(False)
    part = net.problem()
    value, grad = part.loss_and_grad(net.theta[20:])
    assert part.size == 24
    assert value == whole.loss(net.theta)
    torch.testing.assert_close(grad, full[20:])


def test_a_tied_parameter_has_the_gradient_of_both_uses() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Tanh(), nn.Linear(2, 2, bias=False))
    model[2].weight = model[0].weight
    problem = Problem(model, "mse", (torch.ones(1, 2), torch.zeros(1, 2)), dtype=torch.float64)
    theta, h = normal(4, seed=0), 1e-5 * torch.eye(4, dtype=torch.float64)
    slopes = [(problem.loss(theta + e) - problem.loss(theta - e)) / 2e-5 for e in h]
    assert problem.size == 4
    assert close(problem.loss_and_grad(theta)[1], torch.stack(slopes), 1e-8)


def test_a_float32_model_can_be_evaluated_in_float64() -> None:
    net = classifier()
    exact = net.problem()
    net.model.float()
    problem = net.problem(dtype=torch.float64)
    theta = net.theta.double()
    assert problem.dtype == problem.current().dtype == torch.float64
    value, grad = problem.loss_and_grad(theta)
    assert value.item() == pytest.approx(exact.loss(theta).item(), rel=1e-14)
    assert grad.dtype == torch.float64
    assert next(net.model.parameters()).dtype == torch.float32


def test_the_type_is_that_of_the_parameters_when_none_is_given() -> None:
    data = (torch.ones(2, 3), torch.ones(2, 1))
    assert Problem(nn.Linear(3, 1), "mse", data).dtype == torch.float32
    assert Problem(nn.Linear(3, 1).double(), "mse", data).dtype == torch.float64


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


def test_pieces_from_a_generator_are_read_once_and_kept() -> None:
    net = classifier()
    pieces = ((x[None], y[None]) for x, y in zip(*net.data, strict=True))
    problem = Problem(net.model, net.loss, pieces)
    first = problem.loss(net.theta)
    assert problem.examples == 12
    assert torch.equal(problem.loss(net.theta), first)


def test_a_data_loader_is_an_iterable_of_pairs() -> None:
    net = regressor()
    loader = DataLoader(TensorDataset(*net.data), batch_size=4)
    problem = Problem(net.model, net.loss, loader)
    expected = net.problem().loss(net.theta).item()
    assert problem.loss(net.theta).item() == pytest.approx(expected, rel=1e-14)


def test_a_whole_evaluation_of_pieces_counts_once() -> None:
    net = classifier()
    inputs, targets = net.data
    problem = Problem(net.model, net.loss, [(inputs[:5], targets[:5]), (inputs[5:], targets[5:])])
    problem.loss_and_grad(net.theta)
    assert problem.evaluations == 1


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


def test_evaluate_gives_mean_loss_and_the_losss_own_metric() -> None:
    net = classifier()
    outputs = net.model(net.data[0])
    loss, metric = net.problem().evaluate(net.theta)
    right = (outputs.argmax(1) == net.data[1]).double().mean().item()
    assert loss == pytest.approx(net.loss_and_grad(net.theta.numpy())[0], rel=1e-12)
    assert metric == pytest.approx(right, rel=1e-15)


def test_a_metric_function_gives_one_value_per_example() -> None:
    net = regressor()
    problem = net.problem(metric=lambda outputs, targets: (outputs - targets).abs().amax(1))
    expected = (net.model(net.data[0]) - net.data[1]).abs().amax(1).mean().item()
    assert problem.evaluate(net.theta)[1] == pytest.approx(expected, rel=1e-14)


def test_a_loss_function_has_no_metric() -> None:
    theta = torch.ones(2)
    loss, metric = vector_problem(lambda t: t.dot(t), theta).evaluate(theta)
    assert loss == 2.0
    assert math.isnan(metric)


def test_the_metric_of_mse_is_mse() -> None:
    net = regressor()
    loss, metric = net.problem().evaluate(net.theta)
    assert metric == loss


# ---------------------------------------------------------------- the user's model


def _noisy_model() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    model(torch.randn(5, 3)).sum().backward()
    model[3].bias.requires_grad_(False)
    return model.train()


PAIR = (torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 2)


def test_the_model_and_the_random_state_are_left_as_they_were() -> None:
    model = _noisy_model().eval()
    before = snapshot(model)
    problem = Problem(model, loss="cross_entropy", data=PAIR, dtype=torch.float64)
    check_function(problem, problem.current())
    problem.loss_and_grad(torch.zeros(problem.size, dtype=torch.float64))
    problem.evaluate(problem.current() + 1)
    assert snapshot(model) == before


def test_the_model_and_the_random_state_survive_a_refusal(refuses) -> None:
    model = _noisy_model()
    before = snapshot(model)
    problem = Problem(model, loss="cross_entropy", data=PAIR)
    with refuses("not a function"):
        check_function(problem, problem.current())
    assert snapshot(model) == before


def test_the_model_survives_an_exception_in_the_loss() -> None:
    def broken(outputs: Tensor, targets: Tensor) -> Tensor:
        raise RuntimeError("broken")

    model = _noisy_model().eval()
    before = snapshot(model)
    problem = Problem(model, broken, PAIR)
    with pytest.raises(RuntimeError, match="broken"):
        problem.loss_and_grad(problem.current())
    assert snapshot(model) == before


def test_later_changes_of_the_model_do_not_change_the_problem() -> None:
    net = classifier()
    problem, theta = net.problem(), net.theta
    before = problem.loss(theta)
    with torch.no_grad():
        for parameter in net.model.parameters():
            parameter.zero_()
    assert torch.equal(problem.loss(theta), before)


def test_the_same_in_another_type_does_not_follow_later_changes_of_the_model() -> None:
    net = classifier()
    net.model[0].requires_grad_(False)
    problem = net.problem(dtype=torch.float32)
    theta = problem.current()
    with torch.no_grad():
        net.model[0].weight.zero_()
    exact = problem.with_dtype(torch.float64).loss(theta.double()).item()
    assert exact == pytest.approx(problem.loss(theta).item(), rel=1e-5)


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


def test_the_same_problem_in_another_type_has_its_loss_and_metric() -> None:
    net = regressor()
    problem = net.problem(dtype=torch.float32, metric=lambda o, t: (o - t).abs().amax(1))
    exact = problem.with_dtype(torch.float64)
    theta = problem.current().double()
    assert exact.dtype == torch.float64
    assert exact.loss(theta).item() == pytest.approx(net.loss_and_grad(theta.numpy())[0], rel=1e-12)
    assert exact.evaluate(theta)[1] == pytest.approx(problem.evaluate(theta.float())[1], rel=1e-5)


# ---------------------------------------------------------------- what is no function of theta


def test_active_dropout_is_refused_by_name(refuses) -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 2)).train()
    problem = Problem(model, loss="cross_entropy", data=PAIR)
    with refuses("not a function of the parameters", "1 (Dropout)", "model.eval()"):
        check_function(problem, problem.current())


def test_dropout_in_eval_mode_is_taken() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 2)).eval()
    problem = Problem(model, loss="cross_entropy", data=PAIR)
    check_function(problem, problem.current())


def test_batch_statistics_are_refused_by_name(refuses) -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)).train()
    with refuses("1 (BatchNorm1d)", "model.eval()"):
        problem = Problem(model, loss="cross_entropy", data=PAIR)
        check_function(problem, problem.current())


def test_batch_norm_in_eval_mode_is_taken() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)).eval()
    problem = Problem(model, loss="cross_entropy", data=PAIR)
    check_function(problem, problem.current())


def test_the_mode_that_counts_is_the_one_the_model_had_when_the_problem_was_made(refuses) -> None:
    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))

    evaluating, training = model().eval(), model().train()
    fixed, averaging = (
        Problem(evaluating, loss="cross_entropy", data=PAIR),
        Problem(training, loss="cross_entropy", data=PAIR),
    )
    evaluating.train()
    training.eval()
    check_function(fixed, fixed.current())
    with refuses("1 (BatchNorm1d)"):
        check_function(averaging, averaging.current())


def test_a_random_function_is_refused(refuses) -> None:
    problem = vector_problem(lambda t: t.dot(t) + torch.rand(()), torch.ones(3))
    with refuses("not a function of the parameters"):
        check_function(problem, problem.current())


def test_an_undefined_loss_is_not_called_random() -> None:
    problem = vector_problem(lambda t: t.dot(t) * math.nan, torch.ones(3))
    check_function(problem, problem.current())


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
    "numpy targets": ({"data": (X, Y.numpy())}, ["pair of tensors"]),
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
        ["'w'", "list", "tensors"],
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
    "no targets": ({"data": [(X, None)]}, ["pair of tensors", "NoneType"]),
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
        {"model": (lambda m: (setattr(m, "kept", m(X)), m)[1])(nn.Linear(3, 2))},
        ["cannot be copied", "earlier computations"],
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


@pytest.mark.parametrize("how", ["loss", "loss_and_grad", "evaluate"])
def test_a_loss_that_averages_is_refused(refuses, how: str) -> None:
    problem = Problem(linear(), nn.CrossEntropyLoss(), PAIR)
    with refuses("shape ()", "6 examples", "reduction='none'"):
        getattr(problem, how)(problem.current())


def test_a_metric_that_averages_is_refused(refuses) -> None:
    problem = Problem(
        linear(),
        loss="cross_entropy",
        data=PAIR,
        metric=lambda outputs, y: (outputs.argmax(1) == y).double().mean(),
    )
    with refuses("metric", "shape ()", "6 examples"):
        problem.evaluate(problem.current())


def test_a_loss_per_output_is_refused(refuses) -> None:
    problem = Problem(linear(), lambda outputs, targets: outputs, PAIR)
    with refuses("(6, 2)", "(6,)"):
        problem.loss(problem.current())


@pytest.mark.parametrize("how", ["loss", "loss_and_grad", "evaluate"])
@pytest.mark.parametrize("kind", [torch.int64, torch.uint8, torch.bool])
def test_integer_inputs_where_floats_are_needed_are_refused(
    refuses, how: str, kind: torch.dtype
) -> None:
    problem = Problem(linear(), loss="cross_entropy", data=(X.to(kind), Y))
    with refuses("inputs", str(kind), "torch.float32", ".float()"):
        getattr(problem, how)(problem.current())


def test_integer_images_are_refused(refuses) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten())
    problem = Problem(
        model, loss="cross_entropy", data=(torch.ones(4, 1, 3, 3).byte(), torch.zeros(4).long())
    )
    with refuses("torch.uint8", ".float()"):
        problem.loss(problem.current())


def test_floats_where_indices_are_needed_are_refused(refuses) -> None:
    problem = Problem(nn.Embedding(3, 2), loss="cross_entropy", data=(torch.zeros(6), Y))
    with refuses("torch.float32", ".long()"):
        problem.loss(problem.current())


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (X[:, :2], ["inputs of shape (6, 2)", "shapes cannot be multiplied"]),
        ((X, X), ["inputs[1] of shape (6, 3)", "positional arguments", "tuple"]),
        ({"image": X}, ["inputs['image'] of shape (6, 3)", "unexpected keyword", "dict"]),
    ],
    ids=["width", "arguments", "keyword"],
)
def test_inputs_that_the_model_does_not_take_are_refused(
    refuses, inputs: object, words: list[str]
) -> None:
    problem = Problem(linear(), loss="cross_entropy", data=(inputs, Y))
    with refuses("the model cannot be evaluated on", *words):
        problem.loss(problem.current())


@pytest.mark.parametrize(
    ("model", "inputs", "words"),
    [
        (nn.BatchNorm2d(3).eval(), X, ["(6, 3)", "expected 4D input"]),  # a ValueError
        (nn.Embedding(3, 2), torch.arange(6), ["(6,)", "out of range"]),  # an IndexError
    ],
)
def test_inputs_that_torch_refuses_otherwise_are_refused_too(
    refuses, model: nn.Module, inputs: Tensor, words: list[str]
) -> None:
    problem = Problem(model, loss="cross_entropy", data=(inputs, Y))
    with refuses("the model cannot be evaluated on inputs of shape", *words):
        problem.loss(problem.current())


def test_the_model_s_own_error_is_kept() -> None:
    class Broken(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise KeyError("cache")

    problem = Problem(Broken(3, 2), loss="cross_entropy", data=(X, Y))
    with pytest.raises(InputError, match="'cache'") as caught:
        problem.loss(problem.current())
    assert isinstance(caught.value.__cause__, KeyError)


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
        (lambda: torch.empty(2**50), RuntimeError),  # more than there is: the allocator itself
        (lambda: raised(torch.OutOfMemoryError("CUDA out of memory")), torch.OutOfMemoryError),
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


@pytest.mark.parametrize(
    "error",
    [RuntimeError("the memory of the attention has 3 keys"), KeyError("memory"), KeyError("type")],
    ids=str,
)
def test_a_word_in_the_model_s_own_error_changes_nothing(refuses, error: Exception) -> None:
    problem = Problem(Raising(lambda: raised(error)), loss="cross_entropy", data=(X, Y))
    with refuses("cannot be evaluated on inputs of shape (6, 3)", str(error)):
        problem.loss(problem.current())


def test_a_loss_that_is_cut_off_from_the_parameters_is_refused(refuses) -> None:
    problem = Problem(linear(), lambda outputs, y: outputs.detach().sum(1), PAIR)
    with refuses("does not depend on the parameters", "detach"):
        problem.loss_and_grad(problem.current())


def test_a_loss_that_gives_no_tensor_is_refused(refuses) -> None:
    problem = Problem(linear(), lambda outputs, y: [1.0] * 6, PAIR)
    with refuses("a list", "6 examples"):
        problem.loss(problem.current())


def test_flat_targets_for_a_column_of_outputs_are_refused(refuses) -> None:
    problem = Problem(nn.Linear(3, 1), "mse", (X, torch.zeros(6)))
    with refuses("mse", "(6, 1)", "(6,)"):
        problem.loss(problem.current())


def test_a_per_example_loss_of_torch_is_taken() -> None:
    own = Problem(linear().double(), nn.CrossEntropyLoss(reduction="none"), PAIR)
    theta = normal(own.size, seed=0)
    expected = cross_entropy(X.double() @ theta[:6].view(2, 3).T + theta[6:], Y).mean()
    assert own.loss(theta).item() == pytest.approx(expected.item(), rel=1e-14)


# ---------------------------------------------------------------- chunks


def images(count: int) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten())
    model.append(nn.Linear(3 * 3 * 3, 4))
    return model.double(), torch.randn(count, 2, 8, 8).double(), torch.arange(count) % 4


@pytest.mark.parametrize("chunk_size", [None, 1, 7, 50, 120, 1000])
def test_images_in_chunks_give_the_loss_and_gradient_of_plain_torch(chunk_size) -> None:
    model, x, y = images(120)
    problem = Problem(model, loss="cross_entropy", data=(x, y), chunk_size=chunk_size)
    loss, grad = problem.loss_and_grad(problem.current())
    plain = nn.functional.cross_entropy(model(x), y)
    wanted = torch.cat([g.flatten() for g in torch.autograd.grad(plain, list(model.parameters()))])
    torch.testing.assert_close(loss, plain.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(grad, wanted, rtol=1e-9, atol=1e-12)
    assert problem.loss(problem.current()).item() == pytest.approx(plain.item(), rel=1e-12)
    assert problem.examples == 120


def test_a_chunk_size_that_holds_nothing_is_refused(refuses) -> None:
    model, x, y = images(8)
    with refuses("chunk_size", str(0), "at least 1"):
        Problem(model, loss="cross_entropy", data=(x, y), chunk_size=0)
