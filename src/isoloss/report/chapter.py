"""The report of an experiment: its runs read once, its tables, figures and chapter of the page."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path as FilePath

import numpy as np
import pandas as pd
from torch import Tensor

from isoloss import experiments
from isoloss.errors import unknown
from isoloss.files import write_text
from isoloss.path import Path
from isoloss.report.comparison import (
    changed,
    changes_table,
    compared,
    comparison_table,
    equalized,
    equivalent_table,
    latex,
)
from isoloss.report.comparison_figures import comparison_section
from isoloss.report.page import Chapter, Table, write_page
from isoloss.report.runs import markdown, readable, runs_section, walk_table
from isoloss.report.views import pca_section
from isoloss.report.walks import walks_section
from isoloss.store import Results, report_folder

FILES = (
    *("walk.csv", "walk.md", "comparison.csv", "comparison.md", "comparison.tex"),
    *("changes.csv", "changes.md", "equivalent.csv", "equivalent.md"),
    *("after-decay.csv", "after-decay.md"),
)
"""Names of all files of tables that a report may have."""
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What begins a text that a spreadsheet takes for a formula."""
MARKED_PENALTY = 1e-3
"""Of weight decay, marked among the components of the walks as in the paper's Fig. 7."""
UNITS = {"cross_entropy": "nats", "mse": "squared error"}


@dataclass(frozen=True)
class Report:
    """What `report` wrote.

    Attributes:
        figures: Files of figures.
        tables: Files of tables.
        page: The page, which shows all experiments reported so far.
        table: The table of walks for people, in Markdown; empty without any.
        missing: What could not be reported, a sentence each.
    """

    figures: list[FilePath]
    tables: list[FilePath]
    page: FilePath
    table: str
    missing: list[str] = field(default_factory=list[str])


@dataclass(frozen=True)
class Runs:
    """What is in the results of an experiment, read once."""

    experiment: str
    metric: str  # name of what is measured beside the loss
    methods: dict[str, list[Path]]  # those with walks
    decay: pd.DataFrame
    equivalent: dict[str, pd.DataFrame]  # by the method
    after: dict[str, list[Path]]  # walks from weight decay's best networks, likewise


@dataclass(frozen=True)
class Tables:
    """The tables of a report: those for the page, and the texts of the files by name."""

    walk: pd.DataFrame
    compared: list[Table]
    files: dict[str, str]


def report(results: Results, experiment: str) -> Report:
    """Write the figures and tables of an experiment, and the page again.

    Args:
        results: What the commands wrote.
        experiment: For example `"IRIS_FF"`.

    Returns:
        What was written: below `OUT/report/EXPERIMENT` the figures as PNG and PDF, the tables
        (`walk`, `comparison`, `changes`, and after `isoloss compare` `equivalent` and
        `after-decay`), and `chapter.json`; and `OUT/report/index.html`.

    Raises:
        InputError: There is neither a walk nor weight decay of the experiment; or matplotlib,
            plotly or jinja2 is not installed.
        ResultsError: The chapter of another experiment, which the page shows too, cannot be read.
    """
    known = [*experiments.names(), *results.experiments()]
    if experiment not in known:
        raise unknown("experiment", experiment, known)
    runs = read_runs(results, experiment)
    methods, decay = runs.methods, runs.decay
    unfinished = {
        name: results.unfinished(experiment, name) for name in results.methods(experiment)
    }
    folder = report_folder(results.folder, experiment)
    tables = report_tables(runs)
    for name, text in tables.files.items():
        write_text(folder / name, text)
    title, metric = experiment, runs.metric
    loss = experiments.get(experiment).loss if experiment in experiments.names() else ""
    sections = [runs_section(methods, unfinished, metric)] if methods else []
    if methods:
        unit = UNITS.get(loss, "")
        drawn = walks_section(methods, tables.walk, folder, title=title, metric=metric, unit=unit)
        sections.append(drawn)
    epochs = results.decay_epochs(experiment) if len(decay) else decay
    sections.append(
        comparison_section(
            tables.compared, methods, decay, epochs, folder, title=title, metric=metric
        )
    )
    others = _mean_of_decay(results, experiment, decay) if methods else {}
    components, reasons = pca_section(methods, folder, title=title, others=others)
    sections += [components] if components else []
    chapter = Chapter(
        experiment=experiment,
        lead=_lead(runs),
        missing=[
            *_missing(runs, unfinished, results.decay_unfinished(experiment)),
            *(f"{experiment}, {reason}" for reason in reasons),
        ],
        sections=sections,
    )
    chapter.save(folder)
    pngs = [folder / picture.file for picture in chapter.pictures]
    return Report(
        figures=[file for png in pngs for file in (png, png.with_suffix(".pdf"))],
        tables=[folder / name for name in tables.files],
        page=write_page(folder.parent),
        table=tables.files.get("walk.md", ""),
        missing=chapter.missing,
    )


