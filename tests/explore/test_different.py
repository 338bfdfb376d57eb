"""Different networks: their loss, and how they disagree, counted anew from the user's own model."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor, nn

import isoloss
from isoloss import Outcome, Problem, Stop

QUICK = {"stop": Stop(evaluations=40), "progress": False}


def classifier(outputs: int, loss: str) -> tuple[nn.Module, Problem, Tensor]:
    """A small network, its problem and a pool."""
    torch.manual_seed(0)
    inputs = torch.randn(60, 4)
    score = inputs[:, 0] + 0.8 * torch.randn(60)
    targets = (score > 0).long() + (score > 1).long() * (outputs > 2)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, outputs))
    data = (inputs, targets) if outputs > 1 else (inputs, targets[:, None].float())
    problem = Problem(model, loss, data)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        loss_of = nn.functional.cross_entropy if outputs > 1 else nn.BCEWithLogitsLoss()
        loss_of(model(inputs), data[1]).backward()
        optimizer.step()
    return model, problem, torch.randn(80, 4)


@pytest.mark.parametrize(("outputs", "loss"), [(3, "cross_entropy"), (1, "bce_with_logits")])
def test_networks_of_one_loss_label_a_pool_differently(outputs: int, loss: str) -> None:
    model, problem, pool = classifier(outputs, loss)
    level = problem.loss(problem.current()).item()
    exact = problem.with_dtype(torch.float64)
    found = isoloss.different(problem, pool, 3, **QUICK)
    labels: list[np.ndarray] = []
    for k in range(4):
        if k:
            end = found.ends[k - 1]
            assert exact.loss(end.theta.double()).item() == pytest.approx(level, rel=1.01e-3)
            assert end.loss == pytest.approx(exact.loss(end.theta.double()).item(), rel=1e-12)
            end.path.load_into(model)
        with torch.no_grad():
            given = model.double()(pool.double())
        model.float()
        assert torch.allclose(given, found.outputs[k], rtol=1e-12)
        labels.append(np.asarray(given.argmax(1) if outputs > 1 else given[:, 0] > 0))
    stacked = np.stack(labels)
    pairs = (stacked[:, None] != stacked[None]).mean(2)
    assert np.allclose(found.disagreement.to_numpy(), pairs, atol=1e-12)
    assert found.ambiguity == pytest.approx((stacked[1:] != stacked[0]).any(0).mean())
    assert found.discrepancy == pytest.approx(pairs[0].max())
    assert math.isnan(found.spread)
    assert found.table["disagreement"].to_numpy() == pytest.approx(pairs[0, 1:])
    apart = pairs + np.eye(4)
    assert found.table["nearest"].to_numpy() == pytest.approx(apart[1:].min(1))
    assert found.discrepancy > 0.1
    assert pairs[1, 2] > 0.1
    assert found.ambiguity >= found.discrepancy
    assert torch.equal(found.networks[2], found.ends[2].theta)


def test_the_farthest_linear_model_is_where_a_secular_equation_has_it() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(50, 3, dtype=torch.float64)
    targets = inputs @ torch.randn(3, 1, dtype=torch.float64) + 0.5 * torch.randn(50, 1)
    pool = torch.randn(30, 3, dtype=torch.float64)
    model = nn.Linear(3, 1, bias=False).double()
    problem = Problem(model, "mse", (inputs, targets))
    level = problem.loss(problem.current()).item()
    found = isoloss.different(
        problem, pool, 1, rtol=1e-9, gain=0, stop=Stop(kkt_residual=1e-7), progress=False
    )
    # w = best + L u with |u| = 1; maximize (u - u0)' M (u - u0)
    x, y, p = inputs.numpy(), targets.numpy(), pool.numpy()
    best = np.linalg.lstsq(x, y, rcond=None)[0][:, 0]
    reach = level - np.mean((x @ best - y[:, 0]) ** 2)
    root = math.sqrt(reach) * np.linalg.inv(np.linalg.cholesky(x.T @ x / 50)).T
    start = problem.current().numpy()
    u0 = np.linalg.solve(root, start - best)
    M = root.T @ p.T @ p @ root / 30
    top = np.linalg.eigvalsh(M)[-1]

    def longer(shift: float) -> float:
        return float(np.linalg.norm(np.linalg.solve(M - shift * np.eye(3), M @ u0))) - 1

    shift = scipy.optimize.brentq(longer, top * (1 + 1e-9), top * 1e3)
    u = np.linalg.solve(M - shift * np.eye(3), M @ u0)
    wanted = (u - u0) @ M @ (u - u0)
    assert found.ends[0].outcome is Outcome.CONVERGED
    assert found.disagreement.loc["given", "1"] ** 2 == pytest.approx(wanted, rel=1e-6)
    assert found.kind == "values"
    assert math.isnan(found.ambiguity)
    expected = (found.outputs[0] - found.outputs[1]).abs().mean().item()
    assert found.spread == pytest.approx(expected)
    several = isoloss.different(problem, pool, 3, **QUICK)
    assert several.table["nearest"].min() > 0.1 * several.disagreement.to_numpy().max()


def test_what_cannot_be_compared_is_refused(refuses) -> None:
    _, problem, pool = classifier(3, "cross_entropy")
    ask = isoloss.different
    with refuses("pool", "one at least", "(0, 4)"):
        ask(problem, pool[:0])
    with refuses("count", "at least 1", "0"):
        ask(problem, pool, 0)
    with refuses("unknown kind", "labels"):
        ask(problem, pool, kind="labels")
    with refuses("gain"):
        ask(problem, pool, gain=2)
    torch.manual_seed(0)
    model = nn.Linear(4, 2)

    def own(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).abs().sum(1)

    other = Problem(model, own, (torch.randn(9, 4), torch.randn(9, 2)))
    with refuses("metric", "kind="):
        ask(other, pool)
    found = ask(other, pool, 1, kind="values", stop=Stop(evaluations=20), progress=False)
    assert found.spread > 0
    assert "spread" in repr(found)


def test_the_given_network_is_the_one_passed_where_the_level_moves_the_start() -> None:
    model, problem, pool = classifier(3, "cross_entropy")
    given = problem.current()
    level = 1.5 * problem.loss(given).item()
    held = {"norm": isoloss.at_most("squared_norm", 0.5 * given.square().sum().item())}
    found = isoloss.different(problem, pool, 2, start=given, level=level, hold=held, **QUICK)
    start = found.ends[0].path.points[0]
    assert not torch.allclose(start, given, rtol=1e-2)
    labels: list[np.ndarray] = []
    for theta in (given, *(end.theta for end in found.ends)):
        nn.utils.vector_to_parameters(theta, model.parameters())
        with torch.no_grad():
            labels.append(model(pool).argmax(1).numpy())
    differ = np.stack(labels[1:]) != labels[0]
    assert found.ambiguity == pytest.approx(differ.any(0).mean())
    assert found.discrepancy == pytest.approx(differ.mean(1).max())
    assert found.disagreement["given"].to_numpy()[1:] == pytest.approx(differ.mean(1))
    # what the walks make small is the mean probability of the given network's labels
    nn.utils.vector_to_parameters(found.ends[0].theta, model.parameters())
    with torch.no_grad():
        chances = model(pool).softmax(1).numpy()[np.arange(len(pool)), labels[0]]
    assert found.ends[0].value == pytest.approx(chances.mean(), rel=1e-5)


def test_intervals_of_log_odds_find_every_label_that_can_be_changed() -> None:
    torch.manual_seed(2)
    inputs = torch.randn(40, 2, dtype=torch.float64)
    targets = (inputs @ torch.tensor([[1.0], [-0.5]]).double() + torch.randn(40, 1) > 0).double()
    pool = torch.randn(200, 2, dtype=torch.float64)
    problem = Problem(nn.Linear(2, 1, bias=False).double(), "bce_with_logits", (inputs, targets))
    x, y, p = inputs.numpy(), targets.numpy()[:, 0], pool.numpy()

    def loss(w: np.ndarray) -> float:
        return float(np.mean(np.logaddexp(0, x @ w) - y * (x @ w)))

    best = scipy.optimize.minimize(loss, np.zeros(2), method="BFGS").x
    level = 1.2 * loss(best)
    curve = []  # the whole level set
    for angle in np.linspace(0, 2 * np.pi, 720, endpoint=False):
        u = np.array([np.cos(angle), np.sin(angle)])
        excess = lambda r, u=u: loss(best + r * u) - level  # noqa: E731
        curve.append(best + scipy.optimize.brentq(excess, 0, 50) * u)
    given = p @ best > 0
    differ = (p @ np.array(curve).T > 0) != given[:, None]
    start = torch.from_numpy(best)
    logits = {str(k): isoloss.Outputs(pool[k : k + 1], lambda o: o.sum()) for k in range(20)}
    found = isoloss.extent(
        problem, logits, start=start, level=level, workers=1, progress=False
    ).table
    changed = np.where(given[:20], found["low"] < 0, found["high"] > 0)
    assert changed.tolist() == differ[:20].any(1).tolist()
    assert 3 < changed.sum() < 17
    # what `different` makes small is another quantity, least where confidence is
    several = isoloss.different(problem, pool, 3, start=start, level=level, progress=False)
    chance = 1 / (1 + np.exp(-np.where(given, 1, -1)[:, None] * (p @ np.array(curve).T)))
    assert several.ends[0].value == pytest.approx(chance.mean(0).min(), rel=1e-3)
    assert several.discrepancy < 0.9 * differ.mean(0).max()
    assert several.ambiguity < 0.9 * differ.any(1).mean()
