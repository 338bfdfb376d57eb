"""The tables of a report: walks' starts and ends, and the paper's Table 1, its flaws corrected."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import pandas as pd

from isoloss.arguments import check_columns, checked
from isoloss.errors import InputError
from isoloss.explore.front import Front
from isoloss.flat import Layout
from isoloss.path import Path
from isoloss.report.page import Table, count
from isoloss.report.statistics import Change, paired_change, summarize

Methods = Mapping[str, Sequence[Path]]  # the walks of each method, by its name

OF_WALK = {"regularizer": "R", "angle_degrees": "angle in degrees", "loss": "training loss"}
QUANTITIES = {
    "train_loss": "training loss",
    "test_loss": "test loss",
    "penalized_test_loss": "test loss with penalty",
    "test_metric": "test metric",
    "squared_norm": "squared norm",
    "squared_norm_weights": "squared norm without biases",
}
"""Columns of `Results.decay` that are compared, and what people read above them."""
DECAY = "weight decay"
FAIR = "weight decay, penalty chosen on held-out examples"


@dataclass(frozen=True)
class Runs:
    """What is in the results of an experiment, read once."""

    experiment: str
    metric: str  # name of what is measured beside the loss
    unit: str  # of the loss; empty where it is not known
    methods: dict[str, list[Path]]  # those with walks
    decay: pd.DataFrame
    equivalent: dict[str, pd.DataFrame]  # by the method
    after: dict[str, list[Path]]  # walks from weight decay's best networks, by the method
    # by the regularizer, then by the run
    fronts: dict[str, dict[str, Front]] = field(default_factory=dict[str, dict[str, Front]])


def on_level(path: Path) -> pd.DataFrame:
    """The rows of a walk that no corrector step follows; column `progress` counts the others."""
    if "progress" in path.steps:  # counted before rows were left out; -1 where one follows
        kept = path.steps["progress"].to_numpy() >= 0
        return path.steps if kept.all() else path.steps.loc[kept]
    check_columns("steps", path.steps, "step", "kind", "evaluations", "loss", "regularizer")
    kind = path.steps["kind"].to_numpy(dtype=str)
    kept = np.append(kind[1:] != "correct", [True])[: len(kind)]
    progress = np.cumsum((kind != "start") & (kind != "correct"))
    return path.steps.loc[kept].assign(progress=progress[kept])


def run_name(path: Path, k: int) -> str:
    """A run's name: its folder's, or its number k where it was not read from one."""
    folder = str(path.metadata.get("folder", ""))
    return folder.replace("\\", "/").rpartition("/")[2] or f"run-{k:03d}"


@checked
def walk_table(methods: Methods) -> pd.DataFrame:
    """Where walks start and end: mean and sample standard deviation over the runs.

    Args:
        methods: The walks of each method, by its name.

    Returns:
        A row per method, quantity and place (start, end), with columns `method`, `quantity`,
        `place`, `mean`, `std` (n - 1; NaN of one run) and `runs`. The end is the last point on the
        level set. Steps and evaluations have the place `end` alone.
    """
    rows: list[dict[str, object]] = []
    for method, paths in methods.items():
        ends = pd.DataFrame([on_level(path).ffill().iloc[-1] for path in paths])
        starts = pd.DataFrame([path.steps.iloc[0] for path in paths])
        for place, table in (("start", starts), ("end", ends)):
            extra = {"progress": "steps", "evaluations": "evaluations"} if place == "end" else {}
            for column, label in {**OF_WALK, **_probed(table), **extra}.items():
                if column in table:
                    values = table[column].astype(float)
                    row = {"mean": values.mean(), "std": values.std(ddof=1), "runs": len(paths)}
                    rows.append({"method": method, "quantity": label, "place": place, **row})
    return pd.DataFrame(rows)


def _probed(table: pd.DataFrame) -> dict[str, str]:
    """What was measured by probes, in the order of its columns: `test_loss` is the test loss."""
    names = [name for name in map(str, table.columns) if name.endswith(("_loss", "_metric"))]
    return {name: name.replace("_", " ") for name in names if bool(table[name].notna().any())}


@checked
def readable(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """A table of `walk_table` for people: a row per quantity and place, a column per method.

    Args:
        table: What `walk_table` returned.

    Returns:
        The headings, the first empty, and the rows; each entry is mean ± standard deviation.
    """
    check_columns("table", table, "method", "quantity", "place", "mean", "std", "runs")
    runs: dict[str, int] = table.groupby("method", sort=False)["runs"].first().to_dict()
    columns = ["", *(f"{method} ({count(of_method)})" for method, of_method in runs.items())]
    rows: list[list[str]] = []
    groups: Any = table.groupby(["quantity", "place"], sort=False)
    for (quantity, place), group in groups:
        entries = dict(zip(group["method"], map(_entry, group["mean"], group["std"]), strict=True))
        rows.append([f"{quantity}, {place}", *(entries.get(method, "") for method in runs)])
    return columns, rows


def ends_table(table: pd.DataFrame, title: str = "", caption: str = "") -> Table:
    """The table of `readable` for the page."""
    columns, rows = readable(table)
    return Table(title=title, columns=columns, rows=rows, caption=caption)


def _entry(mean: float, std: float) -> str:
    """Mean ± std, both to the last digit that the second figure of std holds."""
    if not math.isfinite(mean + std):
        return f"{mean:.4g}"
    if std <= 1e-12 * abs(mean):  # equal but for rounding
        return f"{mean:,.0f} ± 0" if mean == round(mean) else f"{mean:.4g} ± 0"
    digits = max(0, 1 - math.floor(math.log10(std)))
    return f"{mean:,.{digits}f} ± {std:,.{digits}f}"


def chosen_per_run(decay: pd.DataFrame) -> pd.DataFrame:
    """The row of each run whose penalty had the smallest loss on held-out training examples."""
    if "validation_loss" not in decay:
        return decay.iloc[:0]
    usable = decay[np.isfinite(decay["validation_loss"]) & np.isfinite(decay["train_loss"])]
    return usable.loc[usable.groupby("run")["validation_loss"].idxmin()]


@checked
def comparison_table(methods: Methods, decay: pd.DataFrame) -> pd.DataFrame:
    """Every quantity of every group: mean, spread, interval over the runs.

    Args:
        methods: The walks of each method, by its name.
        decay: What `Results.decay` returned.

    Returns:
        A row for each group (`walk by METHOD`, weight decay, and weight decay with the penalty that
        each run chose on held-out examples), place (`start`, `end`, or empty), penalty (NaN of
        walks) and quantity, with columns `group`, `place`, `penalty`, `quantity`, `mean`, `std`,
        `low`, `high` (95 % bootstrap interval of the mean), `interval` (how it was made), `runs`,
        `lost` (networks left out as they became NaN or infinite), `best_on_test` (whether the mean
        test loss is the smallest of all penalties: a choice that looks at the test set) and
        `best_on_held_out` (likewise, by the mean loss on held-out training examples).
    """
    if len(decay):
        check_columns("decay", decay, "run", "penalty", "train_loss", "test_loss")
        extra = [name for name in (*QUANTITIES, "validation_loss") if name in decay]
        check_columns("decay", decay, *extra)
    on_test, held_out = (_best(decay, column) for column in ("test_loss", "validation_loss"))
    walks = [row for name, paths in methods.items() for path in paths for row in _ends(name, path)]
    tables = [pd.DataFrame(walks)]
    if len(decay):  # the runs of one group are those of one penalty, or each has chosen its own
        tables.append(decay.assign(group=DECAY, place=""))
        tables.append(chosen_per_run(decay).assign(group=FAIR, place="", penalty=math.nan))
    if not any(map(len, tables)):
        raise InputError("there is nothing to compare: no walk in methods, no network in decay")
    by = ["group", "place", "penalty"]
    filled = [table.dropna(axis=1, how="all") for table in tables if len(table)]
    whole = pd.concat(filled).reindex(columns=[*by, *QUANTITIES])
    groups: Any = whole.groupby(by, sort=False, dropna=False)
    rows: list[dict[str, object]] = []
    for (group, place, penalty), table in groups:
        for quantity in QUANTITIES:
            summary = summarize(table[quantity].to_numpy(dtype=float))
            row = {"group": group, "place": place, "penalty": penalty, "quantity": quantity}
            lost = 0 if group.startswith("walk") else len(table) - summary.runs
            chosen = {"best_on_test": penalty == on_test, "best_on_held_out": penalty == held_out}
            rows.append({**row, **asdict(summary), "lost": lost, **chosen})
    return pd.DataFrame(rows)


def changes_table(methods: Methods, decay: pd.DataFrame, metric: str) -> pd.DataFrame:
    """What a walk changes, paired over the runs: a row for each method, quantity and comparison."""
    fair = chosen_per_run(decay)
    rows: list[dict[str, object]] = []
    for method, paths in methods.items():
        for quantity in ("test_loss", "test_metric"):
            tables = [on_level(path).reindex(columns=[quantity]) for path in paths]
            measured = [table[quantity].dropna().to_numpy(dtype=float) for table in tables]
            walked = [values for values in measured if len(values)]
            if not walked:
                continue
            best_of = np.max if quantity == "test_metric" and metric == "accuracy" else np.min
            starts, ends = ([values[at] for values in walked] for at in (0, -1))
            best = [float(best_of(values)) for values in walked]
            pairs = {
                "start to end": (starts, ends),
                "start to best point, chosen on the test set": (starts, best),
            }
            if len(fair):
                known = dict(zip(fair["seed"], fair[quantity], strict=True))
                seeds = [_seed(p) for p, values in zip(paths, measured, strict=True) if len(values)]
                theirs = [float(known.get(seed, math.nan)) for seed in seeds]
                pairs["weight decay, chosen on held-out examples, to end"] = (theirs, ends)
            for comparison, (before, after) in pairs.items():
                row = {"group": f"walk by {method}", "comparison": comparison, "quantity": quantity}
                rows.append({**row, **asdict(paired_change(before, after))})
    columns = ["group", "comparison", "quantity", *(one.name for one in fields(Change))]
    return pd.DataFrame(rows, columns=columns)


def equivalent_penalty(path: Path) -> float:
    """The penalty of the weight decay that is stationary where a walk has converged."""
    return float(on_level(path)["equivalent_penalty"].iloc[-1])


def equivalent_table(methods: Methods, trained: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """A row for each run whose walk by the squared norm has weight decay with the penalty at which
    it ended: both minimize the objective loss + penalty * squared norm, biases included."""
    rows: list[dict[str, object]] = []
    for method, table in trained.items():
        paths = [path for path in methods.get(method, ()) if path.regularizer == "squared_norm"]
        walks = [on_level(path).rename(columns={"regularizer": "squared_norm"}) for path in paths]
        ends = {_seed(path): walk.iloc[-1] for path, walk in zip(paths, walks, strict=True)}
        for network in table.rename(columns={"train_loss": "loss"}).to_dict("records"):
            if network["seed"] not in ends:
                continue
            row: dict[str, Any] = {"method": method, "run": network["run"]}
            row |= {"seed": network["seed"], "penalty": float(network["penalty"])}
            for name in ("loss", "squared_norm", "test_loss", "test_metric"):
                row[f"walk_{name}"] = float(ends[network["seed"]].get(name, math.nan))
                row[f"decay_{name}"] = float(network[name])
            for who in ("walk", "decay"):
                norm = row["penalty"] * row[f"{who}_squared_norm"]
                row[f"{who}_objective"] = row[f"{who}_loss"] + norm
            rows.append(row)
    return pd.DataFrame(rows)


def _best(decay: pd.DataFrame, column: str) -> float:
    """The penalty with the smallest mean of a column; NaN where there is none."""
    table = decay.reindex(columns=["penalty", column]).astype(float)
    means: Any = table[np.isfinite(table[column])].groupby("penalty")[column].mean()
    return float(means.idxmin()) if len(means) else math.nan


def _ends(method: str, path: Path) -> list[dict[str, Any]]:
    """The networks at a walk's start and end, as those of weight decay are recorded."""
    rows = on_level(path)
    kept = {step: k for k, step in enumerate(path.point_steps)}
    found: list[dict[str, Any]] = []
    for place, at in (("start", 0), ("end", -1)):
        row: Any = rows.iloc[at]
        one = {"group": f"walk by {method}", "place": place, "train_loss": row["loss"]}
        one |= {name: row.get(name, math.nan) for name in ("test_loss", "test_metric")}
        if row["step"] in kept:
            pieces = Layout(path.shapes).named(path.points[kept[row["step"]]].double()).values()
            squares = [piece.square().sum().item() for piece in pieces]
            weights = [x for x, piece in zip(squares, pieces, strict=True) if piece.ndim > 1]
            one |= {"squared_norm": sum(squares), "squared_norm_weights": sum(weights)}
        found.append(one)
    return found


def _seed(path: Path) -> int | None:
    return path.metadata.get("config", {}).get("seed")
