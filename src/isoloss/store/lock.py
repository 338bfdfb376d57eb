"""One writer to a run folder at a time."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Generator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from isoloss.errors import IsolossError
from isoloss.files import ResultsError, read_json, write_json
from isoloss.storage import StorageError, writing

SECONDS_TO_SAY_WHO = 5.0
"""How long to wait for the holder of a lock to have written who it is."""


class LockedError(IsolossError):
    """Another process writes to the folder; the text says which."""


@dataclass(frozen=True)
class Holder:
    """Who writes to a folder.

    Attributes:
        pid: The process.
        host: On which machine.
        since: Since when, ISO 8601, UTC.
    """

    pid: int
    host: str
    since: str

    def __str__(self) -> str:
        """Process, machine and time."""
        return f"process {self.pid} on {self.host} since {self.since}"


@contextlib.contextmanager
def only_writer(folder: Path) -> Generator[Holder | None]:
    """Be the only process that writes to a run folder.

    The system lets go of the lock when its owner dies, however it dies. The files lie beside the
    run folder, so that it can be moved: `.NAME.lock`, never deleted, and `.NAME.holder.json`.

    Args:
        folder: The run folder.

    Yields:
        Who held the lock and died with it; None where it was let go of properly.

    Raises:
        LockedError: Another process holds it.
    """
    note = folder.with_name(f".{folder.name}.holder.json")
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        _acquire(lock, folder, note)
    try:
        died = _read(note)
        since = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(note, asdict(Holder(os.getpid(), socket.gethostname(), since)))
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
            holder = _read(note)  # of a dead one, until the living one has written its own
            known = holder is not None and _lives(holder)
            if known or time.monotonic() > give_up:
                raise LockedError(
                    f"{folder} is being written to by {holder if known else 'another process'}; "
                    f"wait until it is done, or stop it and call the same command again"
                ) from None
            time.sleep(0.02)


def _lives(holder: Holder) -> bool:
    if holder.host != socket.gethostname():
        return True  # which cannot be seen from here
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _read(note: Path) -> Holder | None:
    try:
        content = read_json(note)
        return Holder(content["pid"], content["host"], content["since"])
    except (ResultsError, StorageError, KeyError):
        return None  # not written yet, or torn: whoever it is, the lock tells that somebody is
