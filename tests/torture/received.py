"""Folders as they may be received: with links that lead out of them, with numbers changed and
sealed again; and disks that are full at every moment of writing."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors.torch import load_file, save_file
from tests.torture.victim import (
    KINDS,
    AnyRun,
    Findings,
    Moments,
    differences,
    execute,
    make,
    result,
)

from isoloss import open_results
from isoloss.disk import Stamp
from isoloss.files import sealed
from isoloss.report.chapter import read_runs, report_tables, runs_section
from isoloss.report.verify import verify
from isoloss.store import check_out_folder

LINKS = (
    "", "config.json", "outcome.json", "steps.parquet", "points.safetensors", "checkpoint",
    "checkpoint/a", "checkpoint/b", "checkpoint/points.bin", "checkpoint/training",
    "checkpoint/training/a", "quarantine", ".config.json.part", ".outcome.json.part",
    ".steps.parquet.part", "checkpoint/.a.part", "../.run-000.lock", "..",
)  # fmt: skip
"""Where links are put, below a run's folder."""
UNSURE = {
    "message", "made_with", "seconds", "evaluations", "device", "chunk_size", "validation_loss",
    "validation_metric", "corrector_step", "max_corrections", "regularizer_below", "memory",
    "first_step", "max_trials", "max_approach", "smallest_step", "largest_step", "held_out",
}  # fmt: skip
"""Names of what nothing can be held against."""
NUMBERS: tuple[Any, ...] = (
    float("nan"), float("inf"), -1.0, 0.0, 1e300, -1e-300, 2**62, None, "x", "", True, [], {},
    [[1]], {"a": 1}, "../../x",
)  # fmt: skip


# ---------------------------------------------------------------- links


def links(scratch: Path) -> Findings:
    """Put a link at every place of a run that goes on, and continue it."""
    found = Findings()
    part = make(scratch / "part", "sqp")
    asked: list[None] = []
    assert execute(part, lambda: asked.append(None) or len(asked) > 2).interrupted
    for where in LINKS:
        there = (part.folder / where).exists() and not where.startswith("..")
        for to in ["moved"] if there else ["file", "folder", "nothing"]:
            one, outside = make(scratch / "out", "sqp"), scratch / "outside"
            shutil.copytree(part.folder, one.folder)
            link = Path(os.path.normpath(one.folder / where))
            outside.mkdir()
            if there or where == "..":
                shutil.move(link, outside / "it")
            elif to == "folder":
                (outside / "it").mkdir()
            elif to == "file":
                (outside / "it").write_bytes(b"mine")
            link.symlink_to(outside / "it")
            before = tree(outside)
            said = _told(one, scratch / "out")
            found.done["links"] += 1
            what = f"{to} behind a link at {where or 'run-000'}"
            if tree(outside) != before:
                found.wrong.append(f"{what}: something outside was changed: {said}")
            elif f"{link} is a symbolic link" not in said:
                found.wrong.append(f"{what}: followed, or not named: {said}")
            shutil.rmtree(outside)
            shutil.rmtree(scratch / "out")
    return found


def _told(one: AnyRun, out: Path) -> str:
    """What is said when a run is called, as the command calls it."""
    try:
        check_out_folder(out, one.folder.parent)
        return "" if one.finished() else execute(one).ending
    except Exception as error:
        return str(error)


def tree(folder: Path) -> dict[str, bytes | None]:
    """All files below a folder with their content."""
    files = sorted(folder.rglob("*"))
    return {str(one): one.read_bytes() if one.is_file() else None for one in files}


# ---------------------------------------------------------------- numbers sealed again


def resealed(scratch: Path, count: int, seed: int) -> Findings:
    """Change a number of one of two runs, with checksums that are right, and read the results."""
    rng, found = random.Random(seed), Findings()
    whole = scratch / "whole"
    for kind in KINDS:
        assert not execute(make(whole, kind)).failed
    for k in range(count):
        out = scratch / f"out-{k}"
        shutil.copytree(whole, out)
        kind = rng.choice(("traverse/sqp", "traverse/paper", "decay"))
        folder = out / "IRIS_FF" / kind / "run-000"
        what = tamper(folder, rng)
        if what:
            found.done["numbers changed"] += 1
            _read_all(out, f"{kind}: {what}", folder, found)
        shutil.rmtree(out)
    return found


def _read_all(out: Path, what: str, folder: Path, found: Findings) -> None:
    name = str(folder.relative_to(out))
    try:
        checks = [check for check in verify(out) if check.problem]
        if {check.run for check in checks} != {name}:
            found.wrong.append(f"{what}: verify names {sorted({check.run for check in checks})}")
    except Exception as error:
        found.wrong.append(f"{what}: verify raises {type(error).__name__}: {error}")
    try:
        results = open_results(out)
        runs = read_runs(results, "IRIS_FF")
        report_tables(runs)
        runs_section(results, runs)
    except Exception as error:
        found.wrong.append(f"{what}: report raises {type(error).__name__}: {error}")


