"""Results checked: every file against its checksum, every number again in float64.

What a run recorded at the points that it kept is computed anew from the stored weights alone, by a
problem built from the run's own settings, and held against the recorded columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path as FilePath

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from isoloss import experiments
from isoloss.errors import InputError, IsolossError
from isoloss.experiments.catalog import Experiment
from isoloss.files import read_ending, read_json
from isoloss.methods import METHODS
from isoloss.path import Path
from isoloss.problem import Problem
from isoloss.regularizers import get_regularizer
from isoloss.report.report_tables import FILES, report_tables, reported_walks
from isoloss.store import open_results
from isoloss.store.folder import load_config, problem
from isoloss.store.results import load_decay

AGREEMENT = {"float32": 1e-3, "float64": 1e-9}
"""Largest relative difference of a recorded number from the same in float64. The rounding of a
float32 forward pass grows with the layers and as the loss nears zero; a wrong number is off by far
more."""
ROUNDING = {"float32": 1e-5, "float64": 1e-12}
"""By how much of the level the rounding of the loss may carry a point out of the tolerance."""
NOT_FINISHED = "not finished"
NOT_DONE = "not done: your own project"
"""Of runs whose problem only the user's code can build, which is not run here."""


@dataclass(frozen=True)
class Check:
    """One thing that was checked of a run.

    Attributes:
        run: Where it is, below the folder that was given.
        what: What was checked.
        found: The worst that was found.
        allowed: The most that is right.
        problem: What is wrong, a sentence; empty where nothing is.
    """

    run: str
    what: str
    found: str
    allowed: str
    problem: str = ""


def verify(folder: str | FilePath) -> list[Check]:
    """Check everything below a folder that the commands wrote.

    Args:
        folder: A results folder, or any folder in it down to that of one run.

    Returns:
        What was checked, run by run.

    Raises:
        InputError: There is no run.
    """
    top = FilePath(folder)
    found = [top, *top.rglob("run-*")] if top.is_dir() else []
    runs = sorted(one for one in found if _is_run(one))
    if not runs:
        raise InputError(f"{top} holds no run; give a folder that was given to --out, or one in it")
    checks = [check for one in runs for check in _checks(one, _name(one, top))]
    return [*checks, *check_reports(top)]


def check_reports(top: FilePath) -> Iterator[Check]:
    """Make the report's tables again from the runs, and look at what its page is made of.

    Args:
        top: A results folder.

    Yields:
        A check of each table of each experiment, and of its `chapter.json`.
    """
    for folder in sorted(file for file in top.glob("report/*") if file.is_dir()):
        name, again = str(folder.relative_to(top)), f"call isoloss report {folder.name}"
        there = [file for file in FILES if (folder / file).exists()]
        made: dict[str, str] = {}
        if there:
            try:
                results = open_results(top)
                walks = reported_walks(results, folder.name)
                made = report_tables(results, folder.name, walks).files
            except IsolossError as error:
                yield Check(name, "tables", "", "", f"cannot be made again: {error}")
                continue
        for file in FILES:
            if file in there or file in made:
                wrong = _other_table(folder / file, made.get(file))
                found = "another" if wrong else "the same"
                yield Check(name, file, found, "the same", f"{wrong}; {again}" if wrong else "")
        chapter = folder / "chapter.json"
        if chapter.exists():
            try:
                read_json(chapter)
                yield Check(name, chapter.name, "whole", "whole")
            except IsolossError as error:
                yield Check(name, chapter.name, "damaged", "whole", f"{error}; {again}")


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


def _is_run(folder: FilePath) -> bool:
    aside = {"quarantine", "replaced"} & set(folder.parts)
    return folder.is_dir() and not aside and folder.name.startswith("run-")


def _name(folder: FilePath, top: FilePath) -> str:
    return str(folder.relative_to(top)) if folder != top else folder.name


def _checks(folder: FilePath, name: str) -> Iterator[Check]:
    reason = problem(folder)
    if reason == NOT_FINISHED:
        yield Check(name, "files", NOT_FINISHED, "")
        return
    if reason is not None:
        yield Check(name, "files", "damaged or failed", "", reason)
        return
    files = read_ending(folder).stamps
    yield Check(name, "files", f"{len(files)} whole", "")
    try:
        if "project" in load_config(folder):
            yield Check(name, "computed anew", NOT_DONE, "")
        elif (folder / "members.parquet").exists():
            yield from _decay(folder, name)
        else:
            yield from _walk(Path.load(folder), name)
    except (IsolossError, KeyError, RuntimeError) as error:
        yield Check(name, "computed anew", "", "", f"{type(error).__name__}: {error}")


