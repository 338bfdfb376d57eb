"""A run folder claimed for one run of whatever kind, and what becomes of its errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path as FilePath
from typing import Any, Protocol

from isoloss.errors import IsolossError
from isoloss.files import StorageError, sentence_of
from isoloss.outcome import Outcome
from isoloss.runs.news import News
from isoloss.store.checkpoint import TrainingCheckpoint
from isoloss.store.folder import CHECKPOINT, check, save_failure
from isoloss.store.lock import move_aside, only_writer


class Cancelled(Exception):  # noqa: N818
    """A training was told to stop, and its state is kept."""


class _Run(Protocol):
    @property
    def index(self) -> int: ...

    @property
    def folder(self) -> FilePath: ...


def as_only_writer(one: _Run, execute: Callable[[list[str]], News]) -> News:
    """Execute a run as the only writer to its folder; its failure is written there.

    Args:
        one: The run.
        execute: Does it; it appends to the list what the user should know beside the news.

    Returns:
        Its news, or those of its failure.

    Raises:
        LockedError: Another process writes to the folder; nothing was done.
    """
    with only_writer(one.folder) as died:
        notes = [f"{one.folder}: {died} did not end properly"] if died else []
        try:
            return execute(notes)
        except Cancelled:
            ending = Outcome.INTERRUPTED.value
            return News(one.index, "done", ending=ending, notes=tuple(notes))
        except Exception as error:
            what = said(error)
            with suppress(StorageError):  # what cannot be written is said all the same
                save_failure(one.folder, what)
            return News(one.index, "done", ending=what, failed=True, notes=tuple(notes))


def keep_or_stop(
    checkpoint: TrainingCheckpoint, cancelled: Callable[[], bool], state: object
) -> None:
    """After an epoch: keep the state where that is due, and stop where that is asked.

    Args:
        checkpoint: Keeps it.
        cancelled: Whether to stop.
        state: Of the training.

    Raises:
        Cancelled: It is to stop; the state is kept.
    """
    stop = cancelled()
    if stop or checkpoint.due:
        checkpoint.save(state)
    if stop:
        raise Cancelled


def is_finished(folder: FilePath, config: Mapping[str, Any]) -> bool:
    """Whether there is nothing to do in a run folder; nothing is changed.

    Args:
        folder: The run folder, which need not exist.
        config: Everything that determines the run.

    Returns:
        Whether the run is finished, with all its files whole and no checkpoint left to delete;
        False where that cannot be found out now, which the run itself will say, while the others go
        on.

    Raises:
        InputError: The folder holds a run with another configuration; the difference is shown.
    """
    try:
        return check(folder, config) and not (folder / CHECKPOINT).exists()
    except StorageError:
        return False


def put_aside(folder: FilePath) -> FilePath | None:
    """Move a run out of the way, into `replaced` beside it.

    Args:
        folder: The run folder.

    Returns:
        Where it is now; None where there was none.

    Raises:
        LockedError: Another process writes to the folder.
    """
    if not folder.exists():
        return None
    with only_writer(folder):
        return move_aside(folder, folder.parent / "replaced")


def said(error: BaseException) -> str:
    """The sentence of an error for people."""
    if isinstance(error, IsolossError):
        return str(error)
    refused = sentence_of(error) if isinstance(error, Exception) else None
    return refused or f"{type(error).__name__}: {error}"
