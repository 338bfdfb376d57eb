"""Tiny runs to be killed or damaged, and the moments at which they write.

A victim is a forked child of a process that has loaded everything, so that some hundred of them
take minutes; it is killed by SIGKILL, of which no program can take notice.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from isoloss import experiments, files
from isoloss.runs.decay import DecayRun, decay_settings
from isoloss.runs.front import FrontRun, front_settings
from isoloss.runs.run import News
from isoloss.runs.walk import WalkRun, walk_settings
from isoloss.store import generations, run_folder

IRIS = replace(experiments.get("IRIS_FF"), epochs=1)
KINDS = ("paper", "sqp", "decay")
TIMED = {"files", "sha256"}
"""Of JSON: checksums of files that hold times."""

AnyRun = WalkRun | DecayRun


@dataclass
class Findings:
    """What was done to runs, and what went wrong with them, a sentence each."""

    done: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def make(out: Path, kind: str) -> AnyRun:
    """A run of some steps, kept at every step."""
    if kind == "decay":
        settings = decay_settings(IRIS, (0.0, 1e-3), 2, ["record_every=1"])
        return DecayRun(0, 3, run_folder(out, "IRIS_FF", None, 0, "decay"), settings, 0.0)
    if kind == "front":
        chosen = front_settings(IRIS, "squared_norm", count=2, pairs=["evaluations=9"])
        return FrontRun(0, 3, run_folder(out, "IRIS_FF", "squared_norm", 0, kind), chosen, 0.0)
    pairs = ["steps=2", "points_every=1", "points_at_most=2", "probes_every=2"]
    return WalkRun(0, 3, run_folder(out, "IRIS_FF", kind, 0), walk_settings(IRIS, kind, pairs), 0.0)


def execute(one: AnyRun, stop: Callable[[], bool] = lambda: False) -> News:
    return one.execute(lambda news: None, stop)


def result(folder: Path) -> str:
    """A line for each file of a finished run, with a digest of it but for the times."""
    files = sorted(file for file in folder.iterdir() if file.is_file())
    return "\n".join(f"{file.name} {_digest(file)}" for file in files)


def differences(found: str, expected: str) -> str:
    """Names of the files in which two results differ."""
    lines = set(found.split("\n")) ^ set(expected.split("\n"))
    return ", ".join(sorted({line.split(" ")[0] for line in lines}))


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    if file.suffix == ".parquet":
        table = pd.read_parquet(file).drop(columns="seconds", errors="ignore")
        digest.update(table.to_json(double_precision=15).encode())
        for name in table.select_dtypes("number"):
            digest.update(table[name].to_numpy().tobytes())
    elif file.suffix == ".json":
        content = json.loads(file.read_text())
        digest.update(json.dumps({k: content[k] for k in content if k not in TIMED}).encode())
    elif file.is_file():
        digest.update(file.read_bytes())
    return digest.hexdigest()


class Moments:
    """Counts the moments at which something is written, and dies at one of them."""

    def __init__(self, die_at: int = 0) -> None:
        self.names: list[str] = []
        self._die_at = die_at

    def pass_by(self, name: str, tear: Path | None = None) -> None:
        self.names.append(name)
        if len(self.names) == self._die_at:
            if tear is not None:
                os.truncate(tear, tear.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Every write, fsync, rename, deletion and new folder is a moment before and one after."""
        before = {(os, name): getattr(os, name) for name in CALLS}
        before[files, "atomically"] = before[generations, "atomically"] = files.atomically
        before[generations, "write_blocks"] = generations.write_blocks
        atomically, write_blocks = files.atomically, generations.write_blocks

        def passing(name: str) -> Callable[..., Any]:
            real = before[os, name]

            def call(*arguments: Any, **options: Any) -> Any:
                self.pass_by(f"before {name}")
                value = real(*arguments, **options)
                self.pass_by(f"after {name}")
                return value

            return call

        def torn(file: Path, write: Callable[[Path], object]) -> Any:
            def writing(part: Path) -> None:
                self.pass_by("before write")
                write(part)
                self.pass_by("torn write", part)
                self.pass_by("after write")

            return atomically(file, writing)

        def torn_blocks(file: Path, blocks: Mapping[int, bytes]) -> None:
            self.pass_by("before write")
            if len(self.names) + 1 == self._die_at:
                halves = {k: each[: len(each) // 2] for k, each in blocks.items()}
                write_blocks(file, {k: half.ljust(len(blocks[k])) for k, half in halves.items()})
            self.pass_by("torn write")
            write_blocks(file, blocks)
            self.pass_by("after write")

        try:
            for name in CALLS:
                setattr(os, name, passing(name))
            files.atomically = generations.atomically = torn
            generations.write_blocks = torn_blocks
            yield
        finally:
            for (module, name), real in before.items():
                setattr(module, name, real)


CALLS = ("fsync", "replace", "unlink", "mkdir", "rmdir")


def child(job: Callable[[], Any]) -> int:
    """Fork a process that does a job; its process id. It exits with 1 if the job raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which the job needs not
        pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        code = int(job() or 0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", flush=True)
    finally:
        os._exit(code)
    raise AssertionError


def wait(pid: int) -> int:
    """Exit code of a child, negative for the signal that it died of."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def go(one: AnyRun, die_at: int = 0) -> list[str]:
    """Execute a run, perhaps to its death at one of its moments of writing; all of these."""
    moments = Moments(die_at)
    with moments.watched():
        news = execute(one)
    assert not news.failed, news.ending
    return moments.names


def in_a_child(one: AnyRun, die_at: int = 0) -> int:
    """The exit code of a child that executes a run."""
    return wait(child(lambda: go(one, die_at) and 0))
