"""One writer to a run folder at a time, and where it moves what is in its way."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Generator
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from isoloss.errors import IsolossError
from isoloss.files import ResultsError, StorageError, read_json, sync, write_json, writing

SECONDS_TO_SAY_WHO = 5.0
"""How long to wait for the holder of a lock to have written who it is."""


class LockedError(IsolossError):
    """Another process writes to the folder; the text says which."""


@contextlib.contextmanager
def only_writer(folder: Path) -> Generator[str | None]:
    """Be the only process that writes to a run folder; who held it and died without letting go.

    The system lets go of the lock when its owner dies, however it dies. The files lie beside the
    run folder, so that it can be moved: `.NAME.lock`, never deleted, and `.NAME.holder.json`.
    """
    note = folder.with_name(f".{folder.name}.holder.json")
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        _acquire(lock, folder, note)
    try:
        died, _ = _holder(note)
        since = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(note, {"pid": os.getpid(), "host": socket.gethostname(), "since": since})
        try:
            yield died
        finally:
            with contextlib.suppress(OSError):
                note.unlink(missing_ok=True)
    finally:
        lock.release()


def _acquire(lock: FileLock, folder: Path, note: Path) -> None:
    give_up = time.monotonic() + SECONDS_TO_SAY_WHO
    while True:
        try:
            lock.acquire(timeout=0)
            return
        except Timeout:
            holder, alive = _holder(note)  # a dead one, until the living one has said who it is
            if alive or time.monotonic() > give_up:
                raise LockedError(
                    f"{folder} is being written to by {holder if alive else 'another process'}; "
                    f"wait until it is done, or stop it and call the same command again"
                ) from None
            time.sleep(0.02)


def _holder(note: Path) -> tuple[str | None, bool]:
    """Who holds a lock, and whether it is alive, as far as can be seen from here."""
    try:
        content = read_json(note)
        pid, host, since = content["pid"], content["host"], content["since"]
    except (ResultsError, StorageError, KeyError):
        return None, False  # not written yet, or torn: the lock tells that there is somebody
    alive = True
    with contextlib.suppress(PermissionError):
        try:
            if host == socket.gethostname():
                os.kill(pid, 0)
        except ProcessLookupError:
            alive = False
    return f"process {pid} on {host} since {since}", alive


def move_aside(what: Path, folder: Path) -> Path:
    """Move a file or folder into another, under a name with the time that is not taken."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        target, count = folder / f"{what.name}-{stamp}", 1
        while target.exists():
            count += 1
            target = folder / f"{what.name}-{stamp}-{count}"
        os.replace(what, target)  # noqa: PTH105
        sync(folder)
        sync(what.parent)
    return target


def quarantine(damaged: Path, folder: Path) -> None:
    """Move what is damaged, if it is there, into the `quarantine` of a run folder."""
    if damaged.exists():
        move_aside(damaged, folder / "quarantine")
