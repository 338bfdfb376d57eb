"""The figures, tables and chapter of an experiment, from what is in the results folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path as FilePath

import numpy as np
from torch import Tensor

from isoloss import experiments
from isoloss.errors import unknown
from isoloss.experiments.catalog import Experiment
from isoloss.files import write_text
from isoloss.report.chapter import Chapter
from isoloss.report.compare import write_comparison
from isoloss.report.page import write_page
from isoloss.report.pca_section import pca_section
from isoloss.report.report_tables import (
    WALK,
    metric_name,
    report_tables,
    reported_walks,
)
from isoloss.report.style import save
from isoloss.report.walk import walk_panels
from isoloss.report.walk_section import AGAINST, walk_section
from isoloss.store import Results, report_folder

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


def report(results: Results, experiment: str) -> Report:
    """Write the figures and tables of an experiment, and the page anew.

    Args:
        results: What the commands wrote.
        experiment: For example `"IRIS_FF"`.

    Returns:
        What was written: below `OUT/report/EXPERIMENT` the figures as PNG and PDF, the tables
        (`walk`, `comparison`, `changes`, and after `isoloss compare` `equivalent` and
        `after-decay`), and `chapter.json`; and `OUT/report/index.html`.

    Raises:
        InputError: There is neither a walk nor weight decay of the experiment.
    """
    known = _described(results, experiment)
    methods = reported_walks(results, experiment)
    unfinished = {
        name: results.unfinished(experiment, name) for name in results.methods(experiment)
    }
    missing = [
        f"{experiment}, {name}, {run}: {reason}"
        for name, reasons in unfinished.items()
        for run, reason in reasons.items()
    ]
    missing += [f"{experiment}, {name}: no walk yet" for name in unfinished if name not in methods]
    if not unfinished:
        missing.append(f"{experiment}: no walk yet, make one with 'isoloss traverse {experiment}'")
    folder = report_folder(results.folder, experiment)
    figures: list[FilePath] = []
    for against, (file, _) in AGAINST.items() if methods else ():
        drawn = walk_panels(
            methods,
            against=against,
            title=experiment,
            metric=known.metric,
            unit=known.unit,
        )
        figures += save(drawn, folder, file)
    tables = report_tables(results, experiment, methods)
    for name, text in tables.files.items():
        write_text(folder / name, text)
    sections = walk_section(methods, unfinished, tables.walk, known.metric) if methods else []
    compared = write_comparison(results, experiment, methods, tables, folder)
    sections.append(compared.section)
    figures += compared.figures
    missing += compared.missing
    others = _mean_of_decay(results, experiment)
    components, files, reasons = pca_section(methods, folder, title=experiment, others=others)
    sections += [components] if components else []
    figures += files
    missing += [f"{experiment}, {reason}" for reason in reasons]
    Chapter(experiment=experiment, lead=known.lead, missing=missing, sections=sections).save(folder)
    page = write_page(folder.parent)
    text = tables.files.get(WALK, "")
    return Report(figures, [folder / name for name in tables.files], page, text, missing)


def _mean_of_decay(results: Results, experiment: str) -> dict[str, Tensor]:
    """The mean end point of weight decay with the paper's penalty for its Fig. 7, by its label."""
    decay = results.decay(experiment)
    if not len(decay):
        return {}
    of_penalty = np.isclose(decay["penalty"], MARKED_PENALTY, rtol=1e-9)
    chosen = np.flatnonzero(of_penalty & (decay["status"] == "finished")).tolist()
    if not chosen:
        return {}
    mean = results.decay_points(experiment)[chosen].double().mean(dim=0)
    return {f"mean end of weight decay, penalty {MARKED_PENALTY:g}": mean}


@dataclass(frozen=True)
class _Described:
    """What the report says of an experiment or a user's project.

    Attributes:
        metric: Name of what is measured beside the loss.
        unit: Of the loss.
        lead: The sentence that begins the chapter.
    """

    metric: str
    unit: str
    lead: str


def _described(results: Results, name: str) -> _Described:
    if name in experiments.names():
        known = experiments.get(name)
        return _Described(metric_name(name), UNITS.get(known.loss, ""), _lead(known))
    if name not in results.experiments():
        raise unknown("experiment", name, {*experiments.names(), *results.experiments()})
    for method in results.methods(name):
        for path in results.paths(name, method):
            project = path.metadata.get("config", {}).get("project", {})
            function, file = project.get("function", name), project.get("file", "a file of yours")
            size = path.points.shape[-1]
            lead = f"{function} of {file}; a network of {size:,} parameters."
            return _Described(metric_name(name), "", lead)
    return _Described(metric_name(name), "", name)


def _lead(known: Experiment) -> str:
    examples = (
        "all training examples" if known.draw is None else f"{known.draw:,} training examples"
    )
    return (
        f"Data set {known.dataset}, {examples}; a network of {known.parameters:,} parameters; "
        f"training loss {known.loss.replace('_', ' ')}; {known.epochs} epochs of training by Adam "
        f"before each walk."
    )
