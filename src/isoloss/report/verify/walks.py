"""What the numbers of a walk must be: found again from its weights, rows and settings."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from isoloss import experiments
from isoloss.endings import slowed
from isoloss.experiments.catalog import Experiment
from isoloss.methods import METHODS, Tolerance
from isoloss.names import state_keys
from isoloss.objective import Objective
from isoloss.outcome import Ending, Outcome
from isoloss.path import COLUMNS, Path, Record, Stop
from isoloss.point import Point
from isoloss.problem import Problem
from isoloss.recorder import Recorder
from isoloss.report.verify.checks import (
    DIRECTION,
    NOT_DONE,
    OF_SLOPES,
    Check,
    bound,
    columns,
    facts,
    problems,
)
from isoloss.settings import ONLY_IN_PYTHON

ROUNDING = {"float32": 1e-5, "float64": 1e-12}
"""By how much of the level the rounding of the loss may carry a point out of the tolerance."""
EPS = {"float32": 1.2e-7, "float64": 2.3e-16}
EXACT = 1e-9
"""Largest relative difference between results of the same few operations in float64."""
IMPORTED = {"experiment", "seed", "method", "imported"}
"""Settings that an imported walk has, and no more."""
KINDS = {"paper": {"predict", "correct"}, "sqp": {"sqp", "correct"}}


def walk_checks(path: Path, run: str) -> Iterator[Check]:
    """All that follows from a walk's files: with the experiment's data, or else without."""
    config: dict[str, Any] = path.metadata["config"]
    known = _known(config)
    yield from facts(run, "settings", _settings(path, config, known))
    dtype = "float32" if path.points.dtype == torch.float32 else "float64"
    rows = path.steps
    yield from facts(run, f"rows ({len(rows)})", list(_rows(path, dtype, "imported" in config)))
    if not len(path.points):
        wrong = ["no point is kept of a walk that has succeeded"] if path.outcome.success else []
        yield from facts(run, "points", wrong)
        return
    yield from facts(run, f"points ({len(path.points)})", list(_distances(path, dtype)))
    points, recorded = path.points.double(), rows.iloc[path.point_steps].reset_index(drop=True)
    if "imported" in config or known is None:
        if path.regularizer == "squared_norm":
            again = pd.DataFrame({"regularizer": points.square().sum(dim=1).numpy()})
            yield from columns(run, recorded, again, {}, dtype, None)
        why = "imported, without its settings" if "imported" in config else "your own project"
        yield Check(run, "computed again", f"{NOT_DONE}: {why}", "")
    if "imported" in config:
        return
    again = _replayed(path, config)
    yield from facts(run, "which points and probes", list(_kept(path, again)))
    yield from facts(run, "outcome", list(_outcome(path, config)))
    if known is None:
        return
    data = known.data(config["seed"])
    training, test, flips = problems(known, config["seed"], data)
    now = _evaluated(training, path)
    now[["test_loss", "test_metric"]] = [*map(test.evaluate, points)]
    off = float(np.max(np.abs(now["loss"] - path.level)) / abs(path.level))
    allowed = _tolerance(path, config) + ROUNDING[dtype]
    yield bound(run, "loss on the level, points", off, allowed, len(points))
    probed = again.measured[path.point_steps]
    needed = {str(name): probed | (name in COLUMNS) for name in now if name != "slope"}
    # where both gradients are orthogonal there is no penalty
    needed["equivalent_penalty"] = now["equivalent_penalty"].notna().to_numpy()
    yield from columns(
        run, recorded, now, needed, dtype, flips,
        lambda: _evaluated(training.with_dtype(path.points.dtype), path),
    )  # fmt: skip


def _evaluated(problem: Problem, path: Path) -> pd.DataFrame:
    """What a walk records of the points kept, a row for each."""
    objective = Objective(problem, path.metadata["config"].get("regularizer", path.regularizer))
    values = [objective.evaluate(point) for point in path.points.to(problem.dtype)]
    names = ("loss", "regularizer", *OF_SLOPES)
    found = pd.DataFrame({name: [getattr(one, name) for one in values] for name in names})
    # its inverse is the slope of R over that of L, and 0 where these are at right angles
    slopes = [one.grad_norm / one.regularizer_grad.norm().item() for one in values]
    return found.assign(slope=slopes)


def _known(config: Mapping[str, Any]) -> Experiment | None:
    name = config.get("experiment")
    return experiments.get(name) if name in experiments.names() else None


def _settings(path: Path, config: Mapping[str, Any], known: Experiment | None) -> list[str]:
    """What the files of a run say of it that cannot be."""
    found: list[str] = []
    method, level = config["method"], path.level
    if known is None and "project" not in config:
        found.append("config.json names no experiment and no project")
    if known is not None and "project" in config:
        found.append(f"config.json names a project, but {known.name} is an experiment")
    if method.get("name") != path.method:
        found.append(f"config.json names the method {method.get('name')}, not {path.method}")
    if config.get("regularizer", path.regularizer) != path.regularizer:
        found.append(f"config.json names the regularizer {config['regularizer']}")
    if not 0 < level < math.inf:
        found.append(f"the level must be positive, got {level:g}")
    if "imported" in config:
        plain = {*config} == IMPORTED and method == {"name": "paper"}
        if not plain or config["imported"] != path.message:
            found.append("config.json says that the walk is imported, the rest does not")
        return found
    if level != path.steps["loss"].iloc[0]:
        found.append(f"the level {level:.9g} is not the loss at the start")
    if not 0 < config["rtol"] < 1:
        found.append(f"rtol must be in (0, 1), got {config['rtol']}")
    own = {"stop": Stop, "record": Record, "method": METHODS[path.method]}
    for name, kind in own.items():
        given = {key: value for key, value in config[name].items() if key != "name"}
        read = kind(**given).model_dump(exclude=ONLY_IN_PYTHON)
        if json.dumps(given) != json.dumps({key: read.get(key) for key in given}):
            found.append(f"config.json has settings of {name} that it cannot have")
    if known is not None and f"torch.{config['dtype']}" != str(path.points.dtype):
        found.append(f"the points are not of the type {config['dtype']}")
    if known is not None:
        network = known.network(config["seed"])
        if path.shapes != {name: tuple(p.shape) for name, p in network.named_parameters()}:
            found.append(f"the parameters are not those of {known.name}")
        if path.frozen or path.buffers or path.state_keys != state_keys(network, path.shapes):
            found.append(f"state_keys, frozen or buffers are not those of {known.name}")
        drawn: Tensor = path.metadata["tensors"].get("indices", torch.empty(0))
        if not torch.equal(drawn, known.data(config["seed"]).indices):
            found.append("the training examples named are not those that the seed draws")
    return found


def _rows(path: Path, dtype: str, imported: bool) -> Iterator[str]:
    """What cannot be of a walk's rows alone; of an imported one not all was measured."""
    steps, near = path.steps, DIRECTION[dtype]
    values_of = {str(name): steps[name].to_numpy() for name in steps}
    for name in COLUMNS:
        values = values_of[name]
        if name == "kind" or (imported and name not in ("step", "evaluations", "step_length")):
            continue
        if name == "equivalent_penalty":  # where both gradients are orthogonal there is none
            values = values[~np.isin(values_of["angle_degrees"], (0, 90))]
        if gone := int((~np.isfinite(values)).sum()):
            yield f"{name} is not a number at {gone} of {len(values)} steps"
    if (values_of["step"] != np.arange(len(steps))).any():
        yield "step does not count from 0"
    if values_of["kind"][0] != "start" or not {*values_of["kind"][1:]} <= KINDS.get(
        path.method, set()
    ):
        yield f"kind is not that of steps by {path.method}"
    if values_of["evaluations"][0] < 1 or (np.diff(values_of["evaluations"]) < 1).any():
        yield "evaluations do not increase at every step"
    if not imported and (values_of["seconds"][0] < 0 or (np.diff(values_of["seconds"]) < 0).any()):
        yield "seconds decrease"
    lengths, angle = values_of["step_length"], np.radians(values_of["angle_degrees"])
    if lengths[0] != 0 or (lengths < 0).any():
        yield "step_length is negative, or not 0 at the start"
    derived = {
        "level_error": ((values_of["loss"] - path.level) / path.level, EXACT),
        "arc_length": (np.cumsum(lengths), EXACT),
        "kkt_residual": (np.sin(angle), near),
    }
    for name, (right, allowed) in derived.items():
        off = np.abs(values_of[name] - right) > allowed * (1 + np.abs(right))
        there = np.isfinite(values_of[name])
        if (off & there).any() or (there != np.isfinite(right)).any():
            yield f"{name} does not follow from the other columns, first at step {_first(off)}"
    against = np.sign(values_of["equivalent_penalty"]) * np.cos(angle) > near
    if against.any():
        yield f"equivalent_penalty has the sign of another angle, at step {_first(against)}"


