"""Our walks and networks in the layout of the reference's logs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path as FilePath

import numpy as np
import pandas as pd

from isoloss import experiments
from isoloss.errors import InputError
from isoloss.experiments.catalog import Experiment
from isoloss.files import write_arrays
from isoloss.path import Path
from isoloss.reference import layout
from isoloss.reference.keras import to_keras
from isoloss.reference.layout import Arrays
from isoloss.store.results import Results


@dataclass(frozen=True)
class Exported:
    """What `export_reference` wrote.

    Attributes:
        files: The files.
        skipped: What has no place in the reference's layout, a sentence each.
    """

    files: list[FilePath]
    skipped: list[str]


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
    folder, known = FilePath(folder), experiments.get(experiment)
    files: list[FilePath] = []
    for k, path in enumerate(results.paths(experiment, method)):
        file = layout.walk_file(folder, experiment, k)
        write_arrays(file, _walk(path, known))
        files.append(file)
    networks, skipped = _decay(results, known, folder)
    if not files and not networks and not skipped:
        raise InputError(
            f"{results.folder} holds no walk of {experiment} by {method} and no weight decay; make "
            f"them with 'isoloss traverse' and 'isoloss decay'"
        )
    return Exported([*files, *networks], skipped)


def _walk(path: Path, experiment: Experiment) -> Arrays:
    steps = path.steps
    predicted = (~steps["kind"].isin(["start", "correct"])).to_numpy()
    before = np.roll(predicted, -1)  # rows from which a predictor step started
    before[-1] = False
    measured = steps.loc[before]
    nothing = np.full(len(measured), np.nan)
    loss = measured["loss"].to_numpy()
    weights = to_keras(path.points, experiment.network(0)).numpy()
    seed = path.metadata.get("config", {}).get("seed")
    arrays: Arrays = {
        "index_epoch": np.arange(1, len(steps)),
        "index_epoch_pred": np.flatnonzero(predicted),
        "index_epoch_corr": np.flatnonzero((steps["kind"] == "correct").to_numpy()),
        "angle_bw_gradients": measured["angle_degrees"].to_numpy(),
        "param_norms": measured["regularizer"].to_numpy(),
        "train_loss": np.stack([loss, loss], axis=1).ravel(),
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


def _decay(
    results: Results, experiment: Experiment, folder: FilePath
) -> tuple[list[FilePath], list[str]]:
    table = results.decay(experiment.name)
    if not len(table):
        return [], []
    points = results.decay_points(experiment.name)
    epochs = results.decay_epochs(experiment.name)
    metric = layout.METRICS.get(experiment.metric, experiment.metric)
    files: list[FilePath] = []
    skipped: list[str] = []
    for row, point in zip(table.to_dict("records"), points, strict=True):
        near = np.isclose(layout.PENALTIES, row["penalty"], rtol=1e-9, atol=0)
        if not near.any():
            skipped.append(
                f"run {row['run']}, penalty {row['penalty']:g}: not among the reference's penalties"
            )
            continue
        mine: pd.DataFrame = epochs.loc[
            (epochs["run"] == row["run"]) & (epochs["penalty"] == row["penalty"])
        ]
        file = layout.decay_file(folder, experiment.name, int(near.argmax()), int(row["run"]))
        write_arrays(
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
        files.append(file)
    return files, skipped
