"""What an evaluation costs: time measured, memory estimated."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from isoloss.data import leaves
from isoloss.problem import Problem


def seconds_per_evaluation(problem: Problem, theta: Tensor, budget: float = 0.3) -> float:
    """Wall-clock seconds of an evaluation of loss and gradient: the least of three or more.

    Args:
        problem: The problem.
        theta: Shape (problem.size,).
        budget: Seconds after which no further evaluation begins.

    Returns:
        Seconds.
    """
    taken: list[float] = []
    while len(taken) < 3 or (sum(taken) < budget and len(taken) < 50):
        began = time.perf_counter()
        problem.loss_and_grad(theta)[0].item()
        taken.append(time.perf_counter() - began)
    return min(taken)


def activation_bytes(problem: Problem) -> int:
    """Bytes that autograd keeps for the gradient of the largest chunk, beside data and parameters.

    Args:
        problem: At the point last evaluated.

    Returns:
        Bytes.
    """
    chunk = max(problem.chunks, key=lambda chunk: chunk.examples)
    given = {_storage(t) for _, t in leaves(list(chunk[:2]), "")}
    given |= {_storage(p) for p in problem.network.leaves}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = _storage(tensor)
        if storage not in given:
            kept[storage] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, _same):
        outputs = problem.network(chunk.inputs)
    del outputs
    return sum(kept.values())


def data_bytes(problem: Problem) -> int:
    """Bytes of the training set that stay in memory: all of it, or one batch of a stream."""
    sizes = [
        sum(t.numel() * t.element_size() for _, t in leaves(list(chunk[:2]), ""))
        for chunk in problem.chunks
    ]
    return sum(sizes) if problem.chunks.kept else max(sizes)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _same(tensor: Any) -> Any:
    return tensor
