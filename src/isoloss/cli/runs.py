"""`isoloss traverse`, `isoloss decay`, `isoloss compare`, `isoloss reproduce`: what runs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

import typer

from isoloss.cli import options
from isoloss.cli.reports import report
from isoloss.errors import InputError
from isoloss.runs.pool import run_all

if TYPE_CHECKING:
    from isoloss.runs.cluster import Cluster
    from isoloss.runs.run import Run
    from isoloss.runs.walk import Subject

QUICK_RUNS = 3
QUICK_STEPS = ["steps=4000"]  # of methods that take all they are given; others need far fewer
QUICK_EPOCHS = 200
QUICK_PENALTIES = "0,1e-5,1e-4,1e-3,1e-2,1e-1,1"


def traverse(
    name: options.Walked,
    runs: options.Runs = None,
    seed: options.Seed = 0,
    method: options.Method = options.METHOD,
    out: options.Out = options.RESULTS,
    device: options.Device = "auto",
    settings: options.Pairs = None,
    restart: options.Restart = False,
    checkpoint_every: options.CheckpointEvery = 30.0,
    track: options.Track = None,
    engine: options.Engine = options.LOCAL,
    address: options.Address = None,
    gpus_per_run: options.GpusPerRun = None,
) -> None:
    """Train and walk: an experiment, or a project of your own.

    A project is a function of yours that returns a problem, FILE.py:FUNCTION.
    """
    from isoloss.runs.walk import WalkRun, walk_settings
    from isoloss.store import run_folder

    cluster = options.cluster(engine, address, gpus_per_run)
    subject, target = options.subject(name, device, cluster)
    walk = walk_settings(subject, method, settings or [], target)
    planned = [
        WalkRun(k, seed + k, run_folder(out, subject.name, method, k), walk, checkpoint_every)
        for k in range(runs or subject.runs)
    ]
    if track:
        planned = [one.tracked(track) for one in planned]
    _run(f"{subject.name} {method}", subject, planned, out, cluster, restart=restart)


def decay(
    name: options.Name,
    runs: options.Runs = None,
    seed: options.Seed = 0,
    penalties: options.Penalties = None,
    epochs: options.Epochs = None,
    out: options.Out = options.RESULTS,
    device: options.Device = "auto",
    settings: options.Pairs = None,
    restart: options.Restart = False,
    checkpoint_every: options.CheckpointEvery = 30.0,
    engine: options.Engine = options.LOCAL,
    address: options.Address = None,
    gpus_per_run: options.GpusPerRun = None,
) -> None:
    """Train with weight decay, to compare walks with."""
    from isoloss.runs.decay import DecayRun, decay_settings
    from isoloss.store import run_folder

    cluster = options.cluster(engine, address, gpus_per_run)
    experiment, target = options.experiment(name), options.device(device, cluster)
    weights = options.numbers("--penalties", penalties)
    chosen = decay_settings(experiment, weights, epochs, settings or [], target)
    planned = [
        DecayRun(k, seed + k, run_folder(out, name, None, k, "decay"), chosen, checkpoint_every)
        for k in range(runs or experiment.decay_runs)
    ]
    _run(f"{name} decay", experiment, planned, out, cluster, restart=restart)


def compare(
    name: options.Name,
    method: options.Method = options.METHOD,
    epochs: options.Epochs = None,
    out: options.Out = options.RESULTS,
    device: options.Device = "auto",
    settings: options.Pairs = None,
    restart: options.Restart = False,
    engine: options.Engine = options.LOCAL,
    address: options.Address = None,
    gpus_per_run: options.GpusPerRun = None,
) -> None:
    """Compare walks and weight decay at equal training loss.

    Trains with the penalties at which walks ended, and walks from weight decay's best networks.
    """
    from isoloss.runs.decay import equivalent_runs
    from isoloss.runs.walk import after_decay_runs, walk_settings
    from isoloss.store import open_results

    cluster = options.cluster(engine, address, gpus_per_run)
    experiment, target = options.experiment(name), options.device(device, cluster)
    walk = walk_settings(experiment, method, settings or [], target)
    results = open_results(out)
    if not results.paths(name, method):
        raise InputError(
            f"{out} holds no walk of {name} by {method}; make one with 'isoloss traverse {name} "
            f"--method {method} --out {out}'"
        )
    trained = equivalent_runs(results, experiment, method, epochs, target)
    title = f"{name} weight decay with the penalties of {method}"
    _run(title, experiment, trained, out, cluster, restart=restart)
    walks = after_decay_runs(results, walk)
    title = f"{name} {method} from weight decay's best"
    _run(title, experiment, walks, out, cluster, restart=restart)


def front(
    name: options.Walked,
    runs: options.FrontRuns = 1,
    seed: options.Seed = 0,
    levels: options.Levels = None,
    count: options.LevelCount = None,
    regularizer: options.Regularizer = "squared_norm",
    out: options.Out = options.RESULTS,
    device: options.Device = "auto",
    settings: options.Pairs = None,
    restart: options.Restart = False,
    checkpoint_every: options.CheckpointEvery = 30.0,
    engine: options.Engine = options.LOCAL,
    address: options.Address = None,
    gpus_per_run: options.GpusPerRun = None,
) -> None:
    """Find how small the regularizer can be at each level of the loss.

    Walks go from level to level, up in loss and down again; 'isoloss report' draws the front.
    """
    from isoloss.runs.front import FrontRun, front_settings
    from isoloss.store import run_folder

    cluster = options.cluster(engine, address, gpus_per_run)
    subject, target = options.subject(name, device, cluster)
    given = options.numbers("--levels", levels)
    chosen = front_settings(subject, regularizer, given, count, settings or [], target)
    folders = [run_folder(out, subject.name, regularizer, k, "front") for k in range(runs)]
    planned = [
        FrontRun(k, seed + k, folder, chosen, checkpoint_every) for k, folder in enumerate(folders)
    ]
    title = f"{subject.name} front of {regularizer}"
    _run(title, subject, planned, out, cluster, restart=restart)


def reproduce(
    name: options.Names,
    runs: options.Runs = None,
    seed: options.Seed = 0,
    out: options.Out = options.RESULTS,
    device: options.Device = "auto",
    quick: options.Quick = False,
    restart: options.Restart = False,
    engine: options.Engine = options.LOCAL,
    address: options.Address = None,
    gpus_per_run: options.GpusPerRun = None,
) -> None:
    """Walks, weight decay, comparison and report of experiments.

    Without matplotlib, as on many a GPU machine, the report is left to another one.
    """
    from isoloss.methods import METHODS

    draws = find_spec("matplotlib") is not None
    runs = runs or (QUICK_RUNS if quick else None)
    epochs, penalties = (QUICK_EPOCHS, QUICK_PENALTIES) if quick else (None, None)
    on: dict[str, Any] = {"engine": engine, "address": address, "gpus_per_run": gpus_per_run}
    for experiment in options.chosen(name):
        one = experiment.name
        for method in METHODS:
            fewer = quick and experiment.method(method).takes_all_steps
            pairs = QUICK_STEPS if fewer else []
            traverse(one, runs, seed, method, out, device, pairs, restart, **on)
        decay(one, runs, seed, penalties, epochs, out, device, restart=restart, **on)
        compare(one, options.METHOD, epochs, out, device, restart=restart, **on)
        if draws:
            report([one], out)
    if not draws:
        options.say(
            f"No report was written, as matplotlib is not installed here; take {out} to where it "
            f"is (pip install 'isoloss[report]') for 'isoloss report all --out {out}'",
            "note:",
            "yellow",
        )


def _run(
    title: str,
    subject: Subject,
    planned: Sequence[Run],
    out: FilePath,
    cluster: Cluster | None,
    *,
    restart: bool,
) -> None:
    """Do the runs that are not finished, and print their summary."""
    from isoloss.projects import Project
    from isoloss.runs.run import Display
    from isoloss.store import check_out_folder

    check_out_folder(out, *{one.folder.parent for one in planned})
    for one in planned if restart else ():
        if moved := one.put_aside():
            options.say(f"{one.folder} is now {moved}")
    subject.prepare()
    todo = [one for one in planned if not one.finished()]
    place = " and ".join(sorted({str(one.folder.parent) for one in planned}))
    if finished := len(planned) - len(todo):
        options.say(f"{title}: {finished} of {len(planned)} runs are finished already, in {place}.")
    if not todo:
        return
    files = [subject.file, *subject.imported] if isinstance(subject, Project) else []
    engine = nullcontext(run_all) if cluster is None else cluster.opened(out, files, options.say)
    with engine as execute:
        display = Display(title, todo)
        with display.live:
            code = execute(todo, display.show, display.say)
    options.show(display.summary())
    options.say(f"They are in {place}.")
    for sentence in display.notes:
        options.say(sentence, "note:", "yellow")
    for sentence in display.failures:
        options.say(sentence, "failed:", "red")
    if code:
        options.say("Interrupted; run the same command again to continue.")
    if code or display.failures:
        raise typer.Exit(code or 1)
