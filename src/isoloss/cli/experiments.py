"""`isoloss experiments`, `isoloss data fetch`, `isoloss data verify`, `isoloss data pack`."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

import typer

from isoloss.cli.options import (
    DataNames,
    PackFile,
    PackNames,
    Runs,
    Seed,
    chosen,
    console,
    say,
    show,
    table,
)

if TYPE_CHECKING:
    from isoloss.experiments import Experiment

data = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="The data sets' files.")


def experiments() -> None:
    """List the experiments, their data, and what a run costs here."""
    from isoloss import experiments
    from isoloss.experiments import datasets

    listed = table(
        "experiment", "parameters>", "examples>", "runs>", "steps>", "data",
        "evals/s>", "paper walk>",
    )  # fmt: skip
    for name in experiments.names():
        experiment = experiments.get(name)
        found = ["to fetch", "", ""]
        if datasets.at_hand(experiment.dataset):
            with console.status(f"measuring {name}"):
                evaluation, walk = cost(experiment)
            found = ["here", _rate(1 / evaluation), _duration(walk)]
        listed.add_row(
            name,
            f"{experiment.parameters:,}",
            "all" if experiment.draw is None else f"{experiment.draw:,}",
            str(experiment.runs),
            f"{experiment.steps:,}",
            *found,
        )
    show(listed)
    say(
        "\nexamples: in training, drawn at random where not all\n"
        "steps: predictor steps of the paper's walk; to fetch: isoloss data fetch\n"
        "evals/s: evaluations of loss and gradient, measured just now: CPU time on\n"
        "    one core, float32, at the random start\n"
        "paper walk: one run at that rate, with the test set as often as recorded;\n"
        "    phase 1, corrections and the work between evaluations come on top"
    )


def cost(experiment: Experiment) -> tuple[float, float]:
    """Seconds of one core for an evaluation and for the paper's walk, at the random start."""
    from isoloss.evaluation.arithmetic import one_thread
    from isoloss.problem import Problem

    data, model = experiment.data(0), experiment.network(0)
    record = experiment.record(experiment.paper)
    few = 100 if data.inputs.ndim == 4 else None  # images of which the cost is measured
    train, test = (
        Problem(model, experiment.loss, (x[:few], y[:few]), chunk_size=50 if few else None)
        for x, y in ((data.inputs, data.targets), (data.test_inputs, data.test_targets))
    )
    theta = train.current()
    with one_thread():
        gradient = _seconds(lambda: train.loss_and_grad(theta)) * len(data.inputs) / train.examples
        measured = _seconds(lambda: test.evaluate(theta)) * len(data.test_inputs) / test.examples
    return gradient, experiment.steps * (gradient + measured / record.probes_every)


def _seconds(run: Callable[[], object]) -> float:
    """CPU time of a call, the least of some, after one that fills caches."""
    run()
    times = [time.thread_time()]
    while len(times) < 3 or times[-1] - times[0] < 0.1:
        run()
        times.append(time.thread_time())
    return min(end - begin for begin, end in pairwise(times))


def _rate(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def _duration(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.2g} {unit}"
    return f"{seconds:.2g} s"


@data.command("fetch")
def fetch(names: DataNames = None) -> None:
    """Download the data sets that are not here, and check them."""
    from isoloss.experiments import datasets

    for name in names or datasets.FORMS:
        datasets.fetch(name)
        say(f"{name}: here")


@data.command("verify")
def verify(names: DataNames = None) -> None:
    """Compare the local files with their published hashes.

    Exits with 1 if any is not right.
    """
    from isoloss.experiments import datasets, packs

    wrong = False
    for name in names or datasets.FORMS:
        if packed := datasets.pack_of(name):
            packs.read(packed, name)
            say(f"{name}: in {packed}, which is whole")
            continue
        reports = datasets.verify(name)
        if not reports:
            say(f"{name}: comes with scikit-learn")
        for one in reports:
            wrong |= one.state != "present"
            reason = one.problem or str(one.where or f"get it with isoloss data fetch {name}")
            say(f"{one.state:<8} {one.file.path}: {reason}")
    if wrong:
        raise typer.Exit(1)


@data.command("pack")
def pack(
    *,
    names: PackNames = None,
    file: PackFile,
    runs: Runs = None,
    seed: Seed = 0,
) -> None:
    """Write what runs of experiments need into one file, for a machine without the data sets.

    ISOLOSS_DATA may name that file there, or a folder with some.
    """
    from isoloss.checking.check import size_text
    from isoloss.experiments import catalog

    experiments = chosen(names or ["all"])
    seeds = range(seed, seed + (runs or max(max(one.runs, one.decay_runs) for one in experiments)))
    sizes = catalog.pack(experiments, seeds, file)
    for name, size in sizes.items():
        say(f"{name}: {size_text(size)}")
    last = f"{seed} to {seeds[-1]}" if len(seeds) > 1 else f"{seed}"
    say(f"{file}: {size_text(file.stat().st_size)}, for seeds {last}")
