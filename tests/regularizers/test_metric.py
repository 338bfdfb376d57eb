"""The metrics of norms with kinks, against matrices written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.problems import Net, classifier, normal
from torch import Tensor, nn

from isoloss import L1, GroupLasso, NuclearNorm, Problem, SquaredNorm, Stop, traverse
from isoloss.flat import Layout
from isoloss.methods.sqp.basis import Basis
from isoloss.methods.sqp.model import Model, Slopes
from isoloss.objective import Objective
from isoloss.regularizers import get_regularizer
from isoloss.regularizers.metric import Metric, diagonal
from isoloss.regularizers.regularizer import metric_of

F64 = torch.float64
LAYOUT = Layout({"w": (30,)})
SMOOTHED = [L1(smoothing=0.05), GroupLasso(smoothing=0.05), NuclearNorm(smoothing=0.05)]


def measured(regularizer: Any, problem: Problem) -> tuple[Metric, Tensor, Tensor]:
    """The metric, P^-1 written out, and the gradient."""
    bound = get_regularizer(regularizer, problem)
    theta = problem.current()
    metric = metric_of(bound, theta)
    assert metric is not None
    return metric, metric.solve(torch.eye(len(theta), dtype=F64)), bound.value_and_grad(theta)[1]


@pytest.mark.parametrize(
    "regularizer", [*SMOOTHED, L1() + 0.3 * SquaredNorm(), 2.0 * NuclearNorm()]
)
def test_its_product_with_theta_is_the_gradient_and_it_is_positive(regularizer: Any) -> None:
    problem = classifier(sizes=(3, 5, 7)).problem()
    metric, inverse, grad = measured(regularizer, problem)
    assert torch.linalg.eigvalsh(inverse)[0] > 0
    torch.testing.assert_close(inverse, inverse.T)
    counts = grad != 0  # biases have no share in some
    torch.testing.assert_close(metric.solve(grad)[counts], problem.current()[counts])


@pytest.mark.parametrize("regularizer", SMOOTHED[:2])
def test_its_quadratic_touches_from_above(regularizer: Any) -> None:
    problem = classifier().problem()
    _, inverse, grad = measured(regularizer, problem)
    bound, theta = get_regularizer(regularizer, problem), problem.current()
    for size in (0.01, 0.3, 3.0):
        for step in size * normal(20, problem.size, seed=3):
            above = grad @ step + 0.5 * step @ torch.linalg.solve(inverse, step)
            rise = bound.value_and_grad(theta + step)[0] - bound.value_and_grad(theta)[0]
            assert rise <= above + 1e-12


def test_the_nuclear_norms_is_diagonal_in_the_singular_vectors() -> None:
    model = nn.Linear(4, 3, bias=False).double()
    matrix = normal(3, 4, seed=1)
    with torch.no_grad():
        model.weight.copy_(matrix)
    problem = Problem(model, "mse", (normal(5, 4, seed=2), torch.zeros(5, 3, dtype=F64)))
    metric, _, _ = measured(NuclearNorm(smoothing=0.1), problem)
    left, values, right = torch.linalg.svd(matrix)
    sizes = (torch.cat([values, torch.zeros(1)]).square() + 0.01).sqrt()
    for i in range(3):
        for j in range(4):
            pair = torch.outer(left[:, i], right[j]).flatten()
            expected = 0.5 * (sizes[i] + sizes[j]) * pair
            torch.testing.assert_close(metric.solve(pair), expected)


def test_sums_have_one_where_it_is_simple_and_what_is_maximized_has_none() -> None:
    problem = classifier().problem()
    theta = problem.current()

    def of(regularizer: Any) -> Metric | None:
        return metric_of(get_regularizer(regularizer, problem), theta)

    assert of("path_norm") is None
    assert of(-L1()) is None
    assert of(L1() - 0.1 * SquaredNorm()) is None
    assert of(NuclearNorm() + L1()) is None
    assert of(L1() + GroupLasso()) is not None


def test_a_mask_that_a_matrix_would_mix_leaves_no_metric() -> None:
    net = classifier()
    free = torch.ones(net.model[0].weight.shape, dtype=torch.bool)
    free[0, 0] = False
    masked = net.problem(mask={"0.weight": free})
    assert Objective(masked, NuclearNorm()).metric(masked.current()) is None
    assert Objective(net.problem(), NuclearNorm()).metric(net.theta) is not None
    path = traverse(masked, regularizer="l1", stop=Stop(steps=20), progress=False)
    moved = path.points[-1] - masked.current()
    assert moved[0] == 0
    assert moved[1:].abs().min() > 0


@pytest.mark.parametrize("regularizer", SMOOTHED)
def test_the_end_of_a_walk_is_stationary_in_plain_torch(regularizer: Any) -> None:
    net: Net = classifier(sizes=(4, 6, 3), examples=40)
    with torch.no_grad():
        net.model[2].weight.mul_(4)
    targets = net.model(net.data[0]).argmax(1)
    problem = Problem(net.model, "cross_entropy", (net.data[0], targets))
    path = traverse(problem, regularizer=regularizer, stop=Stop(kkt_residual=1e-4, evaluations=400))
    assert path.outcome.value == "converged", path.message
    path.load_into(net.model)
    net.model.zero_grad()
    nn.functional.cross_entropy(net.model(net.data[0]), targets).backward()
    g = torch.cat([p.grad.flatten() for p in net.model.parameters()])
    theta = torch.cat([p.detach().flatten() for p in net.model.parameters()])
    r = get_regularizer(regularizer, problem).value_and_grad(theta)[1]
    assert (r - (r @ g) / (g @ g) * g).norm() < 2e-4 * r.norm()


def test_a_basis_in_another_metric_holds_the_same_vectors() -> None:
    one, other = (diagonal({"w": normal(30, seed=k).square() + 0.1}, LAYOUT) for k in (1, 2))
    basis = Basis.empty(8, normal(30, seed=0), one)
    known = []
    for vector in normal(5, 30, seed=3):
        coordinates, basis = basis.coordinates(vector)
        known.append((vector, np.pad(coordinates, (0, 5 - len(coordinates)))))
    found = basis.measured(other)
    assert found is not None
    turned, lower = found
    for vector, before in known:
        assert before @ before == pytest.approx((vector @ one.solve(vector)).item(), rel=1e-10)
        after = lower.T @ before
        assert after @ after == pytest.approx((vector @ other.solve(vector)).item(), rel=1e-10)
        torch.testing.assert_close(turned.combine(after), vector)
    bend = normal(5, 5, seed=7).numpy()
    slopes = Slopes(known[0][1], known[1][1])
    model = Model(basis, bend + bend.T, np.eye(5), 1.0)
    after, at = model.measured(other, slopes)
    before, now = (torch.stack([q.basis.combine(e) for e in np.eye(5)]) for q in (model, after))
    for old, new in (
        (model.bend, after.bend),
        (slopes.r[None], at.r[None]),
        (slopes.a[None], at.a[None]),
    ):
        wide = [torch.from_numpy(m) @ q for m, q in ((old, before), (new, now))]
        wide = [q.T @ w if len(w) > 1 else w for q, w in zip((before, now), wide, strict=True)]
        torch.testing.assert_close(*wide)  # the same operator, the same vectors
    torch.testing.assert_close(now @ other.solve(now).T, torch.eye(5, dtype=F64))
    twins = diagonal({"w": torch.cat([torch.ones(29), torch.tensor([1e-18])])}, LAYOUT)
    same = Basis.empty(8, normal(30, seed=0), one)
    for vector in normal(5, 30, seed=3):
        _, same = same.coordinates(vector)
    assert same.measured(twins) is None  # all vectors are nearly one, measured so


def test_a_walk_in_a_metric_goes_on_from_its_checkpoint(tmp_path) -> None:
    import isoloss

    net = classifier(sizes=(4, 6, 3), examples=40)
    problem = net.problem()
    straight = traverse(problem, regularizer="nuclear_norm", stop=Stop(steps=12), progress=False)
    for steps in (6, 12):
        path = traverse(
            problem,
            regularizer="nuclear_norm",
            stop=Stop(steps=steps),
            checkpoint=isoloss.Checkpoint(tmp_path / "kept", every=0),
            progress=False,
        )
    assert torch.equal(path.points[-1], straight.points[-1])
