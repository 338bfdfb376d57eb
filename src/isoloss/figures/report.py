"""The figures and tables of an experiment, from what is in the results folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path as FilePath

from isoloss import experiments
from isoloss.analysis import markdown, walk_table
from isoloss.errors import InputError
from isoloss.figures.style import save
from isoloss.figures.walk import walk_panels
from isoloss.results import Results, report_folder


@dataclass(frozen=True)
class Report:
    """What `report` wrote.

    Attributes:
        figures: Files of figures.
        tables: Files of tables.
        table: The table for people, in Markdown.
        missing: What could not be reported, a sentence each.
    """

    figures: list[FilePath]
    tables: list[FilePath]
    table: str
    missing: list[str] = field(default_factory=list[str])


def report(results: Results, experiment: str) -> Report:
    """Write `walk.png`, `walk.pdf`, `walk.csv` and `walk.md` of an experiment.

    Args:
        results: What the commands wrote.
        experiment: For example `"IRIS_FF"`.

    Returns:
        What was written.

    Raises:
        InputError: There is no walk of the experiment.
    """
    known = experiments.get(experiment)
    methods = {name: results.paths(experiment, name) for name in results.methods(experiment)}
    missing = [
        f"{experiment}, {name}, {run}: {reason}"
        for name in methods
        for run, reason in results.unfinished(experiment, name).items()
    ]
    methods = {name: paths for name, paths in methods.items() if paths}
    if not methods:
        raise InputError(
            f"{results.folder} holds no walk of {experiment}; make one with 'isoloss traverse "
            f"{experiment} --out {results.folder}'"
        )
    folder = report_folder(results.folder, experiment)
    figure = walk_panels(methods, title=experiment, metric=known.metric)
    figures = save(figure, folder, "walk")
    table = walk_table(methods)
    tables = [folder / "walk.csv", folder / "walk.md"]
    table.to_csv(tables[0], index=False)
    text = markdown(table)
    tables[1].write_text(text, encoding="utf-8")
    return Report(figures, tables, text, missing)
