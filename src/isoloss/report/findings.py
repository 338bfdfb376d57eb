"""What was found, in sentences: the first thing that a chapter says."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from isoloss.path import Path
from isoloss.report.page import count, number
from isoloss.report.tables import Runs

MINUS = "\u2212"
CLEAR = 0.05  # p of the paired t-test from which on a change is told from none
CHANGED, BESIDE_DECAY = "start to end", "weight decay, chosen on held-out examples, to end"

Row = Mapping[Any, Any]


def findings(runs: Runs, walk: pd.DataFrame, changes: pd.DataFrame) -> list[str]:
    """What came out of the walks by each method, from what `walk_table` and `changes_table` say:
    how far the regularizer fell, and what became of the test loss and metric."""
    at: dict[Any, float] = walk.set_index(["method", "quantity", "place"])["mean"].to_dict()
    by: dict[Any, Row] = {
        (row["group"], row["comparison"], row["quantity"]): row
        for row in changes.to_dict("records")
    }
    found: list[str] = []
    for method, paths in runs.methods.items():
        group, names = f"walk by {method}", {path.regularizer.replace("_", " ") for path in paths}
        first, last = (at[method, "R", place] for place in ("start", "end"))
        fell = f" ({_signed(100 * (last / first - 1), 0)} %)" if first > 0 else ""
        text = (
            f"Walks by {method} ({_ended(paths)}) took the {' or '.join(sorted(names))} from "
            f"{number(first)} to {number(last)}{fell} at a training loss of "
            f"{number(at[method, 'training loss', 'end'])}."
        )
        tested: list[str] = []
        for quantity, name in (("test_loss", "loss"), ("test_metric", runs.metric)):
            row = by.get((group, CHANGED, quantity))
            if row is not None and not (quantity == "test_metric" and name == "mse"):
                start, end = (at[method, quantity.replace("_", " "), p] for p in ("start", "end"))
                went = f"went from {number(start)} to {number(end)} ({_change(row)})"
                still = row["mean"] == row["low"] == row["high"] == 0
                tested.append(f"test {name} {f'stayed at {number(end)}' if still else went}")
        text += f" The {'; the '.join(tested)}." if tested else ""
        row = by.get((group, BESIDE_DECAY, "test_loss"))
        if row is not None and math.isfinite(row["mean"]):
            text += (
                f" Beside weight decay with a penalty chosen on held-out examples, which ends at "
                f"training losses of its own, the test loss at their end differs by {_change(row)}."
            )
        found.append(text)
    return found


def _ended(paths: Sequence[Path]) -> str:
    """How many runs there are, and how they ended."""
    endings = Counter(path.outcome.value.replace("_", " ") for path in paths)
    words = [f"{k} {ending}" for ending, k in endings.most_common()]
    return f"{count(len(paths))}, {', '.join([*endings] if len(endings) == 1 else words)}"


def _change(row: Row) -> str:
    """A paired change, its interval and test, and whether these tell it from none."""
    mean, low, high, p = (float(row[name]) for name in ("mean", "low", "high", "t_p"))
    largest = max((abs(x) for x in (mean, low, high) if math.isfinite(x)), default=0) or 1
    digits = max(0, 1 - math.floor(math.log10(largest)))
    if math.isnan(low):
        return f"{_signed(mean, digits)} in {count(row['runs'])}"
    change, runs = _signed(mean, digits), count(row["runs"])
    interval = f"{_signed(low, digits)} to {_signed(high, digits)}"
    test = "" if math.isnan(p) else f"paired t-test p\u00a0=\u00a0{p:.2g}"
    if low <= 0 <= high or not p >= CLEAR:
        text = f"{change}, 95 % interval {interval}" + (f", {test}" if test else "")
        return f"{text}: no clear difference in {runs}" if low <= 0 <= high else text
    return (
        f"{change}: no clear difference in {runs}, {test}; the 95 % interval, {interval}, leaves "
        f"out 0, but bootstrap intervals from few runs are too narrow"
    )


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", MINUS)