def tamper(folder: Path, rng: random.Random) -> str:
    """Change one number of a run's files, and all checksums with it; what was done."""
    file = folder / rng.choice(sorted(one.name for one in folder.iterdir() if one.is_file()))
    if file.suffix == ".json":
        content = _content(file)
        what = _change(content, rng)
        if not what or not _seal(file, content):
            return ""
        if file.name == "config.json":
            config = json.dumps(content.get("config"), sort_keys=True)
            ending = _content(folder / "outcome.json")
            _seal(folder / "outcome.json", {**ending, "config": _digest(config)})
        return f"{file.name}: {what}"
    if file.suffix == ".parquet":
        table = pd.read_parquet(file)
        column = rng.choice([*table.columns])
        row = rng.choice([0, len(table) - 1])  # what is between two points kept, is not at hand
        if column in UNSURE or table[column].dtype.kind not in "iuf":
            return ""
        before = table[column].astype(float)
        table[column] = before
        value = rng.choice([float("nan"), before[row] * 1.5 + 1.0, -before[row] - 1.0])
        if pd.isna(before[row]) and pd.isna(value):
            return ""
        table.loc[row, column] = value
        table.to_parquet(file, index=False)
        what = f"{column} {row} {before[row]} is {value}"
    else:
        tensors = load_file(file)
        name = rng.choice(sorted({*tensors} - {"chunk_size"}))
        flat = tensors[name].reshape(-1).clone()
        at = rng.randrange(len(flat))
        flat[at] = flat[at] * 2 + 3
        save_file({**tensors, name: flat.reshape(tensors[name].shape)}, file)
        what = f"{name} {at}"
    ending = _content(folder / "outcome.json")
    stamp = Stamp.of(file)
    ending["files"][file.name] = {"sha256": stamp.sha256, "bytes": stamp.bytes}
    _seal(folder / "outcome.json", ending)
    return f"{file.name}: {what}"


def _change(content: Any, rng: random.Random) -> str:
    """Another value at a random place of nested content; where, and which."""
    places: list[tuple[Any, Any]] = []

    def collect(part: Any) -> None:
        keys = part.keys() if isinstance(part, dict) else range(len(part))
        for key in [*keys]:
            if key in UNSURE:
                continue
            places.append((part, key))
            if isinstance(part[key], dict | list):
                collect(part[key])

    collect(content)
    part, key = rng.choice(places)
    value = rng.choice(NUMBERS)
    if json.dumps(part[key]) == json.dumps(value):
        return ""
    before, part[key] = part[key], value
    return f"{key} {str(before)[:40]} is {value}"


def _content(file: Path) -> dict[str, Any]:
    content = json.loads(file.read_text())
    for key in ("format_version", "isoloss", "sha256"):
        del content[key]
    return content


def _seal(file: Path, content: dict[str, Any]) -> bool:
    try:
        file.write_text(sealed(content))
    except ValueError:  # no JSON: as a byte changed makes it
        file.write_text(json.dumps(content))
    return True


def _digest(text: str) -> str:
    return Stamp.of(text.encode()).sha256


# ---------------------------------------------------------------- full disks


class Full(Moments):
    """Moments at which the disk is full from one of them on, for some."""

    def __init__(self, full_at: int, refusals: int) -> None:
        super().__init__()
        self._full = range(full_at, full_at + refusals)

    def pass_by(self, name: str, tear: Path | None = None) -> None:
        self.names.append(name)
        if len(self.names) in self._full and name.startswith("before"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_disks(scratch: Path, every: int, seed: int) -> Findings:
    """Fill the disk at each `every`-th moment of writing, and call the run again with space."""
    found = Findings()
    for kind in KINDS:
        whole, moments = make(scratch / "whole" / kind, kind), Moments()
        with moments.watched():
            assert not execute(whole).failed
        expected = result(whole.folder)
        for moment in range(1 + seed % every, len(moments.names) + 1, every):
            one = make(scratch / f"{kind}-{moment}", kind)
            said = _on_a_full_disk(lambda one=one: execute(one).ending, moment)
            what = f"{kind}, disk full at {moment}, {moments.names[moment - 1]}"
            found.done["full disks"] += 1
            ended = said in ("step_limit", "finished")  # it was of no matter
            if not ended and "No space left on device; free some space and call" not in said:
                found.wrong.append(f"{what}: {said}")
            news = execute(one)
            if news.failed or result(one.folder) != expected:
                other = differences(result(one.folder), expected)
                found.wrong.append(f"{what}: {news.ending}, other bits in {other}")
            shutil.rmtree(one.folder.parents[3 if kind != "decay" else 2])
    return found


def _on_a_full_disk(do: Callable[[], str], moment: int) -> str:
    with Full(moment, 1_000_000).watched():
        try:
            return do()
        except Exception as error:
            return f"{type(error).__name__}: {error}"
