"""Many runs over the cores: one process a run, one torch thread each."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from isoloss.errors import IsolossError
from isoloss.results import run
from isoloss.runs.run import Run
from isoloss.runs.walk import THREADS, News

_channel: Any = None  # of a worker process: where news goes
_cancel: Any = None  # of a worker process: set when the user interrupts


def run_all(runs: Sequence[Run], show: Callable[[News], None]) -> bool:
    """Execute runs in parallel; one that fails does not stop the others.

    Args:
        runs: What to do.
        show: Receives the news of all runs, in this process.

    Returns:
        Whether all went through without being interrupted by Ctrl-C. An interrupted run has
        written what it had.
    """
    context = multiprocessing.get_context("spawn")
    channel, cancel = context.Queue(), context.Event()
    workers = min(len(runs), _cores())
    with ProcessPoolExecutor(workers, context, _initialise, (channel, cancel)) as pool:
        waiting = {pool.submit(_execute, one): one for one in runs}
        try:
            while waiting:
                _pass_on(channel, show, timeout=0.1)
                for future in [future for future in waiting if future.done()]:
                    _pass_on(channel, show)
                    _settle(future, waiting.pop(future), show)
        except KeyboardInterrupt:
            cancel.set()
            for future in waiting:
                future.cancel()
            for future, one in waiting.items():
                if not future.cancelled():
                    _settle(future, one, show)
        return not cancel.is_set()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _initialise(channel: Any, cancel: Any) -> None:
    global _channel, _cancel
    _channel, _cancel = channel, cancel
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when to stop, through cancel
    torch.set_num_threads(THREADS)
    threadpool_limits(THREADS)  # NumPy's linear algebra too


def _execute(one: Run) -> News:
    return one.execute(_channel.put, _cancel.is_set)


def _settle(future: Future[News], one: Run, show: Callable[[News], None]) -> None:
    error = future.exception()
    if error is None:
        show(future.result())
        return
    what = str(error) if isinstance(error, IsolossError) else f"{type(error).__name__}: {error}"
    run.save_failure(one.folder, what)
    show(News(one.index, "done", ending=what, failed=True))


def _pass_on(channel: Any, show: Callable[[News], None], timeout: float = 0.0) -> None:
    try:
        show(channel.get(timeout=timeout) if timeout else channel.get_nowait())
        while True:
            show(channel.get_nowait())
    except queue.Empty:
        return
