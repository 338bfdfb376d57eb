"""The PCA against scikit-learn's, which holds everything in memory and uses an SVD."""

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import decomposition
from sklearn.preprocessing import StandardScaler

from isoloss.report import components, pca


def runs(*lengths, n=40, seed=0, dtype=torch.float32):
    """Random walks away from common ground, with coordinates of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.logspace(-2, 2, n)
    steps = [torch.randn(length, n, generator=generator) for length in lengths]
    return [((3 + step.cumsum(0)) * sizes).to(dtype) for step in steps]


def sklearn_of(points, scaled, components):
    whole = torch.cat(points).double().numpy()
    scaler = StandardScaler(with_std=scaled).fit(whole)
    fitted = decomposition.PCA(components, svd_solver="full").fit(scaler.transform(whole))
    return scaler, fitted, fitted.transform(scaler.transform(whole))


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_scikit_learns(scaled, dtype, monkeypatch):
    monkeypatch.setattr(
        components, "BLOCK_BYTES", 8 * 30 * 7
    )  # blocks of 7 coordinates, a last of 5
    points = runs(12, 18, dtype=dtype)
    ours = pca(points, scaled=scaled, components=6)
    scaler, theirs, scores = sklearn_of(points, scaled, 6)
    np.testing.assert_allclose(ours.explained_variance, theirs.explained_variance_, rtol=1e-9)
    np.testing.assert_allclose(
        ours.explained_variance_ratio, theirs.explained_variance_ratio_, rtol=1e-9
    )
    signs = np.sign((ours.components * theirs.components_).sum(axis=1))
    np.testing.assert_allclose(ours.components, theirs.components_ * signs[:, None], atol=1e-7)
    np.testing.assert_allclose(ours.scores, scores * signs, atol=1e-7 * np.abs(scores).max())
    np.testing.assert_allclose(ours.mean, scaler.mean_, rtol=1e-12)
    others = runs(3, seed=9)[0]
    expected = theirs.transform(scaler.transform(others.double().numpy())) * signs
    np.testing.assert_allclose(ours.transform(others), expected, atol=1e-6 * np.abs(expected).max())
    assert [len(run) for run in ours.runs] == [12, 18]


def test_many_points_have_the_same_components_as_few_would():
    points = runs(300, 320, n=30)
    ours, (_, theirs, scores) = pca(points, components=4), sklearn_of(points, True, 4)
    np.testing.assert_allclose(ours.explained_variance, theirs.explained_variance_, rtol=1e-9)
    signs = np.sign((ours.components * theirs.components_).sum(axis=1))
    np.testing.assert_allclose(ours.scores, scores * signs, atol=1e-7 * np.abs(scores).max())
    np.testing.assert_array_equal(ours.scores, pca(points, components=4).scores)
    line = torch.arange(700.0)[:, None] * torch.tensor([3.0, 0.0, 4.0])
    assert pca([line]).scores.shape == (700, 1)


def test_more_points_than_parameters_and_components_than_there_are():
    points = runs(30, 30, n=4)
    ours = pca(points, components=10)
    assert ours.scores.shape == (60, 4)
    assert ours.explained_variance_ratio.sum() == pytest.approx(1)
    _, theirs, _ = sklearn_of(points, True, 4)
    np.testing.assert_allclose(ours.explained_variance, theirs.explained_variance_, rtol=1e-9)


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


def test_the_largest_score_of_each_component_is_positive():
    scores = pca(runs(12, 18)).scores
    assert (scores[np.abs(scores).argmax(axis=0), range(scores.shape[1])] > 0).all()


def test_memory_does_not_hold_the_points_in_double_precision(monkeypatch):
    monkeypatch.setattr(components, "BLOCK_BYTES", 2**20)
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


def test_other_points_of_another_size_are_refused(refuses):
    with refuses("40 parameters", "(2, 3)"):
        pca(runs(5)).transform(torch.zeros(2, 3))
