"""`isoloss check`, `isoloss new`: a project of the user's own."""

from __future__ import annotations

from pathlib import Path as FilePath

import typer

from isoloss.cli import options
from isoloss.cli.options import Device, Regularizer, Seed, Walked


def check(
    name: Walked,
    seed: Seed = 0,
    regularizer: Regularizer = "squared_norm",
    device: Device = "auto",
) -> None:
    """Find out whether a loss is fit to be walked.

    Prints a table that can be pasted into a bug report; exits with 1 if something failed.
    """
    from isoloss.checking.check import check as check_problem
    from isoloss.data import random_state_kept
    from isoloss.subject import Trained

    subject, target = options.subject(name, device)
    subject.prepare()
    with random_state_kept():
        if isinstance(subject, Trained):
            start = subject.start(seed, device=target, dtype=None)
        else:
            start = subject.start(seed)
        found = check_problem(start.problem, regularizer)
    typer.echo(str(found))
    if not found.passed:
        raise typer.Exit(1)


def template() -> str:
    """A project's file to begin with, which runs as it is."""
    return FilePath(__file__).with_name("template.py").read_text(encoding="utf-8")


def new() -> None:
    """Print a file to start from: isoloss new > my_project.py."""
    typer.echo(template(), nl=False)
