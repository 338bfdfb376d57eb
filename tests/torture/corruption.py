"""Files of runs that are flipped, cut, overwritten, emptied, swapped or gone."""

from __future__ import annotations

import math
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from tests.torture.victim import KINDS, differences, make, result

from isoloss.runs.decay import DecayRun
from isoloss.runs.walk import WalkRun
from isoloss.store.folder import problem
from isoloss.store.generations import POINTS_FILE


@dataclass
class Findings:
    """What was found.

    Attributes:
        corruptions: Files that were changed.
        undetected: Changes that were not noticed, a sentence each.
        crashes: Errors other than a sentence, a sentence each.
        repaired: Runs brought to their end again with the bits of the run never touched.
        wrong: Runs that were not.
    """

    corruptions: int = 0
    undetected: list[str] = field(default_factory=list)
    crashes: list[str] = field(default_factory=list)
    repaired: int = 0
    wrong: list[str] = field(default_factory=list)


def corrupt(file: Path, rng: random.Random) -> str:
    """Change a file in one of the ways disks and people do; what was done."""
    content = bytearray(file.read_bytes())
    before = bytes(content)
    where = rng.randrange(len(content))
    ways = ["bit", "byte", "cut", "empty", "zeros", "longer", "swapped", "gone"]
    if file.name == POINTS_FILE:
        ways.remove("longer")  # as after a kill: what is beyond the points named is never read
    how = rng.choice(ways)
    if how == "bit":
        content[where] ^= 1 << rng.randrange(8)
    elif how == "byte":
        content[where] = rng.randrange(256)
    elif how == "cut":
        del content[where:]
    elif how == "empty":
        content.clear()
    elif how == "zeros":
        content[where : where + 512] = bytes(len(content[where : where + 512]))
    elif how == "longer":
        content += bytes(rng.randrange(256) for _ in range(rng.randrange(1, 64)))
    elif how == "swapped":
        other = rng.randrange(len(content))
        content[where], content[other] = content[other], content[where]
    if how == "gone" or bytes(content) == before:
        file.unlink()
        return f"{file.name} gone"
    file.write_bytes(content)
    return f"{file.name} {how} at {where}"


def of_finished(scratch: Path, count: int, seed: int, findings: Findings, repair: int) -> None:
    """Corrupt a finished run; each `repair`-th is then done again by calling it again."""
    rng = random.Random(seed)
    for kind in KINDS:
        whole = make(scratch / "whole" / kind, kind)
        assert not whole.execute(lambda news: None, lambda: False).failed
        expected = result(whole.folder)
        for k in range(math.ceil(count / len(KINDS))):
            one = make(scratch / f"{kind}-corrupt", kind)
            shutil.copytree(whole.folder, one.folder)
            file = rng.choice(sorted(one.folder.iterdir()))
            what = corrupt(file, rng)
            findings.corruptions += 1
            try:
                if problem(one.folder) is None:
                    findings.undetected.append(f"{kind}: {what}")
            except Exception as error:
                findings.crashes.append(f"{kind}: {what}: {type(error).__name__}: {error}")
            if k % repair == 0:
                _repair(one, f"{kind}: {what}", expected, findings)
            shutil.rmtree(scratch / f"{kind}-corrupt")


def of_unfinished(scratch: Path, count: int, seed: int, findings: Findings) -> None:
    """Corrupt what a run goes on from, and let it go on."""
    rng = random.Random(seed)
    for kind in KINDS:
        whole = make(scratch / "whole" / kind, kind)
        whole.execute(lambda news: None, lambda: False)
        expected = result(whole.folder)
        part = make(scratch / "part" / kind, kind)
        asked = 0

        def late() -> bool:
            nonlocal asked
            asked += 1
            return asked > 1

        assert part.execute(lambda news: None, late).interrupted
        for _ in range(math.ceil(count / len(KINDS))):
            one = make(scratch / f"{kind}-part", kind)
            shutil.copytree(part.folder, one.folder)
            file = rng.choice([f for f in sorted(one.folder.rglob("*")) if f.is_file()])
            what = corrupt(file, rng)
            findings.corruptions += 1
            _repair(one, f"unfinished {kind}: {what}", expected, findings)
            shutil.rmtree(scratch / f"{kind}-part")


def _repair(run: WalkRun | DecayRun, what: str, expected: str, findings: Findings) -> None:
    """Call a run again, and compare its result with that of the run never touched."""
    try:
        news = run.execute(lambda news: None, lambda: False)
    except Exception as error:
        findings.crashes.append(f"{what}: {type(error).__name__}: {error}")
        return
    if news.failed:
        findings.wrong.append(f"{what}: {news.ending}")
    elif not news.notes and "outcome.json gone" not in what:  # the run is unfinished all the same
        findings.undetected.append(what)
    elif differences(result(run.folder), expected) not in ("", "quarantine"):
        findings.wrong.append(f"{what}: other bits")
    elif not _quarantined(run.folder) and " gone" not in what:
        findings.wrong.append(f"{what}: nothing in quarantine")
    else:
        findings.repaired += 1


def _quarantined(folder: Path) -> bool:
    place = folder / "quarantine"
    return place.is_dir() and any(place.iterdir())
