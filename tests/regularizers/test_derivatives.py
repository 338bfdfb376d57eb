"""Regularizers made of derivatives of the loss or of the model, against plain torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.models import Aligned
from tests.problems import classifier, normal, vector_problem
from tests.regularizers.checks import assert_gradient_is_the_slope, grad_at, value_at
from torch import Tensor, nn
from torch.func import functional_call

from isoloss import HessianTrace, InputGradient, Problem
from isoloss.regularizers import get_regularizer

F64 = torch.float64


def whole_hessian(problem: Problem, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    names, shapes = list(problem.shapes), list(problem.shapes.values())

    def loss(theta: Tensor) -> Tensor:
        pieces = theta.split([int(np.prod(shape)) for shape in shapes])
        held = {n: p.view(s) for n, p, s in zip(names, pieces, shapes, strict=True)}
        return nn.functional.cross_entropy(functional_call(model, held, (inputs,)), targets)

    return torch.autograd.functional.hessian(loss, problem.current())


def test_derivatives_are_the_same_while_torch_looks_for_anomalies() -> None:
    problem = classifier().problem()
    alone = [value_at(name, problem) for name in ("hessian_trace", "gradient_norm")]
    with torch.autograd.set_detect_anomaly(True):
        assert [value_at(name, problem) for name in ("hessian_trace", "gradient_norm")] == alone


def test_hessian_trace_is_the_trace_of_the_hessian() -> None:
    net = classifier()
    problem = net.problem()
    expected = whole_hessian(problem, net.model, *net.data).trace().item()
    assert value_at("hessian_trace", problem) == pytest.approx(expected, rel=1e-10)
    many = classifier(sizes=(3, 30, 4)).problem()  # is estimated
    assert value_at("hessian_trace", many) == value_at(HessianTrace(probes=10), many)
    scales = torch.tensor([1.0, 2.0, 5.0], dtype=F64)
    diagonal = vector_problem(lambda t: (scales * t.square()).sum(), torch.ones(3, dtype=F64))
    assert value_at(HessianTrace(probes=3), diagonal) == pytest.approx(16, rel=1e-12)
    assert grad_at(HessianTrace(probes=3), diagonal).tolist() == [0, 0, 0]


def test_hutchinsons_estimate_is_the_mean_over_its_vectors() -> None:
    net = classifier()
    problem = net.problem()
    hessian = whole_hessian(problem, net.model, *net.data)
    values = [value_at(HessianTrace(probes=1, seed=seed), problem) for seed in range(60)]
    spread = torch.tensor(values).std().item()
    off_diagonal = hessian - hessian.diag().diag()
    # of vectors of 1 and -1 the variance is twice the sum of squares off the diagonal
    assert spread == pytest.approx((2 * off_diagonal.square().sum()).sqrt().item(), rel=0.25)
    mean = sum(values) / len(values)
    assert abs(mean - hessian.trace().item()) < 4 * spread / len(values) ** 0.5


@pytest.mark.parametrize("probes", [1, 30])
def test_hutchinsons_estimate_is_a_fixed_function_with_the_right_slope(probes: int) -> None:
    problem = classifier().problem()
    regularizer = HessianTrace(probes=probes, seed=3)
    assert value_at(regularizer, problem) == value_at(regularizer, problem)
    assert value_at(regularizer, problem) != value_at(HessianTrace(probes=probes), problem)
    assert_gradient_is_the_slope(regularizer, problem)


def test_parameters_without_second_derivatives_count_as_flat() -> None:
    class Idle(nn.Module):
        def __init__(self, used: nn.Module) -> None:
            super().__init__()
            self.used, self.idle = used, nn.Parameter(torch.ones((), dtype=F64))

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    net = classifier(sizes=(3, 2, 2))
    with_idle = Problem(Idle(net.model), "cross_entropy", net.data)
    assert value_at("hessian_trace", with_idle) == pytest.approx(
        value_at("hessian_trace", net.problem()), rel=1e-12
    )
    assert grad_at("hessian_trace", with_idle)[0] == 0
    problem = Problem(net.model, lambda outputs, targets: outputs.sum(1) + 10, net.data)
    assert_gradient_is_the_slope("hessian_trace", problem)  # the last bias is linear in the loss


def test_gradient_norm_is_that_of_the_gradient_by_hand() -> None:
    net = classifier()
    _, gradient = net.loss_and_grad(net.theta.numpy())
    expected = float(gradient @ gradient)
    assert value_at("gradient_norm", net.problem()) == pytest.approx(expected, rel=1e-12)


def test_input_gradient_is_the_mean_squared_jacobian_of_each_example() -> None:
    net = classifier()
    jacobians = [
        torch.autograd.functional.jacobian(net.model, x[None])[0, :, 0] for x in net.data[0]
    ]
    expected = torch.stack([j.square().sum() for j in jacobians]).mean().item()
    assert value_at("input_gradient", net.problem()) == pytest.approx(expected, rel=1e-12)


def instances() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 2, 1), nn.InstanceNorm1d(2, affine=True), nn.Flatten(), nn.Linear(6, 2)
    )


NAMES = ["hessian_trace", "gradient_norm", "input_gradient"]


@pytest.mark.parametrize("name", NAMES)
def test_chunks_and_example_weights_do_not_matter_but_for_what_they_mean(name: str) -> None:
    net = classifier()
    whole = net.problem()
    assert value_at(name, net.problem(chunk_size=5)) == pytest.approx(
        value_at(name, whole), rel=1e-12
    )
    twice = torch.ones(12)
    twice[3] = 2.0
    inputs, targets = net.data
    repeated = (torch.cat([inputs, inputs[3:4]]), torch.cat([targets, targets[3:4]]))
    weighted = Problem(net.model, net.loss, net.data, weights=twice)
    assert value_at(name, weighted) == pytest.approx(
        value_at(name, Problem(net.model, net.loss, repeated)), rel=1e-12
    )


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(2, 3, batch_first=True)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class Attentive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm = nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.attention(x, x, x, need_weights=False)[0]).mean(1)


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)
    ).eval()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (Recurrent, (6, 3, 2)),
        (Attentive, (6, 3, 4)),
        (convolutional, (6, 1, 3, 3)),
        (instances, (6, 2, 3)),
    ],
    ids=["lstm", "attention and layer norm", "convolution and batch norm", "instance norm"],
)
def test_models_of_many_kinds_have_them(name: str, make, shape: tuple[int, ...]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().double()
    targets = torch.tensor([0, 1] * 3)
    problem = Problem(model, "cross_entropy", (normal(*shape, seed=4), targets))
    bound = get_regularizer(name, problem)
    theta, step = problem.current(), 1e-5 * normal(problem.size, seed=8)
    _, grad = bound.value_and_grad(theta)
    rise = bound.value_and_grad(theta + step)[0] - bound.value_and_grad(theta - step)[0]
    assert rise.item() == pytest.approx(2 * (grad @ step).item(), rel=1e-5)


@pytest.mark.parametrize("name", NAMES[:2])
def test_an_operation_without_higher_derivatives_is_named(name: str, refuses) -> None:
    problem = Problem(Aligned(), "mse", (normal(5, 3, seed=0).float(), torch.zeros(5, 1)))
    with refuses("ctc_loss", "write that operation out"):
        value_at(name, problem)


def test_integer_inputs_and_several_outputs_have_no_input_gradient(refuses) -> None:
    model = nn.Sequential(nn.Embedding(5, 3), nn.Flatten())
    problem = Problem(model, "mse", (torch.zeros(4, 1, dtype=torch.long), torch.zeros(4, 3)))
    with refuses("input_gradient", "integers"):
        InputGradient().bind(problem)
    several = Problem(
        lambda p, x: (x @ p["w"], x),
        lambda outputs, targets: (outputs[0] - targets).square().mean(1),
        (torch.zeros(4, 3), torch.zeros(4, 2)),
        parameters={"w": torch.ones(3, 2)},
    )
    with refuses("input_gradient", "one tensor"):
        value_at("input_gradient", several)
