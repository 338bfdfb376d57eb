"""Tables of numbers over runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from isoloss.path import Path
from isoloss.report.curves import on_level

QUANTITIES = {
    "regularizer": "R",
    "angle_degrees": "angle in degrees",
    "loss": "training loss",
}


def walk_table(methods: Mapping[str, Sequence[Path]]) -> pd.DataFrame:
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
                    rows.append(
                        {
                            "method": method,
                            "quantity": label,
                            "place": place,
                            "mean": values.mean(),
                            "std": values.std(ddof=1),
                            "runs": len(paths),
                        }
                    )
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
    methods = list(dict.fromkeys(table["method"]))
    runs = {method: int(table.loc[table["method"] == method, "runs"].iloc[0]) for method in methods}
    columns = ["", *(f"{method} ({_plural(runs[method])})" for method in methods)]
    entries = {
        (row["quantity"], row["place"], row["method"]): _entry(row["mean"], row["std"])
        for row in table.to_dict("records")
    }
    rows = [
        [f"{quantity}, {place}", *(entries.get((quantity, place, m), "") for m in methods)]
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
    columns, rows = readable(table)
    lines = [
        f"| {' | '.join(columns)} |".replace("|  |", "| |"),
        "| --- |" + " ---: |" * (len(columns) - 1),
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def _entry(mean: float, std: float) -> str:
    """Mean ± std, both to the last digit that the second figure of std holds."""
    if std != std:
        return f"{mean:.4g}"
    if std <= 1e-12 * abs(mean):  # equal but for rounding
        return f"{mean:,.0f} ± 0" if mean == round(mean) else f"{mean:.4g} ± 0"
    digits = max(0, 1 - math.floor(math.log10(std)))
    return f"{mean:,.{digits}f} ± {std:,.{digits}f}"


def _plural(runs: int) -> str:
    return "1 run" if runs == 1 else f"{runs} runs"
