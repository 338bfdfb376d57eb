"""Functions of a model's outputs on given inputs, against plain torch in float64."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.problems import classifier, normal
from tests.regularizers.checks import assert_gradient_is_the_slope, value_at
from torch import Tensor, nn

import isoloss
from isoloss import Outputs, Problem, Stop
from isoloss.regularizers import get_regularizer

F64 = torch.float64
POOL = normal(9, 3, seed=5)


def spread(logits: Tensor) -> Tensor:
    """No sum over examples: the variance over them of a probability."""
    return logits.softmax(1)[:, 0].var()


def plain(model: nn.Module, function: Callable[[Any], Tensor], *inputs: Tensor) -> tuple:
    """Value and flat gradient by backward on a copy of the user's own model."""
    model = copy.deepcopy(model)
    value = function(model(*inputs))
    value.backward()
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return value.item(), torch.cat([g.flatten() for g in grads])


@pytest.mark.parametrize("size", [None, 1, 4, 9, 100])
def test_value_and_gradient_are_plain_torchs_whatever_the_chunks(size: int | None) -> None:
    net = classifier()
    expected, slope = plain(net.model, spread, POOL)
    bound = get_regularizer(Outputs(POOL, spread), net.problem(chunk_size=size))
    value, grad = bound.value_and_grad(net.problem().current())
    assert bound.name == "spread"
    assert (value.shape, value.requires_grad, grad.requires_grad) == ((), False, False)
    assert value.item() == pytest.approx(expected, rel=1e-13)
    torch.testing.assert_close(grad, slope, rtol=1e-11, atol=1e-14)
    assert_gradient_is_the_slope(Outputs(POOL, spread), net.problem(chunk_size=size))


def test_a_mask_zeroes_the_gradient_of_what_is_not_walked_over() -> None:
    net = classifier()
    free = torch.zeros(net.model[0].weight.shape, dtype=torch.bool)
    free[0] = True
    problem = net.problem(mask={"0.weight": free})
    value, slope = plain(net.model, spread, POOL)
    bound = get_regularizer(Outputs(POOL, spread), problem)
    held = torch.zeros(problem.size, dtype=torch.bool)
    held[: free.numel()] = ~free.flatten()
    found, grad = bound.value_and_grad(problem.current())
    assert found.item() == pytest.approx(value, rel=1e-13)
    torch.testing.assert_close(grad, slope.masked_fill(held, 0.0))
    assert held.sum() > 1


