"""`isoloss experiments`, `isoloss data fetch`, `isoloss data verify`."""

from __future__ import annotations

import typer

from isoloss import experiments
from isoloss.cli.options import DataNames
from isoloss.cli.output import console, table
from isoloss.experiments import datasets

data = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="The data sets' files.")


def list_experiments() -> None:
    """What experiments there are, and whether their data is at hand."""
    listed = table("experiment", "parameters>", "examples>", "loss", "runs>", "steps>", "data")
    for name in experiments.names():
        experiment = experiments.get(name)
        present = datasets.at_hand(experiment.dataset)
        listed.add_row(
            name,
            f"{experiment.parameters:,}",
            "all" if experiment.draw is None else f"{experiment.draw:,} drawn",
            experiment.loss,
            str(experiment.runs),
            f"{experiment.steps:,}",
            "at hand" if present else "to fetch",
        )
    console.print(listed)
    console.print("\nsteps: predictor steps of the paper's walk; to fetch: isoloss data fetch")


@data.command("fetch")
def fetch(names: DataNames = None) -> None:
    """Download what is not at hand, and check it."""
    for name in names or datasets.names():
        datasets.fetch(name)
        console.print(f"{name}: at hand")


@data.command("verify")
def verify(names: DataNames = None) -> None:
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
