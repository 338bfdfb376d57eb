"""Intervals and paired tests by hand; the PCA against scikit-learn's, an SVD in memory."""

import itertools
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn import decomposition
from sklearn.preprocessing import StandardScaler

from isoloss.report import pca, statistics
from isoloss.report.statistics import paired_change, summarize


def test_mean_spread_and_number_of_finite_runs():
    summary = summarize([1.0, 2.0, np.nan, 6.0, np.inf])
    assert (summary.mean, summary.runs, summary.interval) == (3.0, 3, "BCa")
    assert summary.std == pytest.approx(np.std([1, 2, 6], ddof=1))
    assert 1 <= summary.low < 3 < summary.high <= 6
    assert summary == summarize([1.0, 2.0, 6.0])  # the same resamples every time


def test_the_interval_covers_the_mean_as_often_as_it_says():
    generator = np.random.default_rng(1)
    samples = generator.normal(5, 2, size=(200, 30))
    found = [summarize(sample) for sample in samples]
    covered = np.mean([s.low <= 5 <= s.high for s in found])
    assert 0.90 <= covered <= 0.985
    widths = np.array([s.high - s.low for s in found])
    by_student = 2 * stats.t.ppf(0.975, 29) * samples.std(axis=1, ddof=1) / np.sqrt(30)
    assert np.median(widths / by_student) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    ("values", "runs", "interval"),
    [([np.nan], 0, "none"), ([3.0], 1, "none"), ([3.0, 3.0], 2, "percentile")],
)
def test_few_and_equal_runs(values, runs, interval):
    found = summarize(values)
    assert (found.runs, found.interval) == (runs, interval)
    if interval == "percentile":
        assert (found.low, found.high, found.std) == (3, 3, 0)


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


@pytest.mark.parametrize(
    ("before", "after", "runs", "mean", "t_p", "wilcoxon_p", "note"),
    [
        ([1, 2, 3, 4, 5], [0, 0.5, 0.75, 1.5, 2], 5, -2.05, ..., 0.0625, "5 runs: Wilcoxon's p "),
        ([1, 2], [1, 2], 2, 0, 1, 1, "alike"),
        ([1, 2, 3], [2, 3, 4], 3, 1, np.nan, ..., "alike"),
        ([1.0, 2.0, 3.0], [1.1, 2.1, 3.1], 3, 0.1, np.nan, ..., "alike"),  # but for rounding
        ([1], [2], 1, 1, np.nan, np.nan, "one run: no test"),
        ([1, np.nan, 3, 4], [2, 5, np.inf, 6], 2, 1.5, ..., ..., "2 runs"),
    ],
)
def test_few_equal_and_missing_changes(before, after, runs, mean, t_p, wilcoxon_p, note):
    change = paired_change(before, after)
    assert (change.runs, change.mean) == (runs, pytest.approx(mean))
    assert note in change.note
    for found, expected in ((change.t_p, t_p), (change.wilcoxon_p, wilcoxon_p)):
        if expected is not ...:
            assert found == pytest.approx(expected, nan_ok=True)


