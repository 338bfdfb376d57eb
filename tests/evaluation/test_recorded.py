"""Gradients and trials replayed from a recording, here by a graph of the CPU's kernels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.graphs import CpuGraph
from torch import Tensor, nn

import isoloss
from isoloss import Problem, Stop, traverse
from isoloss.evaluation import recorded
from isoloss.evaluation.recorded import Replayed
from isoloss.objective import Objective
from isoloss.point import Change, Origin, Point


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[CpuGraph]:
    """Graphs on the CPU where CUDA has them, and those that were made."""
    made: list[CpuGraph] = []

    def new(_: torch.device) -> CpuGraph:
        made.append(CpuGraph())
        return made[-1]

    monkeypatch.setattr(recorded, "graph_for", new)
    monkeypatch.setattr(recorded, "WORTH_IT", torch.inf)
    monkeypatch.setattr("isoloss.evaluation.records", lambda _: True)
    monkeypatch.setattr("isoloss.objective.records", lambda _: True)
    monkeypatch.setattr("isoloss.objective.less", _less)  # the usual one fetches the share
    return made


def _less(a: Tensor, b: Tensor, over: Tensor, under: Tensor) -> Tensor:
    share = torch.where(under > 0, over / under, 0.0)
    return torch.addcmul(a, b, share.to(a.dtype), value=-1)


CPU = torch.device("cpu")


def test_a_function_is_replayed_with_the_same_bits_in_new_tensors(graphs: list[CpuGraph]) -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        return x.tanh(), x.exp().sum()

    replayed = Replayed(function, CPU)
    points = [torch.randn(5, generator=torch.Generator().manual_seed(k)) for k in range(5)]
    found = [replayed(x) for x in points]
    assert len(graphs) == 1
    assert graphs[0].replays >= 5
    assert not replayed.reason
    for x, (a, b) in zip(points, found, strict=True):  # none was overwritten by a later one
        assert torch.equal(a, x.tanh())
        assert torch.equal(b, x.exp().sum())


def test_the_first_point_twice_is_no_check_of_another(graphs: list[CpuGraph]) -> None:
    calls: list[int] = []

    def stale(x: Tensor) -> tuple[Tensor]:  # what Python computes is not computed again
        calls.append(len(calls))
        return (x * float(x[0]),)

    replayed = Replayed(stale, CPU)
    one, two = torch.tensor([2.0, 3.0]), torch.tensor([5.0, 7.0])
    assert torch.equal(replayed(one)[0], one * 2)
    assert torch.equal(replayed(one)[0], one * 2)
    assert torch.equal(replayed(two)[0], two * 5)
    assert replayed.reason


def test_python_state_that_changes_the_kernels_is_found_out(graphs: list[CpuGraph]) -> None:
    state = {"factor": 1.0}

    def function(x: Tensor) -> tuple[Tensor]:
        return (x * state["factor"],)

    replayed = Replayed(function, CPU)
    replayed(torch.ones(2))
    state["factor"] = 3.0
    assert torch.equal(replayed(torch.full((2,), 2.0))[0], torch.full((2,), 6.0))
    assert replayed.reason == "kernels change from call to call"
    state["factor"] = 4.0
    assert torch.equal(replayed(torch.ones(2))[0], torch.full((2,), 4.0))


def test_a_function_that_waits_for_its_numbers_is_left_alone(graphs: list[CpuGraph]) -> None:
    replayed = Replayed(lambda x: (x / x.sum().item(),), CPU)
    for x in (torch.ones(2), torch.full((4,), 3.0)):
        assert replayed(x)[0].sum().item() == pytest.approx(1)
    assert "waits" in replayed.reason


def test_a_recording_that_does_not_pay_is_not_kept(
    graphs: list[CpuGraph], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorded, "WORTH_IT", 0.0)
    replayed = Replayed(lambda x: (x.tanh(),), CPU)
    replayed(torch.ones(2))
    assert replayed.reason == "replaying takes as long as computing"
    assert torch.equal(replayed(torch.zeros(2))[0], torch.zeros(2))


def problem(**settings: Any) -> Problem:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 8), nn.Sigmoid(), nn.Linear(8, 3))
    inputs = torch.randn(40, 4)
    targets = inputs[:, :3].argmax(1)
    adam = torch.optim.Adam(model.parameters(), 0.05)
    for _ in range(60):
        adam.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        adam.step()
    return Problem(model, "cross_entropy", (inputs, targets), **settings)


# those with a metric of their own have another one at every point, which is not recorded
@pytest.mark.parametrize(
    ("regularizer", "recordings"), [("squared_norm", 2), ("path_norm", 2), ("l1", 1)]
)
def test_a_walk_by_recordings_is_the_walk(
    graphs: list[CpuGraph], monkeypatch: pytest.MonkeyPatch, regularizer: str, recordings: int
) -> None:
    settings = {"regularizer": regularizer, "stop": Stop(evaluations=60), "progress": False}
    path = traverse(problem(dtype=torch.float64), **settings)
    assert len(graphs) == recordings
    assert graphs[-1].replays > 20
    monkeypatch.setattr("isoloss.evaluation.records", lambda _: False)
    monkeypatch.setattr("isoloss.objective.records", lambda _: False)
    usual = traverse(problem(dtype=torch.float64), **settings)
    # sums over padded rows are rounded otherwise, which tells more with every step
    for column in ("evaluations", "loss", "regularizer", "kkt_residual", "step_length"):
        first, second = path.steps[column][:10], usual.steps[column][:10]
        assert list(first) == pytest.approx(list(second), rel=1e-6)


@pytest.mark.parametrize("regularizer", ["squared_norm", "path_norm"])
def test_a_recorded_trial_says_what_the_rows_leave_of_a_change(
    graphs: list[CpuGraph], monkeypatch: pytest.MonkeyPatch, regularizer: str
) -> None:
    trials: list[tuple[Origin, Change]] = []
    usual = Objective.trial

    def trial(self: Objective, origin: Origin, shares: Any) -> tuple[Point, Change]:
        found = usual(self, origin, shares)
        trials.append((replace(origin, rows=origin.rows.clone()), found[1]))
        return found

    monkeypatch.setattr(Objective, "trial", trial)
    one, stop = problem(dtype=torch.float64), Stop(evaluations=40)
    traverse(one, regularizer=regularizer, stop=stop, progress=False)
    assert graphs[-1].replays > 20
    for origin, change in trials:
        rows = origin.rows[: len(origin.inverse)]
        orthonormal = torch.from_numpy(origin.inverse) @ rows
        left = change.vector - orthonormal.T @ (orthonormal @ change.vector)
        for (vector, square, products), expected in zip(
            change.seen, (change.vector, left), strict=True
        ):
            close = {"rtol": 1e-6, "atol": 1e-9 * change.vector.norm().item()}
            torch.testing.assert_close(vector, expected, **close)
            assert square == pytest.approx((vector @ vector).item())
            torch.testing.assert_close(torch.from_numpy(products), rows @ vector, **close)


def test_a_check_says_whether_kernels_are_recorded(graphs: list[CpuGraph]) -> None:
    assert "| kernels | recorded |" in str(isoloss.check(problem()))

    class Waiting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) * (1.0 if x.sum().item() > 1e9 else 2.0)

    torch.manual_seed(0)
    inputs = torch.randn(20, 4)
    waiting = Problem(Waiting(), "mse", (inputs, inputs[:, :3]))
    assert "| kernels | launched one by one: " in str(isoloss.check(waiting))


def test_points_without_a_trial_are_replayed_to_the_bit(
    graphs: list[CpuGraph], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"method": isoloss.Paper(smallest_step=1e-2), "stop": Stop(steps=60)}
    one = problem()
    path = traverse(one, **settings, progress=False)
    assert len(graphs) == 2  # one of gradients, for the checks at the start
    assert graphs[-1].replays >= 60
    assert one.evaluations == path.steps["evaluations"].iloc[-1]
    monkeypatch.setattr("isoloss.objective.records", lambda _: False)
    usual = traverse(problem(), **settings, progress=False)
    assert torch.equal(path.points, usual.points)
    kept = [c for c in path.steps if c != "seconds"]
    assert path.steps[kept].equals(usual.steps[kept])


def test_to_record_counts_no_evaluation(graphs: list[CpuGraph]) -> None:
    one = problem()
    theta = one.current()
    for k in range(4):
        one.loss_and_grad(theta + k)
    assert one.evaluations == 4
    path = traverse(one, stop=Stop(evaluations=30), progress=False)
    assert graphs[-1].replays > 10
    assert one.evaluations == 4 + path.steps["evaluations"].iloc[-1]


def test_a_recorded_problem_can_be_pickled(graphs: list[CpuGraph]) -> None:
    import pickle

    one = problem()
    theta = one.current()
    for k in range(3):
        one.loss_and_grad(theta + k)
    again = pickle.loads(pickle.dumps(one))
    assert torch.equal(again.loss_and_grad(theta)[1], one.loss_and_grad(theta)[1])


def image_problem(precision: str, seed: int = 4) -> Problem:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    inputs = torch.randn(30, 1, 8, 8)
    targets = inputs[:, 0, :3].mean(2).argmax(1)
    return Problem(model, "cross_entropy", (inputs, targets), precision=precision)


def test_gradients_in_bfloat16_leave_the_loss_as_it_is() -> None:
    exact, rounded = image_problem("exact"), image_problem("bf16")
    theta = exact.current()
    loss, grad = exact.loss_and_grad(theta)
    same, near = rounded.loss_and_grad(theta)
    assert same.item() == pytest.approx(loss.item(), rel=1e-6)
    error = ((near - grad).norm() / grad.norm()).item()
    assert 1e-4 < error < 3e-2
    rough, _ = rounded.rough(theta)
    assert 1e-6 < abs(rough.item() / loss.item() - 1) < 1e-2


def test_a_check_of_rounded_gradients_says_so_and_float64_is_computed_in_full() -> None:
    rounded = image_problem("bf16")
    found = str(isoloss.check(rounded))
    assert "from that in float64, rounded to bf16 | ok |" in found
    assert rounded.with_dtype(torch.float64).precision == "exact"
    assert rounded.with_dtype(torch.float32).precision == "bf16"


def test_a_checkpoint_of_another_precision_is_refused(tmp_path: Path) -> None:
    keep = isoloss.Checkpoint(tmp_path)
    settings = {"stop": Stop(evaluations=10), "progress": False}
    traverse(image_problem("bf16"), checkpoint=keep, **settings)
    with pytest.raises(isoloss.InputError, match="precision"):
        traverse(image_problem("exact"), checkpoint=keep, **settings)


def test_a_walk_with_rounded_gradients_holds_the_level_in_float64() -> None:
    path = traverse(image_problem("bf16"), stop=Stop(evaluations=80), progress=False)
    judge = image_problem("exact").with_dtype(torch.float64)
    assert len(path.points) > 5
    for point in path.points:
        assert judge.loss(point.double()).item() == pytest.approx(path.level, rel=1.01e-3)
    assert path.steps["level_error"].abs().max() <= 1e-3
    exact = traverse(image_problem("exact"), stop=Stop(evaluations=80), progress=False)
    assert path.steps["regularizer"].iloc[-1] < 1.3 * exact.steps["regularizer"].iloc[-1]


def test_where_a_point_may_be_recorded_its_loss_is_computed_in_full() -> None:
    """To a tolerance below what bfloat16 knows of the loss."""
    problem = image_problem("bf16", seed=2)
    path = traverse(problem, rtol=1e-5, stop=Stop(evaluations=60), progress=False)
    assert len(path.points) > 3
    judge = image_problem("exact", seed=2).with_dtype(torch.float64)
    rough = [abs(problem.rough(point)[0].item() / path.level - 1) for point in path.points]
    assert max(rough) > 1e-4
    for point in path.points:
        assert judge.loss(point.double()).item() == pytest.approx(path.level, rel=1.2e-5)


@pytest.mark.parametrize(
    ("precision", "words"),
    [("tf32", ["tf32", "Ampere", "cpu", "exact"]), ("fp8", ["fp8", "exact", "bf16"])],
)
def test_a_precision_that_is_not_there_is_refused(precision: str, words: list[str]) -> None:
    with pytest.raises(isoloss.InputError) as raised:
        image_problem(precision)
    assert all(word in str(raised.value) for word in words)
