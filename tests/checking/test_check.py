"""`isoloss.check` passes what is right and fails what is not, naming it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tests.models import kinds
from tests.problems import F64, classifier, normal
from torch import Tensor, nn

import isoloss
from isoloss import Problem
from isoloss.checking.check import activation_bytes, data_bytes


def found(checked: isoloss.Check, what: str) -> tuple[str, str]:
    (row,) = [row for row in checked.findings if row.what.startswith(what)]
    return row.found, row.status


# ---------------------------------------------------------------- what passes


@pytest.mark.parametrize("name", list(kinds()))
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_problems_of_all_kinds_pass(name: str, dtype: torch.dtype) -> None:
    kind = kinds()[name]
    checked = isoloss.check(Problem(kind.model, kind.loss, kind.data, dtype=dtype))
    assert checked.passed, checked
    assert float(found(checked, "Hessian")[0].split()[0]) < 1e-5
    assert {row.status for row in checked.findings} == {"ok", ""}


def test_the_table_is_markdown_and_holds_the_versions() -> None:
    lines = str(isoloss.check(classifier().problem())).splitlines()
    assert all(line.startswith("| ") and line.endswith(" |") for line in lines)
    assert {line.count(" | ") for line in lines} == {2}
    text = "\n".join(lines)
    for word in (torch.__version__, isoloss.__version__, "44 parameters", "12 examples", "float64"):
        assert word in text


def test_batch_norms_that_are_walked_are_named_with_what_becomes_of_them() -> None:
    norms = nn.BatchNorm1d(6), nn.BatchNorm1d(6, affine=False)
    model = nn.Sequential(nn.Linear(3, 6), norms[0], nn.Tanh(), norms[1], nn.Linear(6, 2)).eval()
    data = normal(9, 3, seed=0), torch.arange(9) % 2
    checked = isoloss.check(Problem(model, "cross_entropy", data, dtype=F64))
    assert "6 scales, which a walk to a small R may take to 0" in found(checked, "batch norm")[0]
    other = isoloss.check(Problem(model, "cross_entropy", data, dtype=F64), "gradient_norm")
    norms[0].requires_grad_(False)
    frozen = isoloss.check(Problem(model, "cross_entropy", data, dtype=F64))
    assert not [row for one in (other, frozen) for row in one.findings if row.what == "batch norm"]


# ---------------------------------------------------------------- what fails


class Twice(torch.autograd.Function):
    """The identity with a gradient twice too large."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * grad


class Wrong(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).tanh()
        if self.how == "backward":
            hidden = Twice.apply(hidden)
        if self.how == "detach":
            return nn.functional.linear(hidden, self.second.weight, self.second.bias.detach())
        return self.second(hidden)


@pytest.mark.parametrize(
    ("how", "wrong"),
    [("backward", ["first.weight", "first.bias"]), ("detach", ["second.bias"])],
)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_wrong_gradient_fails_and_is_placed(
    how: str, wrong: list[str], dtype: torch.dtype
) -> None:
    data = (normal(20, 3, seed=1), torch.arange(20) % 2)
    checked = isoloss.check(Problem(Wrong(how), loss="cross_entropy", data=data, dtype=dtype))
    text, status = found(checked, "gradient of L")
    assert not checked.passed
    assert status == "FAILED"
    assert f"wrong in {', '.join(wrong)};" in text


def test_a_random_loss_fails_with_its_cause() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 2))
    checked = isoloss.check(
        Problem(model, loss="cross_entropy", data=(torch.ones(4, 3), torch.tensor([0, 1, 1, 0])))
    )
    text, status = found(checked, "L is a function")
    assert status == "FAILED"
    assert "1 (Dropout)" in text
    assert "speed" in [row.what for row in checked.findings]


class Tired(nn.Module):
    """It refuses to be called more than so often, whatever copies there are of it."""

    calls = 0

    def __init__(self, most: int) -> None:
        super().__init__()
        self.layer, self.most = nn.Linear(3, 1), most

    def forward(self, x: Tensor) -> Tensor:
        Tired.calls += 1
        if Tired.calls > self.most:
            raise ValueError("tired of it")
        return self.layer(x).tanh()


