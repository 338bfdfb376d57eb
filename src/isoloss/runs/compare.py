"""Runs that compare a walk with weight decay at equal training loss.

Weight decay from the start of a walk, with the one penalty at which it ended; and walks from the
best network that weight decay found.
"""

from __future__ import annotations

import math
from pathlib import Path as FilePath
from typing import cast

from isoloss.experiments.catalog import Experiment
from isoloss.report.comparison_tables import chosen_per_run, equivalent_penalty
from isoloss.runs.decay import DecayRun, decay_settings
from isoloss.runs.settings import WalkSettings
from isoloss.runs.walk import Origin, WalkRun
from isoloss.store import Results, run_folder


def equivalent_runs(
    results: Results,
    experiment: Experiment,
    method: str,
    epochs: int | None = None,
    device: str = "cpu",
) -> list[DecayRun]:
    """Training with the penalty at which each walk ended, from the same start.

    The penalty is on biases too, as the walk's R is.

    Args:
        results: Where the walks are, and where the runs go.
        experiment: The experiment.
        method: The walks' method.
        epochs: Passes over the training examples; None takes those of the paper's weight decay.
        device: Where to compute.

    Returns:
        A run for each walk that ended at a positive penalty.
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
    """Walks from the best network that weight decay found in each run.

    The best is that with the smallest loss on held-out training examples, so that the test set has
    no part in the choice.

    Args:
        results: Where the networks are, and where the walks go.
        walk: Everything but the seed that determines the walk.

    Returns:
        A run for each of weight decay in which examples were held out.
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
