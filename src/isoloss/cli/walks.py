"""`isoloss traverse`."""

from __future__ import annotations

from pathlib import Path as FilePath

from isoloss.cli import options
from isoloss.cli.options import (
    CheckpointEvery,
    Device,
    MethodName,
    Out,
    Pairs,
    Restart,
    Runs,
    Seed,
    Walked,
)
from isoloss.cli.running import run_unfinished
from isoloss.runs.settings import WalkSettings, walk_settings
from isoloss.runs.walk import WalkRun
from isoloss.store import run_folder


def traverse(
    name: Walked,
    runs: Runs = None,
    seed: Seed = 0,
    method: MethodName = "sqp",
    out: Out = FilePath("results"),
    device: Device = "auto",
    settings: Pairs = None,
    restart: Restart = False,
    checkpoint_every: CheckpointEvery = 30.0,
) -> None:
    """Train and walk: an experiment or a project of yours.

    A project is a function of your own that returns a problem, FILE.py:FUNCTION.
    """
    subject, target = options.subject(name, device)
    walk = walk_settings(subject, method, settings or [], target)
    walk_all(
        walk,
        options.count(runs, subject.runs),
        options.first_seed(seed),
        options.out_folder(out),
        restart=restart,
        checkpoint_every=options.seconds(checkpoint_every),
    )


def walk_all(
    walk: WalkSettings,
    runs: int,
    seed: int,
    out: FilePath,
    *,
    restart: bool = False,
    checkpoint_every: float = 30.0,
) -> None:
    """Do those runs of a walk that are not finished, and print their summary.

    Args:
        walk: Everything but the seed.
        runs: How many.
        seed: Of the first run.
        out: The results folder.
        restart: Move what there is of these runs aside and begin anew.
        checkpoint_every: Seconds between checkpoints of a run.

    Raises:
        Exit: A run failed (1), Ctrl-C was pressed (130), or SIGTERM came (143).
    """
    name, method = walk.subject.name, walk.method.name
    planned = [
        WalkRun(k, seed + k, run_folder(out, name, method, k), walk, checkpoint_every)
        for k in range(runs)
    ]
    steps = walk.stop.steps if walk.method.takes_all_steps else None
    run_unfinished(f"{name} {method}", walk.subject, planned, steps, restart=restart)
