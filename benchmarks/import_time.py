"""Time to import isoloss over the time to import torch, in fresh processes that alternate.

    python benchmarks/import_time.py [--rounds 15]

prints medians of the CPU time of a process and their ratios. `import isoloss` imports nothing else;
the public names bring what they need when they are first used.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

STATEMENTS = (
    "import torch",
    "import isoloss",
    "from isoloss import Problem, traverse",
)


def seconds(statement: str) -> float:
    """CPU time of a fresh interpreter that runs a statement."""
    process = subprocess.Popen([sys.executable, "-c", statement])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{statement!r} failed")
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    times: dict[str, list[float]] = {statement: [] for statement in STATEMENTS}
    for round_ in range(arguments.rounds + 1):
        for statement in STATEMENTS:
            taken = seconds(statement)
            if round_:  # the first round fills the disk's cache
                times[statement].append(taken)
    print("| statement | CPU seconds, median | over `import torch` |")
    print("| --- | ---: | ---: |")
    for statement, taken in times.items():
        ratio = statistics.median(a / b for a, b in zip(taken, times["import torch"], strict=True))
        print(f"| `{statement}` | {statistics.median(taken):.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
