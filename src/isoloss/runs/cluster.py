"""Many runs on a Ray cluster: a task each, which starts the process that `pool` starts here.

Run folders on a file system that all nodes share stay the truth: a task holds a place on a node,
and its process claims the folder. What Ray moves is settings on the way there and news on the way
back. Nothing here loads torch, which a task needs in its process alone.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

from isoloss.errors import InputError, IsolossError, one_line, require_extra, said, shortened, shown
from isoloss.runs.place import Place
from isoloss.runs.pool import (
    CONTINUE,
    SECONDS_TO_LOOK,
    STOPPING,
    Process,
    Terminated,
    cores,
    handling,
    insists,
    said_to_stop,
)

if TYPE_CHECKING:
    from isoloss.runs.run import News, Run

RETRIES = 20  # times that a run is begun again because its node or worker died
SECONDS_TO_CONNECT = 5.0
SECONDS_TO_ANSWER = 60.0  # a node that starts its first worker is slow
SECONDS_TO_LET_GO = 600.0  # a process may take to end once its node is given up
SECONDS_BETWEEN_NEWS = 0.5
OBJECT_STORE = 2**28  # bytes; a start's weights are the largest thing that is sent


class ClusterError(IsolossError):
    """Ray failed while runs went on; they keep their checkpoints."""


@dataclass(frozen=True)
class Cluster:
    """A Ray to which runs are sent: one that is there already, or one that is started here."""

    address: str | None = None  # auto, or HOST:PORT; None takes RAY_ADDRESS, or starts one
    gpus_per_run: float = 0.0

    @contextmanager
    def opened(
        self, out: FilePath, files: Sequence[FilePath], tell: Callable[[str], object]
    ) -> Generator[Callable[[Sequence[Run], Callable[[News], None], Callable[[str], object]], int]]:
        """Connect, and insist that nodes see what runs need; gives what takes `run_all`'s place.

        InputError: nothing answers, no node has what a run asks for, or one does not see a file.
        """
        ray = require_extra("ray", "ray")
        if not ray.is_initialized():
            self._connect(ray)
        nodes = self._able(ray)
        try:
            with Place.here(out, files) as place:
                _look_around(ray, nodes, place)
                tell(f"Ray at {ray.get_runtime_context().gcs_address}: {_what(nodes)}.")
                yield partial(self._run_all, ray, place)
        except ray.exceptions.RayError as error:
            raise ClusterError(f"Ray failed ({said(error)}); {CONTINUE}") from error

    def _connect(self, ray: Any) -> None:
        private = ray._private  # where the address is looked for, and who prints
        private.worker._worker_logs_enabled = False  # a page when a node dies; we say a sentence
        # nothing is reported from here; tasks that ask for no GPU see what their node has
        for name in ("RAY_USAGE_STATS_ENABLED", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"):
            os.environ.setdefault(name, "0")
        try:
            address = private.services.canonicalize_bootstrap_address(self.address)
            if address is None and self.address is not None:
                raise ConnectionError("no Ray runs on this machine")
        except (ConnectionError, ValueError) as error:
            raise self._unreachable(one_line(error)) from error
        if address and (why := _silent(address)):  # else Ray would try for minutes
            if self._given is not None:
                raise self._unreachable(why)
            address = None  # of a Ray that was not stopped properly
        settings: dict[str, Any] = {"address": address}
        if address is None:
            settings = {"address": "local", "num_cpus": cores(), "include_dashboard": False}
            settings["object_store_memory"] = OBJECT_STORE
        before = signal.getsignal(signal.SIGTERM)
        try:
            with _silenced():
                ray.init(**settings, log_to_driver=False, logging_level="ERROR")
        except SystemExit as end:  # what Ray makes of SIGTERM
            raise Terminated from end
        except Exception as error:
            raise self._unreachable(shortened(str(error))) from error
        finally:
            with suppress(ValueError):  # not the main thread
                signal.signal(signal.SIGTERM, before)

    @property
    def _given(self) -> str | None:
        """What the user said of where Ray is."""
        return os.environ.get("RAY_ADDRESS") or self.address  # in Ray's order

    def _unreachable(self, why: str) -> InputError:
        if self._given is None:
            return InputError(f"Ray cannot be started here ({why}); leave out --engine ray")
        return InputError(
            f"no Ray can be reached at {shown(self._given)} ({why}); give the address that 'ray "
            f"start --head' printed, on a machine of that cluster, and set RAY_AUTH_MODE=token if "
            f"it wants tokens; or leave it out"
        )

    def _able(self, ray: Any) -> list[Mapping[str, Any]]:
        """The nodes that can take a run; InputError where there is none."""
        alive = [node for node in ray.nodes() if node["Alive"]]
        asked = {"CPU": 1.0, "GPU": self.gpus_per_run}
        able = [
            node
            for node in alive
            if all(node["Resources"].get(k, 0.0) >= least for k, least in asked.items())
        ]
        if not able:
            raise InputError(
                f"a run asks for 1 CPU and {self.gpus_per_run:g} GPU of one node, and Ray has "
                f"{_what(alive)}; give less to --gpus-per-run, or more to 'ray start'"
            )
        return able

    def _run_all(
        self,
        ray: Any,
        place: Place,
        runs: Sequence[Run],
        show: Callable[[News], None],
        say: Callable[[str], object] = str,
    ) -> int:
        """As `pool.run_all`."""
        came: list[tuple[int, float]] = []
        told = False

        def note(number: int, *_: object) -> None:
            came.append((number, time.monotonic()))

        sent = _Sent(ray, place, self.gpus_per_run, runs)
        with handling(note, *STOPPING):
            while sent.left:
                for news in sent.news():
                    show(news)
                if came:
                    told = told or said_to_stop(came, say)
                    sent.stop(at_once=insists(came))
        return 128 + came[0][0] if came else 0


class _Sent:
    """Runs that were sent to a cluster, and the tasks that execute them."""

    def __init__(self, ray: Any, place: Place, gpus: float, runs: Sequence[Run]) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        mailbox = ray.remote(num_cpus=0, scheduling_strategy=here)(_Mailbox)
        task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)(_execute)
        self._ray, self._mailbox = ray, mailbox.remote()

        def send(run: Run) -> Any:
            return task.remote(run.index, pickle.dumps(run), self._mailbox, place)

        self._send = send
        self.left: dict[Any, Run] = {self._send(run): run for run in runs}
        self._begun = Counter[int]()
        self._stopped = self._killed = False

    def stop(self, *, at_once: bool) -> None:
        """Let those that have begun keep their step and end, and begin no more; or end them."""
        if not self._stopped:
            self._stopped = True
            for ref, run in self.left.items():
                if not self._begun[run.index]:
                    self._ray.cancel(ref)
        if at_once and not self._killed:
            self._killed = True
            for ref in self.left:
                self._ray.cancel(ref, force=True)

    def news(self) -> Generator[News]:
        """What the runs told since; what is known of those that ended without their last word."""
        ray = self._ray
        refs = list(self.left)
        done, _ = ray.wait(refs, num_returns=len(refs), timeout=SECONDS_TO_LOOK)
        begun, latest = ray.get(self._mailbox.take.remote(self._stopped), timeout=SECONDS_TO_ANSWER)
        self._begun.update(begun)
        for content in latest.values():
            news: News = pickle.loads(content)  # noqa: S301 -- of a task of ours
            if news.phase != "done":  # the task's result is that, once the folder is let go of
                yield news
        for ref in done:
            run = self.left.pop(ref)
            last, times = self._last(run, ref), self._begun[run.index]
            if last and last.interrupted and not self._stopped and times < RETRIES:
                self.left[self._send(run)] = run  # its node was told to go
            elif last:
                note = f"{run.folder}: its node or process died, and it was continued elsewhere"
                yield replace(last, notes=(*last.notes, *([note] if times > 1 else [])))

    def _last(self, run: Run, ref: Any) -> News | None:
        """The last news of a run whose task has ended; None where it never began."""
        errors = self._ray.exceptions
        try:
            content, why = self._ray.get(ref)
        except errors.TaskCancelledError:
            if not self._begun[run.index]:
                return None
            return run.lost(f"its process was stopped by a second Ctrl-C; {CONTINUE}")
        except errors.RayError as error:
            return run.lost(f"its task failed ({said(error)}); {CONTINUE}")
        news: News | None = pickle.loads(content) if content else None  # noqa: S301
        return news if news and news.phase == "done" else run.lost(why)


class _Mailbox:
    """An actor beside the command: news on their way to it, and its word to stop."""

    def __init__(self) -> None:
        self._begun = Counter[int]()  # since they were taken
        self._before = Counter[int]()
        self._latest: dict[int, bytes] = {}
        self._stopped = False

    def begin(self, index: int) -> int:
        """A run begins; how often it has before."""
        self._begun[index] += 1
        self._before[index] += 1
        return self._before[index] - 1

    def exchange(self, index: int, news: bytes | None) -> bool:
        """Leave the latest news of a run; whether it is to stop."""
        if news is not None:
            self._latest[index] = news
        return self._stopped

    def take(self, stop: bool) -> tuple[Counter[int], dict[int, bytes]]:
        """What begun and what was left since."""
        self._stopped = stop
        taken = self._begun, self._latest
        self._begun, self._latest = Counter[int](), {}
        return taken


def _execute(index: int, run: bytes, mailbox: Any, place: Place) -> tuple[bytes | None, str]:
    """A task: a run in a process of its own; its last news, and why they are not the very last."""
    if why := place.enter():
        return None, why
    before = mailbox.begin.remote(index).future().result()
    process = Process(_Sealed(run, SECONDS_TO_LET_GO if before else 0.0))
    last = fresh = answer = None
    told = 0.0
    try:
        while not process.ended:
            wait(process.ends, SECONDS_TO_LOOK)
            for content in process.received():
                last = fresh = content
            # not ray.get, which gives the task's CPU to another one for as long as it waits
            if answer and answer.done() and (answer.exception() or answer.result()):
                process.stop()  # as it should, or as whoever sent it is gone
            if time.monotonic() - told >= SECONDS_BETWEEN_NEWS and (not answer or answer.done()):
                told = time.monotonic()
                answer, fresh = mailbox.exchange.remote(index, fresh).future(), None
    except BaseException:
        process.stop(at_once=True)
        raise
    return last, f"on {socket.gethostname()}, {process.death()}"


@dataclass(frozen=True)
class _Sealed:
    """A run that only the process which executes it unpacks, as that loads torch."""

    content: bytes
    patience: float

    def __reduce__(self) -> tuple[object, tuple[bytes, float]]:
        return _unsealed, (self.content, self.patience)


def _unsealed(content: bytes, patience: float) -> list[Run]:
    run: Run = pickle.loads(content)  # noqa: S301 -- of the command that sent it
    return [replace(run, patience=patience)]


def _look_around(ray: Any, nodes: Sequence[Mapping[str, Any]], place: Place) -> None:
    """Insist that all nodes have and see what a run needs."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(num_cpus=0, max_retries=0)(Place.enter)
    looks: list[tuple[str, Any]] = []
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ref = look.options(scheduling_strategy=there).remote(place)
        looks.append((node["NodeManagerHostname"], ref))
    until = time.monotonic() + SECONDS_TO_ANSWER
    for host, ref in looks:
        try:
            why = ray.get(ref, timeout=max(0.1, until - time.monotonic()))
        except ray.exceptions.TaskUnschedulableError:
            continue  # gone since it was listed
        except ray.exceptions.RayError as error:
            why = f"{host} cannot take a run ({said(error)}); install the same isoloss there"
        if why:
            raise InputError(why)


def _what(nodes: Sequence[Mapping[str, Any]]) -> str:
    """What nodes have together."""
    counts = {k: sum(node["Resources"].get(k, 0.0) for node in nodes) for k in ("CPU", "GPU")}
    cpus, gpus, several = (
        f"{count:g} {name}{'s' * (count != 1)}"
        for name, count in [*counts.items(), ("node", len(nodes))]
    )
    return f"{cpus} and {gpus} on {several}"


@contextmanager
def _silenced() -> Generator[None]:
    """Without what Ray's threads write to standard error of every try to connect."""
    kept = os.dup(2)
    try:
        with FilePath(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _silent(address: str) -> str:
    """Why what is at an address is no Ray; empty where it speaks Ray's protocol, HTTP/2."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), SECONDS_TO_CONNECT) as line:
            line.settimeout(SECONDS_TO_CONNECT)
            line.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5))
            answer = line.recv(9)
    except (OSError, OverflowError, ValueError) as error:
        return one_line(error)
    settings = len(answer) > 3 and answer[3] == 4
    return "" if settings else "what answers there is something else"
