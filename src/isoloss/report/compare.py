"""The comparison of an experiment's walks with weight decay: its figures and its section."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath

from isoloss import experiments
from isoloss.path import Path
from isoloss.report.chapter import Section
from isoloss.report.comparison import comparison_scatter, decay_history
from isoloss.report.comparison_section import comparison_section
from isoloss.report.report_tables import ReportTables, metric_name
from isoloss.report.style import save
from isoloss.store import Results


@dataclass(frozen=True)
class Written:
    """What was written of a comparison.

    Attributes:
        figures: Files of figures.
        section: For the page.
        missing: What could not be compared, a sentence each.
    """

    figures: list[FilePath]
    section: Section
    missing: list[str] = field(default_factory=list[str])


def write_comparison(
    results: Results,
    experiment: str,
    methods: Mapping[str, Sequence[Path]],
    tables: ReportTables,
    folder: FilePath,
) -> Written:
    """Draw the figures of the comparison.

    Args:
        results: What the commands wrote.
        experiment: For example `"IRIS_FF"`.
        methods: The walks of each method, by its name.
        tables: Of the experiment.
        folder: Where to.

    Returns:
        What was written.
    """
    metric = metric_name(experiment)
    decay, epochs = results.decay(experiment), results.decay_epochs(experiment)
    missing = [
        f"{experiment}, decay, {run}: {reason}"
        for run, reason in results.decay_unfinished(experiment).items()
    ]
    if len(decay) == 0 and experiment in experiments.names():
        missing.append(f"{experiment}: no weight decay yet, make it with 'isoloss decay'")
    figures: list[FilePath] = []
    if len(decay):
        drawn = comparison_scatter(methods, decay, title=experiment, metric=metric)
        figures += save(drawn, folder, "comparison")
        figures += save(decay_history(epochs, title=experiment, metric=metric), folder, "decay")
    section = comparison_section(tables.compared, tables.changed, decay, tables.equal, tables.after)
    return Written(figures, section, missing)