def _walk(path: Path, name: str) -> Iterator[Check]:
    config = path.metadata["config"]
    experiment, seed = experiments.get(config["experiment"]), config["seed"]
    training, test = _problems(experiment, seed)
    steps = path.steps.iloc[path.point_steps].reset_index(drop=True)
    thetas = path.points.double()
    if not len(thetas):
        yield Check(name, "points", "none on the level set", "")
        return
    regularizer = get_regularizer(config.get("regularizer", path.regularizer), training)
    anew = pd.DataFrame([_measured(theta, training, test) for theta in thetas])
    anew["regularizer"] = [regularizer.value_and_grad(theta)[0].item() for theta in thetas]
    dtype = config.get("dtype", "float32")
    method = METHODS[config["method"]["name"]](
        **{key: value for key, value in config["method"].items() if key != "name"}
    )
    tolerance = method.relative_tolerance(path.level, config["rtol"])
    off = max(abs(loss - path.level) / path.level for loss in anew["loss"])
    allowed = tolerance + ROUNDING[dtype]
    yield _bound(name, "loss on the level, points", off, allowed, len(thetas))
    yield from _columns(name, steps, anew, dtype, test.examples)


def _decay(folder: FilePath, name: str) -> Iterator[Check]:
    config = load_config(folder)
    experiment = experiments.get(config["experiment"])
    training, test = _problems(experiment, config["seed"])
    run = load_decay(folder)
    members, ends = run.members, run.ends().double()
    finite = [k for k, theta in enumerate(ends) if bool(torch.isfinite(theta).all())]
    anew = pd.DataFrame([_measured(ends[k], training, test) for k in finite])
    anew = anew.rename(columns={"loss": "train_loss"})
    anew["squared_norm"] = [ends[k].square().sum().item() for k in finite]
    recorded = members.iloc[finite].reset_index(drop=True)
    yield from _columns(name, recorded, anew, "float32", test.examples)


def _problems(experiment: Experiment, seed: int) -> tuple[Problem, Problem]:
    """The training and the test problem in float64."""
    data, model = experiment.data(seed), experiment.network(seed)
    pairs = (data.inputs, data.targets), (data.test_inputs, data.test_targets)
    training, test = (
        Problem(model, experiment.loss, pair, metric=experiment.metric, dtype=torch.float64)
        for pair in pairs
    )
    return training, test


def _measured(theta: Tensor, training: Problem, test: Problem) -> dict[str, float]:
    test_loss, test_metric = test.evaluate(theta)
    loss = training.loss(theta).item()
    return {"loss": loss, "test_loss": test_loss, "test_metric": test_metric}


def _columns(
    name: str, recorded: pd.DataFrame, anew: pd.DataFrame, dtype: str, examples: int
) -> Iterator[Check]:
    """Each column against the same computed anew, where it was measured."""
    for column in anew:
        if column not in recorded:
            continue
        measured = recorded[column].notna()
        before = recorded.loc[measured, column].to_numpy(dtype=np.float64)
        now = anew.loc[measured, column].to_numpy(dtype=np.float64)
        if len(before) == 0:
            continue
        if column == "test_metric" and bool(np.all((now >= 0) & (now <= 1))):
            # accuracy: an example whose two best classes are equal to rounding may change sides
            worst, allowed = float(np.max(np.abs(before - now))), max(1.5 / examples, 5e-4)
        else:
            scale = np.maximum(np.abs(now), 1e-12)
            worst, allowed = float(np.max(np.abs(before - now) / scale)), AGREEMENT[dtype]
        yield _bound(name, str(column), worst, allowed, len(before))


def _bound(name: str, what: str, worst: float, allowed: float, count: int) -> Check:
    wrong = "" if worst <= allowed else f"{what} is off by {worst:.3g}, {allowed:.3g} is allowed"
    if math.isnan(worst):
        wrong = f"{what} is not a number"
    return Check(name, f"{what} ({count})", f"{worst:.2g}", f"{allowed:.2g}", wrong)
