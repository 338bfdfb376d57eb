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
from tests.problems import Net, classifier, normal, regressor, rotation, vector_problem
from tests.regularizers.checks import assert_gradient_is_the_slope, grad_at, value_at
from torch import Tensor, nn

import isoloss
from isoloss import L1, GroupLasso, NuclearNorm, PathNorm, Problem, Stop, traverse
from isoloss.regularizers import REGULARIZERS

F64 = torch.float64


def matrices(net_model: nn.Module) -> list[np.ndarray]:
    return [p.detach().numpy() for p in net_model.parameters() if p.ndim > 1]


@pytest.mark.parametrize("name", sorted(REGULARIZERS))
@pytest.mark.parametrize("make", [classifier, regressor])
def test_the_gradient_is_the_slope(name: str, make: Callable) -> None:
    assert_gradient_is_the_slope(name, make().problem())


@pytest.mark.parametrize("name", sorted(REGULARIZERS))
def test_value_and_gradient_are_new_finite_and_of_thetas_type(name: str) -> None:
    problem = classifier().problem(dtype=torch.float32)
    bound = isoloss.regularizers.get_regularizer(name, problem)
    theta = problem.current()
    value, grad = bound.value_and_grad(theta)
    assert bound.name == name
    assert value.shape == ()
    assert grad.dtype == torch.float32
    assert not value.requires_grad
    assert not grad.requires_grad
    assert math.isfinite(value.item())
    assert torch.isfinite(grad).all()
    grad.zero_()
    assert torch.equal(theta, problem.current())


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


def test_l1_is_smooth_at_zero() -> None:
    problem = vector_problem(lambda t: (t - 1).square().sum(), torch.zeros(3, dtype=F64))
    assert value_at("l1", problem) == 0
    assert grad_at("l1", problem).tolist() == [0, 0, 0]


def test_group_lasso_sums_the_norms_of_the_weights_into_each_unit() -> None:
    net = classifier()
    expected = sum(
        math.sqrt(len(row)) * (math.hypot(np.linalg.norm(row), 1e-2) - 1e-2)
        for W in matrices(net.model)
        for row in W
    )
    assert value_at("group_lasso", net.problem()) == pytest.approx(expected, rel=1e-12)


def test_a_group_of_a_convolution_is_the_kernel_of_an_output_channel() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Flatten()).double()
    problem = Problem(model, "mse", (normal(2, 2, 3, 3, seed=0), normal(2, 12, seed=1)))
    kernel = model[0].weight.detach().numpy()
    expected = sum(math.sqrt(8) * np.linalg.norm(kernel[k]) for k in range(3))
    value = value_at(GroupLasso(smoothing=1e-9), problem)
    assert value == pytest.approx(expected, rel=1e-7)


def test_nuclear_norm_is_the_sum_of_singular_values() -> None:
    net = classifier()
    expected = sum(np.linalg.norm(W, "nuc") for W in matrices(net.model))
    value = value_at(NuclearNorm(smoothing=1e-9), net.problem())
    assert value == pytest.approx(expected, rel=1e-7)


@given(seed=st.integers(0, 2**31))
def test_nuclear_norm_does_not_change_under_rotations(seed: int) -> None:
    W = normal(4, 3, seed=seed)
    turned = rotation(4, seed + 1) @ W @ rotation(3, seed + 2)

    def norm_of(matrix: Tensor) -> float:
        model = nn.Linear(3, 4, bias=False).double()
        model.weight.data = matrix
        return value_at(
            "nuclear_norm",
            Problem(model, "mse", (torch.zeros(1, 3).double(), torch.zeros(1, 4).double())),
        )

    assert norm_of(W) == pytest.approx(norm_of(turned), rel=1e-10)


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


def test_path_norm_counts_frozen_weights() -> None:
    net = classifier()
    whole = value_at("path_norm", net.problem())
    net.model[0].weight.requires_grad_(False)
    assert value_at("path_norm", net.problem()) == pytest.approx(whole, rel=1e-12)


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


def test_path_norm_refuses_a_function(refuses) -> None:
    with refuses("path_norm", "nn.Sequential"):
        PathNorm().bind(vector_problem(lambda t: t.dot(t), torch.ones(3)))


@pytest.mark.parametrize("name", ["group_lasso", "nuclear_norm"])
def test_what_needs_matrices_says_so(name: str, refuses) -> None:
    with refuses(name, "theta", "use l1 or squared_norm"):
        value_at(name, vector_problem(lambda t: t.dot(t), torch.ones(3)))


@pytest.mark.parametrize("kind", [L1, GroupLasso, NuclearNorm])
@pytest.mark.parametrize("smoothing", [0.0, -1.0, math.nan])
def test_smoothing_is_positive(kind: type, smoothing: float, refuses) -> None:
    with refuses(f"smoothing={smoothing}", kind.__name__):
        kind(smoothing=smoothing)


# ---------------------------------------------------------------- walks


def separated() -> Net:
    """A network that tells its own classes apart, so that it needs its weights."""
    net = classifier(sizes=(4, 6, 3), examples=40)
    with torch.no_grad():
        net.model[2].weight.mul_(4)
        targets = net.model(net.data[0]).argmax(1)
    return Net(net.model, net.loss, (net.data[0], targets), net.sizes)


# what an evaluation counts where R is made of derivatives: 4 for each of 51 probe vectors, ...
COUNTED = {"hessian_trace": 1 + 4 * 51, "input_gradient": 1 + 2 * 3, "gradient_norm": 1}


@pytest.mark.parametrize("name", sorted(set(REGULARIZERS) - {"squared_norm"}))
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
    if name != "gradient_norm":  # so ill-conditioned that its end is far
        assert path.outcome is isoloss.Outcome.CONVERGED, path.message
    values = [value_at(name, problem, theta) for theta in path.points]
    np.testing.assert_allclose(values[-1], path.steps["regularizer"].iloc[-1], rtol=1e-12)
    assert values[-1] < 0.9 * values[0]
    for theta in path.points:
        loss, _ = net.loss_and_grad(theta.numpy())
        assert abs(loss / path.level - 1) <= 1.001e-3
