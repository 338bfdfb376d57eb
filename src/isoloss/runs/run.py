"""What runs of every kind share: the claim to a folder, news and their display, interruption."""

from __future__ import annotations

import platform
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path as FilePath
from types import FrameType
from typing import Any, ClassVar, Protocol

import torch
from rich.table import Table

from isoloss import __version__
from isoloss.disk import ResultsError, StorageError, move_aside, sentence_of
from isoloss.endings import for_commands
from isoloss.errors import IsolossError, one_line, printable
from isoloss.evaluation.failures import of_the_device
from isoloss.outcome import Outcome
from isoloss.path import Row
from isoloss.progress import columns
from isoloss.store import folder
from isoloss.store.checkpoint import TrainingCheckpoint
from isoloss.store.lock import LockedError, only_writer

SECONDS_BETWEEN_NEWS = 0.1
MOST_LINES = 30  # on a terminal, of runs that wait or have ended too


@dataclass(frozen=True)
class News:
    """What a run tells while it goes on, and last of all how it ended."""

    index: int
    phase: str  # training, walking, or done
    done: int = 0  # steps so far
    row: Row | None = None  # the last one, if there is any
    ending: str = ""  # once done: the outcome's value, or the sentence of the error
    failed: bool = False
    notes: tuple[str, ...] = ()  # what the user should know beside that, a sentence each

    @property
    def interrupted(self) -> bool:
        """Whether the run was interrupted, to be continued another time."""
        return self.ending == Outcome.INTERRUPTED.value and not self.failed


class Interrupted(BaseException):  # no Exception: users' code may catch those
    """A run was told to stop, and its state is kept, if there is any."""


class Contact:
    """A run whose folder this process alone writes to, and its contact with whoever started it."""

    def __init__(
        self, run: Run, tell: Callable[[News], None], cancelled: Callable[[], bool]
    ) -> None:
        self.run = run
        self.notes: list[str] = []
        self._tell, self._cancelled = tell, cancelled
        self._last, self._when = News(run.index, ""), 0.0
        self._begun = self._keeps_nothing = False

    def begin(self) -> News | None:
        """Lay claim to the folder; the last news where nothing is left to do, or nothing can be."""
        run = self.run
        try:
            left = folder.begin(
                run.folder, run.config(), made_with(), self.notes.append, later=run.goes_on
            )
        except Exception as error:
            return self.ended_by(error)
        self._begun = True
        return None if left else self.end(run.finished_before)

    def end(self, work: Callable[[], News]) -> News:
        """Do the rest of the run: the last news, whatever ends it."""
        try:
            return replace(work(), notes=tuple(self.notes))
        except (Exception, Interrupted) as error:
            return self.ended_by(error)

    def ended_by(self, error: Exception | Interrupted) -> News:
        """The last news after an error or an interruption."""
        news = News(self.run.index, "done", ending=Outcome.INTERRUPTED.value)
        if isinstance(error, Exception):
            news = self.run.failed(error)
            if self._begun:  # else it is perhaps another run's
                self.run.save_failure(news.ending)
        return replace(news, notes=tuple(self.notes))

    def tell(self, phase: str, done: int = 0, row: Row | None = None) -> bool:
        """Say how far the run is, not too often; whether it is to stop."""
        now = time.monotonic()
        if phase != self._last.phase or now - self._when >= SECONDS_BETWEEN_NEWS:
            self._last, self._when = replace(self._last, phase=phase, done=done, row=row), now
            self._tell(self._last)
        self._keeps_nothing &= row is None
        return self._cancelled()

    @contextmanager
    def keeping_nothing(self) -> Generator[None]:
        """Until a row is told nothing is lost by stopping: the signal for it raises Interrupted."""
        if threading.current_thread() is not threading.main_thread():  # which alone hears it
            yield
            return
        before = signal.getsignal(signal.SIGTERM)

        def stop(number: int, frame: FrameType | None) -> None:
            if callable(before):
                before(number, frame)
            if self._keeps_nothing:
                self._keeps_nothing = False  # once
                raise Interrupted

        self._keeps_nothing = True
        signal.signal(signal.SIGTERM, stop)
        try:
            if self.stopping:  # since before that
                raise Interrupted
            yield
        finally:
            self._keeps_nothing = False
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)

    @property
    def stopping(self) -> bool:
        """Whether it is to stop."""
        return self._cancelled()

    def keep_or_stop(self, checkpoint: TrainingCheckpoint, state: object) -> None:
        """After an epoch: keep the state where that is due, and stop where that is asked."""
        stop = self.stopping
        if stop or checkpoint.due:
            checkpoint.save(state)
        if stop:
            raise Interrupted


