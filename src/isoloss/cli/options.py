"""What the commands take, and the checks of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path as FilePath
from typing import Annotated

import torch
import typer

from isoloss import experiments
from isoloss.errors import InputError
from isoloss.experiments.catalog import Experiment
from isoloss.projects import Project, is_project
from isoloss.store import check_out_folder
from isoloss.subject import Subject


def whole(text: str) -> int:
    """The whole number that was typed."""
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a whole number; give one, as in 5") from None


Name = Annotated[str, typer.Argument(metavar="NAME", help="Experiment, for example IRIS_FF.")]
Walked = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="Experiment, for example IRIS_FF, or a function of yours, FILE.py:build.",
    ),
]
Names = Annotated[list[str], typer.Argument(metavar="NAME...", help="Experiments, or 'all'.")]
Reported = Annotated[
    list[str],
    typer.Argument(
        metavar="NAME...", help="Experiments, or 'all', or functions of yours, FILE.py:build."
    ),
]
DataNames = Annotated[
    list[str] | None, typer.Argument(metavar="[NAME...]", help="Data sets; all by default.")
]
Out = Annotated[FilePath, typer.Option("--out", help="Folder for everything that is written.")]
Runs = Annotated[
    int | None,
    typer.Option(
        "--runs",
        parser=whole,
        metavar="N",
        help="Random starts; the experiment's number by default.",
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        "--seed", parser=whole, metavar="SEED", help="Seed of the first run; run k has SEED + k."
    ),
]
MethodName = Annotated[str, typer.Option("--method", help="How to step: sqp or paper.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, ...")]
Pairs = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="A setting, may be repeated; a wrong KEY lists them."
    ),
]
Quick = Annotated[
    bool, typer.Option("--quick", help="A few runs and steps, to see that all works.")
]
Restart = Annotated[
    bool, typer.Option("--restart", help="Move the old runs aside, never deleted, and begin anew.")
]
CheckpointEvery = Annotated[
    float,
    typer.Option(
        "--checkpoint-every", metavar="SECONDS", help="Time between two checkpoints of a run."
    ),
]


def chosen(names: Sequence[str]) -> list[str]:
    """Names of the experiments meant, all of them for `all`."""
    if "all" in names:
        return experiments.names()
    return [experiments.get(one).name for one in names]


def experiment(name: str) -> Experiment:
    """The experiment of that name, for commands that a project cannot be given to."""
    if is_project(name):
        raise InputError(
            f"{name} is not possible here: only the experiments of the paper are trained with "
            f"weight decay; walk your own with 'isoloss traverse {name}'"
        )
    return experiments.get(name)


def subject(name: str, given_device: str) -> tuple[Subject, str]:
    """What a name means to be walked, and where: a project decides that itself.

    Args:
        name: Of an experiment, or FILE.py:FUNCTION.
        given_device: As typed.

    Returns:
        The experiment or project, and the device for a run's settings.

    Raises:
        InputError: There is no such thing, or a device was named for a project.
    """
    if not is_project(name):
        return experiments.get(name), device(given_device)
    if given_device != "auto":
        raise InputError(
            f"--device {given_device} is not possible for {name}: its function decides where the "
            f"model is; write model.to({given_device!r}) there"
        )
    return Project.of(name), "as built"


def count(given: int | None, default: int) -> int:
    """The number of runs."""
    runs = default if given is None else given
    if runs < 1:
        raise InputError(f"--runs {runs} is not possible; give a whole number of at least 1")
    return runs


def first_seed(given: int) -> int:
    """The seed of the first run."""
    if given < 0:
        raise InputError(f"--seed {given} is not possible; give a whole number from 0")
    return given


def out_folder(folder: FilePath) -> FilePath:
    """The folder for everything that is written, if it can be written to."""
    check_out_folder(folder)
    return folder


def device(given: str) -> str:
    """The device meant; `auto` is CUDA where there is one."""
    if given == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(given)
    except RuntimeError:
        raise InputError(
            f"--device {given} is not possible; give auto, cpu, cuda or cuda:N"
        ) from None
    if found.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device {given} is not possible: torch finds no CUDA here; give cpu")
    return given


def numbers(name: str, given: str) -> list[float]:
    """The numbers of a list such as 0,1e-3,1."""
    found: list[float] = []
    for text in given.split(","):
        try:
            found.append(float(text))
        except ValueError:
            raise InputError(
                f"{name} {given} is not possible: {text!r} is not a number; write 0,1e-3,1"
            ) from None
    return found


def seconds(given: float) -> float:
    """The time between two checkpoints."""
    if not 0 <= given < math.inf:
        raise InputError(f"--checkpoint-every {given} is not possible; give seconds from 0")
    return given
