"""A function recorded once in a CUDA graph and replayed, without Python between its kernels."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from isoloss.errors import one_line

Result = TypeVar("Result")

WARM_UPS = 3
"""Calls before the recording, in which libraries load kernels and take their workspaces."""

_recording = threading.Lock()  # CUDA lets one thread record at a time


class UncapturableError(Exception):
    """Why a function cannot be recorded, as part of a sentence."""


class Graph(Protocol):
    """What records the kernels of a function, and runs them again on the same memory."""

    def record(self, function: Callable[[], Result]) -> Result:
        """Call the function some times to warm up, and once to record it; what that call gave.

        What it gave is filled by `replay`. UncapturableError if the recording fails.
        """
        ...

    def replay(self) -> None:
        """Run the kernels that were recorded."""
        ...


class CudaGraph:
    """A `torch.cuda.CUDAGraph`, recorded on a stream of its own and replayed on the current one."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._graph = torch.cuda.CUDAGraph()

    def record(self, function: Callable[[], Result]) -> Result:
        with _recording, torch.cuda.device(self._device):
            here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
            aside.wait_stream(here)
            with torch.cuda.stream(aside):
                for _ in range(WARM_UPS):
                    function()
                try:
                    # other threads, such as that of a backward pass, may do what this one may not
                    with torch.cuda.graph(
                        self._graph, stream=aside, capture_error_mode="thread_local"
                    ):
                        result = function()
                except torch.OutOfMemoryError:
                    self._recover()
                    raise
                except Exception as error:
                    self._recover()
                    while error.__context__ is not None:  # the first of them is the cause
                        error = error.__context__
                    raise UncapturableError(one_line(error)) from error
            here.wait_stream(aside)
        return result

    def replay(self) -> None:
        self._graph.replay()

    def _recover(self) -> None:
        """Let random numbers be drawn again: a recording that failed leaves its mark on them."""
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        generator.graphsafe_set_state(generator.clone_state())


def records(device: torch.device) -> bool:
    """Whether kernels can be recorded on a device."""
    return device.type == "cuda"


def copy_all(into: Sequence[Tensor], given: Sequence[Tensor]) -> None:
    """Copy tensors into others of their shapes, with one launch for all of a type."""
    pairs = list(zip(into, given, strict=True))
    for dtype in dict.fromkeys(tensor.dtype for tensor in into):
        of_type = [pair for pair in pairs if pair[0].dtype == dtype]
        torch._foreach_copy_(  # pyright: ignore
            [one for one, _ in of_type], [other.detach() for _, other in of_type]
        )


def capturing(device: torch.device) -> bool:
    """Whether what is called now is being recorded."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def graph_for(device: torch.device) -> Graph | None:
    """A graph where the device has them, else None."""
    return CudaGraph(device) if records(device) else None


class Captured(Generic[Result]):
    """A function of tensors of fixed shapes, recorded when it is made and replayed when called.

    Each call copies its tensors into those that were recorded. The result is always the same
    object, which the next call overwrites. What else the function reads must stay where it is.

    Args:
        function: Launches the same kernels each time and never waits for them.
        inputs: Tensors of the shapes and types that it will be called with.
        graph: Records and replays.
        changes: Tensors that the function changes in place; to record it leaves them as they were.

    Raises:
        UncapturableError: It cannot be recorded; the text says why.
    """

    def __init__(
        self,
        function: Callable[..., Result],
        inputs: Sequence[Tensor],
        graph: Graph,
        changes: Sequence[Tensor] = (),
    ) -> None:
        self._graph = graph
        self._inputs = [tensor.detach().clone() for tensor in inputs]
        before = [tensor.clone() for tensor in changes]
        try:
            self._result = graph.record(lambda: function(*self._inputs))
        finally:
            for tensor, value in zip(changes, before, strict=True):
                tensor.copy_(value)

    def __call__(self, *inputs: Tensor) -> Result:
        copy_all(self._inputs, inputs)
        self._graph.replay()
        return self._result
