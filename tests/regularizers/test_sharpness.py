"""Adaptive sharpness against its definition in plain torch, and its invariance."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.problems import Net, classifier, vector_problem
from tests.regularizers.checks import assert_gradient_is_the_slope, grad_at, value_at
from torch import Tensor, nn

from isoloss import AdaptiveSharpness, Problem

F64 = torch.float64
KINDS = ["worst", "average"]


def loss_at(net: Net, changes: list[Tensor]) -> float:
    """The loss of a copy of the model with each parameter changed."""
    model = copy.deepcopy(net.model)
    with torch.no_grad():
        for parameter, change in zip(model.parameters(), changes, strict=True):
            parameter += change
    return nn.functional.cross_entropy(model(net.data[0]), net.data[1]).item()


def test_worst_is_the_rise_of_the_loss_after_one_adaptive_step_uphill() -> None:
    net = classifier()
    model = copy.deepcopy(net.model)
    nn.functional.cross_entropy(model(net.data[0]), net.data[1]).backward()
    pairs = [(p.detach(), p.grad) for p in model.parameters()]
    steepness = sum((p * g).square().sum() for p, g in pairs).sqrt()
    for radius in (0.02, 0.5):
        changes = [radius * p.square() * g / steepness for p, g in pairs]
        relative = sum((c / p).square().sum() for c, (p, _) in zip(changes, pairs, strict=True))
        assert relative.sqrt().item() == pytest.approx(radius)
        expected = loss_at(net, changes) - loss_at(net, [0 * c for c in changes])
        found = value_at(AdaptiveSharpness(radius=radius), net.problem())
        assert found == pytest.approx(expected, rel=1e-11)


def test_average_is_near_half_the_trace_of_the_scaled_hessian() -> None:
    scales = torch.tensor([1.0, 2.0, 5.0], dtype=F64)
    theta = torch.tensor([1.0, -2.0, 0.5], dtype=F64)
    problem = vector_problem(lambda t: (scales * t.square()).sum(), theta)
    many = AdaptiveSharpness(kind="average", radius=0.1, probes=4000)
    expected = 0.01 * (scales * theta.square()).sum().item()  # exact for quadratics
    assert value_at(many, problem) == pytest.approx(expected, rel=0.05)
    one = AdaptiveSharpness(kind="average", radius=0.3, probes=1, seed=2)
    v = torch.randn(1, 3, generator=torch.Generator().manual_seed(2), dtype=F64)[0]
    square = 0.09 * (scales * (v * theta).square()).sum().item()
    assert value_at(one, problem) == pytest.approx(square, rel=1e-12)
    torch.testing.assert_close(grad_at(one, problem), 0.18 * scales * v.square() * theta)


def test_the_worst_of_a_quadratic_in_closed_form() -> None:
    problem = vector_problem(lambda t: t.square().sum(), torch.tensor([3.0], dtype=F64))
    # one weight: theta + radius theta, so ((1 + radius)^2 - 1) theta^2
    assert value_at(AdaptiveSharpness(radius=0.5), problem) == pytest.approx(1.25 * 9, rel=1e-14)
    assert grad_at(AdaptiveSharpness(radius=0.5), problem).item() == pytest.approx(1.25 * 6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("radius", [0.05, 1.0])
def test_the_gradient_is_the_slope(kind: str, radius: float) -> None:
    sharpness = AdaptiveSharpness(kind=kind, radius=radius, probes=2)
    assert_gradient_is_the_slope(sharpness, classifier().problem())


@pytest.mark.parametrize("kind", KINDS)
def test_rescaling_a_relu_unit_changes_neither_value_nor_scaled_gradient(kind: str) -> None:
    net = classifier()
    model = nn.Sequential(net.model[0], nn.ReLU(), net.model[2])
    sharpness = AdaptiveSharpness(kind=kind, radius=0.5)
    before = Problem(model, "cross_entropy", net.data)
    value, grad, theta = value_at(sharpness, before), grad_at(sharpness, before), before.current()
    trace = value_at("hessian_trace", before)
    with torch.no_grad():
        for unit, scale in ((0, 7.0), (2, 0.1)):
            model[0].weight[unit] *= scale
            model[0].bias[unit] *= scale
            model[2].weight[:, unit] /= scale
    after = Problem(model, "cross_entropy", net.data)
    assert value > 0
    assert value_at(sharpness, after) == pytest.approx(value, rel=1e-10)
    assert not torch.allclose(after.current(), theta)
    torch.testing.assert_close(grad_at(sharpness, after) * after.current(), grad * theta)
    assert abs(value_at("hessian_trace", after) / trace - 1) > 0.1  # which has no such invariance


@pytest.mark.parametrize("kind", KINDS)
def test_entries_that_are_held_do_not_move(kind: str) -> None:
    net = classifier()
    free = {name: torch.zeros(s, dtype=torch.bool) for name, s in net.problem().shapes.items()}
    free["2.bias"][:] = True
    problem = net.problem(mask=free)
    sharpness = AdaptiveSharpness(kind=kind, radius=0.3, probes=2)
    grad = grad_at(sharpness, problem)
    assert grad[:-4].count_nonzero() == 0
    tied = net.model[:2](net.data[0]).detach() @ net.model[2].weight.detach().T
    last = Problem(
        lambda p, x: x + p["bias"], "cross_entropy", (tied, net.data[1]),
        parameters={"bias": net.model[2].bias.detach()},
    )  # fmt: skip
    if kind == "worst":  # the other draws its vectors for all entries
        assert value_at(sharpness, problem) == pytest.approx(value_at(sharpness, last), rel=1e-12)


@pytest.mark.parametrize(("kind", "count"), [("worst", 4), ("average", 7)])
def test_what_it_costs_is_counted(kind: str, count: int) -> None:
    problem = classifier().problem()
    value_at(AdaptiveSharpness(kind=kind, probes=3), problem)
    assert problem.evaluations == count


def test_where_the_loss_is_flat_the_worst_is_nothing() -> None:
    problem = vector_problem(lambda t: t.square().sum() + 1, torch.zeros(3, dtype=F64))
    assert value_at(AdaptiveSharpness(), problem) == 0
    assert grad_at(AdaptiveSharpness(), problem).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "mean"}, ("mean", "worst", "average")),
        ({"radius": 0.0}, ("radius", "greater than 0")),
        ({"probes": 0}, ("probes", "1")),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict, words, refuses) -> None:
    with refuses(*words):
        AdaptiveSharpness(**settings)
