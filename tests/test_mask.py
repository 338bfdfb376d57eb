"""A walk over a part of a parameter: what a mask holds stays, to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.problems import F64, normal
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import prune

import isoloss
from isoloss import Checkpoint, Outcome, Problem, Stop

X, Y = normal(40, 3, seed=0).float(), torch.arange(40) % 2


def pruned() -> nn.Sequential:
    """Half of the weights of its first layer are zero, and meant to stay so."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    prune.remove(model[0], "weight")
    return model


def masked(model: nn.Module, **settings: Any) -> Problem:
    mask = {"0.weight": model[0].weight != 0}
    return Problem(model, "cross_entropy", (X, Y), mask=mask, **settings)


WALKS: dict[str, dict[str, Any]] = {
    "sqp": {"stop": Stop(steps=20)},
    "paper": {"method": "paper", "stop": Stop(steps=20)},
    "l1": {"regularizer": "l1", "stop": Stop(steps=20)},
    "nuclear_norm": {"regularizer": "nuclear_norm", "stop": Stop(steps=20)},
    "gradient_norm": {"regularizer": "gradient_norm", "stop": Stop(steps=5)},
    "another level": {"level": 0.7, "stop": Stop(steps=5)},
}


@pytest.mark.parametrize("settings", WALKS.values(), ids=WALKS)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_zeros_stay_and_the_level_is_held_in_plain_torch(
    settings: dict[str, Any], dtype: torch.dtype
) -> None:
    model = pruned()
    zero = model[0].weight == 0
    path = isoloss.traverse(masked(model, dtype=dtype), progress=False, **settings)
    assert path.steps["regularizer"].iloc[-1] < path.steps["regularizer"].iloc[0]
    model.double()
    for k in range(len(path.points)):
        path.load_into(model, k)
        assert not model[0].weight[zero].any()
        assert model[0].weight[~zero].all()
    loss = functional.cross_entropy(model(X.double()), Y).item()
    assert loss == pytest.approx(path.level, rel=1.01e-3)


def test_the_end_is_that_of_a_model_with_the_free_entries_alone() -> None:
    model = pruned()
    base = {name: p.detach().double() for name, p in model.named_parameters()}
    weight = base["0.weight"] + 0.3 * (base["0.weight"] == 0)  # held, and not zero
    free = base["0.weight"] != 0
    with torch.no_grad():
        model[0].weight.copy_(weight)

    def forward(p: Any, x: Tensor) -> Tensor:
        whole = weight.float().double().masked_scatter(free, p["free"])
        hidden = functional.linear(x, whole, p["0.bias"]).tanh()
        return functional.linear(hidden, p["2.weight"], p["2.bias"])

    parts = {name: p for name, p in base.items() if name != "0.weight"}
    alone = Problem(
        forward, "cross_entropy", (X.double(), Y), parameters={"free": weight[free], **parts}
    )
    whole = Problem(model, "cross_entropy", (X, Y), mask={"0.weight": free}, dtype=F64)
    stop = Stop(kkt_residual=1e-5)
    one, other = (isoloss.traverse(p, stop=stop, rtol=1e-7, progress=False) for p in (alone, whole))
    assert one.outcome is other.outcome is Outcome.CONVERGED
    held = weight.float().double()[~free].square().sum().item()
    expected = one.steps["regularizer"].iloc[-1] + held
    assert other.steps["regularizer"].iloc[-1] == pytest.approx(expected, rel=1e-6)
    theta, v = whole.current(), normal(whole.size, seed=2)
    assert not whole.loss_and_grad(theta)[1][8:32].view(8, 3)[~free].any()
    ahead, behind = (
        whole.loss_and_grad(theta + s * 1e-5 * whole.hvp(theta, v))[1] for s in (1, -1)
    )
    twice = whole.hvp(theta, whole.hvp(theta, v))
    torch.testing.assert_close(twice, (ahead - behind) / 2e-5, rtol=1e-6, atol=1e-9)


def test_checks_and_other_types_keep_the_mask() -> None:
    problem = masked(pruned())
    assert isoloss.check(problem).passed
    exact = problem.with_dtype(F64)
    grad = exact.loss_and_grad(exact.current())[1]
    assert int((grad == 0).sum()) == 12


def test_a_checkpoint_of_another_mask_is_refused(refuses, tmp_path) -> None:
    model, stop = pruned(), Stop(steps=2)
    isoloss.traverse(masked(model), stop=stop, checkpoint=Checkpoint(tmp_path), progress=False)
    whole = Problem(model, "cross_entropy", (X, Y))
    with refuses("another walk", "problem.held"):
        isoloss.traverse(whole, stop=stop, checkpoint=Checkpoint(tmp_path), progress=False)


FREE = torch.ones(8, 3, dtype=torch.bool)
BAD: dict[str, tuple[Any, list[str]]] = {
    "no dict": (FREE, ["dict of boolean tensors", "got a tensor of torch.bool"]),
    "a name": ({"0.weigth": FREE}, ["'0.weigth'", "did you mean 0.weight"]),
    "numbers": ({"0.weight": FREE.float()}, ["mask['0.weight']", "boolean", "torch.float32"]),
    "a shape": ({"0.weight": FREE.T}, ["of shape (8, 3)", "(3, 8)"]),
    "no tensor": ({"0.weight": True}, ["got a bool"]),
    "nothing left": (
        {"0.weight": ~FREE, "0.bias": ~FREE[:, 0], "2.weight": ~torch.ones(2, 8).bool(),
         "2.bias": ~FREE[:2, 0]},
        ["no entry to walk over"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("mask", "words"), BAD.values(), ids=BAD)
def test_masks_that_are_none_are_refused(mask: Any, words: list[str], refuses) -> None:
    with refuses(*words):
        Problem(pruned(), "cross_entropy", (X, Y), mask=mask)
