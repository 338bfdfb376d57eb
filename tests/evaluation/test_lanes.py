"""Sums over chunks have the same bits on any number of threads, and survive errors."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.problems import generator, normal
from torch import Tensor, nn

from isoloss import Problem
from isoloss.evaluation.by_hand import MOST_BYTES, ByHand, Lanes, lane_count


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def large(loss: Any = "cross_entropy") -> Problem:
    """Chunks that are worth a thread each."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(300, 300), nn.Tanh(), nn.Linear(300, 4))
    inputs = normal(900, 300, seed=0).float()
    targets = torch.randint(0, 4, (900,), generator=generator(1))
    return Problem(model, loss, (inputs, targets), chunk_size=60)


@given(
    chunks=st.integers(1, 1000), size=st.integers(1, 10**9), itemsize=st.sampled_from([4, 8])
)  # fmt: skip
def test_lanes_are_few_and_fit_in_memory(chunks: int, size: int, itemsize: int) -> None:
    count = lane_count(chunks, size, itemsize)
    assert 1 <= count <= min(chunks, 16)
    assert count == 1 or count * size * itemsize <= MOST_BYTES


@pytest.mark.parametrize("chunks", [1, 2, 15, 16, 17, 40])
@pytest.mark.parametrize("threads", [1, 3])
def test_every_chunk_is_summed_once(chunks: int, threads: int) -> None:
    lanes = Lanes(chunks, 3, torch.float64, lambda flat: [flat[:2], flat[2:]])

    def differentiate(k: int, views: list[Tensor], add: bool) -> Tensor:
        for view in views:
            view.copy_(view + 2.0**k if add else torch.full_like(view, 2.0**k))
        return torch.tensor(float(k))

    for _ in range(2):  # what was there before does not matter
        totals, grad = lanes.sum(differentiate, threads)
        assert [total.item() for total in totals] == list(range(chunks))
        assert grad.tolist() == [2.0**chunks - 1] * 3


def test_bits_are_those_of_one_thread(two_threads: None) -> None:
    problem = large()
    theta = problem.current()
    gradient = problem._evaluation
    assert isinstance(gradient, ByHand)
    assert gradient.threads(15) == 2
    value, grad = problem.loss_and_grad(theta)
    for threads in (1, 3, 2):
        torch.set_num_threads(threads)
        for _ in range(3):
            again, grad_again = problem.loss_and_grad(theta)
            assert torch.equal(value, again)
            assert torch.equal(grad, grad_again)
        assert torch.get_num_threads() == threads
    other = large()
    assert torch.equal(other.loss_and_grad(theta)[1], grad)
    each = problem.example_losses(theta)
    assert value.item() == pytest.approx(math.fsum(each.tolist()) / 900, rel=1e-14)
    assert problem.loss(theta) == value


def test_threads_share_the_work(two_threads: None) -> None:
    seen: set[int] = set()
    barrier = threading.Barrier(2, timeout=20)
    lanes = Lanes(2, 1, torch.float64, lambda flat: [flat])

    def differentiate(k: int, views: list[Tensor], add: bool) -> Tensor:
        barrier.wait()  # passes only if two threads are inside at once
        seen.add(threading.get_ident())
        assert torch.get_num_threads() == 1
        assert not torch.is_grad_enabled()
        views[0].fill_(k)
        return torch.tensor(0.0)

    lanes.sum(differentiate, 2)
    assert len(seen) == 2
    assert torch.get_num_threads() == 2


def test_after_an_error_nobody_writes_any_more(two_threads: None) -> None:
    lanes = Lanes(8, 1, torch.float64, lambda flat: [flat])
    running = []

    def fail(k: int, views: list[Tensor], add: bool) -> Tensor:
        if k == 0:
            raise ValueError("no")
        running.append(k)
        time.sleep(0.02)
        running.remove(k)
        return torch.tensor(0.0)

    with pytest.raises(ValueError, match="no"):
        lanes.sum(fail, 2)
    assert running == []
    assert torch.get_num_threads() == 2

    def count(k: int, views: list[Tensor], add: bool) -> Tensor:
        views[0].copy_(views[0] + 1 if add else torch.ones(1))
        return torch.tensor(1.0)

    assert lanes.sum(count, 2)[1].item() == 8


def test_a_users_loss_is_called_in_the_users_thread_alone(two_threads: None) -> None:
    seen = set()

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.add(threading.get_ident())
        return outputs.square().mean(1)

    problem = large(loss)
    problem.loss_and_grad(problem.current())
    assert seen == {threading.get_ident()}
