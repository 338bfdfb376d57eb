"""What the pool and the display ask of a run, of whatever kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path as FilePath
from typing import Protocol

from isoloss.path import Row
from isoloss.runs.news import News


class Run(Protocol):
    """One run: it is sent to a process, executed there, and tells how it goes on."""

    @property
    def index(self) -> int:
        """Number of the run, from 0."""
        ...

    @property
    def seed(self) -> int:
        """Determines the run."""
        ...

    @property
    def folder(self) -> FilePath:
        """Where its files go."""
        ...

    @property
    def unit(self) -> str:
        """What its progress is counted in."""
        ...

    @property
    def headings(self) -> tuple[str, ...]:
        """What `numbers` are, for the summary of many runs."""
        ...

    def numbers(self, done: int, row: Row) -> tuple[str, ...]:
        """A line of the summary, from the progress and the last row."""
        ...

    def describe(self, row: Row) -> dict[str, str]:
        """The fields `first` and `second` of the progress line."""
        ...

    def execute(self, tell: Callable[[News], None], cancelled: Callable[[], bool]) -> News:
        """Do it, write its files, and return the last news."""
        ...
