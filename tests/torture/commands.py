"""The command itself, killed with its worker processes, without them, or one of these alone."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.torture.kills import Tally
from tests.torture.victim import result

OPTIONS = "--checkpoint-every 0.2"
SWEEPS = {
    "IRIS_FF/traverse/paper": (3, "traverse IRIS_FF --runs 3 --method paper --set steps=300"),
    "IRIS_FF/decay": (2, "decay IRIS_FF --runs 2 --penalties 0,0.001 --epochs 20"),
    "IRIS_FF/traverse/sqp": (2, "traverse IRIS_FF --runs 2 --set steps=120"),
}
"""Commands by where their runs are, below the folder of results, with the number of these."""
KILLS = 3
AT_THE_END = 0.3
"""Share of kills that wait until a run has written its last file."""


def commands(scratch: Path, rounds: int, seed: int = 1) -> Tally:
    """Kill a sweep three times each round, then let it end; the sweeps take turns.

    Folders of runs that were lost or differ are left where they are.
    """
    tally, rng = Tally(), random.Random(seed)
    takes: dict[str, float] = {}
    expected: dict[str, list[str]] = {}
    for where in SWEEPS:
        began = time.monotonic()
        whole = _start(scratch / "whole", where)
        assert whole.wait() == 0
        takes[where] = time.monotonic() - began
        expected[where] = [result(folder) for folder in _folders(scratch / "whole", where)]
    for k in range(rounds):
        where = list(SWEEPS)[k % len(SWEEPS)]
        out = scratch / f"round-{k}"
        wrong = len(tally.lost) + len(tally.differing)
        done: list[str] = []
        for _ in range(KILLS):
            process = _start(out, where)
            moment = "at a random moment"
            if rng.random() < AT_THE_END:
                moment = "when a run ended"
                _wait_for_an_end(process, out, where)
                time.sleep(rng.uniform(0, 0.03))
            else:
                time.sleep(rng.uniform(0.3, 1) * takes[where])
            what = rng.choice(["command and workers", "command alone", "worker alone"])
            if _kill(process, what):
                tally.kills[f"{what} {moment}"] += 1
                done.append(f"{what} {moment}")
            process.wait()
        code = 1
        for _ in range(60):  # the last step of a worker whose command was killed may still go on
            code = _start(out, where).wait()
            if code == 0:
                break
            time.sleep(1)
        for folder, one in zip(_folders(out, where), expected[where], strict=True):
            name = f"{folder} ({', '.join(done)})"
            tally.settle(name, code, result(folder) if code == 0 else "", one)
        if len(tally.lost) + len(tally.differing) == wrong:
            shutil.rmtree(out)
        print(f"  {out.name}: {', '.join(done)}; {tally.runs} runs", flush=True)
    return tally


def _start(out: Path, where: str) -> subprocess.Popen[bytes]:
    words = f"{SWEEPS[where][1]} {OPTIONS}"
    command = [sys.executable, "-m", "isoloss", *words.split(), "--out", str(out)]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, stdout=quiet, stderr=quiet, start_new_session=True)


def _folders(out: Path, where: str) -> list[Path]:
    return [out / where / f"run-{k:03d}" for k in range(SWEEPS[where][0])]


def _wait_for_an_end(process: subprocess.Popen[bytes], out: Path, where: str) -> None:
    """Wait until one more run has its last file, or all is over."""

    def ended() -> int:
        return sum((folder / "outcome.json").exists() for folder in _folders(out, where))

    before = ended()
    while ended() == before and process.poll() is None:
        time.sleep(0.001)


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