class Two(nn.Module):
    """Takes two inputs and gives a dict, with a buffer and a norm of running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(3, 4), nn.BatchNorm1d(4)
        self.register_buffer("shift", torch.full((4,), 0.3))

    def forward(self, x: Tensor, keep: Tensor) -> dict[str, Any]:
        hidden = self.norm(self.first(x)) * keep + self.shift
        return {"hidden": hidden, "which": hidden.argmax(1), "pair": (hidden.sum(1), None)}


@pytest.mark.parametrize("size", [None, 2])
def test_structures_go_in_and_come_out_and_buffers_count(size: int | None) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Two().double()
        model(normal(20, 3, seed=1), torch.ones(20, 4))  # running statistics
        model.eval()
    keep = (normal(9, 4, seed=2) > 0).double()

    def function(outputs: dict[str, Any]) -> Tensor:
        chosen = outputs["hidden"].gather(1, outputs["which"][:, None])
        return chosen.square().mean() * outputs["pair"][0].std()

    problem = Problem(
        model,
        lambda outputs, _: outputs["hidden"].square().sum(1),
        ((normal(5, 3, seed=3), torch.ones(5, 4)), torch.zeros(5)),
        chunk_size=size,
    )
    bound = get_regularizer(Outputs((POOL, keep), function), problem)
    value, grad = bound.value_and_grad(problem.current())
    expected, slope = plain(model, function, POOL, keep)
    assert value.item() == pytest.approx(expected, rel=1e-13)
    torch.testing.assert_close(grad, slope, rtol=1e-11, atol=1e-14)


def test_a_loss_of_model_and_batch_has_outputs_too_and_float32_is_near() -> None:
    net = classifier()
    problem = Problem(
        net.model,
        lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]),
        net.data,
        dtype=torch.float32,
    )
    bound = get_regularizer(Outputs(POOL, spread), problem)
    value, grad = bound.value_and_grad(problem.current())
    expected, slope = plain(net.model, spread, POOL)
    assert grad.dtype == torch.float32
    assert value.item() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(grad.double(), slope, rtol=1e-4, atol=1e-6)


def test_a_walk_moves_one_prediction_and_holds_the_loss() -> None:
    net = classifier()
    problem = net.problem()
    chance = Outputs(POOL[:1], lambda logits: logits.softmax(1)[0, 1], name="chance")
    ends = {}
    for sign, regularizer in ((1, chance), (-1, isoloss.maximize(chance))):
        path = isoloss.traverse(
            problem, regularizer=regularizer, stop=Stop(steps=25), progress=False
        )
        model = copy.deepcopy(net.model)
        path.load_into(model)
        ends[sign] = model(POOL[:1]).softmax(1)[0, 1].item()
        loss = nn.functional.cross_entropy(model(net.data[0]), net.data[1]).item()
        assert loss == pytest.approx(path.level, rel=1.1e-3)
        assert path.steps["regularizer"].iloc[-1] == pytest.approx(sign * ends[sign], rel=1e-9)
    start = net.model(POOL[:1]).softmax(1)[0, 1].item()
    assert ends[1] < start - 0.05
    assert ends[-1] > start + 0.05


def test_one_can_be_combined_and_pickled_and_knows_its_name() -> None:
    problem = classifier().problem()
    one = Outputs(POOL, spread)
    both = one + 0.5 * isoloss.SquaredNorm()
    expected = value_at(one, problem) + 0.5 * problem.current().square().sum().item()
    assert value_at(both, problem) == pytest.approx(expected, rel=1e-13)
    assert value_at(pickle.loads(pickle.dumps(one)), problem) == value_at(one, problem)
    assert Outputs(POOL, lambda o: o.sum()).name == "outputs"
    assert Outputs(POOL, lambda o: o.sum(), name="total").name == "total"


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda o: o.argmax(1).float().mean(), ("torch has no derivative", "argmax")),
        (lambda o: (o > 0).double().mean() + 0 * o.sum(), ("gradient is 0", "smooth")),
        (lambda o: o.round().sum(), ("gradient is 0", "round")),
        (lambda o: o.detach().sum(), ("no derivative", ".detach()")),
        (lambda o: o.sum().item(), ("must return a tensor", "float")),
        (lambda o: o.sum(1), ("shape (9,)", ".sum()")),
        (lambda o: o["logits"].sum(), ("failed on what the model gives", "correct it")),
        (lambda o: o[:, 17].sum(), ("failed on what the model gives", "17")),
        (lambda o: (o * torch.rand(1)).sum(), ("two calls at one point", "random")),
    ],
)
def test_a_function_that_cannot_be_walked_is_refused(function, words, refuses) -> None:
    for size in (None, 4):
        with refuses(*words):
            Outputs(POOL, function).bind(classifier().problem(chunk_size=size))


def test_inputs_that_are_none_are_refused(refuses) -> None:
    for given, word in ((POOL[:0], "(0, 3)"), (torch.tensor(1.0), "along the first axis"),
                        (None, "NoneType"), ([1.0, 2.0], "list"), ({}, "dict")):  # fmt: skip
        with refuses("inputs of Outputs", word):
            Outputs(given, spread)
    with refuses("function must be a function"):
        Outputs(POOL, 3.0)
    with refuses("cannot be called with (outputs)"):
        Outputs(POOL, lambda a, b: a)
    with refuses("cannot be evaluated on inputs"):
        Outputs(POOL[:, :2], spread).bind(classifier().problem())
    net = classifier()
    batches = [(x[None], torch.zeros(1)) for x in net.data[0]]
    whole = nn.Sequential(net.model, Whole())
    problem = Problem(whole, lambda o, _: o.reshape(1), batches, chunk_size=2)
    with refuses("first axis", "chunk_size of all"):
        Outputs(POOL, lambda o: o.sum()).bind(problem)


class Whole(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.square().mean()
