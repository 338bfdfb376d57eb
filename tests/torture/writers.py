"""Processes that want one run folder at once."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.torture.victim import child, make, wait

from isoloss.store.folder import LockedError

PROCESSES = 8


@dataclass
class Contest:
    """What came of it.

    Attributes:
        rounds: Times that all started at once.
        winners: How many processes wrote, for each round.
        wrong: Losers that did not name the winner, and winners that failed, a sentence each.
    """

    rounds: int = 0
    winners: list[int] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def writers(scratch: Path, rounds: int) -> Contest:
    """Start eight processes at once on one folder; the one that writes waits for the others."""
    contest = Contest()
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
        for pipe in (start[0], start[1], go_on[0], go_on[1]):
            os.close(pipe)
        winners = [one["pid"] for one in seen if one["writes"]]
        contest.rounds += 1
        contest.winners.append(len(winners))
        for one in seen:
            if not one["writes"] and f"process {winners and winners[0]} " not in str(one["said"]):
                contest.wrong.append(f"round {k}: {one['said']}")
        contest.wrong += [f"round {k}: exit code {code}" for code in codes if code]
        shutil.rmtree(out)
    return contest


def _contend(out: Path, start: int, go_on: int, told: int) -> int:
    os.read(start, 1)
    one = make(out, "paper")

    def tell(writes: bool, said: str = "") -> None:
        line = json.dumps({"pid": os.getpid(), "writes": writes, "said": said}) + "\n"
        os.write(told, line.encode())

    waited = False

    def news(_: object) -> None:
        nonlocal waited
        if not waited:
            waited = True
            tell(True)
            os.read(go_on, 1)

    try:
        return int(one.execute(news, lambda: False).failed)
    except LockedError as error:
        tell(False, str(error))
        return 0
