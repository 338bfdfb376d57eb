"""What is recorded in a CUDA graph: its kernels run without Python between them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from isoloss._kernels.capture import Captured, UncapturableError, capturing, copy_all, graph_for
from isoloss.data import Chunk
from isoloss.evaluation.interface import Evaluation

CHECKED = 2
"""Calls in which what is replayed is compared with what is computed, bit by bit."""

WORTH_IT = 0.95
"""A recording keeps the memory of what it computes, so it has to take less than this share of the
time."""

ROUNDS = 3


class Replayed:
    """A function of tensors of fixed shapes that gives tensors, replayed from a recording.

    The first call computes, records and replays, the next one computes and replays: kernels that
    change from call to call are found out, and the function is called as ever.

    Attributes:
        reason: Why nothing is replayed; "" where it is, or has not been tried yet.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]], device: torch.device) -> None:
        self._function = function
        self._device = device
        self._captured: Captured[tuple[Tensor, ...]] | None = None
        self._checked: list[Tensor] = []  # first arguments, until it is trusted
        self._trusted = False
        self.reason = ""

    def __call__(self, *given: Tensor) -> tuple[Tensor, ...]:
        """What the function gives, new tensors."""
        if self.reason or capturing(self._device):  # as a part of what is recorded elsewhere
            return self._function(*given)
        return self._replayed(*given) if self._trusted else self._compared(*given)

    def __getstate__(self) -> dict[str, Any]:
        """Without the recording, which a copy makes anew."""
        return {**vars(self), "_captured": None, "_checked": [], "_trusted": False}

    def _replayed(self, *given: Tensor) -> tuple[Tensor, ...]:
        captured = self._captured or self._record(*given)
        found = captured(*given)
        copies = [torch.empty_like(tensor) for tensor in found]
        copy_all(copies, found)
        return tuple(copies)

    def _record(self, *given: Tensor) -> Captured[tuple[Tensor, ...]]:
        graph = graph_for(self._device)
        if graph is None:
            raise UncapturableError(f"{self._device} has no graphs")
        self._captured = Captured(self._function, given, graph)
        return self._captured

    def _compared(self, *given: Tensor) -> tuple[Tensor, ...]:
        """What is computed; what is replayed has to be the same."""
        computed = self._function(*given)
        if any(torch.equal(given[0], before) for before in self._checked):
            return computed
        try:
            replayed = self._replayed(*given)
            if not self._checked and not self._pays(*given):
                self.reason = "replaying takes as long as computing"
        except UncapturableError as error:
            self.reason = str(error)
        except torch.OutOfMemoryError:
            self.reason = "there is too little memory to keep a recording"
        else:
            several = zip(computed, replayed, strict=True)
            if not all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in several):
                self.reason = "kernels change from call to call"
            self._checked.append(given[0].clone())
        self._trusted = len(self._checked) >= CHECKED and not self.reason
        if self.reason:
            self._captured = None
        if self.reason or self._trusted:
            self._checked = []
        return computed

    def _pays(self, *given: Tensor) -> bool:
        with_it, without = (
            min(_seconds(call, given) for _ in range(ROUNDS))
            for call in (self._replayed, self._function)
        )
        return with_it < WORTH_IT * without


class Recorded:
    """An `Evaluation` that replays another one's gradient, the same bits in less time."""

    def __init__(self, other: Evaluation, device: torch.device) -> None:
        self._other = other
        self.replayed = Replayed(other.loss_and_grad, device)

    def outputs(self, theta: Tensor) -> Iterator[tuple[Chunk, Any]]:
        """Each chunk with what the model gives for it."""
        return self._other.outputs(theta)

    def loss(self, theta: Tensor) -> Tensor:
        """The mean loss, shape (), float64."""
        return self._other.loss(theta)

    def loss_and_grad(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """The mean loss, shape (), float64, and its flat gradient, new tensors."""
        loss, grad = self.replayed(theta)
        return loss, grad

    def hvp(self, theta: Tensor, vector: Tensor) -> Tensor:
        """The Hessian of the mean loss times a flat vector."""
        return self._other.hvp(theta, vector)


def _seconds(call: Callable[..., tuple[Tensor, ...]], given: tuple[Tensor, ...]) -> float:
    began = time.perf_counter()
    call(*given)[0].sum().item()  # waits
    return time.perf_counter() - began
