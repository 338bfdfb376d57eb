"""Results checked: files against their checksums, numbers again in float64 from the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from isoloss import experiments
from isoloss.errors import InputError, one_line
from isoloss.files import OUTCOME, read_ending
from isoloss.methods import METHODS, Tolerance
from isoloss.path import Path
from isoloss.problem import Problem
from isoloss.regularizers import get_regularizer
from isoloss.report.chapter import FILES, read_runs, report_tables
from isoloss.report.page import CHAPTER, load_chapter, load_image
from isoloss.store import Decay, ResultsError, load_decay, open_results
from isoloss.store.folder import FINISHED, MEMBERS, NOT_FINISHED, load_config

AGREEMENT = {"float32": 1e-3, "float64": 1e-9}
"""Largest relative difference of a recorded number from the same in float64. Rounding of a float32
forward pass grows with the layers and as the loss nears zero; a wrong number is off by far more."""
ROUNDING = {"float32": 1e-5, "float64": 1e-12}
"""By how much of the level the rounding of the loss may carry a point out of the tolerance."""


@dataclass(frozen=True)
class Check:
    """One thing that was checked of a run."""

    run: str  # where it is, below the folder that was given
    what: str
    found: str  # the worst
    allowed: str  # the most that is right; empty where there is nothing to judge
    problem: str = ""  # what is wrong, a sentence


def verify(folder: str | FilePath) -> list[Check]:
    """Check everything below a results folder, or a folder in it down to that of one run."""
    top = FilePath(folder)
    found = [top, *top.rglob("run-*")] if top.is_dir() else []
    runs = sorted(one for one in found if one.is_dir() and one.name.startswith("run-"))
    runs = [one for one in runs if not {"quarantine", "replaced"} & set(one.parts)]
    if not runs:
        what = "holds no run" if top.exists() else "does not exist"
        raise InputError(f"{top} {what}; name a folder that was given to --out, or one in it")
    names = [str(one.relative_to(top)) if one != top else one.name for one in runs]
    checks = [check for one, name in zip(runs, names, strict=True) for check in _checks(one, name)]
    return [*checks, *check_reports(top)]


def check_reports(top: FilePath) -> Iterator[Check]:
    """Make the report's tables again from the runs, and look at what its page is made of."""
    for folder in sorted(file for file in top.glob("report/*") if file.is_dir()):
        name, again = str(folder.relative_to(top)), f"run 'isoloss report {folder.name}' again"
        there = [file for file in FILES if (folder / file).exists()]
        try:
            results = open_results(top)
            made = report_tables(read_runs(results, folder.name))[1] if there else {}
        except Exception as error:
            yield Check(name, "tables", "", "", f"cannot be made again: {_said(error)}")
            continue
        for file in FILES:
            if file in there or file in made:
                wrong = _other_table(folder / file, made.get(file))
                found = "another" if wrong else "the same"
                yield Check(name, file, found, "the same", f"{wrong}; {again}" if wrong else "")
        if (folder / CHAPTER).exists():
            try:
                for picture in load_chapter(folder).pictures:
                    load_image(folder, picture)
                yield Check(name, CHAPTER, "whole", "whole")
            except Exception as error:
                yield Check(name, CHAPTER, "damaged", "whole", _said(error))


def _other_table(file: FilePath, made: str | None) -> str:
    """How a table differs from the same made again; empty where it does not."""
    if made is None:
        return f"{file} is a table of runs that are not here"
    if not file.exists():
        return f"{file} is missing"
    try:
        lines = file.read_bytes().decode().splitlines(keepends=True)
    except UnicodeDecodeError:
        return f"{file} is not text"
    for k, (line, right) in enumerate(zip_longest(lines, made.splitlines(keepends=True)), 1):
        if line != right:
            return f"{file} is not the table of these runs: line {k} differs"
    return ""


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"


def _checks(folder: FilePath, name: str) -> Iterator[Check]:
    """All checks of a run; whatever goes wrong in one is wrong with this run alone."""
    if not (folder / OUTCOME).exists():
        yield Check(name, "files", NOT_FINISHED, "")
        return
    what = "files"
    try:
        stamps = read_ending(folder).stamps
        run = load_decay(folder) if MEMBERS in stamps else Path.load(folder)
        yield Check(name, what, f"{len(stamps)} whole", "")
        what, config = "computed again", load_config(folder)
        if "project" in config:  # only the user's code can build its problem: it is not run here
            yield Check(name, what, "not done: your own project", "")
        elif "imported" in config:
            yield Check(name, what, "not done: imported, without its settings", "")
        elif isinstance(run, Path):
            yield from _walk(run, name)
        else:
            yield from _decay(run, config, name)
    except ResultsError as error:
        yield Check(name, what, "damaged or failed", "", str(error))
    except Exception as error:
        yield Check(name, what, "", "", f"cannot be checked: {_said(error)}")


