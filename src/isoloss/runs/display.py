"""The progress of many runs on the terminal, a line each, and their summary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import TaskID
from rich.table import Table

from isoloss.progress import columns
from isoloss.runs.news import News
from isoloss.runs.run import Run


class Display:
    """Shows news of runs: live lines on a terminal, else a line per finished run.

    Args:
        title: What is going on.
        runs: The runs that will report.
        steps: Steps that a run takes; None where it ends when it has converged.
    """

    def __init__(self, title: str, runs: Sequence[Run], steps: int | None) -> None:
        self._title = title
        self._runs = {one.index: one for one in runs}
        self._live = columns(runs[0].unit if runs else "steps")
        self._terminal = Console(stderr=True).is_terminal
        self._live.disable = not self._terminal
        self._tasks: dict[int, TaskID] = {}
        self._last: dict[int, News] = {}
        for one in runs:
            label = f"{one.folder.name} waiting  "
            self._tasks[one.index] = self._live.add_task(
                label, total=steps, start=False, first="", second=""
            )

    def __enter__(self) -> Display:
        """Begin to show."""
        if self._terminal:
            self._live.console.print(self._title)
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Leave the last lines standing."""
        self._live.stop()

    @property
    def failures(self) -> list[str]:
        """Which runs failed, with the sentence of the error."""
        return [
            f"{self._runs[index].folder}: {news.ending}"
            for index, news in sorted(self._last.items())
            if news.failed
        ]

    @property
    def notes(self) -> list[str]:
        """What the user should know beside how the runs ended."""
        return [note for _, news in sorted(self._last.items()) for note in news.notes]

    def show(self, news: News) -> None:
        """Take in news of a run; what comes after its last word was only slow to arrive."""
        before = self._last.get(news.index)
        if before is not None and before.phase == "done":
            return
        self._last[news.index] = news
        task = self._tasks[news.index]
        if news.phase == "walking" and not self._live.tasks[task].started:
            self._live.start_task(task)
        one = self._runs[news.index]
        fields: dict[str, Any] = one.describe(news.row) if news.row else {}
        word = news.ending if news.phase == "done" and not news.failed else news.phase
        word = "failed" if news.failed else word
        label = f"{one.folder.name} {word:<9}"
        self._live.update(task, description=label, completed=news.done, **fields)
        if news.phase == "done":
            self._live.stop_task(task)
            if not self._terminal:
                line = _line(one, news)
                text = f"{label.rstrip()}: {line}" if line != word else label.rstrip()
                self._live.console.print(f"{self._title} {text}", soft_wrap=True)

    def summary(self) -> Table:
        """A table with a line per run: where it started, where it ended, and why."""
        table = Table(box=None, pad_edge=False, title_justify="left")
        headings: tuple[str, ...] = next((one.headings for one in self._runs.values()), ())
        for heading in ("run", "seed", *headings):
            table.add_column(heading, justify="right" if heading != "run" else "left")
        table.add_column("outcome")
        for index, one in sorted(self._runs.items()):
            news = self._last.get(index)
            row = news.row if news and not news.failed else None
            numbers = one.numbers(news.done, row) if news and row else ("",) * len(headings)
            ending = "not started"
            if news is not None:
                ending = "failed" if news.failed else news.ending or news.phase
            table.add_row(one.folder.name, str(one.seed), *numbers, ending)
        return table


def _line(one: Run, news: News) -> str:
    if news.row is None:
        return news.ending
    return ", ".join([f"{news.done:,} {one.unit}", *one.describe(news.row).values()])
