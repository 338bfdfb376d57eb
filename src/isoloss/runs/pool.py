"""Many runs over the cores: one process a run, one torch thread each.

Each process has its own pipe and flag and nothing that it shares with the others, so that one which
is killed leaves no lock behind that others wait for.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from isoloss.files import ResultsError, StorageError
from isoloss.runs.claim import said
from isoloss.runs.news import THREADS, News
from isoloss.runs.run import Run
from isoloss.store.folder import problem, save_failure
from isoloss.store.lock import LockedError, only_writer

_DIED = (
    "its process was killed, perhaps since memory ran out; call the same command again to go on "
    "from its last checkpoint"
)

_pipe: Any = None  # of a worker process: where news goes
_cancel: Any = None  # of a worker process: set when the user interrupts
_stopped = threading.Event()  # of a worker process: asked to stop, or the parent is gone
_working = threading.Lock()  # of a worker process: held while it executes a run


def run_all(runs: Sequence[Run], show: Callable[[News], None]) -> bool:
    """Execute runs in parallel; one that fails does not stop the others.

    Args:
        runs: What to do.
        show: Receives the news of all runs, in this process.

    Returns:
        Whether all went through without being interrupted by Ctrl-C or SIGTERM. An interrupted run
        has written what it had, and goes on from there the next time.
    """
    waiting = deque(runs)
    workers = [_Worker() for _ in range(min(len(runs), _cores()))]
    whole = True
    try:
        while waiting or any(worker.run for worker in workers):
            for worker in workers:
                if worker.run is None and waiting:
                    worker.begin(waiting.popleft())
            wait([worker.future for worker in workers if worker.future], timeout=0.1)
            for worker in workers:
                if not worker.follow(show):
                    raise KeyboardInterrupt
    except KeyboardInterrupt:
        whole = False
        for worker in workers:
            worker.cancel()
        while any(worker.run for worker in workers):
            wait([worker.future for worker in workers if worker.future], timeout=0.1)
            for worker in workers:
                worker.follow(show)
    finally:
        for worker in workers:
            worker.close()
    return whole


class _Worker:
    """One process, made anew when it has died, and the run that it executes."""

    def __init__(self) -> None:
        self.run: Run | None = None
        self.future: Future[News] | None = None
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._reader, self._writer = context.Pipe(duplex=False)
        self._flag = context.RawValue("b", 0)
        arguments = (self._writer, self._flag)
        self._executor = ProcessPoolExecutor(1, context, _initialize, arguments)

    def begin(self, one: Run) -> None:
        with _inherited():
            self.run, self.future = one, self._executor.submit(_execute, one)

    def follow(self, show: Callable[[News], None]) -> bool:
        """Pass on news; False once the run was interrupted by a signal to its process."""
        self._pass_on(show)
        if self.run is None or self.future is None or not self.future.done():
            return True
        self._pass_on(show)
        one, error = self.run, self.future.exception()
        news = self.future.result() if error is None else _lost(one, error)
        self.run = self.future = None
        if isinstance(error, BrokenProcessPool):
            self.close()
            self._start()
        show(news)
        return not news.interrupted

    def cancel(self) -> None:
        self._flag.value = 1

    def close(self) -> None:
        self._executor.shutdown()
        self._reader.close()
        self._writer.close()

    def _pass_on(self, show: Callable[[News], None]) -> None:
        while self._reader.poll():
            show(self._reader.recv())


def _lost(one: Run, error: BaseException) -> News:
    """News of a run whose process could not give them."""
    what = _DIED if isinstance(error, BrokenProcessPool) else said(error)
    if not isinstance(error, LockedError):
        with suppress(StorageError, LockedError, ResultsError), only_writer(one.folder):
            if problem(one.folder) is not None:  # it may have died after its last word
                save_failure(one.folder, what)
    return News(one.index, "done", ending=what, failed=True)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def _inherited() -> Generator[None]:
    """What a process that is started now gets from this one.

    Signals wait until it knows what to do with them. Its threads are fixed in the environment too:
    the libraries of linear algebra choose their algorithms, and with them the last bits, by what
    they find there when they are loaded.
    """
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    outside = {name: os.environ[name] for name in names if name in os.environ}
    os.environ.update(dict.fromkeys(names, str(THREADS)))
    masks = hasattr(signal, "pthread_sigmask")
    held = {signal.SIGINT, signal.SIGTERM}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held) if masks else None
    try:
        yield
    finally:
        for name in names:
            del os.environ[name]
        os.environ.update(outside)
        if before is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _initialize(pipe: Any, cancel: Any) -> None:
    global _pipe, _cancel
    _pipe, _cancel = pipe, cancel
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when to stop, through cancel
    signal.signal(signal.SIGTERM, _stop)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    threading.Thread(target=_follow_parent, daemon=True).start()
    torch.set_num_threads(THREADS)
    threadpool_limits(THREADS)  # NumPy's linear algebra too


def _stop(*_: object) -> None:
    _stopped.set()


def _follow_parent() -> None:
    """End with the parent, however it ended: after the step that is being taken is kept."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        _stopped.set()
        with _working:
            os._exit(1)


def _execute(one: Run) -> News:
    with _working:
        return one.execute(_tell, _cancelled)


def _tell(news: News) -> None:
    try:
        _pipe.send(news)
    except OSError:  # the parent is gone
        _stopped.set()


def _cancelled() -> bool:
    return _stopped.is_set() or bool(_cancel.value)
