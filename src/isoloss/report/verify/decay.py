"""What the numbers of a run of weight decay must be: found again from its weights and settings."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch

from isoloss import experiments
from isoloss.experiments.catalog import Data, Experiment
from isoloss.flat import flatten
from isoloss.report.verify.checks import Check, columns, facts, problems
from isoloss.store import Decay
from isoloss.store.folder import FINISHED


def decay_checks(run: Decay, name: str) -> Iterator[Check]:
    """All that follows from the files of a run of weight decay."""
    config, members, ends = run.config, run.members, run.ends().double()
    known = experiments.get(config["experiment"])
    data = known.data(run.seed)
    yield from facts(name, "settings", list(_decay_settings(run, known, data)))
    yield from facts(
        name, f"epochs ({len(run.epochs)})", list(_epochs(run, accuracy=known.metric == "accuracy"))
    )
    finite = torch.isfinite(ends).all(dim=1).numpy()
    finished = (members["status"] == FINISHED).to_numpy()
    wrong = ["a network that is said to have finished is infinite or not a number"]
    yield from facts(name, "networks", wrong if (finished & ~finite).any() else [])
    training, test, flips = problems(known, run.seed, data)
    shapes = [p.ndim > 1 for p in known.network(run.seed).parameters() for _ in range(p.numel())]
    recorded: pd.DataFrame = members.loc[finite].reset_index(drop=True)
    start = flatten(list(known.network(run.seed).parameters())).double().expand(len(members), -1)
    first: pd.DataFrame = run.epochs.loc[run.epochs["epoch"] == 0].reset_index(drop=True)
    for what, rows, thetas, needed in (
        ("ends", recorded, ends[finite], finished[finite]),
        ("start", first, start, np.full(len(members), True)),
    ):
        if not len(rows):
            continue
        losses = [(*training.evaluate(theta), *test.evaluate(theta)) for theta in thetas]
        again = pd.DataFrame(
            losses, columns=["train_loss", "train_metric", "test_loss", "test_metric"]
        )
        again["squared_norm"] = thetas.square().sum(dim=1).numpy()
        again["squared_norm_weights"] = thetas[:, shapes].square().sum(dim=1).numpy()
        wanted = dict.fromkeys(again, needed)
        prefix = "" if what == "ends" else "start, "
        yield from columns(name, rows, again, wanted, "float32", flips, prefix=prefix)


def _decay_settings(run: Decay, known: Experiment, data: Data) -> Iterator[str]:
    config, tensors = run.config, run.tensors()
    if "project" in config or "imported" in config:
        yield f"config.json names a project or an import, but {known.name} is an experiment"
    if not torch.equal(tensors.get("indices", torch.empty(0)), data.indices):
        yield "the training examples named are not those that the seed draws"
    start = flatten(list(known.network(run.seed).parameters()))
    if "start" not in tensors or not torch.allclose(tensors["start"], start, rtol=1e-6):
        yield "the start is not the network that the seed makes"
    if run.members["penalty"].tolist() != config["penalties"]:
        yield "the penalties are not those that the settings ask for"
    if any(type(config[name]) is not int for name in ("epochs", "record_every")):
        yield "epochs and record_every must be whole numbers"
    if not 0 <= config["held_out"] <= 0.5:
        yield f"held_out must be from 0 to 0.5, got {config['held_out']}"
    if ("validation_loss" in run.members) != (config["held_out"] > 0):
        yield "examples were held out though the settings do not say so, or the other way round"
    lost = (run.members["lost_epoch"] != -1).to_numpy()
    if (lost == (run.members["status"] == FINISHED).to_numpy()).any():
        yield "status and lost_epoch contradict one another"


def _epochs(run: Decay, *, accuracy: bool) -> Iterator[str]:
    """What does not follow of the rows of the epochs, or of the last of them among the members."""
    config, epochs, members = run.config, run.epochs, run.members
    every, last = config["record_every"], config["epochs"]
    due = [*range(0, last, every), last]
    right = [(epoch, penalty) for epoch in due for penalty in config["penalties"]]
    if [*epochs[["epoch", "penalty"]].itertuples(index=False, name=None)] != right:
        yield "the rows are not those that the settings ask for"
        return
    norm = "squared_norm" if config["include_biases"] else "squared_norm_weights"
    for of in ("train", "test"):
        made = epochs[f"{of}_loss"] + epochs["penalty"] * epochs[norm]
        said = epochs[f"penalized_{of}_loss"].to_numpy()
        if not np.allclose(said, made, rtol=1e-6, equal_nan=True):
            yield f"penalized_{of}_loss does not follow from {of}_loss, penalty and {norm}"
    ends = epochs.tail(len(members)).reset_index(drop=True)
    for column in map(str, ends):
        if column not in members:
            yield f"{column} is not recorded of the networks at the end"
        elif not np.array_equal(members[column], ends[column], equal_nan=True):
            yield f"{column} at the end is not that of the last epoch"
    finished = epochs["penalty"].isin(members.loc[members["status"] == FINISHED, "penalty"])
    for column in epochs.columns:
        values = epochs.loc[finished, column].to_numpy(float)
        most = 1 if column.endswith("_metric") and accuracy else math.inf
        if not ((values >= 0) & (values <= most) & np.isfinite(values)).all():
            yield f"{column} of networks that have finished is negative, infinite or not a number"
    whole, weights = (epochs[f"squared_norm{of}"].to_numpy(float) for of in ("", "_weights"))
    if (whole < (1 - 1e-9) * weights).any():
        yield "squared_norm is smaller than that without biases"
    lost = ~np.isfinite(ends["squared_norm"].to_numpy(float))
    if (lost & (members["status"] == FINISHED).to_numpy()).any():
        yield "a network whose norm is infinite is said to have finished"
