"""The long form, whose figures are in docs/reliability.md: `python -m tests.torture`."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # as in the processes of runs; read when torch is loaded

import torch
from tests.torture.corruption import of_finished, of_unfinished
from tests.torture.kills import commands, kills
from tests.torture.received import full_disks, links, resealed
from tests.torture.victim import Findings
from tests.torture.writers import writers


def corruptions(scratch: Path, count: int) -> Findings:
    found = Findings()
    of_unfinished(scratch / "unfinished", count // 10, 1, found)
    of_finished(scratch, count - found.done["files corrupted"], 2, found, repair=20)
    return found


JOBS: dict[str, Callable[[Path, argparse.Namespace], Findings]] = {
    "kills": lambda scratch, asked: kills(scratch, asked.every, asked.random),
    "commands": lambda scratch, asked: commands(scratch, asked.commands),
    "corruptions": lambda scratch, asked: corruptions(scratch, asked.corruptions),
    "writers": lambda scratch, asked: writers(scratch, asked.rounds),
    "links": lambda scratch, _: links(scratch),
    "resealed": lambda scratch, asked: resealed(scratch, asked.resealed, 3),
    "full": lambda scratch, asked: full_disks(scratch, asked.every, 3),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", default=[*JOBS])
    parser.add_argument("--every", type=int, default=1, help="kill at every Nth moment of writing")
    parser.add_argument("--random", type=int, default=30, help="runs of a kind killed at random")
    parser.add_argument("--commands", type=int, default=30, help="sweeps by command to kill")
    parser.add_argument("--corruptions", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--resealed", type=int, default=1000)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for what in asked.what:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as scratch:
            found = JOBS[what](Path(scratch), asked)
        print(f"{what} ({time.monotonic() - began:.0f} s)", flush=True)
        for name, count in sorted(found.done.items()):
            print(f"    {name}: {count}")
        print(f"    wrong: {len(found.wrong)} {found.wrong}", flush=True)


main()
