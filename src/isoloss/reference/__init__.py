"""Logs of Tahir and Katz's own code, read as our paths and tables, and ours written as theirs."""

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
from isoloss.arguments import checked
from isoloss.disk import ResultsError, as_folder
from isoloss.errors import InputError
from isoloss.experiments.catalog import PENALTIES, Experiment
from isoloss.outcome import Outcome
from isoloss.path import COLUMNS, Path
from isoloss.reference import logs
from isoloss.reference.logs import Arrays, from_keras, to_keras, unreadable
from isoloss.store import Results, run_folder
from isoloss.store.folder import begin, save_walk

WALK_ARRAYS = (
    "index_epoch", "index_epoch_pred", "index_epoch_corr", "angle_bw_gradients", "param_norms",
    "train_loss", "test_loss", "test_accuracy", "lr_pred", "lr_corr", "weights_phase1",
    "weights_phase2",
)  # fmt: skip
__all__ = ["Exported", "Imported", "export_reference", "from_keras", "import_reference", "to_keras"]

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


@checked
def import_reference(folder: str | FilePath, out: str | FilePath | None = None) -> Imported:
    """Read what the code of Tahir and Katz logged.

    Nothing in the files is run: arrays of Python objects are left out. A file that is damaged, or
    declares far more than it holds, is skipped with a sentence. Of every walk the losses,
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
    folder, made = as_folder(folder), Imported({}, {}, {}, [])
    out = None if out is None else as_folder(out)
    for file, match in logs.find(folder, logs.WALK_NAME):
        experiment = experiments.get(match["experiment"])
        try:
            with logs.parsing(file):
                also = ("SEED", "index_weights_phase2")
                path = _path(file, logs.read(file, WALK_ARRAYS, also), experiment)
        except ResultsError as error:
            made.skipped.append(str(error))
            continue
        made.paths.setdefault(experiment.name, []).append(path)
        if out is not None:
            place = run_folder(out, experiment.name, path.method, int(match["run"]) - 1)
            config = {**path.metadata["config"], "method": {"name": path.method}}
            begin(place, {**config, "imported": path.message}, {"isoloss": __version__})
            save_walk(place, path)
    networks: dict[str, list[tuple[dict[str, Any], Tensor]]] = {}
    for file, match in logs.find(folder, logs.DECAY_NAME):
        experiment = experiments.get(file.parent.name.removeprefix(logs.DECAY_FOLDER))
        try:
            with logs.parsing(file):
                row, end = _network(file, int(match["penalty"]), experiment)
        except ResultsError as error:
            made.skipped.append(str(error))
            continue
        row = {"run": int(match["run"]) - 1, **row}
        networks.setdefault(experiment.name, []).append((row, end))
    for name, found in networks.items():
        found.sort(key=lambda one: (one[0]["run"], one[0]["penalty"]))
        made.decay[name] = pd.DataFrame([row for row, _ in found])
        made.decay_points[name] = torch.stack([end for _, end in found])
    return made


def _path(file: FilePath, arrays: Arrays, experiment: Experiment) -> Path:
    predicted, corrected = arrays["index_epoch_pred"], arrays["index_epoch_corr"]
    count, steps = len(predicted), len(arrays["index_epoch"])
    lengths = {name: len(arrays[name]) for name in ("angle_bw_gradients", "param_norms", "lr_pred")}
    lengths |= {name: len(arrays[name]) for name in ("test_loss", "test_accuracy")}
    lengths["train_loss"] = len(arrays["train_loss"]) // 2
    wrong = [name for name, length in lengths.items() if length != count]
    both = np.sort(np.concatenate([predicted, corrected]))
    counted = np.array_equal(both, np.arange(1, steps + 1))
    if not counted or len(arrays["lr_corr"]) != len(corrected):
        wrong.append("index_epoch")
    if wrong or not count:
        raise unreadable(
            file, f"the lengths of {', '.join(wrong)} do not fit its {count} predictor steps"
        )
    before = predicted.astype(int) - 1  # what is recorded at a step was measured before it
    kinds, step_lengths = np.full(steps + 1, "correct", dtype=object), np.zeros(steps + 1)
    kinds[0], kinds[predicted.astype(int)] = "start", "predict"
    step_lengths[predicted.astype(int)] = arrays["lr_pred"]
    step_lengths[corrected.astype(int)] = arrays["lr_corr"]
    table = pd.DataFrame(index=range(steps + 1), columns=[*COLUMNS], dtype=float)
    table["step"], table["evaluations"] = np.arange(steps + 1), np.arange(1, steps + 2)
    table["kind"], table["step_length"] = kinds, step_lengths
    table["arc_length"] = table["step_length"].cumsum()
    level = float(arrays["train_loss"][1])
    if not 0 < level < math.inf:
        raise unreadable(file, f"its loss at the first step is {level:g}")
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
        after = arrays["index_weights_phase2"]
        known = np.isin(after, np.arange(1, len(arrays["index_epoch"]) + 1)).all()
        if len(after) != len(kept) or not known:
            raise unreadable(file, "index_weights_phase2 does not name a step of each point")
        after = after.astype(int)
    else:
        number = np.arange(1, len(predicted) + 1)
        whole = number % KEPT_EVERY == 0
        # one of the reference's scripts keeps the others of every fifty
        chosen = [rule for rule in (whole | (number == 1), ~whole) if rule.sum() == len(kept)]
        if not chosen:
            raise unreadable(
                file,
                f"{len(kept)} points are neither every {KEPT_EVERY}th of its {len(predicted)} "
                f"predictor steps nor all others",
            )
        after = predicted[chosen[0]]
        if len(kept) > len(predicted) // 2 + 1:
            kept, after = kept[::KEPT_EVERY], after[::KEPT_EVERY]
    if {kept.dtype.kind, arrays["weights_phase1"].dtype.kind} != {"f"}:
        raise unreadable(file, "its weights are no floating numbers")
    whole_path = np.concatenate([arrays["weights_phase1"][None], kept.reshape(len(kept), -1)])
    points = from_keras(torch.from_numpy(np.ascontiguousarray(whole_path)), network)
    return points, [0, *after.tolist()]


def _network(file: FilePath, index: int, experiment: Experiment) -> tuple[dict[str, Any], Tensor]:
    metric = logs.METRICS.get(experiment.metric, experiment.metric)
    needed = ("weights", "loss", "val_loss", metric, f"val_{metric}")
    arrays = logs.read(file, needed, ("SEED",))
    if not 1 <= index <= len(PENALTIES):
        raise unreadable(file, f"it has no place among the reference's {len(PENALTIES)} penalties")
    if arrays["weights"].dtype.kind != "f" or arrays["weights"].ndim != 1:
        raise unreadable(file, "its weights are no vector of floating numbers")
    penalty, network = PENALTIES[index - 1], experiment.network(0)
    end = from_keras(torch.from_numpy(arrays["weights"]), network)
    last = {name: float(arrays[name][-1]) for name in needed[1:]}
    squares = end.double().square()
    of_weights = [torch.full((p.numel(),), p.ndim > 1) for p in network.parameters()]
    weights = squares[torch.cat(of_weights)].sum().item()
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


@dataclass(frozen=True)
class Exported:
    """What `export_reference` wrote.

    Attributes:
        files: The files.
        skipped: What has no place in the reference's layout, a sentence each.
    """

    files: list[FilePath]
    skipped: list[str]


@checked
def export_reference(
    results: Results, experiment: str, folder: str | FilePath, *, method: str = "paper"
) -> Exported:
    """Write walks and weight decay as the code of Tahir and Katz would have logged them.

    Its layout holds what was measured before each predictor step, so the last point's values are
    not in it; its weights are. An array `index_weights_phase2`, which the reference has not, says
    after which step each point was. The training metric, which walks do not measure, is NaN.

    Args:
        results: What the commands wrote.
        experiment: For example `"IRIS_FF"`.
        folder: Where to write `NAME/logs_NAME_exp_K.npz` and
            `L2_NAME/logs_regpenidx_R_expidx_E.npz`.
        method: Whose walks.

    Returns:
        The files, and what was left out.

    Raises:
        InputError: There is no walk by the method and no weight decay of the experiment.
    """
    folder, known, made = as_folder(folder), experiments.get(experiment), Exported([], [])
    for k, path in enumerate(results.paths(experiment, method)):
        file = folder / experiment / f"logs_{experiment}_exp_{k + 1}.npz"
        logs.write(file, _logged(path, known))
        made.files.append(file)
    _log_decay(results, known, folder, made)
    if not made.files and not made.skipped:
        raise InputError(
            f"{results.folder} holds no walk of {experiment} by {method} and no weight decay; make "
            f"them with 'isoloss traverse' and 'isoloss decay'"
        )
    return made


def _logged(path: Path, experiment: Experiment) -> Arrays:
    steps = path.steps
    predicted = (~steps["kind"].isin(["start", "correct"])).to_numpy()
    before = np.roll(predicted, -1)  # rows from which a predictor step started
    before[-1] = False
    measured = steps.loc[before]
    nothing = np.full(len(measured), np.nan)
    weights = to_keras(path.points, experiment.network(0)).numpy()
    seed = path.metadata.get("config", {}).get("seed")
    arrays: Arrays = {
        "index_epoch": np.arange(1, len(steps)),
        "index_epoch_pred": np.flatnonzero(predicted),
        "index_epoch_corr": np.flatnonzero((steps["kind"] == "correct").to_numpy()),
        "angle_bw_gradients": measured["angle_degrees"].to_numpy(),
        "param_norms": measured["regularizer"].to_numpy(),
        "train_loss": np.repeat(measured["loss"].to_numpy(), 2),
        "train_accuracy": nothing,
        "test_loss": measured.get("test_loss", nothing),
        "test_accuracy": measured.get("test_metric", nothing),
        "loss_change": np.square(steps["loss"].to_numpy()[:-1] - path.level),
        "lr_pred": steps["step_length"].to_numpy()[predicted],
        "lr_corr": steps.loc[steps["kind"] == "correct", "step_length"].to_numpy(),
        "weights_phase1": weights[0],
        "weights_phase2": weights[1:],
        "index_weights_phase2": np.asarray(path.point_steps[1:], dtype=np.int64),
    }
    if seed is not None:
        arrays["SEED"] = np.array([seed])
    return {name: np.asarray(values) for name, values in arrays.items()}


def _log_decay(results: Results, experiment: Experiment, folder: FilePath, made: Exported) -> None:
    table = results.decay(experiment.name)
    points = results.decay_points(experiment.name)
    epochs = results.decay_epochs(experiment.name)
    metric = logs.METRICS.get(experiment.metric, experiment.metric)
    for row, point in zip(table.to_dict("records"), points, strict=True):
        near = np.isclose(PENALTIES, row["penalty"], rtol=1e-9, atol=0)
        if not near.any():
            made.skipped.append(
                f"run {row['run']}, penalty {row['penalty']:g}: not among the reference's penalties"
            )
            continue
        own = (epochs["run"] == row["run"]) & (epochs["penalty"] == row["penalty"])
        mine: pd.DataFrame = epochs.loc[own]
        name = f"logs_regpenidx_{int(near.argmax()) + 1}_expidx_{int(row['run']) + 1}.npz"
        file = folder / f"{logs.DECAY_FOLDER}{experiment.name}" / name
        logs.write(
            file,
            {
                "SEED": np.array([row["seed"]]),
                "weights": to_keras(point, experiment.network(0)).numpy(),
                "loss": mine["penalized_train_loss"].to_numpy(),
                "val_loss": mine["penalized_test_loss"].to_numpy(),
                metric: mine["train_metric"].to_numpy(),
                f"val_{metric}": mine["test_metric"].to_numpy(),
            },
        )
        made.files.append(file)
