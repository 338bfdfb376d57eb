"""Many runs over the cores, a process each or one for all on a GPU, and the signals that stop them.

Processes share nothing but a pipe each, so that one which is killed leaves no lock behind. Nothing
here loads torch: libraries of linear algebra choose algorithms, and with them the last bits, by
the number of threads that they find in the environment when they are loaded. That takes seconds,
and is done once on Linux, by a server that forks a process for each run.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext

    from isoloss.runs.run import News, Run

PRELOADED = [
    "isoloss.runs.served",
    "isoloss.runs.decay",
    "isoloss.runs.front",
    "torch.fx.experimental.symbolic_shapes",  # with the first gradient, in half a second
]
RUNS = "isoloss-runs"
"""The name of processes that execute runs."""
STOPPING = (signal.SIGINT, signal.SIGTERM)
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
SECONDS_TO_LOOK = 0.2  # how long a signal may wait to be noticed
CONTINUE = "run the same command again to continue from its last checkpoint"
SECONDS_TO_INSIST = 1.0  # a second Ctrl-C after these ends the runs; nearer ones are one press


class Terminated(BaseException):
    """SIGTERM came."""


@contextmanager
def sigterm_raises() -> Generator[None]:
    """Raise Terminated on SIGTERM, as Ctrl-C raises KeyboardInterrupt."""

    def terminate(*_: object) -> None:
        raise Terminated

    with handling(terminate, signal.SIGTERM):
        yield


def run_all(
    runs: Sequence[Run], show: Callable[[News], None], say: Callable[[str], object] = str
) -> int:
    """Execute runs in parallel, whichever of them fail; 0, or 130 or 143 after a signal, of which
    it is said what happens now."""
    waiting, workers = deque(_jobs(runs)), list[_Worker]()
    came: list[tuple[int, float]] = []
    told = False

    def note(number: int, *_: object) -> None:
        came.append((number, time.monotonic()))

    with handling(note, *STOPPING):
        try:
            while workers or (waiting and not came):
                while waiting and not came and len(workers) < cores():
                    workers.append(_Worker(waiting.popleft()))
                wait([end for one in workers for end in one.ends], SECONDS_TO_LOOK)
                if came:
                    told = told or said_to_stop(came, say)
                    for one in workers:
                        one.stop(at_once=insists(came))
                for one in workers:
                    for news in one.news():
                        show(news)
                        if news.interrupted and not came:  # somebody stopped that one alone
                            note(signal.SIGTERM)
                workers = [one for one in workers if not one.ended]
        finally:
            for one in workers:
                one.stop(at_once=True)
    return 128 + came[0][0] if came else 0


def _jobs(runs: Sequence[Run]) -> list[list[Run]]:
    """What a process does: one run, or all that share a GPU."""
    jobs: dict[str | int, list[Run]] = {}
    for one in runs:
        jobs.setdefault(one.shared or one.index, []).append(one)
    return list(jobs.values())


def insists(came: list[tuple[int, float]]) -> bool:
    """Whether Ctrl-C was pressed a second time, of the signals that came and when."""
    pressed = [when for number, when in came if number == signal.SIGINT]
    return len(pressed) > 1 and pressed[-1] - pressed[0] > SECONDS_TO_INSIST


def said_to_stop(came: list[tuple[int, float]], say: Callable[[str], object]) -> bool:
    """Say, once, what becomes of the runs now that a signal came."""
    again = "; Ctrl-C again ends them at once" if came[0][0] == signal.SIGINT else ""
    say(f"Stopping: what is under way is brought to where the runs can be continued{again}.")
    return True


class Process:
    """A process that executes runs, and the pipe to it."""

    def __init__(self, runs: object) -> None:  # a list of runs once it is unpickled there
        self.ended = False
        self._stopped = self._killed = False
        with _inherited():
            context = _context()
            pipe, theirs = context.Pipe()
            work = (_Environment(os.environ), runs, theirs)
            self._process = context.Process(target=_work, name=RUNS, args=work)
            self._process.start()
        self._pipe: Connection | None = pipe
        theirs.close()  # so that the pipe ends with the process

    @property
    def ends(self) -> list[Connection | int]:
        """What there is to wait for: news, and the end of the process."""
        return [self._process.sentinel, *([self._pipe] if self._pipe else [])]

    def stop(self, *, at_once: bool = False) -> None:
        """Ask it to keep the step being taken and end, or end it."""
        if at_once and not self._killed:
            self._killed = True
            self._process.kill()
        elif self._pipe and not self._stopped:
            self._stopped = True
            with suppress(OSError):  # it is dead already
                self._pipe.send(None)

    def received(self) -> Generator[bytes]:
        """News that it sent since, pickled."""
        alive = self._process.is_alive()  # before the pipe: what was said last is in there then
        try:
            while self._pipe and self._pipe.poll():
                yield self._pipe.recv_bytes()
        except (EOFError, OSError):
            self._pipe = None
        self.ended = not alive

    def death(self) -> str:
        """What to say of runs whose last news never came, once it has ended."""
        code = self._process.exitcode or 0
        how = f"ended with exit code {code}"
        if self._killed:
            how = "was stopped by a second Ctrl-C"
        elif code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
            how += ", perhaps because memory ran out" if -code == signal.SIGKILL else ""
        return f"its process {how}; {CONTINUE}"


def _context() -> ForkServerContext | SpawnContext:
    """How processes are started: forked by a server where that stands on firm ground."""
    if sys.platform == "linux":  # macOS has libraries that do not survive a fork
        from multiprocessing import forkserver

        forkserver.set_forkserver_preload(PRELOADED)
        # its socket needs a folder for temporary files, with room and a short path
        with suppress(OSError):
            forkserver.ensure_running()
            return multiprocessing.get_context("forkserver")
    return multiprocessing.get_context("spawn")


class _Worker(Process):
    """A process and the runs of which it owes the last news."""

    def __init__(self, runs: Sequence[Run]) -> None:
        super().__init__(runs)
        self._left = {run.index: run for run in runs}

    def news(self) -> Generator[News]:
        """What the runs told since; what is known of those that died without their last word."""
        for content in self.received():
            news: News = pickle.loads(content)  # noqa: S301 -- of our own process
            if news.phase == "done":
                del self._left[news.index]
            yield news
        if self.ended:
            for run in self._left.values():
                yield run.lost(self.death())


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Environment(dict[str, str]):
    """Variables that a process has as soon as this is unpickled, before what comes with it."""

    def __reduce__(self) -> tuple[object, tuple[dict[str, str]]]:
        return _entered, (dict(self),)


def _entered(variables: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(variables)


def _work(_: None, runs: Sequence[Run], pipe: Connection) -> None:
    """What a process does."""
    stopped, sending = threading.Event(), threading.Lock()

    def stop(*_: object) -> None:
        stopped.set()

    def tell(news: News) -> None:
        try:
            with sending:
                pipe.send(news)
        except OSError:  # whoever started it is gone
            stop()

    def listen() -> None:
        with suppress(EOFError, OSError):
            pipe.recv()
        stop()  # asked to, or left alone
        if hasattr(signal, "pthread_kill"):  # where a run keeps nothing yet, it need not finish
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal
    signal.signal(signal.SIGTERM, stop)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    threading.Thread(target=listen, daemon=True).start()
    runs[0].execute_all(runs, tell, stopped.is_set)


@contextmanager
def handling(handler: Callable[..., object], *signals: signal.Signals) -> Generator[None]:
    """Handle signals, where that is possible: in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in signals}
    try:
        yield
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before)


@contextmanager
def _inherited() -> Generator[None]:
    """What a process that is started now gets: a thread, and signals held until it handles them."""
    outside = {name: os.environ[name] for name in THREADS if name in os.environ}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    masks = hasattr(signal, "pthread_sigmask")
    if sys.platform != "win32":  # Python's own start of it lets signals through to what comes next
        resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING) if masks else set[int]()
    try:
        yield
    finally:
        for name in THREADS:
            del os.environ[name]
        os.environ.update(outside)
        if masks:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