class RunSettings(Protocol):
    """Everything but the seed that determines a run."""

    def config(self, seed: int) -> dict[str, Any]: ...  # what goes into a run's `config.json`


@dataclass(frozen=True)
class Run(ABC):
    """One run: it is sent to a process, executed there, and tells how it goes."""

    index: int  # from 0
    seed: int
    folder: FilePath
    settings: RunSettings
    checkpoint_every: float = 30.0  # seconds
    patience: float = 0.0  # seconds to wait for a folder that another process is letting go of

    unit: ClassVar[str]  # what progress is counted in
    figures: ClassVar[str]  # the progress line's template, filled from the last row
    columns: ClassVar[dict[str, str]]  # templates of the summary's columns, by their headings
    goes_on: ClassVar[bool] = False  # whether it goes on where its `stop` is set later

    @property
    @abstractmethod
    def total(self) -> int | None:
        """Where its progress ends; None where the run ends when it has converged."""

    def counted(self, done: int) -> str:
        """Its progress, for people."""
        return f"{done:,}"

    @abstractmethod
    def _work(self, contact: Contact) -> News:
        """Do what is left of it and write its files; the last news."""

    @abstractmethod
    def finished_before(self) -> News:
        """The last news of a run that was finished before."""

    @classmethod
    def work_all(cls, contacts: Sequence[Contact]) -> Iterator[News]:
        """Do what is left of several that were begun, in this process; the last news of each."""
        for k, contact in enumerate(contacts):
            if k and contact.stopping:
                yield contact.ended_by(Interrupted())
            else:
                yield contact.end(partial(contact.run._work, contact))

    @property
    def shared(self) -> str | None:
        """The GPU it is computed on: runs on one share a process. None: a process of its own."""
        device = str(self.config().get("device"))
        return device if device.startswith("cuda") else None

    def config(self) -> dict[str, Any]:
        """Everything that determines the run."""
        return self.settings.config(self.seed)

    def finished(self) -> bool:
        """Whether nothing is left to do, with all files whole; InputError: the settings differ."""
        try:
            return folder.check(self.folder, self.config(), later=self.goes_on)
        except (ResultsError, StorageError):  # the run itself will say why, while others go on
            return False

    def execute(self, tell: Callable[[News], None], cancelled: Callable[[], bool]) -> News:
        """Do what is left as the only writer, else LockedError; all other errors are last news."""
        with self.claimed(tell, cancelled) as contact:
            news = contact.begin()
            if news is None:
                (news,) = self.work_all([contact])
            return news

    @classmethod
    def execute_all(
        cls,
        runs: Sequence[Run],
        tell: Callable[[News], None],
        cancelled: Callable[[], bool],
    ) -> None:
        """Do what is left of several as the only writer; tells last news, all errors among them."""
        with ExitStack() as held:
            begun: list[Contact] = []
            for one in runs:
                try:
                    contact = held.enter_context(one.claimed(tell, cancelled))
                    news = contact.begin()
                    begun += [contact] if news is None else []
                except Exception as error:
                    news = one.failed(error)
                if news is not None:
                    tell(news)
            for news in cls.work_all(begun):
                tell(news)

    @contextmanager
    def claimed(
        self, tell: Callable[[News], None], cancelled: Callable[[], bool]
    ) -> Generator[Contact]:
        """Be the only writer to its folder, else LockedError."""
        give_up = time.monotonic() + self.patience
        with ExitStack() as held:
            while True:
                try:
                    died = held.enter_context(only_writer(self.folder))
                    break
                except LockedError:
                    if cancelled() or time.monotonic() > give_up:
                        raise
                time.sleep(SECONDS_BETWEEN_NEWS)
            contact = Contact(self, tell, cancelled)
            if died:
                contact.notes.append(f"{self.folder}: {died} did not end properly")
            yield contact

    def failed(self, error: Exception) -> News:
        """The last news of a run that an error ended."""
        known = isinstance(error, IsolossError)
        what = for_commands(str(error)) if known else sentence_of(error)
        if what is None and of_the_device(error):
            what = (
                f"{self.config().get('device')} failed ({one_line(error)}); run the same command "
                f"again to continue from the last checkpoint"
            )
        what = what or f"{type(error).__name__}: {error}"
        return News(self.index, "done", ending=what, failed=True)

    def save_failure(self, why: str) -> None:
        """Write how the run failed, unless there is what it came to before."""
        with suppress(StorageError):  # what cannot be written is said all the same
            if folder.problem(self.folder) is not None:
                folder.save_failure(self.folder, why)

    def lost(self, why: str) -> News:
        """The last news of a run whose process died without a word."""
        with suppress(StorageError, LockedError, ResultsError), only_writer(self.folder):
            self.save_failure(why)
        return News(self.index, "done", ending=why, failed=True)

    def put_aside(self) -> FilePath | None:
        """Move what there is of the run into `replaced` beside it; where it is now."""
        if not self.folder.exists():
            return None
        with only_writer(self.folder):
            return move_aside(self.folder, self.folder.parent / folder.REPLACED)


