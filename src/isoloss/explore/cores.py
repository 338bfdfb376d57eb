"""Independent jobs over the cores, by joblib's processes; nothing here loads torch or joblib.

A process computes with one thread, warns as this one would, and takes the work, whatever it holds
(models that a notebook defines), from one file. Ctrl-C reaches it by another file, so that a walk
under way ends between two of its steps and is kept.
"""

from __future__ import annotations

import functools
import io
import pickle
import re
import signal
import tempfile
import threading
import warnings
from collections.abc import Callable, Generator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar, cast

from isoloss.arguments import whole
from isoloss.errors import InputError, IsolossError, said

Job = TypeVar("Job")
Result = TypeVar("Result")
Work = Callable[[Job, Callable[[], bool]], Result]

FEW = 8
"""Jobs up to which starting processes, seconds each, is not worth it unless it is asked for."""


class WorkerError(IsolossError):
    """A process is gone, and its jobs with it."""


Filter = tuple[str, str, type[Warning], str, int]
Told = list[tuple[Warning | str, type[Warning], str, int]]


def over_cores(
    work: Work[Job, Result], jobs: Sequence[Job], *, workers: int | None = None
) -> Generator[tuple[int, Result]]:
    """Do jobs that do not depend on one another, as many at once as there are workers.

    Args:
        work: A function of (job, stopping). Once `stopping()` is True, somebody has pressed Ctrl-C:
            it should return what it has. It goes to each process once, however many the jobs.
        jobs: What it is called with; small, since each goes to a process.
        workers: Processes at once; 1 does all in this process, None takes one for each core where
            there are more than a few jobs, and this process otherwise.

    Yields:
        The number of a job and its result, in the order in which they are ready: in the order of
        the jobs by one worker.

    Raises:
        KeyboardInterrupt: Ctrl-C, after what was under way has been yielded; a second one at once.
        InputError: The work cannot be sent to another process.
        WorkerError: A process died; what was done before has been yielded.
    """
    several = workers_for(len(jobs), workers)
    if several > 1:
        yield from _elsewhere(work, jobs, several)
        return
    stop = threading.Event()
    with _on_interrupt(stop.set):
        for index, job in enumerate(jobs):
            yield index, work(job, stop.is_set)
            if stop.is_set():
                raise KeyboardInterrupt


def workers_for(jobs: int, workers: int | None = None) -> int:
    """How many processes do so many jobs; 1 is this one."""
    if workers is not None:
        return min(whole("workers", workers, 1), max(jobs, 1))
    import joblib

    return 1 if jobs <= FEW else min(joblib.cpu_count(), jobs)


def _elsewhere(
    work: Work[Job, Result], jobs: Sequence[Job], workers: int
) -> Generator[tuple[int, Result]]:
    import joblib

    with tempfile.TemporaryDirectory(prefix="isoloss-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "work").write_bytes(_packed(work))
        ask = joblib.delayed(_do)
        calls = (ask(name, _filters(), index, job) for index, job in enumerate(jobs))
        with (
            _on_interrupt((folder / "stop").touch),
            joblib.parallel_config(backend="loky", inner_max_num_threads=1),
        ):
            parallel: Any = joblib.Parallel  # whose stubs know no generators
            pool = parallel(
                n_jobs=workers, return_as="generator_unordered", batch_size=1, max_nbytes=None
            )
            try:
                for index, done, result, told in pool(calls):
                    for message, category, file, line in told:
                        warnings.warn_explicit(message, category, file, line)
                    if done:
                        yield index, cast("Result", result)
            except BrokenProcessPool as error:
                if not (folder / "stop").exists():
                    raise _death(error) from error
            if (folder / "stop").exists():
                raise KeyboardInterrupt


def _packed(work: object) -> bytes:
    """What a process takes the work from; of a slice of a tensor, no more than the slice."""
    import cloudpickle
    import torch

    class Pickler(cloudpickle.Pickler):
        def reducer_override(self, obj: Any) -> Any:
            plain = type(obj) is torch.Tensor and obj.layout == torch.strided and obj.is_leaf
            if plain and obj.untyped_storage().nbytes() > obj.nbytes:
                own = obj.detach().clone().requires_grad_(obj.requires_grad)
                return own.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
            return super().reducer_override(obj)

    stream = io.BytesIO()
    try:
        Pickler(stream).dump(work)
    except Exception as error:  # whatever the user's model and data say
        raise InputError(
            f"the problem or the quantity cannot be sent to another process ({said(error)}); give "
            f"workers=1"
        ) from error
    return stream.getvalue()


def _death(error: BrokenProcessPool) -> WorkerError:
    codes = re.search(r"\{(.+?)\}", str(error))
    how = f"{codes[1]}, " if codes else ""
    return WorkerError(
        f"a worker process died ({how}perhaps because memory ran out); give fewer workers=, or 1 "
        f"for this process alone"
    )


def _do(
    folder: str, filters: Sequence[Filter], index: int, job: Any
) -> tuple[int, bool, Any, Told]:
    """What a process does: the job's number, whether it was done, its result, its warnings."""
    import torch

    stop = Path(folder, "stop")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all
    torch.set_num_threads(1)
    if stop.exists():
        return index, False, None, []
    with warnings.catch_warnings(record=True) as caught:
        warnings.resetwarnings()
        for action, message, category, module, line in reversed(filters):
            warnings.filterwarnings(cast("Any", action), message, category, module, line)
        result = _unpacked(folder)(job, stop.exists)
    return index, True, result, [(w.message, w.category, w.filename, w.lineno) for w in caught]


@functools.lru_cache(maxsize=1)
def _unpacked(folder: str) -> Work[Any, Any]:
    import cloudpickle

    try:
        return cloudpickle.loads(Path(folder, "work").read_bytes())
    except Exception as error:
        raise InputError(
            f"another process cannot read the problem or the quantity ({said(error)}); give "
            f"workers=1, or define them where that process can import them"
        ) from error


def _filters() -> list[Filter]:
    """What this process does with warnings, to be repeated by `warnings.filterwarnings`."""
    return [
        (action, _text(message), cast("type[Warning]", category), _text(module), line)
        for action, message, category, module, line in warnings.filters
    ]


def _text(pattern: re.Pattern[str] | str | None) -> str:
    return pattern.pattern if isinstance(pattern, re.Pattern) else pattern or ""


@contextmanager
def _on_interrupt(tell: Callable[[], object]) -> Generator[None]:
    """Tell of a first Ctrl-C; the second raises, as the first does where signals are not ours."""
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if threading.current_thread() is not threading.main_thread() or not usual:
        yield
        return

    def note(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        tell()

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
