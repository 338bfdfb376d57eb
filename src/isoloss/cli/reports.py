"""`isoloss report`, `isoloss reproduce`."""

from __future__ import annotations

from pathlib import Path as FilePath

from isoloss import experiments
from isoloss.cli import options
from isoloss.cli.compares import compare_all
from isoloss.cli.decays import decay_all
from isoloss.cli.options import Device, Names, Out, Quick, Reported, Restart, Runs, Seed
from isoloss.cli.output import console
from isoloss.cli.walks import walk_all
from isoloss.projects import Project, is_project
from isoloss.report import report as write_report
from isoloss.runs.decay import decay_settings
from isoloss.runs.settings import walk_settings
from isoloss.store import open_results

QUICK_RUNS = 2
QUICK_STEPS = {"paper": 2_000}
QUICK_EPOCHS = 50
QUICK_PENALTIES = (0.0, 1e-4, 1e-3, 1e-2, 1.0)
METHODS = ("sqp", "paper")


def report(name: Reported, out: Out = FilePath("results")) -> None:
    """Figures and tables of what is in the results folder."""
    for one in name:
        if is_project(one):
            _report(Project.named(one).name, out)
        elif one == "all" or one in experiments.names() or not out.is_dir():
            for experiment in options.chosen([one]):
                _report(experiment, out)
        else:
            _report(one, out)


def reproduce(
    name: Names,
    runs: Runs = None,
    seed: Seed = 0,
    out: Out = FilePath("results"),
    device: Device = "auto",
    quick: Quick = False,
    restart: Restart = False,
) -> None:
    """Walks, weight decay and report of experiments, in turn."""
    chosen = [experiments.get(one) for one in options.chosen(name)]
    folder, first = options.out_folder(out), options.first_seed(seed)
    target = options.device(device)
    for experiment in chosen:
        options.count(runs, experiment.runs)
    for experiment in chosen:
        default = QUICK_RUNS if quick else experiment.runs
        for method in METHODS:
            pairs = [f"steps={QUICK_STEPS[method]}"] if quick and method in QUICK_STEPS else []
            walk = walk_settings(experiment, method, pairs, target)
            walk_all(walk, options.count(runs, default), first, folder, restart=restart)
        baseline = decay_settings(
            experiment,
            QUICK_PENALTIES if quick else None,
            QUICK_EPOCHS if quick else None,
            device=target,
        )
        default = QUICK_RUNS if quick else experiment.decay_runs
        decay_all(baseline, options.count(runs, default), first, folder, restart=restart)
        walk = walk_settings(experiment, METHODS[0], [], target)
        compare_all(walk, QUICK_EPOCHS if quick else None, folder, restart=restart)
        _report(experiment.name, folder)


def _report(experiment: str, out: FilePath) -> None:
    written = write_report(open_results(out), experiment)
    if written.table:
        console.print(f"\n{experiment}: mean ± standard deviation over the runs\n")
        console.print(written.table)
    for sentence in written.missing:
        console.print(f"not included: {sentence}")
    folder = written.tables[0].parent
    console.print(
        f"{len(written.figures)} files of figures and {len(written.tables)} of tables in {folder}",
        soft_wrap=True,
    )
    console.print(f"page  {written.page}", soft_wrap=True)
