"""Files of runs that are flipped, cut, overwritten, emptied, swapped or gone."""

from __future__ import annotations

import math
import random
import shutil
from pathlib import Path

from tests.torture.victim import KINDS, AnyRun, Findings, differences, execute, make, result

from isoloss.store.folder import problem
from isoloss.store.generations import POINTS_FILE


def corrupt(file: Path, rng: random.Random) -> str:
    """Change a file in one of the ways disks and people do; what was done."""
    before = file.read_bytes()
    content, where = bytearray(before), rng.randrange(len(before))
    ways = ["bit", "byte", "cut", "empty", "zeros", "longer", "swapped", "gone"]
    if file.name == POINTS_FILE:
        ways.remove("longer")  # as after a kill: what is beyond the points named is never read
    match how := rng.choice(ways):
        case "bit":
            content[where] ^= 1 << rng.randrange(8)
        case "byte":
            content[where] = rng.randrange(256)
        case "cut":
            del content[where:]
        case "empty":
            content.clear()
        case "zeros":
            content[where : where + 512] = bytes(len(content[where : where + 512]))
        case "longer":
            content += rng.randbytes(rng.randrange(1, 64))
        case "swapped":
            other = rng.randrange(len(content))
            content[where], content[other] = content[other], content[where]
    if how == "gone" or bytes(content) == before:
        file.unlink()
        return f"{file.name} gone"
    file.write_bytes(content)
    return f"{file.name} {how} at {where}"


def of_finished(scratch: Path, count: int, seed: int, found: Findings, repair: int) -> None:
    """Corrupt a finished run; each `repair`-th is then done again by calling it again."""
    rng = random.Random(seed)
    for kind in KINDS:
        whole = make(scratch / "whole" / kind, kind)
        assert not execute(whole).failed
        for k in range(math.ceil(count / len(KINDS))):
            one = make(scratch / f"{kind}-corrupt", kind)
            shutil.copytree(whole.folder, one.folder)
            what = f"{kind}: {corrupt(rng.choice(sorted(one.folder.glob('*.*'))), rng)}"
            found.done["files corrupted"] += 1
            try:
                if problem(one.folder) is None:
                    found.wrong.append(f"{what}: unnoticed")
            except Exception as error:
                found.wrong.append(f"{what}: {type(error).__name__}: {error}")
            if k % repair == 0:
                _repair(one, what, result(whole.folder), found)
            shutil.rmtree(scratch / f"{kind}-corrupt")


def of_unfinished(scratch: Path, count: int, seed: int, found: Findings) -> None:
    """Corrupt what a run continues from, its first or a later checkpoints, and let it continue."""
    rng = random.Random(seed)
    for kind in KINDS:
        whole = make(scratch / "whole" / kind, kind)
        assert not execute(whole).failed
        parts: list[AnyRun] = []
        for late in (1, 2, 3):
            asked: list[None] = []
            parts.append(make(scratch / "part" / f"{kind}-{late}", kind))
            news = execute(parts[-1], lambda: asked.append(None) or len(asked) > late)  # noqa: B023
            assert news.interrupted
        for k in range(math.ceil(count / len(KINDS))):
            one = make(scratch / f"{kind}-part", kind)
            shutil.copytree(parts[k % len(parts)].folder, one.folder)
            file = rng.choice([f for f in sorted(one.folder.rglob("*")) if f.is_file()])
            what = f"unfinished {kind}: {corrupt(file, rng)}"
            found.done["files corrupted"] += 1
            _repair(one, what, result(whole.folder), found)
            shutil.rmtree(scratch / f"{kind}-part")


def _repair(run: AnyRun, what: str, expected: str, found: Findings) -> None:
    """Call a run again, and compare its result with that of the run never touched."""
    try:
        news = execute(run)
    except Exception as error:
        found.wrong.append(f"{what}: {type(error).__name__}: {error}")
        return
    if news.failed:
        found.wrong.append(f"{what}: {news.ending}")
    elif not news.notes and "outcome.json gone" not in what:  # the run is unfinished all the same
        found.wrong.append(f"{what}: unnoticed")
    elif differences(result(run.folder), expected) not in ("", "quarantine"):
        found.wrong.append(f"{what}: other bits")
    elif " gone" not in what and not [*(run.folder / "quarantine").glob("*")]:
        found.wrong.append(f"{what}: nothing in quarantine")
    else:
        found.done["runs called again with the same bits"] += 1
