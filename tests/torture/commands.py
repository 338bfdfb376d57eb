"""The command itself, killed with its worker processes, without them, or one of these alone."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.torture.kills import Tally
from tests.torture.victim import result

RUNS = 2


def commands(scratch: Path, rounds: int, seed: int = 1) -> Tally:
    """Kill a sweep of two runs three times each round, then let it end."""
    tally, rng = Tally(), random.Random(seed)
    began = time.monotonic()
    whole = _start(scratch / "whole")
    assert whole.wait() == 0
    takes = time.monotonic() - began
    expected = [result(folder) for folder in _folders(scratch / "whole")]
    for k in range(rounds):
        out = scratch / f"round-{k}"
        for _ in range(3):
            process = _start(out)
            time.sleep(rng.uniform(0.3, 1) * takes)
            what = rng.choice(["command and workers", "command alone", "worker alone"])
            if _kill(process, what):
                tally.kills[f"command: {what}"] += 1
            process.wait()
        code = 1
        for _ in range(60):  # the last step of a worker whose command was killed may still go on
            code = _start(out).wait()
            if code == 0:
                break
            time.sleep(1)
        for folder, one in zip(_folders(out), expected, strict=True):
            tally.settle(f"command, {folder}", code, result(folder) if code == 0 else "", one)
    return tally


def _start(out: Path) -> subprocess.Popen[bytes]:
    words = f"traverse IRIS_FF --runs {RUNS} --method paper --set steps=300 --checkpoint-every 0.2"
    command = [sys.executable, "-m", "isoloss", *words.split(), "--out", str(out)]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, stdout=quiet, stderr=quiet, start_new_session=True)


def _folders(out: Path) -> list[Path]:
    return [out / "IRIS_FF" / "traverse" / "paper" / f"run-{k:03d}" for k in range(RUNS)]


def _kill(process: subprocess.Popen[bytes], what: str) -> bool:
    if process.poll() is not None:
        return False
    if what == "command and workers":
        os.killpg(process.pid, signal.SIGKILL)
    elif what == "command alone":
        os.kill(process.pid, signal.SIGKILL)
    else:
        workers = _children(process.pid)
        if not workers:
            return False
        os.kill(random.Random(process.pid).choice(workers), signal.SIGKILL)
    return True


def _children(pid: int) -> list[int]:
    """Processes started by a process, but for multiprocessing's own tracker."""
    found: list[int] = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            line = Path(f"/proc/{child}/cmdline").read_bytes()
            if b"resource_tracker" not in line:
                found.append(child)
    return found