def _distances(path: Path, dtype: str) -> Iterator[str]:
    """Points kept that are farther from one another than the steps between them are long."""
    points, at = path.points.double(), np.array(path.point_steps)
    if not torch.isfinite(points).all():
        yield "a point that is kept is infinite or not a number"
    far = (points[1:] - points[:-1]).norm(dim=1).numpy()
    long = np.diff(path.steps["arc_length"].to_numpy()[at])
    size = points.norm(dim=1).max().item()
    room = 1e-3 * long + np.diff(at) * 4 * EPS[dtype] * (1 + size)
    for name, wrong in {
        "farther from the one before than the steps between are long": far - long > room,
        "nearer to the one before than the step between is long": (long - far > room)
        & (np.diff(at) == 1),
    }.items():
        if wrong.any():
            yield f"the point kept at step {at[1:][wrong][0]} is {name}"


@dataclass(frozen=True)
class _Replayed:
    """What a recorder makes of the rows of a walk."""

    steps: list[int]  # of the points kept
    measured: NDArray[np.bool_]  # where probes are, of every step


@dataclass(frozen=True)
class _Row:
    """A row as the state of a method."""

    point: Point
    kind: str
    step_length: float
    on_level: bool
    ending: Ending | None = None


class _Measured:
    """A probe that leaves a mark where it is measured."""

    def evaluate(self, _: Tensor) -> tuple[float, float]:
        """Nothing but a mark."""
        return 1.0, 1.0


