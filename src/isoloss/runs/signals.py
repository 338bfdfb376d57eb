"""SIGTERM stops a command as Ctrl-C does, but for the exit code."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager

_terminated = threading.Event()


@contextmanager
def sigterm_interrupts() -> Generator[None]:
    """Raise KeyboardInterrupt on SIGTERM, in the main thread.

    Yields:
        Nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _terminated.clear()
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def exit_code() -> int:
    """That of a command that was interrupted: 143 by SIGTERM, 130 by Ctrl-C."""
    return 143 if _terminated.is_set() else 130


def _interrupt(*_: object) -> None:
    _terminated.set()
    raise KeyboardInterrupt
