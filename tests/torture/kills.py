"""Runs killed at every moment of writing, at random moments, and again while they resume."""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.torture.victim import (
    KINDS,
    child,
    differences,
    go,
    kill_after,
    make,
    moments_of,
    result,
    wait,
)


@dataclass
class Tally:
    """What became of the runs.

    Attributes:
        runs: Runs that were killed at least once and then brought to their end.
        kills: SIGKILLs, by what they hit.
        lost: Runs that did not come to their end, a sentence each.
        differing: Runs whose results are not the bits of the run never killed, a sentence each.
    """

    runs: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)

    def settle(self, name: str, code: int, found: str, expected: str) -> None:
        self.runs += 1
        if code != 0:
            self.lost.append(f"{name}: exit code {code}")
        elif found != expected:
            self.differing.append(f"{name}: {differences(found, expected)}")


def at_every_moment(scratch: Path, kind: str, every: int, seed: int, tally: Tally) -> None:
    """Kill a run at each moment of writing (each `every`-th), once more while it resumes, then let
    it end."""
    whole = make(scratch / "whole" / kind, kind)
    names = moments_of(whole)
    expected = result(whole.folder)
    rng = random.Random(seed)
    for moment in range(1 + seed % every, len(names) + 1, every):
        one = make(scratch / f"{kind}-{moment}", kind)
        code = wait(child(lambda one=one, at=moment: go(one, at)))
        if code == 0 and moment > 0.9 * len(names):
            break  # there were more folders to make for the first
        assert code == -9, f"{kind} was not killed at moment {moment}: {code}"
        tally.kills[names[moment - 1]] += 1
        again = rng.randrange(1, len(names) + 1)
        if wait(child(lambda one=one, at=again: go(one, at))) == -9:
            tally.kills["while resuming"] += 1
        code = wait(child(lambda one=one: go(one)))
        found = result(one.folder) if code == 0 else ""
        tally.settle(
            f"{kind} at moment {moment} ({names[moment - 1]}), {again}", code, found, expected
        )
        shutil.rmtree(scratch / f"{kind}-{moment}")


def at_random_moments(scratch: Path, kind: str, runs: int, seed: int, tally: Tally) -> None:
    """Kill a run at random times until it has died three times, then let it end."""
    whole = make(scratch / "whole-random" / kind, kind)
    began = time.monotonic()
    assert wait(child(lambda: go(whole))) == 0
    takes = time.monotonic() - began
    expected = result(whole.folder)
    rng = random.Random(seed)
    for k in range(runs):
        one = make(scratch / f"{kind}-random-{k}", kind)
        for _ in range(3):
            pid = child(lambda one=one: go(one))
            if kill_after(pid, rng.uniform(0, takes)) == -9:
                tally.kills["at a random moment"] += 1
        code = wait(child(lambda one=one: go(one)))
        found = result(one.folder) if code == 0 else ""
        tally.settle(f"{kind} at random moments, {k}", code, found, expected)
        shutil.rmtree(scratch / f"{kind}-random-{k}")


def kills(scratch: Path, *, every: int, random_runs: int, seed: int = 1) -> Tally:
    """All kinds of runs, killed both ways."""
    tally = Tally()
    for kind in KINDS:
        at_every_moment(scratch, kind, every, seed, tally)
        at_random_moments(scratch, kind, random_runs, seed, tally)
    return tally
