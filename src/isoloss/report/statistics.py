"""Means over runs with bootstrap intervals, and paired changes with tests."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 9_999
FEW = 6
"""Below as many pairs the exact Wilcoxon test cannot come below p = 0.05, whatever the data."""


@dataclass(frozen=True)
class Summary:
    """A quantity over runs.

    Attributes:
        mean: Mean.
        std: Sample standard deviation (n - 1); NaN of one run.
        low: Lower end of the 95 % bootstrap interval of the mean; NaN of one run.
        high: Its upper end.
        interval: How the interval was made: `BCa`, `percentile` where that is degenerate, or `none`
            of fewer than two runs.
        runs: Number of runs, those left out that have no finite value.
    """

    mean: float
    std: float
    low: float
    high: float
    interval: str
    runs: int


def summarize(values: Sequence[float] | NDArray[np.float64]) -> Summary:
    """Mean, spread and interval of a quantity.

    The interval is the bias-corrected and accelerated bootstrap of Efron (1987) by scipy, from
    9,999 resamples of a fixed seed. It is degenerate where all values but one are equal, and the
    percentile bootstrap is taken there. From few runs either is too narrow.

    Args:
        values: One for each run; what is not finite is left out.

    Returns:
        The summary.
    """
    array = np.asarray(values, dtype=np.float64)
    finite = array[np.isfinite(array)]
    if len(finite) == 0:
        return Summary(np.nan, np.nan, np.nan, np.nan, "none", 0)
    mean = float(finite.mean())
    if len(finite) == 1:
        return Summary(mean, np.nan, np.nan, np.nan, "none", 1)
    std = float(finite.std(ddof=1))
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scipy warns where BCa is degenerate
            found: Any = stats.bootstrap(
                (finite,),
                np.mean,
                confidence_level=CONFIDENCE,
                n_resamples=RESAMPLES,
                method=method,
                rng=np.random.default_rng(0),
            ).confidence_interval
        if np.isfinite([found.low, found.high]).all():
            return Summary(mean, std, float(found.low), float(found.high), method, len(finite))
    return Summary(mean, std, np.nan, np.nan, "none", len(finite))


@dataclass(frozen=True)
class Change:
    """A change paired over runs.

    Attributes:
        change: Of what is after, less what was before.
        t_p: p of the paired t-test, two-sided; NaN of fewer than two pairs.
        wilcoxon_p: p of the Wilcoxon signed-rank test, two-sided, exact for few pairs without ties.
        note: What is to be said of the tests; empty where there is nothing.
    """

    change: Summary
    t_p: float
    wilcoxon_p: float
    note: str


def paired_change(
    before: Sequence[float] | NDArray[np.float64], after: Sequence[float] | NDArray[np.float64]
) -> Change:
    """How a quantity changed, run by run.

    Args:
        before: One for each run.
        after: Likewise, the same runs in the same order; pairs that are not finite are left out.

    Returns:
        The change.
    """
    difference = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    difference = difference[np.isfinite(difference)]
    change = summarize(difference)
    if len(difference) < 2:
        return Change(change, np.nan, np.nan, "one run: no test")
    notes: list[str] = []
    if np.all(difference == difference[0]):
        # the t-test has no spread to divide by
        t_p = 1.0 if difference[0] == 0 else np.nan
        notes.append("all runs change alike: no t-test")
    else:
        test: Any = stats.ttest_1samp(difference, 0.0)
        t_p = float(test.pvalue)
    if np.all(difference == 0):
        wilcoxon_p = 1.0
    else:
        tied = len(np.unique(np.abs(difference))) < len(difference) or bool((difference == 0).any())
        method = "approx" if tied else "exact"
        ranked: Any = stats.wilcoxon(difference, method=method)
        wilcoxon_p = float(ranked.pvalue)
    if len(difference) < FEW:
        least = 2.0 ** (1 - len(difference))
        notes.append(f"{len(difference)} runs: Wilcoxon's p cannot be below {least:.3g}")
    return Change(change, t_p, wilcoxon_p, "; ".join(notes))
