"""Runs that compare a walk with weight decay at equal training loss.

Weight decay from the start of a walk, with the one penalty at which it ended; and walks from the
best network that weight decay found.
"""

from __future__ import annotations

import math
from pathlib import Path as FilePath
from typing import cast

from isoloss.experiments.catalog import Experiment
from isoloss.report.tables import chosen_per_run, equivalent_penalty
from isoloss.runs.decay import DecayRun, decay_settings
from isoloss.runs.walk import Origin, WalkRun, WalkSettings
from isoloss.store import Results, run_folder


def equivalent_runs(
    results: Results,
    experiment: Experiment,
    method: str,
    epochs: int | None = None,
    device: str = "cpu",
) -> list[DecayRun]:
    """Training from each walk's start with the penalty at which the walk ended, if it is positive.

    The penalty is on biases too, as the walk's R is.
    """
    runs: list[DecayRun] = []
    for path in results.paths(experiment.name, method):
        penalty = equivalent_penalty(path)
        if math.isfinite(penalty) and penalty > 0:
            settings = decay_settings(
                experiment, [penalty], epochs, ["include_biases=true", "held_out=0"], device
            )
            index = int(FilePath(path.metadata["folder"]).name.removeprefix("run-"))
            folder = run_folder(results.folder, experiment.name, method, index, "equivalent")
            runs.append(DecayRun(index, path.metadata["config"]["seed"], folder, settings))
    return runs


def after_decay_runs(results: Results, walk: WalkSettings) -> list[WalkRun]:
    """Walks from the best network that weight decay found in each run with examples held out.

    The best is that with the smallest loss on held-out training examples, so that the test set has
    no part in the choice.
    """
    name = walk.subject.name
    table = results.decay(name)
    if not len(table):
        return []
    points = results.decay_points(name)
    runs: list[WalkRun] = []
    for position, row in chosen_per_run(table).to_dict("index").items():
        index, seed, penalty = int(row["run"]), int(row["seed"]), float(row["penalty"])
        folder = run_folder(results.folder, name, walk.method.name, index, "after-decay")
        origin = Origin(f"weight decay, penalty {penalty:g}", points[cast(int, position)].clone())
        runs.append(WalkRun(index, seed, folder, walk, origin=origin))
    return runs