def _replayed(path: Path, config: Mapping[str, Any]) -> _Replayed:
    nothing = torch.empty(0)
    empty: dict[str, Any] = {
        field.name: nothing if field.type == "Tensor" else 0.0 for field in fields(Point)
    }
    point = Point(**empty)
    probe = cast("Problem", _Measured())
    recorder = Recorder(Record(**config["record"]), {"test": probe}, path.level, Tolerance())
    near = np.abs(path.steps["level_error"].to_numpy()) <= _tolerance(path, config)
    steps = path.steps[["kind", "step_length", "loss"]].itertuples(index=False)
    for (kind, length, loss), on_level in zip(steps, near, strict=True):
        recorder.add(_Row(replace(point, loss=loss), kind, length, bool(on_level)), 0)
    made, _, kept = recorder.finish()
    return _Replayed(kept, made["test_loss"].notna().to_numpy())


def _kept(path: Path, again: _Replayed) -> Iterator[str]:
    """Points and measurements that the settings ask for, and that are not there."""
    if path.point_steps != again.steps:
        missing = sorted({*again.steps} ^ {*path.point_steps})
        yield f"the points kept are not those that the settings ask for, first at step {missing[0]}"
    probes = [str(name) for name in path.steps if name not in COLUMNS]
    if "project" not in path.metadata["config"]:
        probes = list(dict.fromkeys([*probes, "test_loss", "test_metric"]))
    for name in probes:
        there = path.steps[name].notna().to_numpy() if name in path.steps else ~again.measured
        if (wrong := there != again.measured).any():
            yield f"{name} is not there, or there alone, at {wrong.sum()} steps"


def _outcome(path: Path, config: Mapping[str, Any]) -> Iterator[str]:
    """Why the rows do not end as the outcome says."""
    stop, rows = config["stop"], path.steps
    progress = (~rows["kind"].isin(["start", "correct"])).cumsum()
    last: Any = rows.iloc[-1]
    near = rows["level_error"].abs() <= _tolerance(path, config)
    below = stop["regularizer_below"]
    met = {
        Outcome.CONVERGED: near & (rows["kkt_residual"] <= stop["kkt_residual"]),
        Outcome.REGULARIZER_REACHED: near
        & (rows["regularizer"] <= (-math.inf if below is None else below)),
        Outcome.STEP_LIMIT: near & (progress >= stop["steps"]),
        Outcome.EVALUATION_LIMIT: rows["evaluations"] >= (stop["evaluations"] or math.inf),
    }
    for outcome, where in met.items():
        if where.iloc[:-1].any():
            yield f"the walk went on though it was {outcome.value} at step {_first(where)}"
    nothing = EPS["float32"] * abs(rows["regularizer"].iloc[0])  # is left of it, to rounding
    at_rest = last["kkt_residual"] == 0 or abs(last["regularizer"]) <= nothing
    at_rest &= path.outcome is Outcome.CONVERGED
    gain = stop.get("gain", 0.0)
    gains = path.outcome is Outcome.SLOWED and not slowed(gain, rows.to_dict("records"))
    if gains or (path.outcome in met and not (met[path.outcome].iloc[-1] or at_rest)):
        yield f"the outcome is {path.outcome.value}, which the last step does not bear out"


def _tolerance(path: Path, config: Mapping[str, Any]) -> float:
    settings = {key: value for key, value in config["method"].items() if key != "name"}
    method = METHODS[config["method"]["name"]](**settings)
    return method.kept_tolerance(Tolerance(config["rtol"])).relative(path.level)


def _first(where: Any) -> int:
    return int(np.flatnonzero(np.asarray(where))[0]) if np.any(where) else 0
