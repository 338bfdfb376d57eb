"""The progress of many runs on the terminal, a line each, and their summary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.progress import TaskID
from rich.table import Table

from isoloss.progress import columns
from isoloss.runs.run import News, Run


class Display:
    """Shows news of runs: live lines on a terminal, else a line per finished run."""

    def __init__(self, title: str, runs: Sequence[Run]) -> None:
        self._title = title
        self._runs = {one.index: one for one in runs}
        self._live = columns(runs[0].unit)
        self._terminal = self._live.console.is_terminal
        self._live.disable = not self._terminal
        self._tasks: dict[int, TaskID] = {}
        self._last: dict[int, News] = {}
        for one in runs:
            self._tasks[one.index] = self._live.add_task(
                _label(one, "waiting"), total=one.total, start=False, figures=""
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
        """Take in news of a run."""
        self._last[news.index] = news
        one, task = self._runs[news.index], self._tasks[news.index]
        if news.row and not self._live.tasks[task].started:  # time left is not that of phase 1
            self._live.start_task(task)
        fields: dict[str, Any] = {"figures": one.describe(news.row)} if news.row else {}
        label = _label(one, _word(news))
        self._live.update(task, description=label, completed=news.done, **fields)
        if news.phase == "done":
            self._live.stop_task(task)
            if not self._terminal:
                line = f"{self._title} {label.rstrip()}"
                if news.failed:
                    line += f": {news.ending}"
                elif news.row:
                    line += f": {news.done:,} {one.unit}, {one.describe(news.row)}"
                self._live.console.print(line, soft_wrap=True)

    def summary(self) -> Table:
        """A table with a line per run: where it started, where it ended, and why."""
        table = Table(box=None, pad_edge=False)
        headings = next(iter(self._runs.values())).headings
        for heading in ("run", "seed", *headings):
            table.add_column(heading, justify="right" if heading != "run" else "left")
        table.add_column("outcome")
        for index, one in sorted(self._runs.items()):
            news = self._last.get(index)
            row = news.row if news and not news.failed else None
            numbers = one.numbers(news.done, row) if news and row else ("",) * len(headings)
            ending = _word(news) if news else "not started"
            table.add_row(one.folder.name, str(one.seed), *numbers, ending)
        return table


def _word(news: News) -> str:
    return "failed" if news.failed else news.ending or news.phase


def _label(one: Run, word: str) -> str:
    return f"{one.folder.name} {word:<11}"
