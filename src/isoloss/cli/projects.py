"""`isoloss check`, `isoloss new`: a project of the user's own."""

from __future__ import annotations

from typing import Annotated

import typer

from isoloss.checking.check import check as check_problem
from isoloss.cli import options
from isoloss.cli.options import Device, Walked
from isoloss.data import random_state_kept
from isoloss.projects import template

Regularizer = Annotated[
    str, typer.Option("--regularizer", help="Name of the regularizer, such as l1.")
]

Only = Annotated[
    int, typer.Option("--seed", parser=options.whole, metavar="SEED", help="Seed of the run.")
]


def check(
    name: Walked,
    seed: Only = 0,
    regularizer: Regularizer = "squared_norm",
    device: Device = "auto",
) -> None:
    """Look whether a loss is fit to be walked.

    Prints a table, to be pasted into a bug report; exits with 1 if something failed.
    """
    subject, target = options.subject(name, device)
    subject.prepare()
    with random_state_kept():
        begun = subject.start(options.first_seed(seed), device=target, dtype=None)
        found = check_problem(begun.problem, regularizer)
    typer.echo(str(found))
    if not found.passed:
        raise typer.Exit(1)


def new() -> None:
    """Print a file to begin with: isoloss new > my_project.py."""
    typer.echo(template(), nl=False)
