"""The commands, thin: each checks what it was given, calls the library, and prints."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path as FilePath
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from isoloss import experiments
from isoloss._version import __version__
from isoloss.errors import InputError, IsolossError
from isoloss.experiments import datasets
from isoloss.figures import report as write_report
from isoloss.results import check_out_folder, open_results, run_folder
from isoloss.runs.display import Display
from isoloss.runs.pool import run_all
from isoloss.runs.settings import WalkSettings, walk_settings
from isoloss.runs.walk import WalkRun

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Walk the level sets of a neural network's training loss.",
)
data = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="The data sets' files.")
app.add_typer(data, name="data")
console = Console(highlight=False)

QUICK_RUNS = 2
QUICK_STEPS = {"paper": 2_000}
METHODS = ("sqp", "paper")


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a whole number; give one, as in 5") from None


Name = Annotated[str, typer.Argument(metavar="NAME", help="Experiment, for example IRIS_FF.")]
Names = Annotated[list[str], typer.Argument(metavar="NAME...", help="Experiments, or 'all'.")]
DataNames = Annotated[
    list[str] | None, typer.Argument(metavar="[NAME...]", help="Data sets; all by default.")
]
Out = Annotated[FilePath, typer.Option("--out", help="Folder for everything that is written.")]
Runs = Annotated[
    int | None,
    typer.Option(
        "--runs",
        parser=_whole,
        metavar="N",
        help="Random starts; the experiment's number by default.",
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        "--seed", parser=_whole, metavar="SEED", help="Seed of the first run; run k has SEED + k."
    ),
]
MethodName = Annotated[str, typer.Option("--method", help="How to step: sqp or paper.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, ...")]
Pairs = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A setting, as in --set steps=500; repeat it."),
]


def _version(wanted: bool) -> None:
    if wanted:
        console.print(f"isoloss {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Walk the level sets of a neural network's training loss."""
    del version


@app.command("experiments")
def list_experiments() -> None:
    """What experiments there are, and whether their data is at hand."""
    table = _table("experiment", "parameters>", "examples>", "loss", "runs>", "steps>", "data")
    for name in experiments.names():
        experiment = experiments.get(name)
        present = datasets.at_hand(experiment.dataset)
        table.add_row(
            name,
            f"{experiment.parameters:,}",
            "all" if experiment.draw is None else f"{experiment.draw:,} drawn",
            experiment.loss,
            str(experiment.runs),
            f"{experiment.steps:,}",
            "at hand" if present else "to fetch",
        )
    console.print(table)
    console.print("\nsteps: predictor steps of the paper's walk; to fetch: isoloss data fetch")


@data.command("fetch")
def data_fetch(names: DataNames = None) -> None:
    """Download what is not at hand, and check it."""
    for name in names or datasets.names():
        datasets.fetch(name)
        console.print(f"{name}: at hand")


@data.command("verify")
def data_verify(names: DataNames = None) -> None:
    """Compare the files at hand with their published hashes; exit with 1 if any is not right."""
    wrong = False
    for name in names or datasets.names():
        reports = datasets.verify(name)
        if not reports:
            console.print(f"{name}: comes with scikit-learn")
        for one in reports:
            wrong |= one.state != "present"
            reason = one.problem or str(one.where or f"get it with isoloss data fetch {name}")
            console.print(f"{one.state:<8} {one.file.path}: {reason}", soft_wrap=True)
    if wrong:
        raise typer.Exit(1)


@app.command()
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
    walk = walk_settings(experiment, method, settings or [], _device(device))
    _traverse(walk, _count(runs, experiment.runs), _seed(seed), _out(out))


@app.command()
def report(name: Names, out: Out = FilePath("results")) -> None:
    """Figures and tables of what is in the results folder."""
    chosen = _chosen(name)
    for experiment in chosen:
        _report(experiment, out)


@app.command()
def reproduce(
    name: Names,
    runs: Runs = None,
    seed: Seed = 0,
    out: Out = FilePath("results"),
    device: Device = "auto",
    quick: Annotated[
        bool, typer.Option("--quick", help="A few runs and steps, to see that all works.")
    ] = False,
) -> None:
    """Walks and report of experiments, in turn."""
    chosen = [experiments.get(one) for one in _chosen(name)]
    folder, first, target = _out(out), _seed(seed), _device(device)
    for experiment in chosen:
        _count(runs, experiment.runs)
    for experiment in chosen:
        default = QUICK_RUNS if quick else experiment.runs
        for method in METHODS:
            pairs = [f"steps={QUICK_STEPS[method]}"] if quick and method in QUICK_STEPS else []
            walk = walk_settings(experiment, method, pairs, target)
            _traverse(walk, _count(runs, default), first, folder)
        _report(experiment.name, folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; a user's error is one sentence on standard error.

    Exit codes: 0 done, 1 a run failed or files cannot be read, 2 a wrong argument, 130 Ctrl-C.

    Args:
        arguments: As after the command's name; None takes those of the process.
    """
    try:
        app(arguments, standalone_mode=True)
    except IsolossError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(
            f"[red]isoloss:[/red] {escape(str(error))}"
        )
        sys.exit(2 if isinstance(error, InputError) else 1)
    except KeyboardInterrupt:
        sys.exit(130)


def _table(*headings: str) -> Table:
    """A plain table; a heading that ends in > is of numbers."""
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        right = heading.endswith(">")
        table.add_column(heading.rstrip(">"), justify="right" if right else "left", no_wrap=True)
    return table


def _traverse(walk: WalkSettings, runs: int, seed: int, out: FilePath) -> None:
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


def _report(experiment: str, out: FilePath) -> None:
    written = write_report(open_results(out), experiment)
    console.print(f"\n{experiment}: mean ± standard deviation over the runs\n")
    console.print(written.table)
    for sentence in written.missing:
        console.print(f"not included: {sentence}")
    for kind, files in (("figure", written.figures), ("table", written.tables)):
        for file in files:
            console.print(f"{kind}  {file}", soft_wrap=True)


def _chosen(names: Sequence[str]) -> list[str]:
    if "all" in names:
        return experiments.names()
    return [experiments.get(one).name for one in names]


def _count(given: int | None, default: int) -> int:
    count = default if given is None else given
    if count < 1:
        raise InputError(f"--runs {count} is not possible; give a whole number of at least 1")
    return count


def _seed(given: int) -> int:
    if given < 0:
        raise InputError(f"--seed {given} is not possible; give a whole number from 0")
    return given


def _out(folder: FilePath) -> FilePath:
    check_out_folder(folder)
    return folder


def _device(given: str) -> str:
    if given == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(given)
    except RuntimeError:
        raise InputError(
            f"--device {given} is not possible; give auto, cpu, cuda or cuda:N"
        ) from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device {given} is not possible: torch finds no CUDA here; give cpu")
    return given
