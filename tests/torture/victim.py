"""Tiny runs to be killed, and the moments at which they can be.

A victim is a forked child of a process that has loaded everything, so that some hundred of them
take minutes; it is killed by SIGKILL, of which no program can take notice.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from isoloss import experiments, files
from isoloss.runs.decay import DecayRun, decay_settings
from isoloss.runs.walk import WalkRun, walk_settings
from isoloss.store import generations, run_folder

IRIS = replace(experiments.get("IRIS_FF"), epochs=1)
KINDS = ("paper", "sqp", "decay")


def make(out: Path, kind: str, every: float = 0.0) -> WalkRun | DecayRun:
    """A run of some steps; `every` seconds it is kept, by default at every step."""
    if kind == "decay":
        settings = decay_settings(IRIS, (0.0, 1e-3), 2, ["record_every=1"])
        return DecayRun(0, 3, run_folder(out, "IRIS_FF", None, 0, "decay"), settings, every)
    pairs = ["steps=2", "points_every=1", "points_at_most=2", "probes_every=2"]
    settings = walk_settings(IRIS, kind, pairs)
    return WalkRun(0, 3, run_folder(out, "IRIS_FF", kind, 0), settings, every)


def result(folder: Path) -> str:
    """A line for each file of a finished run, with a digest of it but for the times."""
    return "\n".join(f"{file.name} {_digest(file)}" for file in sorted(folder.iterdir()))


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
        digest.update(json.dumps({k: content[k] for k in content if k not in _TIMED}).encode())
    elif file.is_file():
        digest.update(file.read_bytes())
    return digest.hexdigest()


_TIMED = {"files", "sha256"}  # checksums of files that hold times


class Moments:
    """Counts the moments at which something is written, and dies at one of them."""

    def __init__(self, die_at: int = 0) -> None:
        self.count = 0
        self.names: list[str] = []
        self._die_at = die_at

    def pass_by(self, name: str, tear: Path | None = None) -> None:
        self.count += 1
        self.names.append(name)
        if self.count == self._die_at:
            if tear is not None:
                os.truncate(tear, tear.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Every write, fsync, rename, deletion and new folder is a moment before and one after."""
        wrapped: list[tuple[Any, str, Any]] = []

        def wrap(module: Any, name: str) -> None:
            real = getattr(module, name)

            def call(*arguments: Any, **options: Any) -> Any:
                self.pass_by(f"before {name}")
                value = real(*arguments, **options)
                self.pass_by(f"after {name}")
                return value

            wrapped.append((module, name, real))
            setattr(module, name, call)

        for name in ("fsync", "replace", "unlink", "mkdir", "rmdir"):
            wrap(os, name)
        atomically, write_blocks = files.atomically, generations.write_blocks

        def torn(file: Path, write: Callable[[Path], object]) -> Any:
            def writing(part: Path) -> None:
                self.pass_by("before write")
                write(part)
                self.pass_by("torn write", part)
                self.pass_by("after write")

            return atomically(file, writing)

        def torn_blocks(file: Path, blocks: Mapping[int, bytes]) -> None:
            self.pass_by("before write")
            if self.count + 1 == self._die_at:
                halves = {k: each[: len(each) // 2] for k, each in blocks.items()}
                write_blocks(file, {k: half.ljust(len(blocks[k])) for k, half in halves.items()})
            self.pass_by("torn write")
            write_blocks(file, blocks)
            self.pass_by("after write")

        for module, name, new in (
            (files, "atomically", torn),
            (generations, "write_blocks", torn_blocks),
        ):
            wrapped.append((module, name, getattr(module, name)))
            setattr(module, name, new)
        try:
            yield
        finally:
            for module, name, real in wrapped:
                setattr(module, name, real)


def child(job: Callable[[], Any]) -> int:
    """Fork a process that does a job; its process id. It exits with 1 if the job raises."""
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


def go(one: WalkRun | DecayRun, die_at: int = 0) -> int:
    """Execute a run; 1 if it failed, so that a child can exit with it."""
    moments = Moments(die_at)
    with moments.watched():
        news = one.execute(lambda news: None, lambda: False)
    if news.failed:
        print(news.ending, flush=True)
    return int(news.failed)


def moments_of(one: WalkRun | DecayRun) -> list[str]:
    """All moments of a run, in their order; the run is executed for it."""
    moments = Moments()
    with moments.watched():
        news = one.execute(lambda news: None, lambda: False)
    assert not news.failed, news.ending
    return moments.names


def kill_after(pid: int, seconds: float) -> int:
    """Kill a child after a time; its exit code, 0 if it was faster."""
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    return wait(pid)
