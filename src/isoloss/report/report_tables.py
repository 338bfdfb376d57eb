"""All tables of an experiment's report, made from its runs: written by it, remade to verify it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from isoloss import experiments
from isoloss.errors import InputError
from isoloss.path import Path
from isoloss.report.comparison_tables import changes_table, comparison_table, equivalent_table
from isoloss.report.comparison_text import (
    changes_to_markdown,
    equivalent_to_markdown,
    to_latex,
    to_markdown,
)
from isoloss.report.walk_tables import markdown, walk_table
from isoloss.store import Results

WALK = "walk.md"
FILES = (
    *("walk.csv", WALK, "comparison.csv", "comparison.md", "comparison.tex"),
    *("changes.csv", "changes.md", "equivalent.csv", "equivalent.md"),
    *("after-decay.csv", "after-decay.md"),
)
"""Names of all files of tables that a report may have."""


@dataclass(frozen=True)
class ReportTables:
    """The tables of a report.

    Attributes:
        walk: Of `walk_table`; empty where there is weight decay alone.
        compared: Of `comparison_table`.
        changed: Of `changes_table`.
        equal: Of `equivalent_table`; empty before `isoloss compare` was called.
        after: Of `walk_table`, of walks from weight decay's best; None likewise.
        files: Their texts by the names of their files, some of `FILES`.
    """

    walk: pd.DataFrame
    compared: pd.DataFrame
    changed: pd.DataFrame
    equal: pd.DataFrame
    after: pd.DataFrame | None
    files: dict[str, str]


def metric_name(experiment: str) -> str:
    """What is measured beside the loss; of a project of the user's just that it is a metric."""
    known = experiment in experiments.names()
    return experiments.get(experiment).metric if known else "metric"


def reported_walks(results: Results, experiment: str) -> dict[str, list[Path]]:
    """The walks that a report is about.

    Args:
        results: What the commands wrote.
        experiment: For example `"IRIS_FF"`.

    Returns:
        What `Results.walks` returns; nothing where there is weight decay alone.

    Raises:
        InputError: There is neither.
    """
    try:
        return results.walks(experiment)
    except InputError:
        if len(results.decay(experiment)):
            return {}
        raise


def report_tables(
    results: Results, experiment: str, methods: Mapping[str, Sequence[Path]]
) -> ReportTables:
    """Make the tables of an experiment's report.

    Args:
        results: What the commands wrote.
        experiment: For example `"IRIS_FF"`.
        methods: What `reported_walks` returned.

    Returns:
        The tables.
    """
    metric, decay = metric_name(experiment), results.decay(experiment)
    walk = walk_table(methods) if methods else pd.DataFrame()
    compared, changed = comparison_table(methods, decay), changes_table(methods, decay, metric)
    files = {
        "comparison.csv": compared.to_csv(index=False),
        "comparison.md": to_markdown(compared),
        "comparison.tex": to_latex(compared),
    }
    if methods:
        files["walk.csv"] = walk.to_csv(index=False)
        files[WALK] = markdown(walk)
        files["changes.csv"] = changed.to_csv(index=False)
        files["changes.md"] = changes_to_markdown(changed)
    trained = {name: results.equivalent(experiment, name) for name in methods}
    equal = equivalent_table(methods, trained)
    if len(equal):
        files["equivalent.csv"] = equal.to_csv(index=False)
        files["equivalent.md"] = equivalent_to_markdown(equal)
    found = {
        f"{name}, from weight decay's best": paths
        for name in methods
        if (paths := results.after_decay(experiment, name))
    }
    after = None
    if found:
        after, gained = walk_table(found), changes_table(found, pd.DataFrame(), metric)
        whole = pd.concat([after, gained], ignore_index=True)
        files["after-decay.csv"] = whole.to_csv(index=False)
        files["after-decay.md"] = f"{markdown(after)}\n{changes_to_markdown(gained)}"
    return ReportTables(walk, compared, changed, equal, after, files)
