"""The progress line of a walk on a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from isoloss.path import Row

SECONDS_BETWEEN = 0.1


class TimeLeft(TimeRemainingColumn):
    """The time left of what is still going on and has a known end; nothing of the rest."""

    def render(self, task: Task) -> Text:
        """The column of one task."""
        if task.finished or task.stop_time is not None or not task.started or task.total is None:
            return Text("")
        return super().render(task).append(" left")


def columns(unit: str = "steps") -> Progress:
    """The columns that something long shows: how far it is, two figures, time left.

    Args:
        unit: What is counted.

    Returns:
        A rich progress display on standard error; its tasks need the fields `first` and `second`.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),
        TextColumn("{task.completed:>6.0f} " + unit),
        TextColumn("{task.fields[first]}"),
        TextColumn("{task.fields[second]}"),
        TimeLeft(),
        console=Console(stderr=True),
    )


def describe(row: Row) -> dict[str, str]:
    """The two figures of a row of a walk: regularizer and angle."""
    return {"first": f"R {row['regularizer']:.4g}", "second": f"{row['angle_degrees']:.2f} deg"}


def _hide(row: Row, done: int) -> None:
    del row, done


@contextmanager
def walk_progress(*, enabled: bool, steps: int) -> Generator[Callable[[Row, int], None]]:
    """Show a walk while it goes on.

    Args:
        enabled: Whether to show it; nothing is shown where standard error is no terminal.
        steps: Steps at which the walk ends at the latest.

    Yields:
        A function of (row, steps so far), cheap enough to be called at every step.
    """
    if not enabled or not Console(stderr=True).is_terminal:
        yield _hide
        return
    with columns() as display:
        task = display.add_task("walk", total=steps, first="", second="")
        shown = 0.0

        def show(row: Row, done: int) -> None:
            nonlocal shown
            now = time.monotonic()
            if now - shown >= SECONDS_BETWEEN:
                shown = now
                display.update(task, completed=done, **cast(Any, describe(row)))

        yield show