def made_with() -> dict[str, Any]:
    """Versions and hardware that a run's bits depend on."""
    return {
        "isoloss": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }


class Display:
    """Shows news of runs: live lines on a terminal, of many runs those that go on, else a line
    per finished run."""

    def __init__(self, title: str, runs: Sequence[Run]) -> None:
        self._title = title
        self._runs = {one.index: one for one in runs}
        self.live = columns(runs[0].unit)  # a context, to be entered while they go on
        self.live.disable = not self.live.console.is_terminal
        self._many = len(runs) > MOST_LINES
        self._last: dict[int, News] = {}
        self._tasks = {
            one.index: self.live.add_task(
                _label(one), total=one.total, start=False, figures="", visible=not self._many
            )
            for one in runs
        }
        if not self.live.disable:
            self.live.console.print(title)

    @property
    def failures(self) -> list[str]:
        """Which runs failed, with the sentence of the error."""
        last = sorted(self._last.items())
        return [f"{self._runs[k].folder}: {news.ending}" for k, news in last if news.failed]

    @property
    def notes(self) -> list[str]:
        """What the user should know beside how the runs ended."""
        notes = (note for _, news in sorted(self._last.items()) for note in news.notes)
        return list(dict.fromkeys(notes))  # runs that were done together have the same to say

    def show(self, news: News) -> None:
        """Take in news of a run."""
        self._last[news.index] = news
        one, task = self._runs[news.index], self._tasks[news.index]
        if news.row and not self.live.tasks[task].started:  # time left is not that of phase 1
            self.live.start_task(task)
        fields: dict[str, Any] = {"figures": one.figures.format_map(news.row)} if news.row else {}
        label = _label(one, _word(news))
        seen = not self._many or news.phase != "done"
        self.live.update(task, description=label, completed=news.done, visible=seen, **fields)
        if news.phase == "done":
            self.live.stop_task(task)
            if self.live.disable or self._many:
                line = f"{self._title} {label.rstrip()}"
                if news.failed:
                    line += f": {news.ending}"
                elif news.row:
                    done = f"{one.counted(news.done)} {one.unit}"
                    line += f": {done}, {one.figures.format_map(news.row)}"
                self.live.console.print(printable(line), soft_wrap=True)

    def say(self, sentence: str) -> None:
        """Print a sentence beside what is shown of the runs."""
        self.live.console.print(printable(sentence), soft_wrap=True)

    def summary(self) -> Table:
        """A table with a line per run: where it started, where it ended, and why."""
        first = next(iter(self._runs.values()))
        table = Table(box=None, pad_edge=False)
        for heading in ("run", "seed", first.unit, *first.columns, "outcome"):
            table.add_column(heading, justify="left" if heading in ("run", "outcome") else "right")
        for index, one in sorted(self._runs.items()):
            news = self._last.get(index)
            numbers = [""] * (1 + len(one.columns))
            if news and news.row and not news.failed:
                row = defaultdict(_Nothing, news.row)
                numbers = [text.format_map(row) for text in one.columns.values()]
                numbers.insert(0, one.counted(news.done))
            ending = _word(news) if news else "not started"
            table.add_row(one.folder.name, str(one.seed), *numbers, ending)
        return table


class _Nothing:
    """What is not in a row, such as the test loss where there is no test set: shown as nothing."""

    def __format__(self, _: str) -> str:
        return ""


def _word(news: News) -> str:
    return "failed" if news.failed else news.ending or news.phase


def _label(one: Run, word: str = "waiting") -> str:
    return f"{one.folder.name} {word:<11}"
