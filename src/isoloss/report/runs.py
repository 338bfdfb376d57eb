"""What was run, with which settings, how each run came out, and where walks start and end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from isoloss.path import Path
from isoloss.report.curves import Methods, on_level
from isoloss.report.page import NONE, Section, Table, markdown_table, number
from isoloss.report.style import count

QUANTITIES = {"regularizer": "R", "angle_degrees": "angle in degrees", "loss": "training loss"}

VALUES = {
    "steps": ("progress", -1),
    "evaluations": ("evaluations", -1),
    "R_start": ("regularizer", 0),
    "R_end": ("regularizer", -1),
    "angle_degrees": ("angle_degrees", -1),
    "loss": ("loss", -1),
    "test_loss_start": ("test_loss", 0),
    "test_loss_end": ("test_loss", -1),
    "test_metric_end": ("test_metric", -1),
}
"""Which column of the steps each number comes from, and which of the values measured it is."""


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
            for column, label in {**QUANTITIES, **_probed(table), **extra}.items():
                if column in table:
                    values = table[column].astype(float)
                    row: dict[str, object] = {"method": method, "quantity": label, "place": place}
                    row |= {"mean": values.mean(), "std": values.std(ddof=1), "runs": len(paths)}
                    rows.append(row)
    return pd.DataFrame(rows)


def _probed(table: pd.DataFrame) -> dict[str, str]:
    """What was measured by probes, in the order of its columns: `test_loss` is the test loss."""
    names = [name for name in map(str, table.columns) if name.endswith(("_loss", "_metric"))]
    return {name: name.replace("_", " ") for name in names if bool(table[name].notna().any())}


def readable(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """A table of `walk_table` for people: a row per quantity and place, a column per method.

    Args:
        table: What `walk_table` returned.

    Returns:
        The headings, the first empty, and the rows; each entry is mean ± standard deviation.
    """
    runs: dict[str, int] = table.groupby("method", sort=False)["runs"].first().to_dict()
    columns = ["", *(f"{method} ({count(of_method)})" for method, of_method in runs.items())]
    entries = {
        (row["quantity"], row["place"], row["method"]): _entry(row["mean"], row["std"])
        for row in table.to_dict("records")
    }
    rows = [
        [f"{quantity}, {place}", *(entries.get((quantity, place, m), "") for m in runs)]
        for quantity, place in dict.fromkeys(zip(table["quantity"], table["place"], strict=True))
    ]
    return columns, rows


def markdown(table: pd.DataFrame) -> str:
    """The table of `readable` as Markdown.

    Args:
        table: What `walk_table` returned.

    Returns:
        Lines, each ended.
    """
    return markdown_table(*readable(table))


def _entry(mean: float, std: float) -> str:
    """Mean ± std, both to the last digit that the second figure of std holds."""
    if math.isnan(std):
        return f"{mean:.4g}"
    if std <= 1e-12 * abs(mean):  # equal but for rounding
        return f"{mean:,.0f} ± 0" if mean == round(mean) else f"{mean:.4g} ± 0"
    digits = max(0, 1 - math.floor(math.log10(std)))
    return f"{mean:,.{digits}f} ± {std:,.{digits}f}"


def outcome_table(
    methods: Methods, unfinished: Mapping[str, Mapping[str, str]] | None = None
) -> pd.DataFrame:
    """A row per run: where it started and ended, and why it ended.

    Args:
        methods: The walks of each method, by its name.
        unfinished: Of each method, why runs have no walk, by the name of their folder.

    Returns:
        Columns `run`, `method`, `seed`, `steps`, `evaluations`, `R_start`, `R_end`,
        `angle_degrees`, `loss`, `test_loss_start`, `test_loss_end`, `test_metric_end`, `outcome`,
        `message`; numbers are missing where there is no walk or they were not measured.
    """
    unfinished = unfinished or {}
    rows: list[dict[str, Any]] = []
    for method in dict.fromkeys([*methods, *unfinished]):
        for k, path in enumerate(methods.get(method, ())):
            rows.append({"run": run_name(path, k), "method": method, **_walked(path)})
        for run, reason in unfinished.get(method, {}).items():
            waits = reason == "not finished"
            outcome, message = (reason, "") if waits else ("failed", reason)
            rows.append({"run": run, "method": method, "outcome": outcome, "message": message})
    columns = ["run", "method", "seed", *VALUES, "outcome", "message"]
    return pd.DataFrame(rows, columns=columns).sort_values(["method", "run"], ignore_index=True)


def run_name(path: Path, k: int) -> str:
    """A run's name: its folder's, or its number k where it was not read from one."""
    folder = str(path.metadata.get("folder", ""))
    return folder.replace("\\", "/").rpartition("/")[2] or f"run-{k:03d}"


def settings_table(methods: Methods) -> pd.DataFrame:
    """How the walks of each method were made: seeds, settings, versions, hardware.

    Args:
        methods: The walks of each method, by its name.

    Returns:
        A row per setting, a column per method, of strings; a setting in which runs differ shows
        every value.
    """
    columns = {name: _settings(paths) for name, paths in methods.items()}
    keys = list(dict.fromkeys(key for column in columns.values() for key in column))
    return pd.DataFrame(
        {name: [column.get(key, "") for key in keys] for name, column in columns.items()},
        index=pd.Index(keys, name="setting"),
    )


def runs_section(
    methods: Methods, unfinished: Mapping[str, Mapping[str, str]], metric: str
) -> Section:
    """Outcomes, reasons and settings for the page."""
    outcomes = outcome_table(methods, unfinished).to_dict("records")
    numbers = ["R", "angle (degrees)", "training loss", "test loss", f"test {metric}"]
    shown = Table(
        title="Every run and its outcome",
        columns=["run", "outcome", "seed", "steps", "evaluations", *numbers],
        rows=[
            [
                f"{row['method']} {row['run']}",
                str(row["outcome"]).replace("_", " "),
                NONE if pd.isna(row["seed"]) else str(int(row["seed"])),
                *(number(row[name]) for name in ("steps", "evaluations")),
                _from_to(row["R_start"], row["R_end"]),
                *(number(row[name]) for name in ("angle_degrees", "loss")),
                _from_to(row["test_loss_start"], row["test_loss_end"]),
                number(row["test_metric_end"]),
            ]
            for row in outcomes
        ],
        caption="Angle, losses and metric at the end of the walk; arrows from start to end.",
    )
    reasons = Table(
        title="Why each run ended",
        columns=["run", "reason"],
        words=True,
        rows=[
            [f"{row['method']} {row['run']}", str(row["message"]) or str(row["outcome"])]
            for row in outcomes
        ],
    )
    settings = settings_table(methods).reset_index().astype(str)
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