@pytest.mark.parametrize("below_the_reason", [True, False])
def test_a_model_that_fails_after_some_calls_says_so_in_place_of_its_costs(
    below_the_reason: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = normal(9, 3, seed=1), normal(9, 1, seed=2)
    monkeypatch.setattr(Tired, "calls", 0)
    isoloss.check(Problem(Tired(10_000), "mse", data))
    needed = Tired.calls
    monkeypatch.setattr(Tired, "calls", 0)
    checked = isoloss.check(Problem(Tired(2 if below_the_reason else needed - 20), "mse", data))
    assert not checked.passed
    speed, memory = found(checked, "speed"), found(checked, "memory")
    assert memory == ("not measured, for the reason above", "")
    if below_the_reason:
        assert "tired of it" in found(checked, "L is a function")[0]
        assert speed == memory
    else:
        assert speed[0].startswith("not measured: the model cannot be evaluated")
        assert "tired of it" in speed[0]
        assert speed[1] == "FAILED"


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (lambda o, t: o.sum(1) * math.nan, "nan"),
        (lambda o, t: o, "one value per example"),
    ],
)
def test_a_loss_without_a_level_fails(loss: Any, words: str) -> None:
    checked = isoloss.check(
        Problem(nn.Linear(3, 2), loss, (torch.ones(4, 3), torch.zeros(4).long()))
    )
    text, status = found(checked, "training loss L")
    assert status == "FAILED"
    assert words in text


def test_a_loss_that_is_not_positive_is_right_where_its_tolerance_is_absolute() -> None:
    data = (torch.ones(4, 3), torch.zeros(4).long())
    checked = isoloss.check(Problem(nn.Linear(3, 2), lambda o, t: o.square().sum(1) - 1e3, data))
    assert checked.passed
    assert "atol" in found(checked, "training loss L")[0]
    assert "atol" in found(checked, "noise of L")[0]


@dataclass
class Own:
    value: Any
    grad: Any
    name: str = "own"

    def value_and_grad(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        return self.value(theta), self.grad(theta)


@pytest.mark.parametrize(
    ("own", "row", "words"),
    [
        (Own(lambda t: t.dot(t), lambda t: 3 * t), "gradient of R", "not the gradient"),
        (Own(lambda t: t, lambda t: t), "regularizer R", "got (44,) and (44,)"),
        (
            Own(lambda t: t.dot(t), lambda t: 2 * t[:5]),
            "regularizer R",
            "shape (44,), got () and (5,)",
        ),
        (Own(lambda t: t.dot(t) * math.nan, lambda t: t), "regularizer R", "finite"),
    ],
)
def test_a_wrong_regularizer_fails(own: Own, row: str, words: str) -> None:
    checked = isoloss.check(classifier().problem(), own)
    text, status = found(checked, row)
    assert status == "FAILED"
    assert words in text


@pytest.mark.parametrize(
    "regularizer", ["squared_norm", "l1", "group_lasso", "nuclear_norm", "gradient_norm"]
)
def test_the_projects_own_regularizers_pass(regularizer: str) -> None:
    net = classifier()
    before = net.theta
    checked = isoloss.check(net.problem(dtype=torch.float32), regularizer)
    assert checked.passed, checked
    assert torch.equal(net.theta, before)


# ---------------------------------------------------------------- noise and cost


def test_noise_above_the_usual_tolerance_fails() -> None:
    # outputs of size 1e6 that cancel leave few digits in float32
    far = 1e6 * torch.ones(4, 1)
    problem = Problem(
        lambda p, x: (x + p["w"]) - x, "mse", (far, torch.zeros(4, 1)),
        parameters={"w": torch.tensor([0.7])},
    )  # fmt: skip
    text, status = found(isoloss.check(problem), "noise")
    assert status == "FAILED"
    assert "float64" in text


def test_a_model_with_float32_tensors_of_its_own_is_checked_in_float32() -> None:
    own = torch.eye(3)
    problem = Problem(
        lambda p, x: x @ own @ p["w"], "cross_entropy",
        (normal(20, 3, seed=1).float(), torch.arange(20) % 2),
        parameters={"w": normal(3, 2, seed=2).float()},
    )  # fmt: skip
    checked = isoloss.check(problem)
    assert checked.passed, checked
    assert "1e-02" in found(checked, "gradient of L")[0]


def test_memory_counts_what_autograd_keeps() -> None:
    model = nn.Sequential(nn.Linear(3, 50), nn.Tanh(), nn.Linear(50, 2)).double()
    problem = Problem(model, "mse", (normal(100, 3, seed=0), normal(100, 2, seed=1)))
    problem.loss(problem.current())
    assert activation_bytes(problem) == 100 * 50 * 8  # tanh's output serves both layers
    assert data_bytes(problem) == 100 * 5 * 8


def test_a_regularizer_that_computes_in_float32_alone_is_compared_in_it() -> None:
    net = classifier()
    weights = torch.ones(5, 3)
    checked = isoloss.check(
        net.problem(dtype=torch.float32), lambda p: torch.trace(p["0.weight"] @ weights.T)
    )
    assert found(checked, "gradient of R")[1] == "ok"
    assert "1e-02" in found(checked, "gradient of R")[0]
