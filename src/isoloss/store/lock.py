"""The one process that writes to a run folder."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Generator
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from isoloss.disk import ResultsError, StorageError, refuse_links, writing
from isoloss.errors import IsolossError
from isoloss.files import read_json, write_json


class LockedError(IsolossError):
    """Another process writes to the folder; the text says which."""


@contextlib.contextmanager
def only_writer(folder: Path) -> Generator[str | None]:
    """Be the only process that writes to a run folder; who held it and died without letting go."""
    # both lie beside the run folder, so that it can be moved; the lock file is never deleted, and
    # the system lets go of the lock when its owner dies
    note = folder.with_name(f".{folder.name}.holder.json")
    lock_file = folder.with_name(f".{folder.name}.lock")
    lock = FileLock(lock_file)
    give_up = time.monotonic() + 5.0  # by then the holder has written who it is
    for file in (folder, lock_file):
        refuse_links(folder.parent, file)
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        while True:
            with contextlib.suppress(Timeout):
                lock.acquire(timeout=0)
                break
            holder, alive = _holder(note)  # a dead one, until the living one has said who it is
            if alive or time.monotonic() > give_up:
                raise LockedError(
                    f"{folder} is being written to by {holder if alive else 'another process'}; "
                    f"wait until it is done, or stop it and call the same command again"
                )
            time.sleep(0.02)
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


def _holder(note: Path) -> tuple[str | None, bool]:
    """Who holds a lock, and whether it is alive, as far as can be seen from here."""
    try:
        content = read_json(note)
        pid, host = int(content["pid"]), content["host"]
    except (ResultsError, StorageError, KeyError, TypeError, ValueError):
        return None, False  # not written yet: the lock tells that there is somebody
    alive = True
    if host == socket.gethostname():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            alive = False
        except (PermissionError, OverflowError):
            pass
    return f"process {pid} on {host} since {content.get('since')}", alive
