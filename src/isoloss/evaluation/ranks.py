"""The processes that hold one problem together, and the only one where there is one."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

Made = TypeVar("Made")


class Ranks:
    """One process that holds all examples and all of theta; `GroupRanks` are several.

    Attributes:
        count: Number of processes.
        number: Which one this is.
    """

    count = 1
    number = 0

    def clock(self) -> float:
        """Seconds, the same on all ranks."""
        return time.perf_counter()

    def numbers(self, work: Callable[[], Sequence[float]]) -> list[Sequence[float]]:
        """Some numbers of each rank; where it fails on one, it fails on all."""
        return [work()]

    def gather(self, value: Any) -> list[Any]:
        """A value of each rank that JSON can hold."""
        return [value]

    def sums(self, *tensors: Tensor) -> Sequence[Tensor]:
        """The sums over the ranks of tensors of few entries, in float64 where there are several."""
        return tensors

    def add(
        self, theta: Tensor, work: Callable[[], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """A number and a flat vector computed at theta, summed over the ranks in their order."""
        del theta
        return work()

    def cut(self, vector: Tensor) -> Tensor:
        """The part of a flat vector that this rank holds."""
        return vector

    def whole(self, part: Tensor, size: int) -> Tensor:
        """The flat vector of which each rank holds a part."""
        del size
        return part

    def note(self, values: Tensor | Sequence[float]) -> None:
        """Say what the next exchange goes by, which has to be the same on all ranks."""

    def carry(self, device: torch.device) -> None:
        """Prepare for vectors of a device."""

    def together(self) -> Together:
        """A context: what fails in it on one rank fails on all."""
        return Together(self)

    @contextmanager
    def interrupts(self) -> Generator[Callable[[], bool]]:
        """Whether Ctrl-C was pressed, where it does not raise."""
        yield lambda: False

    def total(self, work: Callable[[], Sequence[float]]) -> list[float]:
        """Sums over the ranks of some numbers of each."""
        return [sum(column) for column in zip(*self.numbers(work), strict=True)]

    def any(self, work: Callable[[], bool]) -> bool:
        """Whether something is so on any rank."""
        return any(row[0] for row in self.numbers(lambda: [bool(work())]))

    def in_turn(self, work: Callable[[], Made]) -> Made:
        """Something that the first rank does before the others."""
        with self.together():
            made = work() if self.number == 0 else None
        with self.together():
            return cast("Made", made) if self.number == 0 else work()

    def tell(self, error: Exception | None) -> None:
        """Say to the others how it went, and hear it of them."""


class Together:
    """See `Ranks.together`."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Raise here what failed elsewhere."""
        if error is None or isinstance(error, StopIteration):
            self._ranks.tell(None)
        elif isinstance(error, Exception):
            self._ranks.tell(error)
