"""Intervals and paired tests against their definitions."""

import itertools

import numpy as np
import pytest
from scipy import stats

from isoloss.report.statistics import paired_change, summarize


def test_mean_spread_and_number_of_finite_runs():
    summary = summarize([1.0, 2.0, np.nan, 6.0, np.inf])
    assert (summary.mean, summary.runs, summary.interval) == (3.0, 3, "BCa")
    assert summary.std == pytest.approx(np.std([1, 2, 6], ddof=1))
    assert 1 <= summary.low < 3 < summary.high <= 6


def test_the_interval_covers_the_mean_as_often_as_it_says():
    generator = np.random.default_rng(1)
    samples = generator.normal(5, 2, size=(200, 30))
    found = [summarize(sample) for sample in samples]
    covered = np.mean([s.low <= 5 <= s.high for s in found])
    assert 0.90 <= covered <= 0.985
    widths = np.array([s.high - s.low for s in found])
    by_student = 2 * stats.t.ppf(0.975, 29) * samples.std(axis=1, ddof=1) / np.sqrt(30)
    assert np.median(widths / by_student) == pytest.approx(1, abs=0.1)


def test_intervals_are_the_same_every_time():
    assert summarize([1.0, 2.0, 6.0]) == summarize([1.0, 2.0, 6.0])


@pytest.mark.parametrize(
    ("values", "runs", "interval"),
    [([], 0, "none"), ([np.nan], 0, "none"), ([3.0], 1, "none"), ([3.0, 3.0], 2, "percentile")],
)
def test_few_and_equal_runs(values, runs, interval):
    summary = summarize(values)
    assert (summary.runs, summary.interval) == (runs, interval)
    if interval == "percentile":
        assert (summary.low, summary.high, summary.std) == (3, 3, 0)


def test_paired_tests_by_enumeration():
    before = np.array([5.0, 3.0, 8.0, 1.0, 9.0, 4.0, 7.0])
    after = before - np.array([1.0, -0.5, 2.0, 0.25, 1.5, 3.0, 0.75])
    change = paired_change(before, after)
    difference = after - before
    assert change.change.mean == pytest.approx(difference.mean())
    t = difference.mean() / (difference.std(ddof=1) / np.sqrt(7))
    assert change.t_p == pytest.approx(2 * stats.t.sf(abs(t), 6))
    ranks = stats.rankdata(abs(difference))
    observed = ranks[difference > 0].sum()
    sums = [ranks[np.array(signs)].sum() for signs in itertools.product([False, True], repeat=7)]
    one_sided = np.mean([s <= observed for s in sums])
    assert change.wilcoxon_p == pytest.approx(2 * one_sided)
    assert change.note == ""


def test_few_runs_are_said_with_what_the_test_can_reach():
    change = paired_change([1.0, 2.0, 3.0, 4.0, 5.0], [0.0, 0.5, 0.75, 1.5, 2.0])
    assert change.wilcoxon_p == pytest.approx(0.0625)
    assert change.note == "5 runs: Wilcoxon's p cannot be below 0.0625"


def test_no_change_and_equal_changes_and_one_run():
    none = paired_change([1.0, 2.0], [1.0, 2.0])
    assert (none.t_p, none.wilcoxon_p, none.change.mean) == (1.0, 1.0, 0.0)
    alike = paired_change([1.0, 2.0, 3.0], [2.0, 3.0, 4.0])
    assert np.isnan(alike.t_p)
    assert "alike" in alike.note
    one = paired_change([1.0], [2.0])
    assert (one.change.mean, one.note) == (1.0, "one run: no test")
    assert np.isnan(one.t_p)


def test_pairs_without_both_values_are_left_out():
    change = paired_change([1.0, np.nan, 3.0, 4.0], [2.0, 5.0, np.inf, 6.0])
    assert (change.change.runs, change.change.mean) == (2, 1.5)
