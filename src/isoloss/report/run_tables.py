"""What was run and how each run came out, as tables of words and numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from isoloss.path import Path
from isoloss.report.curves import on_level

NOT_RECORDED = "not recorded"


def outcome_table(
    methods: Mapping[str, Sequence[Path]], unfinished: Mapping[str, Mapping[str, str]]
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
    rows: list[dict[str, Any]] = []
    for method in dict.fromkeys([*methods, *unfinished]):
        for k, path in enumerate(methods.get(method, ())):
            rows.append({"run": run_name(path, k), "method": method, **_walked(path)})
        for run, reason in unfinished.get(method, {}).items():
            ended = reason == "not finished"
            outcome = {"outcome": reason, "message": ""} if ended else _failed(reason)
            rows.append({"run": run, "method": method, **outcome})
    columns = ["run", "method", *_COLUMNS]
    table = pd.DataFrame(rows, columns=columns)
    return table.sort_values(["method", "run"], ignore_index=True)


def run_name(path: Path, k: int) -> str:
    """A run's name: its folder's, or its number k where it was not read from one."""
    folder = str(path.metadata.get("folder", ""))
    return folder.replace("\\", "/").rpartition("/")[2] or f"run-{k:03d}"


def settings_table(methods: Mapping[str, Sequence[Path]]) -> pd.DataFrame:
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


_COLUMNS = (
    "seed",
    "steps",
    "evaluations",
    "R_start",
    "R_end",
    "angle_degrees",
    "loss",
    "test_loss_start",
    "test_loss_end",
    "test_metric_end",
    "outcome",
    "message",
)


def _walked(path: Path) -> dict[str, Any]:
    rows = on_level(path)
    measured = {name: rows[name].dropna() for name in rows if name != "kind"}

    def value(column: str, at: int) -> Any:
        return measured[column].iloc[at] if len(measured.get(column, ())) else None

    return {
        "seed": path.metadata.get("config", {}).get("seed"),
        "steps": value("progress", -1),
        "evaluations": value("evaluations", -1),
        "R_start": value("regularizer", 0),
        "R_end": value("regularizer", -1),
        "angle_degrees": value("angle_degrees", -1),
        "loss": value("loss", -1),
        "test_loss_start": value("test_loss", 0),
        "test_loss_end": value("test_loss", -1),
        "test_metric_end": value("test_metric", -1),
        "outcome": path.outcome.value,
        "message": path.message,
    }


def _failed(reason: str) -> dict[str, Any]:
    return {"outcome": "failed", "message": reason}


def _settings(paths: Sequence[Path]) -> dict[str, str]:
    columns: dict[str, list[str]] = {}
    for path in paths:
        config = {k: v for k, v in path.metadata.get("config", {}).items() if k != "experiment"}
        for key, value in {**_flat(config), **_flat(path.metadata.get("made_with", {}))}.items():
            columns.setdefault(key, []).append("none" if value is None else str(value))
    if not columns:
        return {"seed": NOT_RECORDED}
    return {key: ", ".join(dict.fromkeys(values)) for key, values in columns.items()}


def _flat(content: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        name = f"{above} {key}".strip()
        flat |= _flat(value, name) if isinstance(value, Mapping) else {name: value}
    return flat
