"""The report of an experiment: its runs read once, its tables, figures and chapter of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from isoloss import experiments
from isoloss.arguments import checked
from isoloss.disk import refuse_links, refuse_links_in
from isoloss.endings import for_commands
from isoloss.errors import unknown
from isoloss.files import write_json, write_text
from isoloss.path import Path
from isoloss.report import tables
from isoloss.report.comparison import MOST_OPEN, changed, compared, comparison_section, equalized
from isoloss.report.drawn import Drawn
from isoloss.report.findings import findings
from isoloss.report.fronts import fronts_section, fronts_table, read_fronts, shown_fronts
from isoloss.report.page import CHAPTER, NONE, Chapter, Section, Table, number, write_page
from isoloss.report.tables import Methods, Runs, ends_table, on_level, run_name
from isoloss.report.views import pca_section
from isoloss.report.walks import walks_section
from isoloss.store import Results, called, no_walk, report_folder
from isoloss.store.folder import LEFT_OUT, NOT_FINISHED

FILES = (  # all tables that a report may have
    *("walk.csv", "walk.md", "comparison.csv", "comparison.md", "comparison.tex"),
    *("changes.csv", "changes.md", "equivalent.csv", "equivalent.md"),
    *("after-decay.csv", "after-decay.md", "front.csv", "front.md", "outcomes.csv"),
)
MARKED_PENALTY = 1e-3  # of weight decay, marked among the principal components (paper's Fig. 7)
UNITS = {"cross_entropy": "nats", "mse": "squared error"}
VALUES = {  # which column each number comes from, and which of the values measured it is
    "steps": ("progress", -1),
    "evaluations": ("evaluations", -1),
    "R_start": ("regularizer", 0),
    "R_end": ("regularizer", -1),
    "angle_degrees": ("angle_degrees", -1),
    "kkt_residual": ("kkt_residual", -1),
    "loss": ("loss", -1),
    "test_loss_start": ("test_loss", 0),
    "test_loss_end": ("test_loss", -1),
    "test_metric_end": ("test_metric", -1),
}


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


@checked
def report(results: Results, experiment: str) -> Report:
    """Write the figures and tables of an experiment, and the page again.

    Args:
        results: What the commands wrote.
        experiment: For example `"IRIS_FF"`.

    Returns:
        What was written: in `OUT/report/EXPERIMENT` the figures as PNG and PDF, the tables
        (`walk`, `comparison`, `changes`, after `isoloss compare` `equivalent` and
        `after-decay`, after `isoloss front` `front`), and `chapter.json`; and
        `OUT/report/index.html`.

    Raises:
        InputError: There is no walk, front or weight decay of the experiment; or matplotlib,
            plotly or jinja2 is not installed.
        ResultsError: The chapter of another experiment, which the page shows too, cannot be read.
    """
    known = [*experiments.names(), *results.experiments()]
    if experiment not in known:
        raise unknown("experiment", experiment, known)
    results = Drawn(results.folder)
    runs = read_runs(results, experiment)
    folder = report_folder(results.folder, experiment)
    refuse_links(results.folder, folder)
    refuse_links_in(folder)
    shown, files, found = report_tables(runs)
    ran = [runs_section(results, runs)] if runs.methods else []
    for name, text in files.items():
        write_text(folder / name, text)
    walked = [walks_section(runs, folder)] if runs.methods else []
    beside = len(runs.methods) + len(runs.decay) > 0
    epochs = results.decay_epochs(experiment)
    decayed = [comparison_section(runs, shown, epochs, folder)] if beside else []
    fronts = fronts_section(runs.fronts, runs.decay, experiment, folder)
    components, reasons = pca_section(runs, folder, _mean_of_decay(results, runs))
    chapter = Chapter(
        experiment=experiment,
        found=found,
        lead=_lead(runs),
        missing=[*_missing(results, runs), *reasons],
        sections=[*walked, *decayed, *fronts, *components, *ran],
    )
    write_json(folder / CHAPTER, chapter.model_dump())
    pngs = [folder / picture.file for picture in chapter.pictures]
    return Report(
        figures=[file for png in pngs for file in (png, png.with_suffix(".pdf"))],
        tables=[folder / name for name in files],
        page=write_page(folder.parent),
        table=files.get("walk.md", ""),
        missing=chapter.missing,
    )


def read_runs(results: Results, experiment: str) -> Runs:
    """Read what the tables are made of; an InputError where there is nothing."""
    found = {name: results.paths(experiment, name) for name in results.methods(experiment)}
    methods = {name: paths for name, paths in found.items() if paths}
    decay, fronts = results.decay(experiment), read_fronts(results, experiment)[0]
    if not methods and not fronts and not len(decay):
        raise no_walk(results.folder, experiment, _unread(results, experiment))
    known = experiments.get(experiment) if experiment in experiments.names() else None
    after = {name: results.after_decay(experiment, name) for name in methods}
    return Runs(
        experiment=experiment,
        metric=known.metric if known else "metric",
        unit=UNITS.get(known.loss, "") if known else "",
        methods=methods,
        decay=decay,
        equivalent={name: results.equivalent(experiment, name) for name in methods},
        after={name: paths for name, paths in after.items() if paths},
        fronts=fronts,
    )


def report_tables(runs: Runs) -> tuple[list[Table], dict[str, str], list[str]]:
    """The tables of a report: those for the page, the texts of the files by name, and what was
    found, in sentences."""
    files = dict[str, str]()
    if runs.fronts:
        files["front.csv"] = _csv(fronts_table(runs.fronts))
        files["front.md"] = shown_fronts(runs.fronts).markdown()
    if not runs.methods and not len(runs.decay):
        return [], files, []
    comparison = tables.comparison_table(runs.methods, runs.decay)
    networks = compared(comparison, folded=len(runs.decay) > 0)
    shown, found = [networks], list[str]()
    files |= {
        "comparison.csv": _csv(comparison),
        "comparison.md": f"{networks.markdown()}\n{networks.caption}\n",
        "comparison.tex": networks.latex(),
    }
    if runs.methods:
        walk = tables.walk_table(runs.methods)
        changes = tables.changes_table(runs.methods, runs.decay, runs.metric)
        found = findings(runs, walk, changes)
        files["walk.csv"], files["walk.md"] = _csv(walk), ends_table(walk).markdown()
        files["outcomes.csv"] = _csv(outcome_table(runs.methods).drop(columns="message"))
        files["changes.csv"], files["changes.md"] = _csv(changes), changed(changes).markdown()
        if len(changes):
            shown.insert(0, changed(changes))
    equal = tables.equivalent_table(runs.methods, runs.equivalent)
    if len(equal):
        shown.append(equalized(equal))
        files["equivalent.csv"], files["equivalent.md"] = _csv(equal), shown[-1].markdown()
    if runs.after:
        after = {f"{name}, from weight decay's best": paths for name, paths in runs.after.items()}
        ends = tables.walk_table(after)
        gained = tables.changes_table(after, pd.DataFrame(), runs.metric)
        shown.append(ends_table(ends, "What walks from weight decay's best gain"))
        files["after-decay.csv"] = _csv(pd.concat([ends, gained], ignore_index=True))
        files["after-decay.md"] = f"{shown[-1].markdown()}\n{changed(gained).markdown()}"
    return shown, files, found


@checked
def outcome_table(
    methods: Methods, unfinished: Mapping[str, Mapping[str, str]] | None = None
) -> pd.DataFrame:
    """A row per run: where it started and ended, and why it ended.

    Args:
        methods: The walks of each method, by its name.
        unfinished: Of each method, why runs have no walk, by the name of their folder.

    Returns:
        Columns `run`, `method`, `seed`, `steps`, `evaluations`, `R_start`, `R_end`,
        `angle_degrees`, `kkt_residual`, `loss`, `test_loss_start`, `test_loss_end`,
        `test_metric_end`, `outcome`, `message`; numbers are missing where there is no walk or they
        were not measured.
    """
    unfinished = unfinished or {}
    rows: list[dict[str, Any]] = []
    for method in dict.fromkeys([*methods, *unfinished]):
        for k, path in enumerate(methods.get(method, ())):
            rows.append({"run": run_name(path, k), "method": method, **_walked(path)})
        for run, reason in unfinished.get(method, {}).items():
            outcome, _, message = reason.partition(": ")
            if outcome not in (NOT_FINISHED, LEFT_OUT):
                outcome, message = "failed", reason
            rows.append({"run": run, "method": method, "outcome": outcome, "message": message})
    columns = ["run", "method", "seed", *VALUES, "outcome", "message"]
    return pd.DataFrame(rows, columns=columns).sort_values(["method", "run"], ignore_index=True)


def settings_table(methods: Methods) -> pd.DataFrame:
    """How the walks were made: a row per setting, a column per method with every value in use."""
    columns = {name: pd.Series(_settings(paths), dtype=str) for name, paths in methods.items()}
    order = dict.fromkeys(key for column in columns.values() for key in column.index)
    return pd.DataFrame(columns, index=pd.Index(order, name="setting")).fillna("")


def runs_section(results: Results, runs: Runs) -> Section:
    """Outcomes, reasons and settings."""
    table = outcome_table(runs.methods, _unfinished(results, runs.experiment))
    outcomes = table.assign(name=table["method"] + " " + table["run"]).to_dict("records")
    first = ["run", "outcome", "test loss", f"test {runs.metric}", "R", "angle (degrees)"]
    shown = Table(
        title="Every run and its outcome",
        columns=[*first, "training loss", "steps", "evaluations", "seed"],
        rows=[
            [
                row["name"],
                str(row["outcome"]).replace("_", " "),
                _from_to(row["test_loss_start"], row["test_loss_end"]),
                number(row["test_metric_end"]),
                _from_to(row["R_start"], row["R_end"]),
                *(number(row[k]) for k in ("angle_degrees", "loss", "steps", "evaluations")),
                NONE if pd.isna(row["seed"]) else str(int(row["seed"])),
            ]
            for row in outcomes
        ],
        caption="Angle, losses and metric at the end of the walk; arrows from start to end.",
        folded=len(outcomes) > MOST_OPEN,
    )
    reasons = Table(
        title="Why each run ended",
        columns=["run", "reason"],
        words=True,
        folded=len(outcomes) > MOST_OPEN,
        rows=[
            [row["name"], for_commands(str(row["message"])) or str(row["outcome"])]
            for row in outcomes
        ],
    )
    settings = settings_table(runs.methods).reset_index()
    made = Table(
        title="Settings, seeds and versions",
        columns=settings.columns.to_list(),
        rows=settings.to_numpy().tolist(),
        caption="rtol and the like hold for the methods that use them.",
        words=True,
        folded=True,
    )
    return Section(title="What was run", tables=[shown, reasons, made])


def _walked(path: Path) -> dict[str, Any]:
    rows = on_level(path)
    found: dict[str, Any] = {"seed": path.metadata.get("config", {}).get("seed")}
    for name, (column, at) in VALUES.items():
        measured = rows[column].dropna().tolist() if column in rows else []
        found[name] = measured[at] if measured else None
    return found | {"outcome": path.outcome.value, "message": path.message}


def _settings(paths: Sequence[Path]) -> dict[str, str]:
    columns: dict[str, list[str]] = {}
    for path in paths:
        config = {k: v for k, v in path.metadata.get("config", {}).items() if k != "experiment"}
        for key, value in {**_flat(config), **_flat(path.metadata.get("made_with", {}))}.items():
            columns.setdefault(key, []).append("none" if value is None else str(value))
    if not columns:
        return {"seed": "not recorded"}
    return {key: ", ".join(dict.fromkeys(values)) for key, values in columns.items()}


def _flat(content: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        name = f"{above} {key}".strip()
        flat |= _flat(value, name) if isinstance(value, Mapping) else {name: value}
    return flat


def _from_to(start: Any, end: Any) -> str:
    return NONE if pd.isna(end) else f"{number(start)} → {number(end)}"


def _csv(table: pd.DataFrame) -> str:
    """A table as CSV in which a spreadsheet takes no text for a formula."""
    begins = (*"=+-@\t\r\n", *"\uff1d\uff0b\uff0d\uff20")  # the last are full-width signs
    safe = table.map(lambda x: f"'{x}" if isinstance(x, str) and x.startswith(begins) else x)
    return safe.to_csv(index=False, lineterminator="\n")


def _unfinished(results: Results, experiment: str) -> dict[str, dict[str, str]]:
    """Why runs of each method have no walk, by the name of their folder."""
    methods = results.methods(experiment)
    return {name: results.unfinished(experiment, name) for name in methods}


def _unread(results: Results, experiment: str) -> dict[str, str]:
    """Why runs of any kind are not in a report, by kind and the name of their folder."""
    walks, decay = _unfinished(results, experiment), results.decay_unfinished(experiment)
    of_each = {**walks, "decay": decay}.items()
    found = {f"{kind}, {run}": why for kind, runs in of_each for run, why in runs.items()}
    return found | read_fronts(results, experiment)[1]


def _missing(results: Results, runs: Runs) -> list[str]:
    """What could not be reported of an experiment, a sentence each."""
    name = runs.experiment
    methods = results.methods(name)
    said = [f"{run}: {why}" for run, why in _unread(results, name).items()]
    said += [f"{one}: no walk yet" for one in methods if one not in runs.methods]
    sentences = [f"{name}, {sentence}" for sentence in said]
    if not methods:
        command = f"isoloss traverse {called(results.folder, name)}"
        sentences.append(f"{name}: no walk yet, make one with '{command}'")
    if name in experiments.names() and not len(runs.decay):
        sentences.append(f"{name}: no weight decay yet, make it with 'isoloss decay'")
    return sentences


def _mean_of_decay(results: Results, runs: Runs) -> dict[str, Tensor]:
    """The mean end point of weight decay with the paper's penalty for its Fig. 7, by its label."""
    if not runs.methods or not len(runs.decay):
        return {}
    of_penalty = np.isclose(runs.decay["penalty"], MARKED_PENALTY, rtol=1e-9)
    chosen = np.flatnonzero(of_penalty & (runs.decay["status"] == "finished")).tolist()
    if not chosen:
        return {}
    mean = results.decay_points(runs.experiment, chosen).double().mean(dim=0)
    return {f"mean end of weight decay, penalty {MARKED_PENALTY:g}": mean}


def _lead(runs: Runs) -> str:
    """The first sentence of the chapter: what the experiment or the user's project is."""
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
