"""`isoloss experiments`, `isoloss data fetch`, `isoloss data verify`."""

from __future__ import annotations

import typer

from isoloss import experiments
from isoloss.cli.options import DataNames
from isoloss.cli.output import console, duration, table
from isoloss.experiments import datasets
from isoloss.runs.cost import cost

data = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="The data sets' files.")


def list_experiments() -> None:
    """List the experiments, their data, and what a run costs."""
    listed = table(
        "experiment", "parameters>", "examples>", "runs>", "steps>", "data",
        "evals/s>", "paper walk>",
    )  # fmt: skip
    for name in experiments.names():
        experiment = experiments.get(name)
        present = datasets.at_hand(experiment.dataset)
        with console.status(f"measuring {name}"):
            measured = cost(name) if present else None
        listed.add_row(
            name,
            f"{experiment.parameters:,}",
            "all" if experiment.draw is None else f"{experiment.draw:,}",
            str(experiment.runs),
            f"{experiment.steps:,}",
            "at hand" if present else "to fetch",
            _rate(measured.evaluations_per_second) if measured else "",
            duration(measured.paper_walk_seconds) if measured else "",
        )
    console.print(listed)
    console.print(
        "\nexamples: in training, drawn at random where not all\n"
        "steps: predictor steps of the paper's walk; to fetch: isoloss data fetch\n"
        "evals/s: evaluations of loss and gradient, measured just now: CPU time on\n"
        "    one core, float32, at the random start\n"
        "paper walk: one run at that rate, with the test set as often as recorded;\n"
        "    phase 1, corrections and the work beside evaluations come on top",
        soft_wrap=True,
    )


def _rate(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


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
