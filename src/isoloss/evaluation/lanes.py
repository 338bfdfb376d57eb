"""Sums over chunks in one order, whatever the number of threads."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

import torch
from torch import Tensor

from isoloss.evaluation.arithmetic import one_thread

MOST_LANES = 16
MOST_BYTES = 64 * 2**20


def lane_count(chunks: int, size: int, itemsize: int) -> int:
    """How many partial sums a gradient has: a matter of the problem, never of the machine.

    Args:
        chunks: Number of chunks.
        size: Number of parameters.
        itemsize: Bytes of one.

    Returns:
        At most 16 and at most one a chunk; fewer where together they would take over 64 MiB.
    """
    return max(1, min(chunks, MOST_LANES, MOST_BYTES // (size * itemsize)))


class Lanes:
    """Partial gradients, each the sum of every so-manieth chunk; their sum in order is the whole.

    Lane l sums chunks l, l + lanes, l + 2 lanes, ... in that order, on one thread, whichever that
    is. So the bits of the sum depend on the number of lanes alone.

    Args:
        chunks: Number of chunks.
        size: Number of parameters.
        dtype: Their type.
        split: From a flat vector to views in the parameters' shapes.
    """

    def __init__(
        self, chunks: int, size: int, dtype: torch.dtype, split: Callable[[Tensor], list[Tensor]]
    ) -> None:
        count = lane_count(chunks, size, dtype.itemsize)
        self._chunks = chunks
        self._vectors = torch.empty(count, size, dtype=dtype)
        self._views = [split(vector) for vector in self._vectors]

    def sum(
        self, differentiate: Callable[[int, list[Tensor], bool], Tensor], threads: int
    ) -> tuple[list[Tensor], Tensor]:
        """Sum over the chunks.

        Args:
            differentiate: From (number of the chunk, views, whether to add to them) to the chunk's
                loss; it writes the chunk's gradient. Called from as many threads.
            threads: How many; 1 is the calling one. Each computes without threads of torch's own.

        Returns:
            The losses in the chunks' order, and the gradient, a new vector.
        """
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
