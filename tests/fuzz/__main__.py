"""The long form, whose figures are in docs/reliability.md: `python -m tests.fuzz`."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is loaded
os.environ["MPLBACKEND"] = "agg"

import torch
from tests.fuzz.archives import try_logs
from tests.fuzz.battery import try_calls
from tests.fuzz.commands import try_commands

JOBS = {"calls": try_calls, "commands": try_commands, "logs": try_logs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", default=[*JOBS], help=", ".join(JOBS))
    parser.add_argument("--tries", type=int, default=2500, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    wrong = 0
    for what in asked.what:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as scratch:
            found = JOBS[what](Path(scratch), asked.tries, asked.seed)
        print(f"{what} ({time.monotonic() - began:.0f} s)", flush=True)
        for name, count in sorted(found.ended.items()):
            print(f"    {name}: {count}")
        print(f"    wrong: {len(found.wrong)}", flush=True)
        for line in found.wrong:
            print(f"        {line!a}", flush=True)
        wrong += len(found.wrong)
    sys.exit(bool(wrong))


main()
