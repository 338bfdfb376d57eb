"""The reference's logs as paths and tables."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from isoloss import __version__, experiments
from isoloss.experiments.catalog import Experiment
from isoloss.files import ResultsError
from isoloss.outcome import Outcome
from isoloss.path import COLUMNS, Path
from isoloss.reference import layout
from isoloss.reference.keras import from_keras, weights_only
from isoloss.reference.layout import Arrays
from isoloss.store import run
from isoloss.store.folder import begin
from isoloss.store.results import run_folder

WALK_ARRAYS = (
    "index_epoch", "index_epoch_pred", "index_epoch_corr", "angle_bw_gradients", "param_norms",
    "train_loss", "test_loss", "test_accuracy", "lr_pred", "lr_corr", "weights_phase1",
    "weights_phase2",
)  # fmt: skip
KEPT_EVERY = 50
"""Predictor steps between the weights the reference keeps."""


@dataclass(frozen=True)
class Imported:
    """What `import_reference` found.

    Attributes:
        paths: The walks of each experiment, by its name, in the order of the files' numbers.
        decay: The networks of weight decay of each experiment: a table with the columns of
            `Results.decay`; what the reference did not record is NaN.
        decay_points: Their weights, shape (networks, parameters), in the tables' order.
        skipped: What could not be read, a sentence each.
    """

    paths: dict[str, list[Path]]
    decay: dict[str, pd.DataFrame]
    decay_points: dict[str, Tensor]
    skipped: list[str]


def import_reference(folder: str | FilePath, out: str | FilePath | None = None) -> Imported:
    """Read what the code of Tahir and Katz logged.

    Nothing in the files is run: arrays of Python objects are left out. Of every walk the losses,
    norms, angles and step lengths are as recorded; its level is the loss evaluated at the first
    step. What was not recorded is NaN: points from which a correction started, the last point's
    values but its norm, and the time.

    Of weight decay the reference kept Keras' history: `penalized_train_loss` is the mean over the
    last epoch while it trained, `penalized_test_loss` contains the penalty term, and `test_loss` is
    that without the term.

    Args:
        folder: The folder in which its scripts ran, with `NAME/logs_NAME_exp_K.npz` and
            `L2_NAME/logs_regpenidx_R_expidx_E.npz`; or one of these.
        out: A results folder to write the walks into, as method `paper`, for the commands; nothing
            is written by default.

    Returns:
        The walks and tables.

    Raises:
        InputError: There is no such folder, an experiment's name is unknown, or the results folder
            holds other runs.
    """
    folder = FilePath(folder)
    skipped: list[str] = []
    paths: dict[str, list[Path]] = {}
    for file, match in layout.find(folder, layout.WALK_NAME):
        experiment = experiments.get(match["experiment"])
        try:
            path = _path(file, layout.read(file, WALK_ARRAYS), experiment)
        except ResultsError as error:
            skipped.append(str(error))
            continue
        paths.setdefault(experiment.name, []).append(path)
        if out is not None:
            _write(FilePath(out), path, experiment.name, int(match["run"]) - 1)
    rows: dict[str, list[dict[str, Any]]] = {}
    ends: dict[str, list[Tensor]] = {}
    for file, match in layout.find(folder, layout.DECAY_NAME):
        experiment = experiments.get(file.parent.name.removeprefix(layout.DECAY_FOLDER))
        try:
            row, end = _network(file, int(match["penalty"]), experiment)
        except ResultsError as error:
            skipped.append(str(error))
            continue
        rows.setdefault(experiment.name, []).append({"run": int(match["run"]) - 1, **row})
        ends.setdefault(experiment.name, []).append(end)
    decay: dict[str, pd.DataFrame] = {}
    points: dict[str, Tensor] = {}
    for name, networks in rows.items():
        table = pd.DataFrame(networks).sort_values(["run", "penalty"])
        points[name] = torch.stack(ends[name])[table.index.tolist()]
        decay[name] = table.reset_index(drop=True)
    return Imported(paths, decay, points, skipped)


def _path(file: FilePath, arrays: Arrays, experiment: Experiment) -> Path:
    predicted, corrected = arrays["index_epoch_pred"], arrays["index_epoch_corr"]
    count, steps = len(predicted), len(arrays["index_epoch"])
    lengths = {name: len(arrays[name]) for name in ("angle_bw_gradients", "param_norms", "lr_pred")}
    lengths |= {name: len(arrays[name]) for name in ("test_loss", "test_accuracy")}
    lengths["train_loss"] = len(arrays["train_loss"]) // 2
    wrong = [name for name, length in lengths.items() if length != count]
    if count + len(corrected) != steps or len(arrays["lr_corr"]) != len(corrected):
        wrong.append("index_epoch")
    if wrong or not count:
        raise ResultsError(
            f"{file} cannot be read: the lengths of {', '.join(wrong)} do not fit its {count} "
            f"predictor steps; leave it out"
        )
    before = predicted.astype(int) - 1  # what is recorded at a step was measured before it
    table = pd.DataFrame(index=range(steps + 1), columns=[*COLUMNS], dtype=float)
    table["step"] = np.arange(steps + 1)
    table["kind"] = "correct"
    table.loc[predicted.astype(int), "kind"] = "predict"
    table.loc[0, "kind"] = "start"
    table["evaluations"] = np.arange(1, steps + 2)
    table["step_length"] = 0.0
    table.loc[predicted.astype(int), "step_length"] = arrays["lr_pred"]
    table.loc[corrected.astype(int), "step_length"] = arrays["lr_corr"]
    table["arc_length"] = table["step_length"].cumsum()
    level = float(arrays["train_loss"][1])
    for column, values in {
        "loss": arrays["train_loss"][::2],
        "regularizer": arrays["param_norms"],
        "angle_degrees": arrays["angle_bw_gradients"],
        "test_loss": arrays["test_loss"],
        "test_metric": arrays["test_accuracy"],
    }.items():
        table.loc[before, column] = values.astype(np.float64)
    table["level_error"] = (table["loss"] - level) / level
    table["kkt_residual"] = np.sin(np.radians(table["angle_degrees"]))
    points, point_steps = _points(file, arrays, experiment.network(0))
    if np.isnan(table["regularizer"].iloc[point_steps[-1]]):
        table.loc[point_steps[-1], "regularizer"] = points[-1].double().square().sum().item()
    done = arrays["angle_bw_gradients"][-1] >= 180
    outcome = Outcome.CONVERGED if done else Outcome.STEP_LIMIT
    return Path(
        steps=table,
        points=points,
        point_steps=point_steps,
        level=level,
        outcome=outcome,
        message=f"{outcome.sentence} Imported from {file.name}.",
        method="paper",
        regularizer="squared_norm",
        shapes={name: tuple(p.shape) for name, p in experiment.network(0).named_parameters()},
        metadata={"config": {"experiment": experiment.name, "seed": _seed(arrays)}},
    )


def _points(file: FilePath, arrays: Arrays, network: nn.Module) -> tuple[Tensor, list[int]]:
    """The start and the weights kept, and after which step each was."""
    kept, predicted = arrays["weights_phase2"], arrays["index_epoch_pred"].astype(int)
    if "index_weights_phase2" in arrays:  # written by us, who keep other points
        after = arrays["index_weights_phase2"].astype(int)
    else:
        number = np.arange(1, len(predicted) + 1)
        whole = number % KEPT_EVERY == 0
        # one of the reference's scripts keeps the others of every fifty
        chosen = [rule for rule in (whole | (number == 1), ~whole) if rule.sum() == len(kept)]
        if not chosen:
            raise ResultsError(
                f"{file} cannot be read: {len(kept)} points are neither every {KEPT_EVERY}th of "
                f"its {len(predicted)} predictor steps nor all others; leave it out"
            )
        after = predicted[chosen[0]]
        if len(kept) > len(predicted) // 2 + 1:
            kept, after = kept[::KEPT_EVERY], after[::KEPT_EVERY]
    try:
        whole_path = np.concatenate([arrays["weights_phase1"][None], kept.reshape(len(kept), -1)])
        points = from_keras(torch.from_numpy(np.ascontiguousarray(whole_path)), network)
    except ValueError as error:
        raise ResultsError(f"{file} cannot be read: {error}; leave it out") from error
    return points, [0, *after.tolist()]


def _network(file: FilePath, index: int, experiment: Experiment) -> tuple[dict[str, Any], Tensor]:
    metric = layout.METRICS.get(experiment.metric, experiment.metric)
    needed = ("weights", "loss", "val_loss", metric, f"val_{metric}")
    arrays = layout.read(file, needed)
    if not 1 <= index <= len(layout.PENALTIES):
        raise ResultsError(
            f"{file} has no place among the reference's {len(layout.PENALTIES)} penalties; leave "
            f"it out"
        )
    penalty, network = layout.PENALTIES[index - 1], experiment.network(0)
    try:
        end = from_keras(torch.from_numpy(arrays["weights"]), network)
        last = {name: float(arrays[name][-1]) for name in needed[1:]}
    except (ValueError, IndexError) as error:
        raise ResultsError(f"{file} cannot be read: {error}; leave it out") from error
    squares = end.double().square()
    weights = squares[weights_only(network)].sum().item()
    finite = math.isfinite(last["loss"]) and bool(squares.isfinite().all())
    return {
        "seed": _seed(arrays),
        "penalty": penalty,
        "epoch": len(arrays["loss"]),
        "train_loss": math.nan,
        "penalized_train_loss": last["loss"],
        "train_metric": last[metric],
        "test_loss": last["val_loss"] - penalty * weights,
        "penalized_test_loss": last["val_loss"],
        "test_metric": last[f"val_{metric}"],
        "squared_norm": squares.sum().item(),
        "squared_norm_weights": weights,
        "lost_epoch": -1 if finite else len(arrays["loss"]),
        "status": "finished" if finite else "non_finite",
    }, end


def _seed(arrays: Arrays) -> int | None:
    seed = arrays.get("SEED")
    return int(seed.ravel()[0]) if seed is not None and seed.size else None


def _write(out: FilePath, path: Path, experiment: str, index: int) -> None:
    folder = run_folder(out, experiment, path.method, index)
    config = {**path.metadata["config"], "method": {"name": path.method}, "imported": path.message}
    begin(folder, config, {"isoloss": __version__})
    run.save(folder, path)