def read_runs(results: Results, experiment: str) -> Runs:
    """Read what the tables are made of; an InputError where there is nothing."""
    decay = results.decay(experiment)
    found = {name: results.paths(experiment, name) for name in results.methods(experiment)}
    methods = {name: paths for name, paths in found.items() if paths}
    if not methods and not len(decay):
        results.walks(experiment)  # says what to run
    known = experiment in experiments.names()
    after = {name: results.after_decay(experiment, name) for name in methods}
    return Runs(
        experiment=experiment,
        metric=experiments.get(experiment).metric if known else "metric",
        methods=methods,
        decay=decay,
        equivalent={name: results.equivalent(experiment, name) for name in methods},
        after={name: paths for name, paths in after.items() if paths},
    )


def report_tables(runs: Runs) -> Tables:
    """Make the tables of a report, to write them or to verify those that were written."""
    files: dict[str, str] = {}
    comparison = comparison_table(runs.methods, runs.decay)
    networks = compared(comparison).model_copy(update={"folded": len(runs.decay) > 0})
    files["comparison.csv"] = _csv(comparison)
    files["comparison.md"] = f"{networks.markdown()}\n{networks.caption}\n"
    files["comparison.tex"] = latex(networks)
    shown, walk = [networks], pd.DataFrame()
    if runs.methods:
        walk = walk_table(runs.methods)
        files["walk.csv"], files["walk.md"] = _csv(walk), markdown(walk)
        changes = changes_table(runs.methods, runs.decay, runs.metric)
        files["changes.csv"] = _csv(changes)
        files["changes.md"] = changed(changes).markdown()
        if len(changes):
            shown.insert(0, changed(changes))
    equal = equivalent_table(runs.methods, runs.equivalent)
    if len(equal):
        shown.append(equalized(equal))
        files["equivalent.csv"], files["equivalent.md"] = _csv(equal), shown[-1].markdown()
    if runs.after:
        after = {f"{name}, from weight decay's best": paths for name, paths in runs.after.items()}
        ends, gained = walk_table(after), changes_table(after, pd.DataFrame(), runs.metric)
        columns, rows = readable(ends)
        title = "What walks from weight decay's best gain"
        shown.append(Table(title=title, columns=columns, rows=rows))
        files["after-decay.csv"] = _csv(pd.concat([ends, gained], ignore_index=True))
        files["after-decay.md"] = f"{markdown(ends)}\n{changed(gained).markdown()}"
    return Tables(walk, shown, files)


def _csv(table: pd.DataFrame) -> str:
    """A table as CSV in which a spreadsheet takes no text for a formula."""
    safe = table.map(
        lambda cell: f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell
    )
    return safe.to_csv(index=False, lineterminator="\n")


def _missing(
    runs: Runs, unfinished: dict[str, dict[str, str]], decay_unfinished: dict[str, str]
) -> list[str]:
    """What could not be reported of an experiment."""
    name, known = runs.experiment, runs.experiment in experiments.names()
    waiting = {f"{name}, {method}": reasons for method, reasons in unfinished.items()}
    sentences = [
        f"{where}, {run}: {reason}" for where, of in waiting.items() for run, reason in of.items()
    ]
    sentences += [f"{name}, {one}: no walk yet" for one in unfinished if one not in runs.methods]
    if not unfinished:
        sentences.append(f"{name}: no walk yet, make one with 'isoloss traverse {name}'")
    sentences += [f"{name}, decay, {run}: {reason}" for run, reason in decay_unfinished.items()]
    if known and not len(runs.decay):
        sentences.append(f"{name}: no weight decay yet, make it with 'isoloss decay'")
    return sentences


def _mean_of_decay(results: Results, experiment: str, decay: pd.DataFrame) -> dict[str, Tensor]:
    """The mean end point of weight decay with the paper's penalty for its Fig. 7, by its label."""
    if not len(decay):
        return {}
    of_penalty = np.isclose(decay["penalty"], MARKED_PENALTY, rtol=1e-9)
    chosen = np.flatnonzero(of_penalty & (decay["status"] == "finished")).tolist()
    if not chosen:
        return {}
    mean = results.decay_points(experiment)[chosen].double().mean(dim=0)
    return {f"mean end of weight decay, penalty {MARKED_PENALTY:g}": mean}


def _lead(runs: Runs) -> str:
    """The sentence that begins the chapter: what the experiment or the user's project is."""
    name = runs.experiment
    if name in experiments.names():
        known = experiments.get(name)
        examples = "all" if known.draw is None else f"{known.draw:,}"
        return (
            f"Data set {known.dataset}, {examples} training examples; a network of "
            f"{known.parameters:,} parameters; training loss {known.loss.replace('_', ' ')}; "
            f"{known.epochs} epochs of training by Adam before each walk."
        )
    for path in [path for paths in runs.methods.values() for path in paths][:1]:
        project = path.metadata.get("config", {}).get("project", {})
        function, file = project.get("function", name), project.get("file", "a file of yours")
        return f"{function} of {file}; a network of {path.points.shape[-1]:,} parameters."
    return name
