"""The tables of a comparison for people, in Markdown and LaTeX."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from isoloss.report.comparison_tables import DECAY, QUANTITIES

HEADINGS = ("network", *QUANTITIES.values(), "runs")
NOTES = (
    "Mean ± standard deviation over the runs; below, the 95 % bootstrap interval of the mean.",
    "(t) the penalty with the smallest mean test loss: a choice that looks at the test set.",
    "(v) the penalty with the smallest mean loss on examples held out of the training draw.",
)

_BOTH = {"walk": "walk", "decay": "weight decay"}


def cells(table: pd.DataFrame) -> list[list[tuple[str, str]]]:
    """The table of `comparison_table` for people: a row for each network.

    Args:
        table: What `comparison_table` returned.

    Returns:
        For each network its name, its quantities and the number of runs; each entry is the figure
        and, where there is one, its interval.
    """
    found: list[list[tuple[str, str]]] = []
    groups: Any = table.groupby(["group", "place", "penalty"], sort=False, dropna=False)
    for (group, place, penalty), rows in groups:
        by: Any = rows.set_index("quantity")
        row = by.iloc[0]
        marks = (
            f"{' (t)' if row['best_on_test'] else ''}{' (v)' if row['best_on_held_out'] else ''}"
        )
        name = f"{DECAY}, {penalty:g}{marks}" if group == DECAY else group
        name = f"{name}, {place}" if place else name
        entries = [(name, "")]
        for quantity in QUANTITIES:
            one = by.loc[quantity]
            entries.append(figure(one["mean"], one["std"], one["low"], one["high"]))
        runs, lost = (f"{int(by.loc['test_loss', name])}" for name in ("runs", "lost"))
        entries.append((runs if lost == "0" else f"{runs}, {lost} lost", ""))
        found.append(entries)
    return found


def figure(mean: float, std: float, low: float, high: float) -> tuple[str, str]:
    """A mean with its spread, and its interval, each to the digits that the spread leaves.

    Args:
        mean: Mean.
        std: Standard deviation; NaN of one run.
        low: Lower end of the interval; NaN where there is none.
        high: Upper end.

    Returns:
        Two texts; the second is empty where there is no interval.
    """
    if math.isnan(mean):
        return "", ""
    if math.isnan(std):
        return f"{mean:.4g}", ""
    if abs(mean) >= 1e5 or (std and abs(mean) < 1e-3):
        return f"{mean:.3g} ± {std:.2g}", f"{low:.3g} to {high:.3g}"
    digits = 4
    if mean:  # five figures of the mean at most
        digits = max(0, digits - math.floor(math.log10(abs(mean))))
    if std > 1e-12 * abs(mean):
        digits = min(digits, max(0, 1 - math.floor(math.log10(std))))
    spread = f"{std:.{digits}f}"
    return (
        f"{mean:.{digits}f} ± {spread if float(spread) else f'{std:.1g}'}",
        "" if math.isnan(low) else f"{low:.{digits}f} to {high:.{digits}f}",
    )


def to_markdown(table: pd.DataFrame) -> str:
    """The table of `comparison_table` as Markdown."""
    lines = [_line(HEADINGS), "| --- |" + " ---: |" * (len(HEADINGS) - 1)]
    lines += [_line([f"{a}<br>{b}" if b else a for a, b in row]) for row in cells(table)]
    return "\n".join(lines) + "\n\n" + "\n".join(f"{note}  " for note in NOTES) + "\n"


def changes_to_markdown(table: pd.DataFrame) -> str:
    """The table of `changes_table` as Markdown."""
    headings = (
        "walk",
        "change of",
        "from",
        "mean change",
        "t-test p",
        "Wilcoxon p",
        "runs",
        "note",
    )
    lines = [_line(headings), "| --- | --- | --- | ---: | ---: | ---: | ---: | --- |"]
    for row in table.to_dict("records"):
        text, interval = figure(row["mean"], row["std"], row["low"], row["high"])
        entries = (
            row["group"],
            QUANTITIES[row["quantity"]],
            row["comparison"],
            f"{text}<br>{interval}" if interval else text,
            _p(row["t_p"]),
            _p(row["wilcoxon_p"]),
            str(row["runs"]),
            row["note"],
        )
        lines.append(_line(entries))
    return "\n".join(lines) + "\n"


def equivalent_to_markdown(table: pd.DataFrame) -> str:
    """The table of `equivalent_table` as Markdown, the walk and weight decay side by side."""
    quantities = ("loss", "squared_norm", "objective", "test_loss", "test_metric")
    headings = [f"{name.replace('_', ' ')}: {who}" for name in quantities for who in _BOTH.values()]
    lines = [_line(("method", "seed", "penalty", *headings)), "| --- |" + " ---: |" * 12]
    for row in table.to_dict("records"):
        figures = [f"{row[f'{who}_{name}']:.4g}" for name in quantities for who in _BOTH]
        lines.append(_line((row["method"], str(row["seed"]), f"{row['penalty']:.3g}", *figures)))
    return "\n".join(lines) + "\n"


def to_latex(table: pd.DataFrame) -> str:
    """The table of `comparison_table` as a LaTeX `tabular` with rules of `booktabs`."""
    lines = [
        "% needs \\usepackage{booktabs}",
        f"\\begin{{tabular}}{{l{'r' * (len(HEADINGS) - 1)}}}",
        "\\toprule",
        " & ".join(HEADINGS) + r" \\",
        "\\midrule",
    ]
    for row in cells(table):
        lines.append(" & ".join(_latex(text) for text, _ in row) + r" \\")
        if any(interval for _, interval in row):
            intervals = [f"\\scriptsize {_latex(low)}" if low else "" for _, low in row]
            lines.append(" & ".join(intervals) + r" \\[2pt]")
    lines += ["\\bottomrule", "\\end{tabular}"]
    lines += [f"% {_latex(note)}" for note in NOTES]
    return "\n".join(lines) + "\n"


def _latex(text: str) -> str:
    return text.replace("%", r"\%").replace("±", r"$\pm$").replace("_", r"\_")


def _line(entries: Sequence[str]) -> str:
    return f"| {' | '.join(entries)} |"


def _p(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2g}"
