"""`isoloss traverse`."""

from __future__ import annotations

from pathlib import Path as FilePath

import typer
from rich.markup import escape

from isoloss import experiments
from isoloss.cli import options
from isoloss.cli.options import Device, MethodName, Name, Out, Pairs, Runs, Seed
from isoloss.cli.output import console
from isoloss.experiments import datasets
from isoloss.results import run_folder
from isoloss.runs.display import Display
from isoloss.runs.pool import run_all
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
    if not datasets.at_hand(walk.experiment.dataset):
        datasets.fetch(walk.experiment.dataset)
    todo = [one for one in planned if one.begin()]
    finished = len(planned) - len(todo)
    if finished:
        console.print(f"{name} {method}: {finished} of {runs} runs are finished already.")
    if not todo:
        return
    steps = walk.stop.steps if method == "paper" else None
    with Display(f"{name} {method}", todo, steps) as display:
        whole = run_all(todo, display.show)
    console.print(display.summary())
    for sentence in display.failures:
        console.print(f"[red]failed:[/red] {escape(sentence)}", soft_wrap=True)
    if not whole:
        console.print("Interrupted; call the same command again to go on.")
        raise typer.Exit(130)
    if display.failures:
        raise typer.Exit(1)
