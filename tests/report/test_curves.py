"""Curves, bands, intervals and paired tests, from numbers few enough to do by hand."""

import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from tests.report.made import made_path

from isoloss import Outcome, Path
from isoloss.report import band, curve, on_level
from isoloss.report.curves import paired_change, summarize


def walk(kinds, values, test=None):
    steps = pd.DataFrame(
        {
            "step": range(len(kinds)),
            "kind": kinds,
            "evaluations": range(1, len(kinds) + 1),
            "regularizer": values,
            "loss": 0.5,
            "test_loss": values if test is None else test,
        }
    )
    return Path(steps, torch.zeros(1, 1), [0], 0.5, Outcome.STEP_LIMIT, "", "paper", "squared_norm")


def plain(*values):
    return walk(["start"] + ["predict"] * (len(values) - 1), list(values))


def test_rows_that_a_correction_follows_are_left_out():
    path = walk(["start", "predict", "correct", "correct", "predict"], [9.0, 8.0, 7.0, 6.0, 5.0])
    rows = on_level(path)
    assert rows["progress"].tolist() == [0, 1, 2]
    assert rows["regularizer"].tolist() == [9.0, 6.0, 5.0]


def test_mean_and_sample_standard_deviation_by_hand():
    curve = band([plain(1.0, 3.0), plain(3.0, 7.0)], "regularizer")
    assert curve.x.tolist() == [0, 1]
    assert curve.mean.tolist() == [2.0, 5.0]
    assert curve.std.tolist() == pytest.approx([2**0.5, 8**0.5])
    assert curve.beyond == []


def test_the_mean_ends_with_the_shortest_run_and_the_others_go_on_alone():
    curve = band([plain(1.0, 2.0), plain(1.0, 4.0, 5.0, 6.0)], "regularizer")
    assert curve.x.tolist() == [0, 1]
    assert curve.mean.tolist() == [1.0, 3.0]
    ((steps, values),) = curve.beyond
    assert steps.tolist() == [1, 2, 3]
    assert values.tolist() == [4.0, 5.0, 6.0]


def test_one_run_has_no_standard_deviation():
    assert np.isnan(band([plain(1.0, 2.0)], "regularizer").std).all()


def test_values_not_measured_are_left_out():
    path = walk(["start", "predict", "predict"], [1.0, 2.0, 3.0], [5.0, np.nan, 7.0])
    curve = band([path, path], "test_loss")
    assert curve.x.tolist() == [0, 2]
    assert curve.mean.tolist() == [5.0, 7.0]


def costly(values, evaluations, arcs, test=None):
    path = walk(["start"] + ["sqp"] * (len(values) - 1), list(values), test)
    return dataclasses.replace(
        path, steps=path.steps.assign(evaluations=evaluations, arc_length=arcs)
    )


def test_against_evaluations_runs_are_interpolated_where_all_are():
    a = costly([9.0, 5.0, 1.0], [1, 3, 5], [0.0, 1.0, 2.0])
    b = costly([8.0, 4.0], [1, 4], [0.0, 3.0])
    curve = band([a, b], "regularizer", "evaluations")
    assert curve.x.tolist() == [1, 3, 4]
    assert curve.mean.tolist() == pytest.approx([8.5, (5 + 8 - 4 * 2 / 3) / 2, (3 + 4) / 2])
    assert curve.std[0] == pytest.approx(0.5**0.5)
    ((x, y),) = curve.beyond
    assert x.tolist() == [4, 5]
    assert y.tolist() == [3, 1]


def test_against_the_arc_length_steps_of_no_length_count_once():
    path = costly([9.0, 5.0, 4.0, 1.0], [1, 2, 3, 4], [0.0, 1.0, 1.0, 2.0])
    assert band([path], "regularizer", "arc_length").x.tolist() == [0, 1, 2]


def test_against_the_regularizer_only_new_lows_are_taken():
    path = costly([9.0, 5.0, 6.0, 5.0, 1.0], range(5), range(5), [0.1, 0.2, 0.3, 0.4, 0.5])
    x, y = curve(path, "test_loss", "regularizer")
    assert x.tolist() == [1, 5, 9]
    assert y.tolist() == [0.5, 0.2, 0.1]


def test_runs_that_never_meet_have_no_mean_but_are_shown():
    a, b = (costly(v, [1, 2], [0.0, 1.0]) for v in ([9.0, 8.0], [5.0, 4.0]))
    curve = band([a, b], "evaluations", "regularizer")
    assert len(curve.mean) == 0
    assert sorted(x.tolist() for x, _ in curve.beyond) == [[4, 5], [8, 9]]


@pytest.mark.parametrize("against", ["step", "evaluations"])
def test_a_thinned_band_is_the_band_at_some_of_its_points(against):
    paths = [made_path(400, seed) for seed in (0, 1)]
    whole = band(paths, "test_loss", against)
    some = band(paths, "test_loss", against, at_most=50)
    assert 40 < len(some.x) <= 51
    assert (some.x[0], some.x[-1]) == (whole.x[0], whole.x[-1])
    there = np.isin(whole.x, some.x)
    np.testing.assert_array_equal(some.mean, whole.mean[there])
    np.testing.assert_array_equal(some.std, whole.std[there])


def test_unknown_columns_and_abscissae_are_refused(refuses):
    with refuses("evaluation", "evaluations"):
        band([plain(1.0)], "loss", "evaluation")
    with refuses("tost_loss", "test_loss"):
        band([plain(1.0)], "tost_loss")


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
    assert change.mean == pytest.approx(difference.mean())
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
    assert (none.t_p, none.wilcoxon_p, none.mean) == (1.0, 1.0, 0.0)
    alike = paired_change([1.0, 2.0, 3.0], [2.0, 3.0, 4.0])
    assert np.isnan(alike.t_p)
    assert "alike" in alike.note
    rounded = paired_change([1.0, 2.0, 3.0], [1.1, 2.1, 3.1])
    assert np.isnan(rounded.t_p)
    assert "alike" in rounded.note
    one = paired_change([1.0], [2.0])
    assert (one.mean, one.note) == (1.0, "one run: no test")
    assert np.isnan(one.t_p)


def test_pairs_without_both_values_are_left_out():
    change = paired_change([1.0, np.nan, 3.0, 4.0], [2.0, 5.0, np.inf, 6.0])
    assert (change.runs, change.mean) == (2, 1.5)
