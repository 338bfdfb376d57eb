"""Problems of models of many kinds: loss, gradient and Hessian are those of plain autograd."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from tests.models import Aligned, Kind, kinds
from tests.problems import F64, normal, snapshot
from torch import Tensor, nn
from torch.utils.data import DataLoader

from isoloss import Problem
from isoloss.checking import relative_noise
from isoloss.data import map_tensors
from isoloss.problem import inside

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
    ),
]
NAMES = list(kinds())
on_all = pytest.mark.parametrize("device", DEVICES)
of_all = pytest.mark.parametrize("name", NAMES)


def plainly(kind: Kind) -> tuple[Tensor, Tensor]:
    """Mean loss and flat gradient of a kind on the CPU in float64, by plain autograd."""
    parameters = [p for p in kind.model.parameters() if p.requires_grad]
    loss = kind.plain(kind.forward(kind.model, kind.data[0]), kind.data[1])
    grads = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return loss.detach(), torch.cat([g.reshape(-1) for g in grads])


def near(actual: Tensor, expected: Tensor, relative: float) -> bool:
    return bool((actual.cpu().double() - expected).norm() <= relative * expected.norm())


@on_all
@of_all
@pytest.mark.parametrize("chunk_size", [None, 7])
def test_loss_and_gradient_are_those_of_plain_autograd(
    name: str, device: str, chunk_size: int | None
) -> None:
    kind = kinds()[name]
    expected, expected_grad = plainly(kind)
    problem = Problem(kind.model, kind.loss, kind.data, device=device, chunk_size=chunk_size)
    loss, grad = problem.loss_and_grad(problem.current())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-11)
    assert near(grad, expected_grad, 1e-10)
    assert problem.loss(problem.current()).item() == pytest.approx(expected.item(), rel=1e-11)
    assert problem.evaluate(problem.current())[0] == pytest.approx(expected.item(), rel=1e-11)
    single = problem.with_dtype(torch.float32)
    loss, grad = single.loss_and_grad(single.current())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert near(grad, expected_grad, 1e-4)


@on_all
@of_all
@pytest.mark.parametrize("chunk_size", [None, 7])
def test_hvp_is_the_central_difference_of_the_gradient(
    name: str, device: str, chunk_size: int | None
) -> None:
    kind = kinds()[name]
    problem = Problem(kind.model, kind.loss, kind.data, device=device, chunk_size=chunk_size)
    theta, v = problem.current(), normal(problem.size, seed=11).to(device)
    h = 1e-6 / v.norm()
    ahead, behind = (problem.loss_and_grad(theta + s * h * v)[1] for s in (1, -1))
    count = problem.evaluations
    product = problem.hvp(theta, v)
    assert near(
        product, ((ahead - behind) / (2 * h)).cpu(), 1e-5 if name == "convolutional" else 1e-7
    )
    assert problem.evaluations == count + 2
    assert product.dtype == F64


def test_hvp_of_a_loss_that_is_linear_is_zero() -> None:
    problem = Problem(
        lambda p, x: x @ p["w"], lambda o, t: o, (torch.ones(4, 3), torch.zeros(4)),
        parameters={"w": torch.ones(3)},
    )  # fmt: skip
    assert problem.hvp(torch.ones(3), torch.ones(3)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("shape", [(1,), (2, 20), ()])
def test_hvp_refuses_a_vector_of_another_shape(refuses, shape: tuple[int, ...]) -> None:
    kind = kinds()["dense"]
    problem = Problem(kind.model, kind.loss, kind.data)
    with refuses(str(shape), str(problem.size)):
        problem.hvp(problem.current(), torch.ones(shape))


def test_hvp_names_what_cannot_be_differentiated_twice(refuses) -> None:
    problem = Problem(Aligned(), "mse", (torch.ones(4, 3), torch.zeros(4, 1)))
    with refuses("twice"):
        problem.hvp(problem.current(), torch.ones(problem.size))


@of_all
def test_the_users_model_is_left_as_it_was(name: str) -> None:
    kind = kinds()[name]
    before = snapshot(kind.model)
    problem = Problem(kind.model, kind.loss, kind.data, dtype=torch.float32)
    problem.loss_and_grad(problem.current() + 1)
    problem.hvp(problem.current(), problem.current())
    problem.evaluate(problem.current() + 1)
    assert snapshot(kind.model) == before


# ---------------------------------------------------------------- data of many kinds


def batches(kind: Kind, size: int, n: int = 30) -> list[tuple[Any, Any]]:
    return [
        tuple(map_tensors(lambda t, k=k: t[k : k + size], part) for part in kind.data)
        for k in range(0, n, size)
    ]


class Rows(torch.utils.data.Dataset[Any]):
    def __init__(self, pair: tuple[Any, Any], n: int) -> None:
        self.pair, self.n = pair, n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, k: int) -> Any:
        return tuple(map_tensors(lambda t: t[k], part) for part in self.pair)


@of_all
def test_batches_and_loaders_give_the_loss_of_the_whole(name: str) -> None:
    kind = kinds()[name]
    expected, expected_grad = plainly(kind)
    n = 60 if name == "convolutional" else 30
    rows = Rows(kind.data, n)
    loader = DataLoader(rows, batch_size=8)
    for data in (batches(kind, 8, n), iter(batches(kind, 11, n)), loader, list(loader)):
        problem = Problem(kind.model, kind.loss, data)
        loss, grad = problem.loss_and_grad(problem.current())
        assert problem.examples == n
        assert loss.item() == pytest.approx(expected.item(), rel=1e-11)
        assert near(grad, expected_grad, 1e-10)
        assert problem.loss(problem.current()).item() == pytest.approx(loss.item(), rel=1e-14)
        assert problem.evaluations == 1


def test_weights_count_examples_as_if_they_were_repeated() -> None:
    kind = kinds()["arguments"]
    times = torch.tensor([k % 4 for k in range(30)])
    repeated = tuple(map_tensors(lambda t: t.repeat_interleave(times, 0), p) for p in kind.data)
    expected = Problem(kind.model, kind.loss, [repeated])
    theta = expected.current()
    v = normal(expected.size, seed=1)
    for data in (kind.data, [*batches(kind, 7)], DataLoader(Rows(kind.data, 30), batch_size=4)):
        problem = Problem(kind.model, kind.loss, data, weights=times.double() / 7, chunk_size=5)
        loss, grad = problem.loss_and_grad(theta)
        wanted, wanted_grad = expected.loss_and_grad(theta)
        assert loss.item() == pytest.approx(wanted.item(), rel=1e-12)
        assert near(grad, wanted_grad, 1e-12)
        assert near(problem.hvp(theta, v), expected.hvp(theta, v), 1e-12)
        assert problem.loss(theta).item() == pytest.approx(wanted.item(), rel=1e-12)
        exact = problem.with_dtype(torch.float64)
        assert exact.loss(theta).item() == pytest.approx(wanted.item(), rel=1e-12)


def test_weights_count_in_the_noise() -> None:
    # the first half cancels large numbers in float32 and is noisy, the second is not
    x = torch.cat([torch.full((10, 1), 1e5), torch.zeros(10, 1)])
    noisy, quiet = torch.zeros(20).index_fill_(0, torch.arange(10), 1.0), torch.ones(20)
    quiet[:10] = 0

    def noise(weights: Tensor) -> float:
        problem = Problem(
            lambda p, x: (x + p["w"]) - x, "mse", (x, torch.zeros(20, 1)), weights=weights,
            parameters={"w": torch.tensor([0.7])},
        )  # fmt: skip
        return relative_noise(problem, problem.current())

    assert noise(noisy) > 1e-4
    assert noise(quiet) < 1e-6


def test_weights_count_in_the_metric() -> None:
    kind = kinds()["dense"]
    only = torch.zeros(30)
    only[4] = 2.0
    one = Problem(kind.model, kind.loss, (kind.data[0][4:5], kind.data[1][4:5]))
    weighted = Problem(kind.model, kind.loss, kind.data, weights=only)
    theta = one.current()
    assert weighted.evaluate(theta) == pytest.approx(one.evaluate(theta), rel=1e-12)


def test_a_loader_is_not_kept_in_memory() -> None:
    given: list[weakref.ref[Tensor]] = []
    most = 0

    class Batches:
        def __iter__(self) -> Any:
            nonlocal most
            for k in range(20):
                batch = torch.full((4, 3), float(k))
                given.append(weakref.ref(batch))
                most = max(most, sum(ref() is not None for ref in given))
                yield batch, torch.zeros(4, 1)

    problem = Problem(nn.Linear(3, 1), "mse", Batches())
    problem.loss_and_grad(problem.current())
    assert problem.examples == 80
    assert most <= 3


def test_memory_is_that_of_one_chunk() -> None:
    largest = 0

    def model(p: Any, x: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, len(x))
        return x @ p["w"]

    data = (torch.ones(2500, 3), torch.ones(2500, 1))
    Problem(model, "mse", data, parameters={"w": torch.ones(3, 1)}).loss(torch.ones(3))
    assert largest == 1000
    tuned = Problem(model, "mse", data, parameters={"w": torch.ones(3, 1)}, chunk_size=40)
    largest = 0
    tuned.loss_and_grad(torch.ones(3))
    assert largest == 40


def test_tensors_that_fit_are_not_copied() -> None:
    x, y = torch.ones(10, 3), torch.ones(10, 1)
    problem = Problem(nn.Linear(3, 1), "mse", (x, y), chunk_size=4)
    assert [chunk.inputs.untyped_storage().data_ptr() for chunk in inside(problem).chunks] == [
        x.untyped_storage().data_ptr()
    ] * 3
