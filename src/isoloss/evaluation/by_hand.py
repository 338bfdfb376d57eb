"""The loss and its gradient of a plain network, differentiated by hand, over threads."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager

import torch
from torch import Tensor

from isoloss._kernels.chain import Chain, Head, differentiated, head_of
from isoloss._kernels.layers import Part
from isoloss.data import Chunk, Chunks
from isoloss.evaluation.arithmetic import one_thread, reproducible
from isoloss.evaluation.autograd import Autograd, differentiable, weighted_sum
from isoloss.flat import FlatNetwork
from isoloss.losses import Loss

WORTH_A_THREAD = 2e7
"""Multiplications and additions of a chunk, some 0.3 ms, below which handing it over costs more."""

MOST_LANES = 16
MOST_BYTES = 64 * 2**20


class ByHand:
    """An `Evaluation` as `Autograd` is, in a fraction of the time; for kept chunks. A ValueError
    says that the layers do not fit the inputs, or that autograd is as fast on their device."""

    def __init__(
        self, network: FlatNetwork, parts: Sequence[Part], chunks: Chunks, loss: Loss
    ) -> None:
        self._network = network
        self._chunks = list(chunks)
        self._parts = parts
        self._at = [leaf.detach() for leaf in network.leaves]
        self._autograd = Autograd(network, chunks, loss)
        self._on_cpu = on_cpu(network.device)
        weight = 1 / chunks.divisor
        self._weight = torch.tensor(weight, dtype=torch.float64, device=network.device)
        self._free: dict[tuple[int, ...], list[Chain]] = {}
        self._heads: list[Head] = []
        self._all_by_hand = True
        self.flops = 0  # of an evaluation
        self.room = 0  # bytes of the buffers that a chunk takes
        for chunk in self._chunks:
            if chunk.inputs.dtype != network.dtype:
                raise ValueError("the inputs are of another type")
            with self._chain(chunk) as chain:
                self.flops += chain.flops
                self.room = max(self.room, chain.room * network.dtype.itemsize)
                head = head_of(loss, chain.shape, chunk.targets, network.dtype, weight)
            if chunk.weights is not None:
                head = None
            self._all_by_hand = self._all_by_hand and head is not None
            self._heads.append(head or functools.partial(self._any_head, chunk))
        if not self._on_cpu:  # buffers for many examples, which test sets never need
            self._free.clear()

    def outputs(self, theta: Tensor) -> Iterator[tuple[Chunk, Tensor]]:
        """Each chunk with what the network gives for it, a new tensor."""
        self._network.load(theta)
        if not self._on_cpu:
            yield from self._autograd.outputs(theta)
            return
        for chunk in self._chunks:
            with torch.no_grad(), self._chain(chunk) as chain:
                outputs = chain.outputs(self._at, chunk.inputs).clone()
            yield chunk, outputs

    def loss(self, theta: Tensor) -> Tensor:
        """The mean loss, shape (), float64; on a CPU the bits of `loss_and_grad`."""
        each = zip(self._heads, self.outputs(theta), strict=True)
        return functools.reduce(torch.add, (head(outputs)[0] for head, (_, outputs) in each))

    def loss_and_grad(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """The mean loss, shape (), float64, and its flat gradient, new tensors."""
        self._network.load(theta)
        if self._on_cpu:
            threads = self.threads(len(self._chunks))
            parts, grad = self._lanes.sum(self._differentiate, threads)
        else:
            with reproducible(self._network.device):
                parts, grad = self._in_turn()
        return functools.reduce(torch.add, parts), grad

    def hvp(self, theta: Tensor, vector: Tensor) -> Tensor:
        """The Hessian of the mean loss times a flat vector."""
        return self._autograd.hvp(theta, vector)

    def threads(self, chunks: int) -> int:
        """Threads for so many chunks of this size; a user's own loss is called in the caller's."""
        small = self.flops < WORTH_A_THREAD * len(self._chunks)
        if small or not self._all_by_hand:
            return 1
        lanes = lane_count(chunks, self._network.size, self._network.dtype.itemsize)
        return min(torch.get_num_threads(), lanes)

    def _in_turn(self) -> tuple[list[Tensor], Tensor]:
        """The losses of the chunks and the gradient, summed chunk by chunk."""
        grad = self._at[0].new_empty(self._network.size)
        views = self._network.layout.split(grad)
        with torch.no_grad():
            return [self._differentiate(k, views, k > 0) for k in range(len(self._chunks))], grad

    @functools.cached_property
    def _lanes(self) -> Lanes:
        network = self._network
        return Lanes(len(self._chunks), network.size, network.dtype, network.layout.split)

    def _any_head(self, chunk: Chunk, outputs: Tensor) -> tuple[Tensor, Tensor]:
        def total(z: Tensor) -> Tensor:
            return differentiable(weighted_sum(self._autograd.losses(z, chunk), chunk))

        found, slope = differentiated(total, outputs, self._weight)
        return found * self._weight, slope

    def _differentiate(self, number: int, views: list[Tensor], add: bool) -> Tensor:
        chunk = self._chunks[number]
        with self._chain(chunk) as chain:
            total, slope = self._heads[number](chain.outputs(self._at, chunk.inputs))
            chain.gradient(self._at, slope, views, add)
        return total

    @contextmanager
    def _chain(self, chunk: Chunk) -> Generator[Chain]:
        """A chain for a chunk that no other thread uses."""
        shape = tuple(chunk.inputs.shape)
        free = self._free.setdefault(shape, [])
        try:
            chain = free.pop()
        except IndexError:
            exact = self._network.dtype == torch.float64 or not self._on_cpu
            chain = Chain(self._parts, self._at, shape, exact=exact)
        try:
            yield chain
        finally:
            free.append(chain)


def on_cpu(device: torch.device) -> bool:
    """Whether chunks are spread over threads, and buffers are kept for outputs alone too."""
    return device.type == "cpu"


def lane_count(chunks: int, size: int, itemsize: int) -> int:
    """How many partial sums a gradient has: a matter of the problem, never of the machine. At most
    16 and one a chunk; fewer where together they would take over 64 MiB."""
    return max(1, min(chunks, MOST_LANES, MOST_BYTES // (size * itemsize)))


class Lanes:
    """Partial gradients: lane l sums the chunks l, l + lanes, ... in order on one thread, so that
    the bits of the whole depend on their number alone. `split` cuts a flat vector into views."""

    def __init__(
        self, chunks: int, size: int, dtype: torch.dtype, split: Callable[[Tensor], list[Tensor]]
    ) -> None:
        count = lane_count(chunks, size, dtype.itemsize)
        self._chunks = chunks
        self._vectors = torch.empty(count, size, dtype=dtype, device="cpu")
        self._views = [split(vector) for vector in self._vectors]

    def sum(
        self, differentiate: Callable[[int, list[Tensor], bool], Tensor], threads: int
    ) -> tuple[list[Tensor], Tensor]:
        """The losses in the chunks' order, and the gradient, a new vector. `differentiate` writes
        that of the chunk of a number to views, or adds it, and returns its loss."""
        lanes = len(self._views)
        totals: list[Tensor] = [self._vectors] * self._chunks

        def run(lane: int) -> None:
            with torch.no_grad():
                for chunk in range(lane, self._chunks, lanes):
                    totals[chunk] = differentiate(chunk, self._views[lane], chunk >= lanes)

        with one_thread():
            _run_all(run, lanes, threads)
            return totals, self._vectors[0].clone() if lanes == 1 else self._vectors.sum(0)


def _run_all(run: Callable[[int], None], lanes: int, threads: int) -> None:
    if threads == 1 or lanes == 1:
        for lane in range(lanes):
            run(lane)
        return

    def alone(lane: int) -> None:
        torch.get_num_threads()  # a new thread takes the process's number when it first needs it
        torch.set_num_threads(1)
        run(lane)

    futures = [_pool(threads).submit(alone, lane) for lane in range(lanes)]
    try:
        for future in futures:
            future.result()
    finally:  # an error or Ctrl-C: nobody may write to the lanes any more
        for future in futures:
            future.cancel()
        wait(futures)


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="isoloss")
