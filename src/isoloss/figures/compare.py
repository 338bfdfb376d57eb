"""The comparison of an experiment's walks with weight decay, written as tables and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath

import pandas as pd

from isoloss import experiments
from isoloss.analysis import markdown, walk_table
from isoloss.analysis.comparison import changes_table, comparison_table, equivalent_table
from isoloss.analysis.comparison_text import (
    changes_to_markdown,
    equivalent_to_markdown,
    to_latex,
    to_markdown,
)
from isoloss.figures.chapter import Section
from isoloss.figures.comparison import comparison_scatter, decay_history
from isoloss.figures.comparison_section import comparison_section
from isoloss.figures.style import save
from isoloss.path import Path
from isoloss.results import Results
from isoloss.results.files import write_text


@dataclass(frozen=True)
class Written:
    """What was written of a comparison.

    Attributes:
        figures: Files of figures.
        tables: Files of tables.
        text: The tables for people, in Markdown.
        section: For the page.
        missing: What could not be compared, a sentence each.
    """

    figures: list[FilePath]
    tables: list[FilePath]
    text: str
    section: Section
    missing: list[str] = field(default_factory=list[str])


def write_comparison(
    results: Results,
    experiment: str,
    methods: Mapping[str, Sequence[Path]],
    folder: FilePath,
    metric: str,
) -> Written:
    """Write the tables `comparison`, `changes`, `equivalent` and `after-decay`, and figures.

    The last two are there once `isoloss compare` was called.

    Args:
        results: What the commands wrote.
        experiment: For example `"IRIS_FF"`.
        methods: The walks of each method, by its name.
        folder: Where to.
        metric: Name of the test metric.

    Returns:
        What was written.
    """
    decay, epochs = results.decay(experiment), results.decay_epochs(experiment)
    missing = [
        f"{experiment}, decay, {run}: {reason}"
        for run, reason in results.decay_unfinished(experiment).items()
    ]
    if len(decay) == 0 and experiment in experiments.names():
        missing.append(f"{experiment}: no weight decay yet, make it with 'isoloss decay'")
    compared = comparison_table(methods, decay)
    changed = changes_table(methods, decay, metric)
    texts = {
        "comparison.csv": compared.to_csv(index=False),
        "comparison.md": to_markdown(compared),
        "comparison.tex": to_latex(compared),
        "changes.csv": changed.to_csv(index=False),
        "changes.md": changes_to_markdown(changed),
    }
    trained = {name: results.equivalent(experiment, name) for name in methods}
    equal = equivalent_table(methods, trained)
    if len(equal):
        texts["equivalent.csv"] = equal.to_csv(index=False)
        texts["equivalent.md"] = equivalent_to_markdown(equal)
    after = {
        f"{name}, from weight decay's best": paths
        for name in methods
        if (paths := results.after_decay(experiment, name))
    }
    if after:
        walked, gained = walk_table(after), changes_table(after, pd.DataFrame(), metric)
        whole = pd.concat([walked, gained], ignore_index=True)
        texts["after-decay.csv"] = whole.to_csv(index=False)
        texts["after-decay.md"] = f"{markdown(walked)}\n{changes_to_markdown(gained)}"
    tables: list[FilePath] = []
    for name, text in texts.items():
        write_text(folder / name, text)
        tables.append(folder / name)
    figures: list[FilePath] = []
    if len(decay):
        drawn = comparison_scatter(methods, decay, title=experiment, metric=metric)
        figures += save(drawn, folder, "comparison")
        figures += save(decay_history(epochs, title=experiment, metric=metric), folder, "decay")
    section = comparison_section(
        compared, changed, decay, equal, walk_table(after) if after else None
    )
    return Written(figures, tables, texts["comparison.md"], section, missing)
