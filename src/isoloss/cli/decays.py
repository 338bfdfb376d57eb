"""`isoloss decay`."""

from __future__ import annotations

from pathlib import Path as FilePath
from typing import Annotated

import typer

from isoloss.cli import options
from isoloss.cli.options import CheckpointEvery, Device, Name, Out, Pairs, Restart, Runs, Seed
from isoloss.cli.running import run_unfinished
from isoloss.runs.decay import DecayRun, DecaySettings, decay_settings
from isoloss.store import run_folder

Penalties = Annotated[
    str | None,
    typer.Option(
        "--penalties",
        metavar="P,P,...",
        help="Weights of the squared norm, as in 0,1e-3,1; 0 and 1e-6 to 1e6 by default.",
    ),
]
Epochs = Annotated[
    int | None,
    typer.Option(
        "--epochs",
        parser=options.whole,
        metavar="N",
        help="Passes over the training examples; the experiment's number by default.",
    ),
]


def decay(
    name: Name,
    runs: Runs = None,
    seed: Seed = 0,
    penalties: Penalties = None,
    epochs: Epochs = None,
    out: Out = FilePath("results"),
    device: Device = "auto",
    settings: Pairs = None,
    restart: Restart = False,
    checkpoint_every: CheckpointEvery = 30.0,
) -> None:
    """Train with weight decay, to compare walks with."""
    experiment = options.experiment(name)
    chosen = decay_settings(
        experiment,
        None if penalties is None else options.numbers("--penalties", penalties),
        epochs,
        settings or [],
        options.device(device),
    )
    decay_all(
        chosen,
        options.count(runs, experiment.decay_runs),
        options.first_seed(seed),
        options.out_folder(out),
        restart=restart,
        checkpoint_every=options.seconds(checkpoint_every),
    )


def decay_all(
    settings: DecaySettings,
    runs: int,
    seed: int,
    out: FilePath,
    *,
    restart: bool = False,
    checkpoint_every: float = 30.0,
) -> None:
    """Do those runs of weight decay that are not finished, and print their summary.

    Args:
        settings: Everything but the seed.
        runs: How many.
        seed: Of the first run.
        out: The results folder.
        restart: Move what there is of these runs aside and begin anew.
        checkpoint_every: Seconds between checkpoints of a run.

    Raises:
        Exit: A run failed (1), Ctrl-C was pressed (130), or SIGTERM came (143).
    """
    name = settings.experiment.name
    planned = [
        DecayRun(k, seed + k, run_folder(out, name, None, k, "decay"), settings, checkpoint_every)
        for k in range(runs)
    ]
    steps = planned[0].epochs
    run_unfinished(f"{name} decay", settings.experiment, planned, steps, restart=restart)
