"""Progress lines on a terminal: of one walk, and of many runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from isoloss.path import Row

SECONDS_BETWEEN = 0.1
FIGURES = "R {regularizer:.4g}, {angle_degrees:.2f} deg"  # what is shown of a walk's last row


class TimeLeft(TimeRemainingColumn):
    """The time left of what is still going on and has a known end; nothing of the rest."""

    def render(self, task: Task) -> Text:
        """The column of one task."""
        if task.finished or task.stop_time is not None or not task.started or task.total is None:
            return Text("")
        return super().render(task).append(" left")


def columns(unit: str = "steps") -> Progress:
    """A display on standard error, a line for each task, which needs a field `figures`."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=12),
        TextColumn("{task.completed:>6.0f} " + unit),
        TextColumn("{task.fields[figures]}", markup=False),
        TimeLeft(),
        console=Console(stderr=True, markup=False, emoji=False, highlight=False),
    )


@contextmanager
def walk_progress(*, enabled: bool, steps: int) -> Generator[Callable[[Row, int], None]]:
    """Show a walk while it goes on, on a terminal; call what is yielded with row and steps."""
    display = columns()
    if not enabled or not display.console.is_terminal:
        yield lambda _row, _done: None
        return
    with display:
        task = display.add_task("walk", total=steps, figures="")
        shown = 0.0

        def show(row: Row, done: int) -> None:
            nonlocal shown
            now = time.monotonic()
            if now - shown >= SECONDS_BETWEEN:
                shown = now
                display.update(task, completed=done, figures=FIGURES.format_map(row))

        yield show


@contextmanager
def count_progress(*, enabled: bool, total: int, what: str) -> Generator[Callable[[str], None]]:
    """Count what is done of a known number, on a terminal; call what is yielded with figures."""
    display = columns(f"of {total}")
    if not enabled or not display.console.is_terminal:
        yield lambda _figures: None
        return
    with display:
        task = display.add_task(what, total=total, figures="")
        yield lambda figures: display.update(task, advance=1, figures=figures)
