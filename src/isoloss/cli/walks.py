"""`isoloss traverse`."""

from __future__ import annotations

from pathlib import Path as FilePath

from isoloss import experiments
from isoloss.cli import options
from isoloss.cli.options import Device, MethodName, Name, Out, Pairs, Runs, Seed
from isoloss.cli.running import run_unfinished
from isoloss.results import run_folder
from isoloss.runs.settings import WalkSettings, walk_settings
from isoloss.runs.walk import WalkRun


def traverse(
    name: Name,
    runs: Runs = None,
    seed: Seed = 0,
    method: MethodName = "sqp",
    out: Out = FilePath("results"),
    device: Device = "auto",
    settings: Pairs = None,
) -> None:
    """Train, then walk the level set: phases 1 and 2 of an experiment."""
    experiment = experiments.get(name)
    walk = walk_settings(experiment, method, settings or [], options.device(device))
    walk_all(
        walk,
        options.count(runs, experiment.runs),
        options.first_seed(seed),
        options.out_folder(out),
    )


def walk_all(walk: WalkSettings, runs: int, seed: int, out: FilePath) -> None:
    """Do those runs of a walk that are not finished, and print their summary.

    Args:
        walk: Everything but the seed.
        runs: How many.
        seed: Of the first run.
        out: The results folder.

    Raises:
        Exit: A run failed (1), or Ctrl-C was pressed (130).
    """
    name, method = walk.experiment.name, walk.method.name
    planned = [WalkRun(k, seed + k, run_folder(out, name, method, k), walk) for k in range(runs)]
    steps = walk.stop.steps if method == "paper" else None
    run_unfinished(f"{name} {method}", walk.experiment, planned, steps)
