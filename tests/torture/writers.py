"""Processes that want one run folder at once."""

from __future__ import annotations

import json
import os
import shutil
from functools import partial
from pathlib import Path

from tests.torture.victim import Findings, child, make, wait

from isoloss.store.lock import LockedError

PROCESSES = 8


def writers(scratch: Path, rounds: int) -> Findings:
    """Start eight processes at once on one folder; the one that writes waits for the others."""
    found = Findings()
    for k in range(rounds):
        out = scratch / f"round-{k}"
        start, go_on, told = os.pipe(), os.pipe(), os.pipe()
        contend = partial(_contend, out, start[0], go_on[0], told[1])
        pids = [child(contend) for _ in range(PROCESSES)]
        os.close(told[1])
        os.write(start[1], b"s" * PROCESSES)  # the barrier opens
        seen: list[dict[str, object]] = []
        with os.fdopen(told[0]) as lines:
            for line in lines:
                seen.append(json.loads(line))
                if len(seen) == PROCESSES:
                    os.write(go_on[1], b"g" * PROCESSES)
        codes = [wait(pid) for pid in pids]
        for pipe in (*start, *go_on):
            os.close(pipe)
        winners = [one["pid"] for one in seen if one["writes"]]
        found.done["rounds"] += 1
        found.done["writers"] += len(winners)
        for one in seen:
            if not one["writes"] and f"process {winners and winners[0]} " not in str(one["said"]):
                found.wrong.append(f"round {k}: {one['said']}")
        found.wrong += [f"round {k}: exit code {code}" for code in codes if code]
        shutil.rmtree(out)
    return found


def _contend(out: Path, start: int, go_on: int, told: int) -> int:
    os.read(start, 1)
    waited: list[bool] = []

    def tell(writes: bool, said: str = "") -> None:
        line = json.dumps({"pid": os.getpid(), "writes": writes, "said": said}) + "\n"
        os.write(told, line.encode())

    def news(_: object) -> None:
        if not waited:
            waited.append(True)
            tell(True)
            os.read(go_on, 1)

    try:
        return int(make(out, "paper").execute(news, lambda: False).failed)
    except LockedError as error:
        tell(False, str(error))
        return 0
