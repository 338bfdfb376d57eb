"""The loss and its gradient of a plain network, differentiated by hand, over threads."""

from __future__ import annotations

import functools
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from isoloss.data import Chunk, Chunks
from isoloss.evaluation.autograd import Autograd
from isoloss.evaluation.chain import Chain
from isoloss.evaluation.head import Head, by_hand, differentiated
from isoloss.evaluation.lanes import Lanes, lane_count
from isoloss.flat import FlatNetwork
from isoloss.losses import Loss

WORTH_A_THREAD = 2e7
"""Multiplications and additions of a chunk, some 0.3 ms, below which handing it over costs more."""


class ByHand:
    """Evaluates as `Autograd` does, in a fraction of the time; for kept chunks on a CPU.

    Args:
        network: The network.
        layers: Its layers, as `chain.plain` gives them.
        chunks: The examples.
        loss: Gives one loss per example.

    Attributes:
        flops: Multiplications and additions of an evaluation.

    Raises:
        ValueError: The layers do not fit the inputs.
    """

    def __init__(
        self, network: FlatNetwork, layers: Sequence[nn.Module], chunks: Chunks, loss: Loss
    ) -> None:
        self._network = network
        self._chunks = list(chunks)
        self._layers = layers
        self._autograd = Autograd(network, chunks, loss)
        self._weight = torch.tensor(1 / chunks.total_weight, dtype=torch.float64)
        self._free: dict[tuple[int, ...], list[Chain]] = {}
        self._heads: list[Head] = []
        self._all_by_hand = True
        self.flops = 0
        for chunk in self._chunks:
            if chunk.inputs.dtype != network.dtype:
                raise ValueError("the inputs are of another type")
            shape = tuple(chunk.inputs.shape)
            if shape not in self._free:
                self._free[shape] = [Chain(layers, shape)]
            chain = self._free[shape][0]
            self.flops += chain.flops
            head = by_hand(loss, chunk, chain.shape, self._weight)
            self._all_by_hand = self._all_by_hand and head is not None
            self._heads.append(head or differentiated(self._autograd, chunk, self._weight))

    def outputs(self, theta: Tensor) -> Iterator[tuple[Chunk, Tensor]]:
        """Each chunk with what the network gives for it, a new tensor."""
        self._network.load(theta)
        for chunk in self._chunks:
            with torch.no_grad(), self._chain(chunk) as chain:
                outputs = chain.outputs(chunk.inputs).clone()
            yield chunk, outputs

    def loss(self, theta: Tensor) -> Tensor:
        """The mean loss, shape (), float64; the bits of `loss_and_grad`."""
        each = zip(self._heads, self.outputs(theta), strict=True)
        totals = [head(outputs)[0] for head, (_, outputs) in each]
        return functools.reduce(torch.add, totals) * self._weight

    def loss_and_grad(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """The mean loss, shape (), float64, and its flat gradient, new tensors."""
        self._network.load(theta)
        totals, grad = self._lanes.sum(self._differentiate, self.threads(len(self._chunks)))
        return functools.reduce(torch.add, totals) * self._weight, grad

    def hvp(self, theta: Tensor, vector: Tensor) -> Tensor:
        """The Hessian of the mean loss times a flat vector."""
        return self._autograd.hvp(theta, vector)

    def threads(self, chunks: int) -> int:
        """How many threads so many chunks of this size are spread over.

        A loss function of the user's own is called in no thread but the user's.
        """
        small = self.flops < WORTH_A_THREAD * len(self._chunks)
        if small or not self._all_by_hand:
            return 1
        lanes = lane_count(chunks, self._network.size, self._network.dtype.itemsize)
        return min(torch.get_num_threads(), lanes)

    @functools.cached_property
    def _lanes(self) -> Lanes:
        network = self._network
        return Lanes(len(self._chunks), network.size, network.dtype, network.layout.split)

    def _differentiate(self, number: int, views: list[Tensor], add: bool) -> Tensor:
        chunk = self._chunks[number]
        with self._chain(chunk) as chain:
            total, grad = self._heads[number](chain.outputs(chunk.inputs))
            chain.gradient(grad, views, add)
        return total

    @contextmanager
    def _chain(self, chunk: Chunk) -> Generator[Chain]:
        """A chain for a chunk that no other thread uses."""
        shape = tuple(chunk.inputs.shape)
        free = self._free.setdefault(shape, [])
        try:
            chain = free.pop()
        except IndexError:
            chain = Chain(self._layers, shape)
        try:
            yield chain
        finally:
            free.append(chain)
