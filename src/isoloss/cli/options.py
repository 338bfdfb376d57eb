"""What commands take, the checks of it that need the library, and how commands print."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from isoloss.errors import InputError, IsolossError, printable, require_extra, unknown

if TYPE_CHECKING:
    from isoloss.experiments import Experiment
    from isoloss.runs.cluster import Cluster
    from isoloss.runs.walk import Subject

MOST_RUNS = 10_000
MOST_SEED = 2**32 - 1  # the largest that all random number generators take

RESULTS = FilePath("results")
METHOD = "sqp"  # unless another is asked for
LOCAL = "local"
SMALLEST_GPU = 1e-4  # part of one that Ray counts

console = Console(highlight=False, markup=False, emoji=False)
errors = Console(highlight=False, markup=False, emoji=False, stderr=True)


def _folder(text: str) -> FilePath:
    try:
        if text:  # else it would be the current one, where a shell's variable is not set
            return FilePath(text).expanduser()
    except RuntimeError:  # of a home that is nobody's
        pass
    raise typer.BadParameter(f"must name a folder, got {text or 'nothing'}")


def _pack_file(text: str) -> FilePath:
    if not text.endswith(".safetensors"):
        raise typer.BadParameter(f"must end in .safetensors, got {text or 'nothing'}")
    return _folder(text)


def _number(
    kind: type[int | float], least: float, most: float = math.inf
) -> Callable[[str], float]:
    """Reads a number; what is none or out of range is named, which typer itself does not do."""
    what = "a whole number" if kind is int else "a finite number"
    bounds = f"of at least {least}" if most == math.inf else f"from {least} to {most}"

    def parse(text: str) -> float:
        try:
            number = kind(text)
        except ValueError:
            number = math.nan
        if least <= number <= most and number < math.inf:
            return number
        raise typer.BadParameter(f"must be {what} {bounds}, got {text or 'nothing'}")

    return parse


# fmt: off
Name = Annotated[str, typer.Argument(metavar="NAME", help="An experiment, such as IRIS_FF.")]
Walked = Annotated[str, typer.Argument(
    metavar="NAME", help="An experiment, such as IRIS_FF, or your function, FILE.py:build.")]
Names = Annotated[list[str], typer.Argument(metavar="NAME", help="Experiments, or 'all'.")]
Reported = Annotated[list[str], typer.Argument(
    metavar="NAME", help="Experiments, your functions, FILE.py:build, or 'all' of what is there.")]
DataNames = Annotated[list[str] | None, typer.Argument(
    metavar="NAME", help="Data sets; all by default.")]
PackNames = Annotated[list[str] | None, typer.Argument(
    metavar="NAME", help="Experiments; all by default.")]
PackFile = Annotated[FilePath, typer.Argument(
    metavar="FILE", parser=_pack_file, help="Where to write it, such as data.safetensors.")]
Folder = Annotated[FilePath, typer.Argument(
    metavar="FOLDER", parser=_folder, help="A folder of results, or any folder in it.")]
Out = Annotated[FilePath, typer.Option(
    "--out", metavar="FOLDER", parser=_folder, help="Where results are kept.")]
Runs = Annotated[int | None, typer.Option(
    "--runs", metavar="N", parser=_number(int, 1, MOST_RUNS), show_default="the experiment's",
    help="How many random starts.")]
Seed = Annotated[int, typer.Option(
    "--seed", metavar="SEED", parser=_number(int, 0, MOST_SEED),
    help="Of the first run; the next ones have SEED + 1, ...")]
Method = Annotated[str, typer.Option(
    "--method", metavar="METHOD", help="How to step: sqp, or paper.")]
Device = Annotated[str, typer.Option(
    "--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:1, ...")]
Pairs = Annotated[list[str] | None, typer.Option(
    "--set", metavar="KEY=VALUE",
    help="Change a setting; may be repeated. An unknown KEY lists them all.")]
Levels = Annotated[str | None, typer.Option(
    "--levels", metavar="C,C,...", help="Losses to hold, as in 0.1,0.2,0.5, instead of --count.")]
LevelCount = Annotated[int | None, typer.Option(
    "--count", metavar="N", parser=_number(int, 2), show_default="20",
    help="How many levels, from the start's loss to 0.9 of that without weights.")]
FrontRuns = Annotated[int, typer.Option(
    "--runs", metavar="N", parser=_number(int, 1, MOST_RUNS), help="How many random starts.")]
Penalties = Annotated[str | None, typer.Option(
    "--penalties", metavar="P,P,...", show_default="0 and 1e-6 to 1e6",
    help="Weights of the squared norm, as in 0,1e-3,1.")]
Epochs = Annotated[int | None, typer.Option(
    "--epochs", metavar="N", parser=_number(int, 1), show_default="the experiment's",
    help="Passes over the examples; where some are held out, of each of two trainings.")]
Quick = Annotated[bool, typer.Option(
    "--quick", help="Few runs and steps, for a first picture in two minutes.")]
Restart = Annotated[bool, typer.Option(
    "--restart", help="Move old runs aside, deleting nothing, and start over.")]
CheckpointEvery = Annotated[float, typer.Option(
    "--checkpoint-every", metavar="SECONDS", parser=_number(float, 0),
    help="Time between two checkpoints of a run.")]
Track = Annotated[list[str] | None, typer.Option(
    "--track", metavar="TRACKER",
    help="Log every run to tensorboard, mlflow or wandb; may be repeated.")]
Engine = Annotated[str, typer.Option(
    "--engine", metavar="ENGINE", help="What spreads the runs: local, over cores; or ray.")]
Address = Annotated[str | None, typer.Option(
    "--address", metavar="HOST:PORT", show_default="a Ray of its own",
    help="Of the Ray to use, as 'ray start' printed it, or 'auto'.")]
GpusPerRun = Annotated[float | None, typer.Option(
    "--gpus-per-run", metavar="F", parser=_number(float, SMALLEST_GPU, 1), show_default="none",
    help="Part of a GPU that Ray gives each run.")]
Regularizer = Annotated[str, typer.Option(
    "--regularizer", metavar="NAME", help="Name of the regularizer, such as l1.")]
# fmt: on


def chosen(names: Sequence[str]) -> list[Experiment]:
    """The experiments meant, all of them for `all`."""
    from isoloss import experiments

    return [experiment(one) for one in (experiments.names() if "all" in names else names)]


def experiment(name: str) -> Experiment:
    """The experiment of that name, for commands that a project cannot be given to."""
    from isoloss import experiments
    from isoloss.projects import is_project

    if is_project(name):
        raise InputError(
            f"{name} must be an experiment of the paper, as only these are trained with weight "
            f"decay; walk your own with 'isoloss traverse {name}'"
        )
    return experiments.get(name)


def cluster(engine: str, address: str | None, gpus_per_run: float | None) -> Cluster | None:
    """The Ray meant; None is this machine."""
    from isoloss.runs.cluster import Cluster

    if engine == "ray":
        require_extra("ray", "ray")
        return Cluster(address, gpus_per_run or 0.0)
    if engine != LOCAL:
        raise unknown("engine", engine, [LOCAL, "ray"])
    for option, value in {"--address": address, "--gpus-per-run": gpus_per_run}.items():
        if value is not None:
            raise InputError(f"{option} {value} is for Ray; give --engine ray too, or leave it out")
    return None


def subject(name: str, given_device: str, on: Cluster | None = None) -> tuple[Subject, str]:
    """The experiment or project meant, and its device: a project decides on that itself."""
    from isoloss.projects import Project, is_project

    if not is_project(name):
        return experiment(name), device(given_device, on)
    if given_device != "auto":
        raise InputError(
            f"--device {given_device} cannot be given for {name}, whose function decides where the "
            f"model is; write model.to({given_device!r}) there"
        )
    return Project.of(name), "as built"


def device(given: str, on: Cluster | None = None) -> str:
    """The device meant; `auto` is CUDA where there is one, or where Ray is asked for one."""
    import torch

    if on is not None:
        asked = "cuda" if on.gpus_per_run else "cpu"
        if given not in ("auto", asked):
            remedy = (
                "leave out one" if asked == "cuda" else "give --gpus-per-run 1, or --device cpu"
            )
            raise InputError(
                f"--device {given} cannot be had where Ray gives each run {on.gpus_per_run:g} GPU; "
                f"{remedy}"
            )
        return asked
    if given == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(given)
    except RuntimeError:
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise InputError(f"--device must be auto, cpu, cuda or cuda:N, got {given}")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device {given} needs a GPU that torch does not find here; use cpu")
    return given


def numbers(option: str, given: str | None) -> list[float] | None:
    """The numbers of a list such as 0,1e-3,1, where an option was given."""
    try:
        return None if given is None else [float(text) for text in given.split(",")]
    except ValueError:
        given = given or "nothing"
        raise InputError(f"{option} must be numbers, as in 1e-3,0.1,1, got {given}") from None


def table(*headings: str) -> Table:
    """A plain table; a heading that ends in > is of numbers."""
    made = Table(box=None, pad_edge=False)
    for heading in headings:
        right = heading.endswith(">")
        made.add_column(heading.rstrip(">"), justify="right" if right else "left", no_wrap=True)
    return made


def show(shown: Table) -> None:
    """Print a table in its full width, as a number that is cut off is another number: a line that
    is too long for a terminal is broken by it."""
    width = Measurement.get(console, console.options.update(max_width=sys.maxsize), shown).maximum
    shown.width = width
    console.print(shown, soft_wrap=True)


def say(sentence: str, label: str = "", color: str = "", to: Console = console) -> None:
    """Print a sentence: in one line, unless a terminal breaks it between words."""
    text = Text.assemble((label, color), " " if label else "", printable(sentence))
    to.print(text, soft_wrap=not to.is_terminal)


def complain(error: IsolossError) -> None:
    """Print a user's error on standard error."""
    say(str(error), "isoloss:", "red", errors)
