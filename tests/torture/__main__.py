"""The long form, whose figures are in docs/reliability.md: `python -m tests.torture`."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # as in the processes of runs; read when torch is loaded

import torch
from tests.torture.commands import commands
from tests.torture.corruption import Findings, of_finished, of_unfinished
from tests.torture.kills import kills
from tests.torture.writers import writers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", default=["kills", "commands", "corruptions", "writers"])
    parser.add_argument("--every", type=int, default=1, help="each so manieth moment of writing")
    parser.add_argument("--random", type=int, default=30, help="runs of a kind killed at random")
    parser.add_argument("--commands", type=int, default=30, help="sweeps by command to kill")
    parser.add_argument("--corruptions", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--keep", type=Path, help="where to leave folders that differ")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for what in asked.what:
        began = time.monotonic()
        with scratch_folder(asked.keep) as scratch:
            if what in ("kills", "commands"):
                tally = (
                    kills(scratch, every=asked.every, random_runs=asked.random)
                    if what == "kills"
                    else commands(scratch, asked.commands)
                )
                say(what, began, f"{sum(tally.kills.values())} SIGKILLs on {tally.runs} runs")
                say(what, began, f"lost runs {len(tally.lost)} {tally.lost}")
                say(what, began, f"runs with other bits {len(tally.differing)} {tally.differing}")
                for name, count in sorted(tally.kills.items()):
                    print(f"    {name}: {count}")
            elif what == "corruptions":
                found = Findings()
                of_unfinished(scratch / "unfinished", asked.corruptions // 10, 1, found)
                of_finished(scratch, asked.corruptions - found.corruptions, 2, found, repair=20)
                say(what, began, f"{found.corruptions} files corrupted")
                say(what, began, f"undetected {len(found.undetected)} {found.undetected}")
                say(what, began, f"crashes {len(found.crashes)} {found.crashes}")
                say(what, began, f"called again and the same bits {found.repaired}")
                say(what, began, f"called again and wrong {len(found.wrong)} {found.wrong}")
            else:
                contest = writers(scratch, asked.rounds)
                say(what, began, f"{contest.rounds} times eight processes at once")
                say(what, began, f"writers {sorted(set(contest.winners))} each time")
                say(what, began, f"wrong {len(contest.wrong)} {contest.wrong}")


@contextmanager
def scratch_folder(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        yield Path(tempfile.mkdtemp(dir=keep))
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def say(what: str, began: float, sentence: str) -> None:
    print(f"{what} ({time.monotonic() - began:.0f} s): {sentence}", flush=True)


main()
