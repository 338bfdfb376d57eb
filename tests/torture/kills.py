"""Runs and commands killed at every moment of writing, at random ones, and while they resume."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.torture.victim import (
    KINDS,
    Findings,
    child,
    differences,
    go,
    in_a_child,
    make,
    result,
    wait,
)

SWEEPS = {
    "IRIS_FF/traverse/paper": (3, "traverse IRIS_FF --runs 3 --method paper --set steps=300"),
    "IRIS_FF/decay": (2, "decay IRIS_FF --runs 2 --penalties 0,0.001 --epochs 20"),
    "IRIS_FF/traverse/sqp": (2, "traverse IRIS_FF --runs 2 --set steps=120"),
}
"""Commands by where their runs are, below the folder of results, with the number of these."""
TIMES = 3
"""How often a run or a command is killed at random before it may end."""
AT_THE_END = 0.3
"""Share of kills of commands that wait until a run has written its last file."""


def settle(found: Findings, name: str, code: int, folder: Path, expected: str) -> None:
    """Hold a run that was killed, and called again, against one that never was."""
    found.done["runs"] += 1
    if code != 0:
        found.wrong.append(f"{name}: lost, exit code {code}")
    elif result(folder) != expected:
        found.wrong.append(f"{name}: other bits in {differences(result(folder), expected)}")


def at_every_moment(scratch: Path, kind: str, every: int, seed: int, found: Findings) -> None:
    """Kill a run at each `every`-th moment of writing and again while it resumes; let it end."""
    whole = make(scratch / "whole" / kind, kind)
    names, rng = go(whole), random.Random(seed)
    expected = result(whole.folder)
    for moment in range(1 + seed % every, len(names) + 1, every):
        one = make(scratch / f"{kind}-{moment}", kind)
        code = in_a_child(one, moment)
        if code == 0 and moment > 0.9 * len(names):
            break  # there were more folders to make for the first
        assert code == -9, f"{kind} was not killed at moment {moment}: {code}"
        found.done[f"killed {names[moment - 1]}"] += 1
        again = rng.randrange(1, len(names) + 1)
        found.done["killed while resuming"] += in_a_child(one, again) == -9
        name = f"{kind} at moment {moment} ({names[moment - 1]}), {again}"
        settle(found, name, in_a_child(one), one.folder, expected)
        shutil.rmtree(scratch / f"{kind}-{moment}")


def at_random_moments(scratch: Path, kind: str, runs: int, seed: int, found: Findings) -> None:
    """Kill a run at random times, then let it end."""
    whole, rng = make(scratch / "whole-random" / kind, kind), random.Random(seed)
    began = time.monotonic()
    assert in_a_child(whole) == 0
    takes = time.monotonic() - began
    for k in range(runs):
        one = make(scratch / f"{kind}-random-{k}", kind)
        for _ in range(TIMES):
            pid = child(lambda one=one: go(one) and 0)
            time.sleep(rng.uniform(0, takes))
            os.kill(pid, signal.SIGKILL)
            found.done["killed at a random moment"] += wait(pid) == -9
        settle(found, f"{kind} {k}", in_a_child(one), one.folder, result(whole.folder))
        shutil.rmtree(scratch / f"{kind}-random-{k}")


def kills(scratch: Path, every: int, random_runs: int) -> Findings:
    """All kinds of runs, killed both ways."""
    found = Findings()
    for kind in (*KINDS, "front"):
        at_every_moment(scratch, kind, every, 1, found)
        at_random_moments(scratch, kind, random_runs, 1, found)
    return found


# ---------------------------------------------------------------- whole commands


def commands(scratch: Path, rounds: int) -> Findings:
    """Kill a command, with its worker processes, without them, or one of these alone."""
    found, rng, takes = Findings(), random.Random(1), dict[str, float]()
    for where in SWEEPS:
        began = time.monotonic()
        assert _start(scratch / "whole", where).wait() == 0
        takes[where] = time.monotonic() - began
    for k in range(rounds):
        where = list(SWEEPS)[k % len(SWEEPS)]
        out = scratch / f"round-{k}"
        for _ in range(TIMES):
            process = _start(out, where)
            at_the_end = rng.random() < AT_THE_END
            if at_the_end:
                _wait_for_an_end(process, out, where)
            time.sleep(rng.uniform(0, 0.03) if at_the_end else rng.uniform(0.3, 1) * takes[where])
            what = rng.choice(["command and workers", "command alone", "worker alone"])
            moment = "when a run ended" if at_the_end else "at a random moment"
            found.done[f"killed {what} {moment}"] += _kill(process, what)
            process.wait()
        code = 1
        for _ in range(60):  # the last step of a worker whose command was killed may not be over
            if (code := _start(out, where).wait()) == 0:
                break
            time.sleep(1)
        for folder, whole in zip(
            _folders(out, where), _folders(scratch / "whole", where), strict=True
        ):
            settle(found, str(folder), code, folder, result(whole))
        shutil.rmtree(out)
    return found


def _start(out: Path, where: str) -> subprocess.Popen[bytes]:
    words = [*SWEEPS[where][1].split(), "--checkpoint-every", "0.2", "--out", str(out)]
    command, quiet = [sys.executable, "-m", "isoloss", *words], subprocess.DEVNULL
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
        return True
    victims = [process.pid] if what == "command alone" else _children(process.pid)
    if victims:
        os.kill(random.Random(process.pid).choice(victims), signal.SIGKILL)
    return bool(victims)


def _children(pid: int) -> list[int]:
    """Processes started by a process, but for multiprocessing's own tracker."""
    lines = [file.read_text() for file in Path(f"/proc/{pid}/task").glob("*/children")]
    found = [int(each) for line in lines for each in line.split()]
    return [k for k in found if b"resource_tracker" not in Path(f"/proc/{k}/cmdline").read_bytes()]
