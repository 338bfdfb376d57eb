"""How a problem is evaluated: by hand where that can be, in chunks of a size that is measured."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from isoloss.data import Chunk, Chunks, random_state_kept
from isoloss.evaluation.autograd import Autograd
from isoloss.evaluation.by_hand import ByHand
from isoloss.evaluation.chain import plain
from isoloss.evaluation.memory import keep_freed_memory
from isoloss.flat import FlatNetwork, flatten
from isoloss.losses import Loss

IMAGES = (16, 128)
VECTORS = (64, 1024)
"""Smallest and largest chunk that is tried: of images, of all else."""

ROUNDS = 3
HANDING_OVER = 2e-4
"""Seconds that it costs to spread an evaluation over threads, on a busy machine."""

CLEARLY = 0.9
"""Another size than the usual one has to take less than this share of its time: were it to win by
chance, runs of the same problem would differ in their last bits."""

_measured: dict[tuple[Any, ...], int] = {}


class Evaluation(Protocol):
    """The loss and its derivatives at a point; small classes of this kind may wrap one another."""

    def outputs(self, theta: Tensor) -> Iterator[tuple[Chunk, Any]]:
        """Each chunk with what the model gives for it, detached."""
        ...

    def loss(self, theta: Tensor) -> Tensor:
        """The mean loss, shape (), float64."""
        ...

    def loss_and_grad(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """The mean loss, shape (), float64, and its flat gradient."""
        ...

    def hvp(self, theta: Tensor, vector: Tensor) -> Tensor:
        """The Hessian of the mean loss times a flat vector."""
        ...


def choose(network: FlatNetwork, chunks: Chunks, loss: Loss) -> Evaluation:
    """The fastest way to evaluate a loss that is at hand.

    Args:
        network: The network.
        chunks: The examples.
        loss: Gives one loss per example.

    Returns:
        `ByHand` for plain networks on a CPU, else `Autograd`.
    """
    if network.device.type == "cpu":
        keep_freed_memory()
    layers = plain(network.model)
    if layers is not None and chunks.kept and all(isinstance(c.inputs, Tensor) for c in chunks):
        try:
            return ByHand(network, layers, chunks, loss)
        except ValueError:  # autograd says what does not fit
            pass
    return Autograd(network, chunks, loss)


def measured_size(network: FlatNetwork, chunks: Chunks, loss: Loss) -> int | None:
    """Examples in a chunk with which the gradient takes the least time on this machine.

    Measured once a process for problems of one kind: the CPU time of the calling thread, the least
    of three, for one chunk of each size; the usual size stays unless another is clearly faster.

    Args:
        network: The network, at a point.
        chunks: The examples, in chunks of the usual size.
        loss: Gives one loss per example.

    Returns:
        The size; None where there is nothing to choose: on other devices, for streams and for few
        examples, and, where the network is not plain, for anything but images.
    """
    if not chunks.kept or network.device.type != "cpu":
        return None
    first = max(chunks, key=lambda chunk: chunk.examples)
    if not isinstance(first.inputs, Tensor):
        return None
    images = first.inputs.ndim == 4
    usual, least, most = first.examples, *(IMAGES if images else VECTORS)
    halves = {math.ceil(chunks.longest / 2**k) for k in range(chunks.longest.bit_length())}
    sizes = sorted(size for size in halves if least <= size <= most and size != usual)
    if not sizes or not (images or isinstance(choose(network, chunks, loss), ByHand)):
        return None
    kind = (
        repr(network.model) if isinstance(network.model, nn.Module) else id(network.model),
        repr(loss),
        network.dtype,
        tuple(first.inputs.shape[1:]),
        (usual, chunks.examples),
        torch.get_num_threads(),
    )
    if kind not in _measured:
        with random_state_kept():
            seconds = {size: _seconds(network, chunks, loss, size) for size in (usual, *sizes)}
        fastest = min(seconds, key=lambda size: seconds[size])
        clear = seconds[fastest] < CLEARLY * seconds[usual]
        _measured[kind] = fastest if clear else usual
    return _measured[kind]


def _seconds(network: FlatNetwork, chunks: Chunks, loss: Loss, size: int) -> float:
    """What an evaluation takes in chunks of a size, foretold from one chunk."""
    evaluation, theta = choose(network, chunks.sample(size), loss), flatten(network.leaves)
    taken: list[float] = []
    for _ in range(ROUNDS + 1):  # the first fills caches
        began = time.thread_time()
        evaluation.loss_and_grad(theta)
        taken.append(time.thread_time() - began)
    each, count = min(taken[1:]), chunks.examples / size
    threads = evaluation.threads(math.ceil(count)) if isinstance(evaluation, ByHand) else 1
    return each * count if threads == 1 else each * math.ceil(count / threads) + HANDING_OVER