def runs(*lengths, n=40, seed=0, dtype=torch.float32):
    """Random walks away from common ground, with coordinates of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.logspace(-2, 2, n)
    steps = [torch.randn(length, n, generator=generator) for length in lengths]
    return [((3 + step.cumsum(0)) * sizes).to(dtype) for step in steps]


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize(
    ("lengths", "n", "components", "dtype"),
    [
        ((12, 18), 40, 6, torch.float32),
        ((12, 18), 40, 6, torch.float64),
        ((30, 30), 4, 4, torch.float32),  # more points than parameters
        ((300, 320), 30, 4, torch.float32),  # so many that only the largest are computed
    ],
)
def test_it_is_scikit_learns(lengths, n, components, dtype, scaled, monkeypatch):
    monkeypatch.setattr(statistics, "BLOCK_BYTES", 8 * 30 * 7)  # blocks of 7 coordinates, one of 5
    points = runs(*lengths, n=n, dtype=dtype)
    ours = pca(points, scaled=scaled, components=components)
    whole = torch.cat(points).double().numpy()
    scaler = StandardScaler(with_std=scaled).fit(whole)
    theirs = decomposition.PCA(components, svd_solver="full").fit(scaler.transform(whole))
    scores = theirs.transform(scaler.transform(whole))
    variances = theirs.explained_variance_, theirs.explained_variance_ratio_
    for found, expected in zip(
        (ours.explained_variance, ours.explained_variance_ratio), variances, strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-15 * expected[0])
    signs = np.sign((ours.components * theirs.components_).sum(axis=1))
    np.testing.assert_allclose(ours.components, theirs.components_ * signs[:, None], atol=1e-7)
    np.testing.assert_allclose(ours.scores, scores * signs, atol=1e-7 * np.abs(scores).max())
    np.testing.assert_allclose(ours.mean, scaler.mean_, rtol=1e-12)
    others = runs(3, n=n, seed=9)[0]
    expected = theirs.transform(scaler.transform(others.double().numpy())) * signs
    np.testing.assert_allclose(ours.transform(others), expected, atol=1e-6 * np.abs(expected).max())
    assert [len(run) for run in ours.runs] == list(lengths)
    largest = np.abs(ours.scores).argmax(axis=0)
    assert (ours.scores[largest, range(components)] > 0).all()
    again = pca(points, scaled=scaled, components=components)
    np.testing.assert_array_equal(ours.scores, again.scores)


def test_it_is_shown_in_one_line() -> None:
    found = pca([torch.eye(4, dtype=torch.float64)[:2], torch.zeros(1, 4)], scaled=False)
    assert repr(found) == (
        "PCA(2 runs, 3 points, 4 parameters, 2 components with 100.0% of the variance)"
    )


def test_there_are_no_more_components_than_the_points_span():
    assert pca(runs(30, 30, n=4), components=10).scores.shape == (60, 4)
    line = torch.arange(700.0)[:, None] * torch.tensor([3.0, 0.0, 4.0])
    assert pca([line]).scores.shape == (700, 1)


def test_coordinates_that_never_change_stay_zero():
    points = runs(8, 8, n=6)
    for run in points:
        run[:, 2] = 0.1  # no double: its mean over sixteen points need not be itself
    ours = pca(points)
    assert ours.scale[2] == 1
    assert np.abs(ours.components[:, 2]).max() == 0
    rest = [run[:, [0, 1, 3, 4, 5]] for run in points]
    np.testing.assert_allclose(ours.explained_variance, pca(rest).explained_variance, rtol=1e-9)


def test_points_on_a_line_have_one_component_that_holds_their_length():
    direction = torch.tensor([3.0, 0.0, 4.0, 0.0])
    line = torch.arange(5.0)[:, None] * direction
    ours = pca([line, line + 2 * direction], scaled=False)
    assert ours.scores.shape[1] == 1
    np.testing.assert_allclose(ours.lengths, [20, 20])
    np.testing.assert_allclose(ours.length_share(1, 3), [1, 1])
    np.testing.assert_allclose(np.abs(ours.components[0]), [0.6, 0, 0.8, 0], atol=1e-12)


def test_length_share_by_hand():
    square = torch.tensor([[0.0, 0.0], [4.0, 0.0], [4.0, 3.0], [0.0, 3.0]])  # sides 4, 3, 4
    ours = pca([square, torch.zeros(1, 2)], scaled=False)
    full, first = ours.length_share(1, 2), ours.length_share(1, 1)
    assert full[0] == pytest.approx(1)
    along = ours.components[0]  # lengths of the sides as seen along it
    assert first[0] == pytest.approx((8 * abs(along[0]) + 3 * abs(along[1])) / 11)
    assert np.isnan(full[1])  # one point has no length


@given(st.integers(0, 1000), st.booleans())
def test_turning_and_moving_unscaled_points_changes_nothing(seed, flip):
    points = runs(5, 6, n=9, seed=seed, dtype=torch.float64)
    turn = torch.linalg.qr(
        torch.randn(9, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    )[0]
    moved = [run @ turn * (-1 if flip else 1) + 7 for run in points]
    a, b = (pca(some, scaled=False, components=3) for some in (points, moved))
    np.testing.assert_allclose(a.scores, b.scores, atol=1e-6 * np.abs(a.scores).max())
    np.testing.assert_allclose(a.lengths, b.lengths, rtol=1e-9)


def test_memory_does_not_hold_the_points_in_double_precision(monkeypatch):
    monkeypatch.setattr(statistics, "BLOCK_BYTES", 2**20)
    points = runs(40, 40, n=100_000)  # 64 MB in double precision
    tracemalloc.start()
    pca(points, components=2)  # NumPy's arrays are traced; the components take 1.6 MB
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12e6


@pytest.mark.parametrize(
    ("points", "words"),
    [
        ([], ["points, parameters"]),
        ([torch.zeros(3)], ["points, parameters"]),
        ([torch.zeros(3, 2), torch.zeros(3, 4)], ["(3, 2)", "(3, 4)"]),
        ([torch.ones(3, 2)], ["two different points"]),
        ([torch.ones(1, 2)], ["two different points"]),
        ([torch.ones(0, 2)], ["two different points"]),
        ([torch.tensor([[1.0, 2.0], [torch.nan, 0.0]])], ["finite"]),
        ([torch.tensor([[1.0, 2.0], [torch.inf, 0.0]])], ["finite"]),
    ],
)
def test_bad_points_are_refused(points, words, refuses):
    with refuses(*words):
        pca(points)
    with refuses("40 parameters", "(2, 3)"):
        pca(runs(5)).transform(torch.zeros(2, 3))


def test_positions_are_shares_of_the_length_of_a_run_as_the_parameters_are():
    line = torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 5.0], [3.0, 5.0]])
    still = torch.ones(2, 2)
    for scaled in (True, False):
        found = pca([line, still, line[:2] * 7], scaled=scaled)
        np.testing.assert_allclose(found.positions, [0, 5 / 6, 1, 1, 0, 0, 0, 1])


def test_the_bootstrap_gives_the_same_interval_in_parts():
    values = np.random.default_rng(3).normal(size=300)
    found = summarize(values)  # in parts of 3,495 of its 9,999 resamples
    rng = np.random.default_rng(0)
    whole = stats.bootstrap((values,), np.mean, method="BCa", rng=rng).confidence_interval
    assert (found.low, found.high) == tuple(whole)
