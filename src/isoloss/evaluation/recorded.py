"""An evaluation recorded in a CUDA graph: its kernels run without Python between them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from isoloss._kernels.capture import Captured, UncapturableError, graph_for
from isoloss.data import Chunk
from isoloss.evaluation.interface import Evaluation

CHECKED = 2
"""Points at which what is replayed is compared with what is computed, bit by bit."""

WORTH_IT = 0.95
"""A recording keeps the memory of an evaluation, so it has to take less than this share of its
time."""

ROUNDS = 3


class Recorded:
    """An `Evaluation` that replays another one's gradient, the same bits in less time.

    The first gradient is computed, recorded and replayed, the next one computed and replayed: a
    model whose kernels change from point to point is found out and left to the other evaluation.

    Attributes:
        reason: Why nothing is replayed; "" where it is, or has not been tried yet.
    """

    def __init__(self, other: Evaluation, device: torch.device) -> None:
        self._other = other
        self._device = device
        self._captured: Captured[tuple[Tensor, Tensor]] | None = None
        self._checked: list[Tensor] = []
        self.reason = ""

    def outputs(self, theta: Tensor) -> Iterator[tuple[Chunk, Any]]:
        """Each chunk with what the model gives for it."""
        return self._other.outputs(theta)

    def loss(self, theta: Tensor) -> Tensor:
        """The mean loss, shape (), float64."""
        return self._other.loss(theta)

    def loss_and_grad(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """The mean loss, shape (), float64, and its flat gradient, new tensors."""
        if self.reason:
            return self._other.loss_and_grad(theta)
        if len(self._checked) < CHECKED:
            return self._compared(theta)
        return self._replayed(theta)

    def hvp(self, theta: Tensor, vector: Tensor) -> Tensor:
        """The Hessian of the mean loss times a flat vector."""
        return self._other.hvp(theta, vector)

    def __getstate__(self) -> dict[str, Any]:
        """Without the recording, which a copy makes anew."""
        return {**vars(self), "_captured": None, "_checked": []}

    def _replayed(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        captured = self._captured or self._record(theta)
        loss, grad = captured(theta)
        return loss.clone(), grad.clone()

    def _record(self, theta: Tensor) -> Captured[tuple[Tensor, Tensor]]:
        graph = graph_for(self._device)
        if graph is None:
            raise UncapturableError(f"{self._device} has no graphs")
        self._captured = Captured(self._other.loss_and_grad, [theta], graph)
        return self._captured

    def _compared(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient as computed; what is replayed has to be the same."""
        computed = self._other.loss_and_grad(theta)
        if any(torch.equal(theta, before) for before in self._checked):
            return computed
        try:
            replayed = self._replayed(theta)
            if not self._checked and not self._pays(theta):
                self.reason = "replaying takes as long as computing"
        except UncapturableError as error:
            self.reason = str(error)
        except torch.OutOfMemoryError:
            self.reason = "there is too little memory to keep one"
        else:
            several = zip(computed, replayed, strict=True)
            if not all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in several):
                self.reason = "it gave other numbers: kernels change from point to point"
            self._checked.append(theta.clone())
        if self.reason:
            self._captured, self._checked = None, []
        return computed

    def _pays(self, theta: Tensor) -> bool:
        with_it, without = (
            min(_seconds(evaluate, theta) for _ in range(ROUNDS))
            for evaluate in (self._replayed, self._other.loss_and_grad)
        )
        return with_it < WORTH_IT * without


def _seconds(evaluate: Callable[[Tensor], Any], theta: Tensor) -> float:
    began = time.perf_counter()
    evaluate(theta)[0].item()
    return time.perf_counter() - began
