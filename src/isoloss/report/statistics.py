"""Statistics over runs, and the exact principal components of the points of walks."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse.linalg
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from isoloss.arguments import check_fields, checked, whole
from isoloss.errors import InputError

Array = NDArray[np.float64]

BLOCK_BYTES = 2**25  # of coordinates taken into double precision at a time
BATCH = 2**20  # values drawn at a time by the bootstrap


@dataclass(frozen=True)
class Summary:
    """A quantity over runs."""

    mean: float
    std: float  # of the sample (n - 1); NaN of one run
    low: float  # 95 % bootstrap interval of the mean, too narrow from few runs; NaN of one run
    high: float
    interval: str  # how it was made: BCa (Efron 1987), percentile where degenerate, or none
    runs: int  # without those that have no finite value


def summarize(values: Sequence[float] | Array) -> Summary:
    """Mean, spread and interval of a quantity, one value for each run."""
    array = np.asarray(values, dtype=np.float64)
    finite = array[np.isfinite(array)]
    runs = len(finite)
    if runs < 2:
        mean = float(finite[0]) if runs else np.nan
        return Summary(mean, np.nan, np.nan, np.nan, "none", runs)
    mean, std = float(finite.mean()), float(finite.std(ddof=1))
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # BCa is degenerate where all but one are equal
            rng = np.random.default_rng(0)
            found: Any = stats.bootstrap(
                (finite,), np.mean, method=method, rng=rng, batch=max(1, BATCH // runs)
            )
        low, high = map(float, found.confidence_interval)  # of 95 %
        if np.isfinite([low, high]).all():
            return Summary(mean, std, low, high, method, runs)
    return Summary(mean, std, np.nan, np.nan, "none", runs)


@dataclass(frozen=True)
class Change(Summary):
    """A change paired over runs: what is after minus what was before."""

    t_p: float  # paired t-test, two-sided; NaN of fewer than two pairs
    wilcoxon_p: float  # signed-rank test, two-sided, exact for few pairs without ties
    note: str  # caveats of the tests


def paired_change(before: Sequence[float] | Array, after: Sequence[float] | Array) -> Change:
    """How a quantity changed, run by run; pairs that are not finite are left out."""
    difference = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    difference = difference[np.isfinite(difference)]
    summary = asdict(summarize(difference))
    if len(difference) < 2:
        return Change(**summary, t_p=np.nan, wilcoxon_p=np.nan, note="one run: no test")
    notes: list[str] = []
    if np.ptp(difference) <= 1e-12 * np.abs(difference).max():
        # the t-test has no spread to divide by, except that of rounding
        t_p = np.nan if difference.any() else 1.0
        notes.append("all runs change alike: no t-test")
    else:
        test: Any = stats.ttest_1samp(difference, 0.0)
        t_p = float(test.pvalue)
    if np.all(difference == 0):
        wilcoxon_p = 1.0
    else:
        tied = len(np.unique(np.abs(difference))) < len(difference) or bool((difference == 0).any())
        ranked: Any = stats.wilcoxon(difference, method="approx" if tied else "exact")
        wilcoxon_p = float(ranked.pvalue)
    if len(difference) < 6:  # it cannot come below 0.05, whatever the data
        least = 2.0 ** (1 - len(difference))
        notes.append(f"{len(difference)} runs: Wilcoxon's p cannot be below {least:.3g}")
    return Change(**summary, t_p=t_p, wilcoxon_p=wilcoxon_p, note="; ".join(notes))


@dataclass(frozen=True)
class PCA:
    """Principal components of the points of several runs.

    Attributes:
        scores: Coordinates of all points in the components, runs one after another, shape
            (points, components).
        components: Unit directions in the (scaled) space, shape (components, parameters).
        mean: Mean of all points, shape (parameters,).
        scale: What each coordinate was divided by, shape (parameters,); ones where unscaled.
        explained_variance: Variance (n - 1) along each component, shape (components,).
        explained_variance_ratio: Its share of the variance of all coordinates together.
        scaled: Whether every coordinate was divided by its standard deviation.
        counts: Number of points of each run.
        lengths: Length of each run's polygon through its points in the (scaled) space.
        positions: How far along its run's polygon each point is, by the distances of the
            parameters as they are, 0 to 1, shape (points,).
    """

    scores: Array
    components: Array
    mean: Array
    scale: Array
    explained_variance: Array
    explained_variance_ratio: Array
    scaled: bool
    counts: list[int]
    lengths: Array
    positions: Array

    def __post_init__(self) -> None:
        check_fields(self)
        if self.scores.ndim != 2 or len(self.scores) != sum(self.counts):
            raise InputError(
                f"scores must have shape (points, components), with {sum(self.counts)} points as "
                f"counts says, got {self.scores.shape}"
            )

    def __repr__(self) -> str:
        """One line: runs, points, parameters, and the variance that is explained."""
        return (
            f"PCA({len(self.counts)} runs, {len(self.scores)} points, {len(self.mean)} parameters, "
            f"{len(self.components)} components with "
            f"{self.explained_variance_ratio.sum():.1%} of the variance)"
        )

    @property
    def runs(self) -> list[Array]:
        """The scores of each run, shape (its points, components) each."""
        return np.split(self.scores, np.cumsum(self.counts)[:-1])

    @checked
    def length_share(self, first: int, last: int) -> Array:
        """How much of each run's length is left in a view of some components.

        Args:
            first: Number of the first component shown, from 1.
            last: Number of the last one.

        Returns:
            Length of the projected polygon over that of the polygon itself, 0 to 1, shape (runs,);
            NaN for a run that does not move.
        """
        moves = [np.diff(run[:, first - 1 : last], axis=0) for run in self.runs]
        shown = np.array([np.linalg.norm(move, axis=1).sum() for move in moves])
        still = self.lengths == 0
        return np.where(still, np.nan, shown / np.where(still, 1.0, self.lengths))

    @checked
    def transform(self, points: Tensor) -> Array:
        """Scores of other points.

        Args:
            points: Shape (points, parameters).

        Returns:
            Their coordinates in the components, shape (points, components).

        Raises:
            InputError: The points have another number of parameters.
        """
        points = points.detach()
        if points.ndim != 2 or points.shape[1] != len(self.mean):
            raise InputError(
                f"points must have shape (points, {len(self.mean)}), since this PCA is of "
                f"{len(self.mean)} parameters, got {tuple(points.shape)}"
            )
        if not points.isfinite().all():
            raise InputError("the points must be finite: some are infinite or not a number")
        scores = np.zeros((len(points), len(self.components)))
        for span in _spans(len(points), len(self.mean)):
            block = (points[:, span].double().cpu().numpy() - self.mean[span]) / self.scale[span]
            scores += block @ self.components[:, span].T
        return scores


@checked
def pca(points: Sequence[Tensor], *, scaled: bool = True, components: int = 10) -> PCA:
    """Exact PCA of the points of several runs.

    There are far fewer points than parameters, so the components are found from the Gram matrix of
    the centered points (the "snapshot method", Sirovich 1987), summed in double precision over
    blocks of coordinates: besides the points as they are, only some 64 MB, the Gram matrix and the
    components themselves are held.

    Args:
        points: The points of each run, shape (points, parameters) each.
        scaled: Divide every coordinate by its standard deviation (of the population, as the
            reference does). Coordinates that never change stay zero.
        components: Components to find at most; fewer where the points span fewer.

    Returns:
        The components. Their signs are such that each one's largest score is positive.

    Raises:
        InputError: There are fewer than two different points, a point is not finite, or runs
            differ in their number of parameters.
    """
    components = whole("components", components, 1)
    sizes = sorted({run.shape[1] if run.ndim == 2 else -1 for run in points})
    if len(sizes) != 1 or sizes[0] < 1:
        raise InputError(
            "points must have shape (points, parameters) with the same number of parameters in "
            f"each run, got {[tuple(run.shape) for run in points]}"
        )
    counts, n = [len(run) for run in points], sizes[0]
    count = sum(counts)
    if count < 2:
        raise InputError(f"the PCA needs at least two different points, got {count}")
    mean, scale = np.zeros(n), np.ones(n)
    gram, first = np.zeros((count, count)), np.cumsum([0, *counts[:-1]])
    plain, squares = np.zeros(count), np.zeros(count)
    begins = np.isin(np.arange(count), first)  # no step leads from one run to the next
    for span, block in _blocks(points, n):
        if not np.isfinite(block).all():
            raise InputError("the points must be finite: some are infinite or not a number")
        # seen from the first point, so that coordinates that never change become exact zeros
        origin = block[0].copy()
        block -= origin
        middle = block.mean(axis=0)
        block -= middle
        mean[span] = origin + middle
        steps = np.diff(block, axis=0)
        plain[1:] += np.einsum("ij,ij->i", steps, steps)
        if scaled:
            std = block.std(axis=0)
            scale[span] = np.where(std > 0, std, 1.0)
            block /= scale[span]
            steps /= scale[span]
        squares[1:] += np.einsum("ij,ij->i", steps, steps)
        gram += block @ block.T
    walked = [np.where(begins, 0.0, np.sqrt(each)) for each in (squares, plain)]
    lengths = [run.sum() for run in np.split(walked[0], first[1:])]
    along = [np.cumsum(run) / (run.sum() or 1.0) for run in np.split(walked[1], first[1:])]
    total = float(np.trace(gram))
    if total <= 0:
        raise InputError("the PCA needs at least two different points; all of these are the same")
    values, vectors = _largest(gram, min(components, count - 1, n))
    singular = np.sqrt(values)
    directions = np.empty((len(values), n))
    for span, block in _blocks(points, n):
        block = (block - mean[span]) / scale[span]
        directions[:, span] = (vectors / singular).T @ block
    return PCA(
        scores=vectors * singular,
        components=directions,
        mean=mean,
        scale=scale,
        explained_variance=values / (count - 1),
        explained_variance_ratio=values / total,
        scaled=scaled,
        counts=counts,
        lengths=np.array(lengths),
        positions=np.concatenate(along),
    )


def _largest(gram: Array, components: int) -> tuple[Array, Array]:
    """The largest eigenvalues, descending, and their eigenvectors as columns."""
    count = len(gram)
    if count <= 500 or components > count // 10:
        wanted = count - components, count - 1
        values, vectors = scipy.linalg.eigh(gram, subset_by_index=wanted, overwrite_a=True)
    else:  # the few largest of many, by Lanczos' method to all digits
        begin = np.random.default_rng(0).standard_normal(count)
        values, vectors = scipy.sparse.linalg.eigsh(gram, components, v0=begin)
    descending = np.argsort(values)[::-1]
    values, vectors = values[descending], vectors[:, descending]
    kept = values > 1e-12 * values[0]  # below, they are rounding of the products
    values, vectors = values[kept], vectors[:, kept]
    largest = np.abs(vectors).argmax(axis=0)
    return values, vectors * np.sign(vectors[largest, np.arange(len(values))])


def _blocks(points: Sequence[Tensor], n: int) -> Iterator[tuple[slice, Array]]:
    """All points' coordinates in double precision, some coordinates at a time."""
    for span in _spans(sum(len(run) for run in points), n):
        yield span, torch.cat([run.detach()[:, span].double().cpu() for run in points]).numpy()


def _spans(count: int, n: int) -> Iterator[slice]:
    width = max(1, BLOCK_BYTES // (8 * max(1, count)))
    return (slice(start, min(start + width, n)) for start in range(0, n, width))
