"""The report's account of the walks: what was run, how each came out, tables and curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from isoloss.path import Path
from isoloss.report.chapter import Picture, Section, Table
from isoloss.report.run_tables import outcome_table, settings_table
from isoloss.report.walk_tables import readable

AGAINST = {
    "step": ("walk", "Along the steps"),
    "evaluations": ("walk-evaluations", "Against what it cost"),
    "arc_length": ("walk-arc-length", "Against the length of the walk"),
    "regularizer": ("walk-regularizer", "At equal regularizer"),
}
"""File name and heading of the walk's panels, by what they are drawn against."""

CAPTIONS = {
    "step": "Steps of different methods are of different length and cost.",
    "evaluations": "An evaluation is one loss and gradient over the full training set.",
    "arc_length": "The sum of the Euclidean lengths of all steps, corrections included.",
    "regularizer": "Drawn this way methods can be compared: at each R, what each found "
    "there and what it had cost. Only points at which R is smaller than at all before.",
}


def walk_section(
    methods: Mapping[str, Sequence[Path]],
    unfinished: Mapping[str, Mapping[str, str]],
    table: pd.DataFrame,
    metric: str,
) -> list[Section]:
    """The sections on what was run and on the walks.

    Args:
        methods: The walks of each method, by its name; none empty.
        unfinished: Of each method, why runs have no walk.
        table: What `walk_table` returned.
        metric: Name of the test metric.

    Returns:
        Two sections.
    """
    columns, rows = readable(table)
    single = [name for name, paths in methods.items() if len(paths) == 1]
    caption = "Mean ± sample standard deviation over the runs."
    if single:
        caption += f" Of {' and '.join(single)} there is one run, so no standard deviation."
    outcomes = outcome_table(methods, unfinished)
    return [
        Section(
            title="What was run",
            tables=[
                _outcomes(outcomes, metric),
                _reasons(outcomes),
                _settings(settings_table(methods)),
            ],
        ),
        Section(
            title="The walks",
            tables=[Table(title="Start and end", columns=columns, rows=rows, caption=caption)],
            pictures=[
                Picture(
                    file=f"{file}.png",
                    title=title,
                    alt=f"Curves of the walks, {X[against]}. {_told(table)}",
                    caption=CAPTIONS[against],
                    folded=against == "arc_length",
                )
                for against, (file, title) in AGAINST.items()
            ],
        ),
    ]


NONE = "-"
X = {
    "step": "a column of panels for each method, against the step",
    "evaluations": "all methods together, against the number of evaluations",
    "arc_length": "all methods together, against the arc length",
    "regularizer": "all methods together, against the falling regularizer R",
}


def number(value: object) -> str:
    """A number for people, to four figures; a dash where there is none."""
    if value is None or pd.isna(value):  # type: ignore[arg-type]
        return NONE
    if isinstance(value, float) and not value.is_integer():
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return f"{int(value):,}" if isinstance(value, (int, float)) else str(value)


def _outcomes(table: pd.DataFrame, metric: str) -> Table:
    rows = [
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
        for row in table.to_dict("records")
    ]
    numbers = ["R", "angle (degrees)", "training loss", "test loss", f"test {metric}"]
    return Table(
        title="Every run and its outcome",
        columns=["run", "outcome", "seed", "steps", "evaluations", *numbers],
        rows=rows,
        caption="Angle, losses and metric at the end of the walk; arrows from start to end.",
    )


def _reasons(table: pd.DataFrame) -> Table:
    return Table(
        title="Why each run ended",
        columns=["run", "reason"],
        words=True,
        rows=[
            [f"{row['method']} {row['run']}", str(row["message"]) or str(row["outcome"])]
            for row in table.to_dict("records")
        ],
    )


def _settings(table: pd.DataFrame) -> Table:
    return Table(
        title="Settings, seeds and versions",
        columns=["setting", *(str(name) for name in table.columns)],
        rows=[
            [str(key), *map(str, row)]
            for key, row in zip(table.index, table.to_numpy(), strict=True)
        ],
        caption="rtol and the like hold for the methods that use them.",
        words=True,
        folded=True,
    )


def _from_to(start: object, end: object) -> str:
    return NONE if pd.isna(end) else f"{number(start)} → {number(end)}"  # type: ignore[arg-type]


def _told(table: pd.DataFrame) -> str:
    """What the curves tell, in numbers: where R and the test loss begin and end."""
    sentences: list[str] = []
    means = table.set_index(["method", "quantity", "place"])["mean"]
    for method in dict.fromkeys(table["method"]):
        for quantity in ("R", "test loss"):
            if (method, quantity, "end") in means.index:
                start, end = (means[method, quantity, place] for place in ("start", "end"))
                sentences.append(
                    f"By {method}, mean {quantity} goes from {number(start)} to {number(end)}."
                )
    return " ".join(sentences)
