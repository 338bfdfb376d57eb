"""Every regularizer by name: closed forms, slopes, walks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.problems import Net, classifier, normal, regressor, snapshot, vector_problem
from tests.regularizers.checks import assert_gradient_is_the_slope, grad_at, value_at
from torch import Tensor, nn

import isoloss
from isoloss import (
    L1,
    GroupLasso,
    HessianTrace,
    NuclearNorm,
    PathNorm,
    Problem,
    SquaredNorm,
    Stop,
    traverse,
)
from isoloss.regularizers import REGULARIZERS, get_regularizer

F64 = torch.float64


@pytest.mark.parametrize("name", sorted(REGULARIZERS))
@pytest.mark.parametrize("make", [classifier, regressor])
def test_the_gradient_is_the_slope_and_new_and_of_thetas_type(name: str, make: Callable) -> None:
    net = make()
    before = snapshot(net.model)
    assert_gradient_is_the_slope(name, net.problem())
    problem = net.problem(dtype=torch.float32)
    theta = problem.current()
    bound = get_regularizer(name, problem)
    value, grad = bound.value_and_grad(theta)
    assert bound.name == name
    assert (value.shape, grad.dtype) == ((), torch.float32)
    assert not value.requires_grad
    assert not grad.requires_grad
    assert math.isfinite(value.item())
    assert torch.isfinite(grad).all()
    grad.zero_()
    assert torch.equal(theta, problem.current())
    assert snapshot(net.model) == before


# ---------------------------------------------------------------- closed forms


@pytest.mark.parametrize("smoothing", [1e-6, 1e-2, 1.0])
def test_l1_is_the_smoothed_sum_of_absolute_values(smoothing: float) -> None:
    theta = normal(9, seed=1)
    problem = vector_problem(lambda t: t.dot(t), theta)
    t = theta.numpy()
    expected = (np.sqrt(t**2 + smoothing**2) - smoothing).sum()
    assert value_at(L1(smoothing=smoothing), problem) == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(
        grad_at(L1(smoothing=smoothing), problem), t / np.sqrt(t**2 + smoothing**2), rtol=1e-12
    )
    zero = torch.zeros(9, dtype=F64)
    value, grad = L1(smoothing=smoothing).bind(problem).value_and_grad(zero)
    assert (value.item(), grad.tolist()) == (0, [0] * 9)


def test_group_lasso_and_nuclear_norm_are_those_of_the_matrices_and_kernels() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Flatten(), nn.Linear(12, 2)).double()
    problem = Problem(model, "mse", (normal(2, 2, 3, 3, seed=0), normal(2, 2, seed=1)))
    # a group is the kernel of an output channel, or the weights into a unit
    kernel, dense = (model[k].weight.detach().flatten(1).numpy() for k in (0, 2))
    groups = [
        math.sqrt(len(row)) * (math.hypot(np.linalg.norm(row), 1e-2) - 1e-2)
        for row in (*kernel, *dense)
    ]
    assert value_at("group_lasso", problem) == pytest.approx(sum(groups), rel=1e-12)
    expected = sum(np.linalg.norm(W, "nuc") for W in (kernel, dense))
    assert value_at(NuclearNorm(smoothing=1e-9), problem) == pytest.approx(expected, rel=1e-7)
    model[0].weight.requires_grad_(False)
    frozen = Problem(model, "mse", (normal(2, 2, 3, 3, seed=0), normal(2, 2, seed=1)))
    expected = np.linalg.norm(dense, "nuc")
    assert value_at(NuclearNorm(smoothing=1e-9), frozen) == pytest.approx(expected, rel=1e-7)


def test_nuclear_norm_is_smooth_at_equal_and_at_vanishing_singular_values() -> None:
    model = nn.Linear(3, 3, bias=False).double()
    model.weight.data = torch.diag(torch.tensor([2.0, 2.0, 0.0], dtype=F64))
    problem = Problem(model, "mse", (normal(2, 3, seed=0), normal(2, 3, seed=1)))
    assert_gradient_is_the_slope("nuclear_norm", problem)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_nuclear_norm_of_what_is_not_finite_is_not_finite(value: float) -> None:
    problem = classifier().problem()
    theta = problem.current()
    theta[0] = value
    assert math.isnan(value_at("nuclear_norm", problem, theta))


def test_path_norm_is_the_sum_over_all_paths() -> None:
    net = classifier(sizes=(2, 3, 2, 2))
    layers = [m for m in net.model if isinstance(m, nn.Linear)]
    W = [layer.weight.detach().numpy() for layer in layers]
    b = [layer.bias.detach().numpy() for layer in layers]
    total = 0.0
    for i, j, k, m in itertools.product(range(2), range(3), range(2), range(2)):
        total += (W[0][j, i] * W[1][k, j] * W[2][m, k]) ** 2
    for j, k, m in itertools.product(range(3), range(2), range(2)):
        total += (b[0][j] * W[1][k, j] * W[2][m, k]) ** 2
    for k, m in itertools.product(range(2), range(2)):
        total += (b[1][k] * W[2][m, k]) ** 2
    total += (b[2] ** 2).sum()
    assert value_at("path_norm", net.problem()) == pytest.approx(math.sqrt(total), rel=1e-12)
    net.model[0].weight.requires_grad_(False)  # it counts
    assert value_at("path_norm", net.problem()) == pytest.approx(math.sqrt(total), rel=1e-12)
    act = nn.Tanh()
    shared = nn.Sequential(*(act if isinstance(m, nn.Tanh) else m for m in net.model))
    problem = Problem(shared, "cross_entropy", net.data)
    assert value_at("path_norm", problem) == pytest.approx(math.sqrt(total), rel=1e-12)


def test_path_norm_of_convolutions_and_pools_is_that_of_their_dense_matrices() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 2), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 2, bias=False)
    ).double()
    model[0].bias.data.zero_()
    dense = []
    for layer, shape in ((model[0], (1, 1, 5, 5)), (model[2], (1, 2, 4, 4))):
        matrix = torch.autograd.functional.jacobian(layer, torch.zeros(shape, dtype=F64))
        dense.append(matrix.reshape(-1, math.prod(shape)).detach())
    dense.append(model[4].weight.detach())
    squared = dense[2].square() @ dense[1].square() @ dense[0].square()
    problem = Problem(model, "mse", (normal(2, 1, 5, 5, seed=0), normal(2, 2, seed=1)))
    expected = math.sqrt(squared.sum().item())
    assert value_at("path_norm", problem) == pytest.approx(expected, rel=1e-12)


@given(scale=st.floats(0.1, 10))
def test_path_norm_does_not_change_when_a_relu_unit_is_rescaled(scale: float) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    data = (normal(5, 3, seed=0), normal(5, 2, seed=1))
    before = value_at("path_norm", Problem(model, "mse", data))
    with torch.no_grad():
        model[0].weight[1] *= scale
        model[0].bias[1] *= scale
        model[2].weight[:, 1] /= scale
    assert value_at("path_norm", Problem(model, "mse", data)) == pytest.approx(before, rel=1e-10)


class Branched(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(x)


@pytest.mark.parametrize(
    ("model", "word"),
    [
        (Branched(), "Branched"),
        (nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)), "LayerNorm"),
        (nn.Sequential(nn.Linear(3, 3), nn.AvgPool1d(3, padding=1, stride=1)), "AvgPool1d"),
    ],
    ids=["branches", "norm layer", "padded pool"],
)
def test_path_norm_refuses_what_has_no_paths(model: nn.Module, word: str, refuses) -> None:
    problem = Problem(model, "mse", (torch.zeros(2, 3), torch.zeros(2, 3)))
    with refuses("path_norm", word, "use squared_norm"):
        PathNorm().bind(problem)


def test_a_function_of_a_vector_has_neither_paths_nor_matrices(refuses) -> None:
    problem = vector_problem(lambda t: t.dot(t), torch.ones(3))
    with refuses("path_norm", "nn.Sequential"):
        PathNorm().bind(problem)
    for name in ("group_lasso", "nuclear_norm"):
        with refuses(name, "theta", "use l1 or squared_norm"):
            value_at(name, problem)


BAD = [
    *((one, {"smoothing": s}) for one in (L1, GroupLasso, NuclearNorm) for s in (0.0, math.nan)),
    *((HessianTrace, bad) for bad in ({"probes": 0}, {"seed": -1}, {"exact": True})),
]


@pytest.mark.parametrize(("kind", "settings"), BAD)
def test_bad_settings_are_refused(kind: type, settings: dict, refuses) -> None:
    with refuses(next(iter(settings)), kind.__name__):
        kind(**settings)


# ---------------------------------------------------------------- squared norm


def vector(*values: float, dtype: torch.dtype = F64) -> Problem:
    return vector_problem(lambda theta: theta.dot(theta), torch.tensor(values, dtype=dtype))


def test_squared_norm_is_the_sum_of_squares_of_the_parameters_that_count() -> None:
    net = classifier()
    problem, theta = net.problem(), net.theta
    for settings, name, weights in (
        ({}, "squared_norm", [1.0] * 44),
        (
            {"without_biases": True},
            "squared_norm_weights",
            [1.0] * 15 + [0] * 5 + [1] * 20 + [0] * 4,
        ),
        ({"weights": {"0.*": 3.0}}, "squared_norm", [3.0] * 20 + [1.0] * 24),
    ):
        regularizer, weight = SquaredNorm(**settings), torch.tensor(weights, dtype=F64)
        assert regularizer.name == name
        expected = (weight * theta.square()).sum().item()
        assert value_at(regularizer, problem) == pytest.approx(expected, rel=1e-14)
        torch.testing.assert_close(grad_at(regularizer, problem), 2 * weight * theta)


def test_the_name_of_a_module_makes_no_bias() -> None:
    model = nn.ModuleDict({"unbiased": nn.LSTM(3, 2)})
    parameters = dict(model.named_parameters())
    problem = Problem(
        lambda p, x: x, lambda o, t: o, (torch.zeros(1), torch.zeros(1)), parameters=parameters
    )
    expected = sum(p.square().sum().item() for p in parameters.values() if p.ndim == 2)
    assert value_at(SquaredNorm(without_biases=True), problem) == pytest.approx(expected, rel=1e-6)


def test_weights_go_by_the_first_pattern_that_matches() -> None:
    net = classifier()
    first, bias, *others = (p.square().sum().item() for p in net.model.parameters())
    weights = {"0.weight": 3.0, "0.*": 0.0}
    value = value_at(SquaredNorm(weights=weights), net.problem())
    assert value == pytest.approx(3 * first + 0 * bias + sum(others), rel=1e-14)


def test_center_makes_it_the_squared_distance() -> None:
    problem = vector(1, 2, 3)
    center = torch.ones(3, dtype=F64)
    regularizer = SquaredNorm(center=center)
    assert regularizer.name == "squared_distance"
    assert value_at(regularizer, problem) == 5.0
    assert grad_at(regularizer, problem).tolist() == [0.0, 2.0, 4.0]
    bound = get_regularizer(regularizer, problem)
    center.zero_()  # the user's tensor is not kept
    assert value_at(bound, problem) == 5.0


BAD_NORMS = {
    "pattern": ({"weights": {"1.wieght": 2.0}}, ["'1.wieght'", "did you mean"]),
    "negative weight": ({"weights": {"0.weight": -1.0}}, ["-1.0", "greater than or equal to 0"]),
    "setting": ({"without_bias": True}, ["'without_bias'", "did you mean without_biases"]),
    "nothing left": ({"weights": {"*": 0.0}}, ["no parameter is left"]),
    "center shape": ({"center": torch.ones(2)}, ["center", "(2,)", "44 finite"]),
    "center NaN": ({"center": torch.full((44,), math.nan)}, ["center", "44 finite"]),
    "center type": ({"center": [1.0] * 1000}, ["center of", "Tensor"]),
}


@pytest.mark.parametrize(("settings", "words"), BAD_NORMS.values(), ids=BAD_NORMS)
def test_a_squared_norm_that_cannot_be_is_refused(
    settings: dict, words: list[str], refuses
) -> None:
    with refuses(*words):
        SquaredNorm(**settings).bind(classifier().problem())


# ---------------------------------------------------------------- walks


def separated() -> Net:
    """A network that tells its own classes apart, so that it needs its weights."""
    net = classifier(sizes=(4, 6, 3), examples=40)
    with torch.no_grad():
        net.model[2].weight.mul_(4)
        targets = net.model(net.data[0]).argmax(1)
    return Net(net.model, net.loss, (net.data[0], targets), net.sizes)


# what an evaluation counts where R is made of derivatives: 4 for each of 51 probe vectors, ...
COUNTED = {
    "hessian_trace": 1 + 4 * 51,
    "input_gradient": 1 + 2 * 3,
    "gradient_norm": 1,
    "adaptive_sharpness": 5,
}


@pytest.mark.parametrize(
    "name",
    [
        *sorted(set(REGULARIZERS) - {"squared_norm", "hessian_trace", "adaptive_sharpness"}),
        pytest.param("hessian_trace", marks=pytest.mark.slow),
        pytest.param("adaptive_sharpness", marks=pytest.mark.slow),
    ],
)
def test_sqp_walks_to_a_smaller_value_on_the_level_set(name: str) -> None:
    net = separated()
    problem = net.problem()
    path = traverse(
        problem,
        regularizer=name,
        stop=Stop(kkt_residual=3e-2, evaluations=250 * COUNTED.get(name, 1)),
    )
    assert path.regularizer == name
    assert path.outcome.success, path.message
    # 0 is their bound, at no end
    if name not in {"gradient_norm", "input_gradient", "adaptive_sharpness"}:
        assert path.outcome is isoloss.Outcome.CONVERGED, path.message
    values = [value_at(name, problem, theta) for theta in path.points]
    np.testing.assert_allclose(values[-1], path.steps["regularizer"].iloc[-1], rtol=1e-12)
    assert values[-1] < 0.9 * values[0]
    for theta in path.points:
        loss, _ = net.loss_and_grad(theta.numpy())
        assert abs(loss / path.level - 1) <= 1.001e-3
