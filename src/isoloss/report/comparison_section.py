"""The report's account of walks beside weight decay."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from isoloss.report.chapter import Picture, Section, Table
from isoloss.report.comparison_tables import QUANTITIES
from isoloss.report.comparison_text import HEADINGS, NOTES, cells, figure
from isoloss.report.walk_tables import readable

NONE = "-"
WHO = {"walk": "walk", "decay": "weight decay"}
READING = (
    "In the scatter, a walk is a curve from its hollow start to its full end, at one training "
    "loss; dots are networks trained with weight decay, colored by the penalty."
)


def comparison_section(
    compared: pd.DataFrame,
    changed: pd.DataFrame,
    decay: pd.DataFrame,
    equal: pd.DataFrame | None = None,
    after: pd.DataFrame | None = None,
) -> Section:
    """The section on weight decay.

    Args:
        compared: What `comparison_table` returned.
        changed: What `changes_table` returned.
        decay: What `Results.decay` returned.
        equal: What `equivalent_table` returned; None without `isoloss compare`.
        after: `walk_table` of walks from weight decay's best; None likewise.

    Returns:
        Tables, and figures where there is weight decay.
    """
    tables = [
        Table(
            title="Every network, mean over the runs",
            columns=["network", *HEADINGS[1:]],
            rows=[[f"{a} [{b}]" if b else a or NONE for a, b in row] for row in cells(compared)],
            caption=" ".join(NOTES).replace("below,", "in brackets,"),
            folded=len(decay) > 0,
        )
    ]
    if len(changed):
        tables.insert(0, _changes(changed))
    if equal is not None and len(equal):
        tables.append(_equal(equal))
    if after is not None:
        columns, rows = readable(after)
        tables.append(
            Table(title="What walks from weight decay's best gain", columns=columns, rows=rows)
        )
    if not len(decay):
        return Section(
            title="The walks beside weight decay",
            text=["There is no weight decay in these results yet, so walks stand alone here."],
            tables=tables,
        )
    return Section(
        title="The walks beside weight decay",
        text=[_ran(decay), READING],
        tables=tables,
        pictures=[
            Picture(
                file="comparison.png",
                title="At equal training loss, and at equal squared norm",
                alt="Test loss and metric of the walks, as curves, and of networks trained with "
                "weight decay, as dots, against training loss and against squared norm. "
                f"{_best(decay)}",
            ),
            Picture(
                file="decay.png",
                title="How weight decay got there",
                alt="Mean training loss, test loss, test metric and squared norm of weight decay "
                "against the epoch, a curve for each penalty.",
                folded=True,
            ),
        ],
    )


def _changes(changed: pd.DataFrame) -> Table:
    rows: list[list[str]] = []
    for row in changed.to_dict("records"):
        text, interval = figure(row["mean"], row["std"], row["low"], row["high"])
        rows.append(
            [
                f"{row['group']}: {QUANTITIES[row['quantity']]}",
                f"{text} [{interval}]" if interval else text or NONE,
                str(row["comparison"]),
                *(NONE if math.isnan(row[p]) else f"{row[p]:.2g}" for p in ("t_p", "wilcoxon_p")),
                str(row["runs"]),
                str(row["note"]),
            ]
        )
    return Table(
        title="What the walk changed, paired over the runs",
        columns=["change of", "mean change", "from", "t-test p", "Wilcoxon p", "runs", "note"],
        rows=rows,
        caption="Mean ± standard deviation of the change, 95 % bootstrap interval in brackets. The "
        "best point is chosen on the test set, so its change is too good.",
    )


def _equal(equal: pd.DataFrame) -> Table:
    quantities = ("loss", "squared_norm", "objective", "test_loss", "test_metric")
    heads = [f"{name.replace('_', ' ')}, {who}" for name in quantities for who in WHO.values()]
    return Table(
        title="Trained with the penalty at which each walk ended",
        columns=["walk", "penalty", *heads],
        rows=[
            [
                f"{row['method']}, seed {row['seed']}",
                f"{row['penalty']:.3g}",
                *(f"{row[f'{who}_{name}']:.4g}" for name in quantities for who in WHO),
            ]
            for row in equal.to_dict("records")
        ],
        caption="The objective is loss + penalty x squared norm, which both make small.",
    )


def _ran(decay: pd.DataFrame) -> str:
    penalties = [float(penalty) for penalty in np.unique(decay["penalty"])]
    listed = ", ".join(f"{penalty:g}" for penalty in penalties)
    lost = int(np.sum(decay["status"] != "finished"))
    ended = (
        f"{lost} of {len(decay)} networks became infinite or not a number and are counted as lost."
        if lost
        else f"All {len(decay)} networks stayed finite."
    )
    return (
        f"Weight decay from {len(np.unique(decay['run']))} random starts with penalties {listed}, "
        f"{int(np.max(decay['epoch']))} epochs. {ended}"
    )


def _best(decay: pd.DataFrame) -> str:
    groups: Any = decay.groupby("penalty")
    means: Any = groups["test_loss"].mean().dropna()
    if not len(means):
        return ""
    return (
        f"The smallest mean test loss of weight decay is {means.min():.4g}, at penalty "
        f"{means.idxmin():g}."
    )