def _walk(path: Path, name: str) -> Iterator[Check]:
    points, count = path.points.double(), len(path.point_steps)
    if len(points) != count:
        wrong = f"{len(points)} points are kept, but the steps of {count} are named"
        yield Check(name, "points", str(len(points)), str(count), wrong)
        return
    if not count:
        wrong = "no point is kept of a walk that has succeeded" if path.outcome.success else ""
        yield Check(name, "points", "none on the level set", "", wrong)
        return
    config = path.metadata["config"]
    dtype = config.get("dtype", "float32")
    again, training, flips = _again(config, points)
    regularizer = get_regularizer(config.get("regularizer", path.regularizer), training)
    again["regularizer"] = [regularizer.value_and_grad(theta)[0].item() for theta in points]
    settings = {key: value for key, value in config["method"].items() if key != "name"}
    method = METHODS[config["method"]["name"]](**settings)
    off = float(np.max(np.abs(again["loss"] - path.level)) / path.level)
    allowed = (
        method.kept_tolerance(Tolerance(config["rtol"])).relative(path.level) + ROUNDING[dtype]
    )
    yield _bound(name, "loss on the level, points", off, allowed, count)
    # what belongs to the walk is there at every point, a probe at least at the first and the last
    probed = np.isin(np.arange(count), (0, count - 1))
    needed = {column: probed | (column in ("loss", "regularizer")) for column in again}
    recorded = path.steps.iloc[path.point_steps].reset_index(drop=True)
    yield from _columns(name, recorded, again, needed, AGREEMENT[dtype], flips)


def _decay(run: Decay, config: Mapping[str, Any], name: str) -> Iterator[Check]:
    members, ends = run.members, run.ends().double()
    if len(ends) != len(members):
        wrong = f"{len(ends)} networks are kept, but {len(members)} were trained"
        yield Check(name, "networks", str(len(ends)), str(len(members)), wrong)
        return
    finite = torch.isfinite(ends).all(dim=1).numpy()
    finished = (members["status"] == FINISHED).to_numpy()
    if (finished & ~finite).any():
        wrong = "a network that is said to have finished is infinite or not a number"
        yield Check(name, "networks", f"{(finished & ~finite).sum()} not finite", "0", wrong)
    again, _, flips = _again(config, ends[finite])
    again = again.rename(columns={"loss": "train_loss"})
    again["squared_norm"] = ends[finite].square().sum(dim=1).numpy()
    needed = {str(column): finished[finite] for column in again}
    recorded = members.loc[finite].reset_index(drop=True)
    yield from _columns(name, recorded, again, needed, AGREEMENT["float32"], flips)


def _again(config: Mapping[str, Any], thetas: Tensor) -> tuple[pd.DataFrame, Problem, float | None]:
    """Losses and metric in float64, the training problem, and how much an accuracy may be off."""
    experiment, seed = experiments.get(config["experiment"]), config["seed"]
    data, model, metric = experiment.data(seed), experiment.network(seed), experiment.metric
    training, test = (
        Problem(model, experiment.loss, pair, metric=metric, dtype=torch.float64)
        for pair in ((data.inputs, data.targets), (data.test_inputs, data.test_targets))
    )
    again = pd.DataFrame(map(test.evaluate, thetas), columns=["test_loss", "test_metric"])
    again.insert(0, "loss", [training.loss(theta).item() for theta in thetas])
    # an example whose two best classes are equal to rounding may change sides
    flips = max(1.5 / test.examples, 5e-4) if metric == "accuracy" else None
    return again, training, flips


def _columns(
    name: str,
    recorded: pd.DataFrame,
    again: pd.DataFrame,
    needed: Mapping[str, NDArray[np.bool_]],
    agreement: float,
    flips: float | None,
) -> Iterator[Check]:
    """Each column against the same computed again, wherever it was measured or is needed."""
    for column in map(str, again):
        if column not in recorded:
            yield Check(name, column, "missing", "recorded", f"{column} is not recorded")
            continue
        measured = recorded[column].notna().to_numpy()
        absent = int((needed[column] & ~measured).sum())
        if absent:
            wrong = f"{column} is not a number at {absent} of the kept points that need it"
            yield Check(name, column, f"{absent} not a number", "0", wrong)
        before = recorded.loc[measured, column].to_numpy(dtype=np.float64)
        now = again.loc[measured, column].to_numpy(dtype=np.float64)
        if len(before) == 0:
            continue
        if column == "test_metric" and flips is not None:
            worst, allowed = np.max(np.abs(before - now)), flips
        else:
            worst = np.max(np.abs(before - now) / np.maximum(np.abs(now), 1e-12))
            allowed = agreement
        yield _bound(name, column, float(worst), allowed, len(before))


def _bound(name: str, what: str, worst: float, allowed: float, count: int) -> Check:
    wrong = "" if worst <= allowed else f"{what} is off by {worst:.3g}, {allowed:.3g} is allowed"
    return Check(name, f"{what} ({count})", f"{worst:.2g}", f"{allowed:.2g}", wrong)
