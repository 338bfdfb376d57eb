"""Principal components of walks: how much each explains, and views of six of them (Fig. 7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from isoloss.arguments import checked
from isoloss.errors import InputError
from isoloss.path import Path
from isoloss.report import page
from isoloss.report.drawn import few
from isoloss.report.page import COLORS, Picture, Scene, SceneMark, SceneRun, Section, picture
from isoloss.report.statistics import PCA, Array, pca
from isoloss.report.tables import Runs, run_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Ends = Mapping[str, Array]  # scores of further points, shape (components,), by their label
VIEWS = ((1, 3), (4, 6))  # first and last component of each 3-D view
COMPONENTS = 6  # shown in scenes
MOST_POINTS = 600  # of all walks by a method


@checked
def explained_variance(*pcas: PCA, title: str = "") -> Figure:
    """Share of the variance that each component explains, as bars, and all up to it, as a line.

    Args:
        pcas: Of the same points, for example scaled and unscaled; a panel each.
        title: Above the panels.
    """
    with page.drawing(1.2 + 3.6 * len(pcas), 3.4, title) as figure:
        panels = figure.subplots(1, len(pcas), sharey=True, squeeze=False)[0]
        for axes, found in zip(panels, pcas, strict=True):
            _bars(axes, found.explained_variance_ratio)
            axes.set_title("scaled coordinates" if found.scaled else "coordinates as they are")
        panels[0].set_ylabel("explained share of the variance")
        panels[-1].legend(frameon=False, loc="center right")
        page.caption(figure, [points_sentence(pcas[0]), *map(scaling_sentence, pcas)])
    return figure


@checked
def pca_views(pca: PCA, *, ends: Ends | None = None, title: str = "") -> Figure:
    """3-D views of components 1 to 3 and 4 to 6.

    Every point is colored by how much of its walk's length lies behind it; crosses are the runs'
    means; the mean end point of the walks and the points of `ends` have marks of their own.

    Args:
        pca: Of the points of walks.
        ends: Scores of further points to mark, shape (components,), by their label; for example
            `{"weight decay 1e-3": pca.transform(point)[0]}`.
        title: Above the views.
    """
    views = [view for view in VIEWS if view[0] <= pca.scores.shape[1]]
    marks = {"mean end of the walks": mean_end(pca), **(ends or {})}
    edged: dict[str, Any] = {"s": 60, "edgecolor": "black", "linewidth": 0.6, "depthshade": False}
    with page.drawing(4.4 * len(views) + 0.2, 5.4, title) as figure:
        import matplotlib as mpl
        from matplotlib.colors import ListedColormap
        from matplotlib.ticker import MaxNLocator

        dark_to_light = mpl.colormaps["viridis"](np.linspace(0, 0.74, 256))  # none lost on white
        axes_3d: list[Any] = list(  # Axes3D has methods that Axes has not
            figure.subplots(1, len(views), squeeze=False, subplot_kw={"projection": "3d"})[0]
        )
        points: Any = None
        for axes, (first, last) in zip(axes_3d, views, strict=True):
            for run in pca.runs:
                axes.plot(*_three(run, first).T, color="0.6", linewidth=0.5, zorder=1)
            points = axes.scatter(
                *_three(pca.scores, first).T,
                c=pca.positions,
                cmap=ListedColormap(dark_to_light),
                vmin=0,
                vmax=1,
                s=7,
                linewidth=0,
                depthshade=False,
            )
            means = np.array([_three(run, first).mean(axis=0) for run in pca.runs if len(run)])
            axes.scatter(
                *means.T, marker="x", color="black", s=28, depthshade=False, label="mean of a run"
            )
            for (label, mark), shape, color in zip(marks.items(), "D*^s", COLORS[1:] * 2):  # noqa: B905
                at = _three(mark[None], first).T
                axes.scatter(*at, marker=shape, color=color, label=label, **edged)
            share = percent(pca.explained_variance_ratio[first - 1 : last].sum())
            axes.set_title(f"components {first} to {last}: {share} of the variance", fontsize=9)
            for k, axis in enumerate((axes.xaxis, axes.yaxis, axes.zaxis)):
                axis.set_major_locator(MaxNLocator(4))
                axis.set_label_text(f"component {first + k}", fontsize=8)
                axis.set_tick_params(labelsize=7, pad=0)
                axis.labelpad = 0
            axes.set_box_aspect(None, zoom=0.9)
        bar = figure.colorbar(
            points, ax=axes_3d, location="bottom", shrink=0.5, aspect=40, pad=0, ticks=[0, 0.5, 1]
        )
        bar.ax.set_xticklabels(["start", "half", "end"])
        bar.set_label("position along the walk, by its length")
        axes_3d[0].legend(loc="upper left", frameon=False, fontsize=8, borderaxespad=0)
        page.caption(figure, [caption(pca)])
    return figure


def _bars(axes: Axes, ratio: Array) -> None:
    from matplotlib.ticker import MultipleLocator, PercentFormatter

    number, total = np.arange(1, len(ratio) + 1), ratio.cumsum()
    axes.bar(number, ratio, color=COLORS[0], label="each")
    axes.plot(number, total, color=COLORS[1], marker="o", markersize=4, label="all up to it")
    for x, r in zip(number.tolist(), ratio.tolist(), strict=True):
        if r < 0.001:
            continue  # nothing is seen, and long figures would run into each other
        inside = r > 0.12  # where the line would cross the figure above the bar
        axes.text(
            x,
            r - 0.04 if inside else r + 0.01,
            f"{100 * r:.2g}" if r < 0.995 else "100",
            ha="center",
            va="top" if inside else "bottom",
            fontsize=6.5,
            color="white" if inside else "black",
        )
    axes.set(ylim=(0, 1.04), xlabel="component")
    axes.xaxis.set_major_locator(MultipleLocator(1))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(visible=False, axis="x")
    axes.set_axisbelow(True)


def _three(scores: Array, first: int) -> Array:
    """Three components from the first on, shape (points, 3); zeros where there are no more."""
    shown = scores[:, first - 1 : first + 2]
    return np.pad(shown, ((0, 0), (0, 3 - shown.shape[1])))


def mean_end(pca: PCA) -> Array:
    """Scores of the mean of the runs' last points, shape (components,)."""
    return np.mean([run[-1] for run in pca.runs if len(run)], axis=0)


def caption(pca: PCA) -> str:
    """What the views are of, how the coordinates are scaled, and how much the views show."""
    shares = [
        f"{_range(pca.length_share(first, last))} (components {first} to {last})"
        for first, last in VIEWS
        if first <= pca.scores.shape[1]
    ]
    return (
        f"{points_sentence(pca)} {scaling_sentence(pca)} Of each walk's length the views hold "
        f"{' and '.join(shares)}: what looks short or straight here may not be so. Axes are scaled "
        f"separately."
    )


def points_sentence(pca: PCA) -> str:
    """Of how many points and runs a PCA is."""
    return f"PCA of {sum(pca.counts):,} kept points of {page.count(len(pca.counts))}."


def scaling_sentence(pca: PCA) -> str:
    """How the coordinates were scaled."""
    if pca.scaled:
        return "Every coordinate is divided by its standard deviation, as in the paper."
    return "Coordinates are not scaled: distances are those of the parameters."


def percent(share: float) -> str:
    """A share for people, to two figures or the whole percent: 0.9417 is 94 %."""
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def _range(shares: Array) -> str:
    shares = shares[np.isfinite(shares)]
    if not len(shares):
        return "nothing"
    low, high = percent(shares.min()), percent(shares.max())
    return low if low == high else f"{low} to {high}"


def pca_section(
    runs: Runs, folder: FilePath, others: Mapping[str, Tensor], at_most: int = MOST_POINTS
) -> tuple[list[Section], list[str]]:
    """Draw the PCA of each method's walks with `others` marked, and say why methods are not in it;
    of at most so many points: more are not told apart, and cost grows with their square."""
    scenes: list[Scene] = []
    pictures: list[Picture] = []
    missing: list[str] = []
    text = [
        "Kept points of every run, seen along the directions in which they differ most. A "
        "projection can mislead: how much of each walk's length a view holds is stated below it.",
        "Runs start from different weights, and the order of hidden units is arbitrary: it is not "
        "matched between runs here, nor in the paper. Distances between runs, and the mean of "
        "their end points, therefore say little; the shape of each walk is what can be read.",
    ]
    for method, paths in runs.methods.items():
        walked = [path for path in paths if len(path.points)]
        paths = few(walked)
        share = max(2, at_most // max(1, len(paths)))
        shown = [spread(path, share) for path in paths]
        points = [path.points[rows] for path, rows in zip(paths, shown, strict=True)]
        try:
            both = {name: pca(points, scaled=name == "scaled") for name in ("scaled", "unscaled")}
        except InputError as error:
            missing.append(f"{runs.experiment}, principal components of {method}: {error}")
            continue
        ends = {
            name: {label: found.transform(point[None])[0] for label, point in others.items()}
            for name, found in both.items()
        }
        pictures += _pictures(method, both, ends, folder, f"{runs.experiment}, {method}")
        scenes.append(_scene(method, both, ends, paths, shown))
        if len(paths) < len(walked):
            text.append(f"Of the {len(walked):,} runs by {method}, {len(paths)} are shown.")
        if any(len(path.points) > share for path in paths):
            text.append(
                f"Of each run by {method}, {share} points or fewer, spread along it, are shown."
            )
    section = Section(title="Principal components", text=text, scenes=scenes, pictures=pictures)
    return [section] if scenes else [], missing


def spread(path: Path, share: int) -> list[int]:
    """Which of the points kept are shown, `share` at most and the ends among them: half by the
    length of the walk, half by their number, since most lie close together at its end."""
    steps = path.steps.set_index("step")
    there = np.flatnonzero(np.isin(path.point_steps, steps.index))
    count = len(there)
    if count <= share:
        return there.tolist()
    along = np.linspace(0.0, 1.0, count)
    walked = steps["arc_length"].loc[[path.point_steps[k] for k in there]].to_numpy(dtype=float)
    if "arc_length" in steps and np.isfinite(walked).all() and walked[-1] > walked[0]:
        along = (along + (walked - walked[0]) / (walked[-1] - walked[0])) / 2
    chosen = np.interp(np.linspace(0.0, 1.0, share), along, np.arange(count))
    return there[np.unique(chosen.round().astype(int))].tolist()


def _pictures(
    method: str, both: Mapping[str, PCA], ends: Mapping[str, Ends], folder: FilePath, title: str
) -> list[Picture]:
    """The views of each scaling, and the explained variance of both."""
    views: list[Picture] = []
    for name, found in both.items():
        words = "scaled coordinates" if found.scaled else "coordinates as they are"
        views.append(
            picture(
                pca_views(found, ends=ends[name], title=title),
                folder,
                f"pca-{method}" if found.scaled else f"pca-{method}-unscaled",
                title=f"Walks by {method}, {words}",
                alt=f"3-D views of components 1 to 3 and 4 to 6 of the walks by {method}, "
                f"{words}. {_told(found)}",
                folded=not found.scaled,
            )
        )
    variance = picture(
        explained_variance(*both.values(), title=title),
        folder,
        f"variance-{method}",
        title=f"Walks by {method}, explained variance",
        alt=" ".join(_told(found) for found in both.values()),
    )
    return [*views, variance]


def _scene(
    method: str,
    both: Mapping[str, PCA],
    ends: Mapping[str, Ends],
    paths: Sequence[Path],
    shown: Sequence[list[int]],
) -> Scene:
    """The scene of a method's walks, of the points that are shown of each."""
    numbers = [run_name(path, k).removeprefix("run-") for k, path in enumerate(paths)]
    names = [f"run {int(n) if n.isdecimal() else k}" for k, n in enumerate(numbers)]
    marks: dict[str, dict[str, list[float]]] = {}  # by label, then by scaling
    for name, found in both.items():
        means = [run.mean(axis=0) for run in found.runs]
        at = {"mean end of the walks": mean_end(found), **ends[name]}
        at |= {f"mean of {run}": mean for run, mean in zip(names, means, strict=True)}
        for label, scores in at.items():
            marks.setdefault(label, {})[name] = _rounded(scores[:COMPONENTS])
    positions = np.split(both["scaled"].positions, np.cumsum(both["scaled"].counts)[:-1])
    how_to = "Drag to rotate; point at a walk to see its step, losses and R."
    return Scene(
        title=f"Walks by {method}, to be rotated",
        alt=f"The walks by {method} in three components at a time, colored from start to end. "
        f"{_told(both['scaled'])} The slider and the table below it give the values along the way.",
        captions={name: f"{caption(found)} {how_to}" for name, found in both.items()},
        ratios={name: _rounded(found.explained_variance_ratio) for name, found in both.items()},
        runs=[
            SceneRun(
                name=names[k],
                step=[path.point_steps[row] for row in shown[k]],
                position=[float(f"{at:.4g}") for at in positions[k]],
                values=_values(path, shown[k]),
                **{
                    name: [_rounded(scores) for scores in found.runs[k].T[:COMPONENTS]]
                    for name, found in both.items()
                },
            )
            for k, path in enumerate(paths)
        ],
        marks=[SceneMark(name=label, **scores) for label, scores in marks.items()],
    )


def _values(path: Path, rows: Sequence[int]) -> dict[str, list[float | None]]:
    """What was measured at some of the kept points, by its label; None where it was not."""
    steps = path.steps.set_index("step").reindex([path.point_steps[row] for row in rows])
    return {
        column.replace("regularizer", "R").replace("_", " "): _rounded(
            steps[column].to_numpy(float), figures=6
        )
        for column in ("loss", "regularizer", "test_loss", "test_metric")
        if column in steps
    }


def _rounded(values: Array, figures: int = 5) -> list[Any]:
    """To some figures, since finer is not seen and the page would be larger; None if not finite."""
    return [float(f"{value:.{figures}g}") if np.isfinite(value) else None for value in values]


def _told(found: PCA) -> str:
    ratio = found.explained_variance_ratio
    what, six = "Scaled" if found.scaled else "Unscaled", ratio[:COMPONENTS]
    return (
        f"{what}, the first three components hold {percent(float(ratio[:3].sum()))} of the "
        f"variance, the first {len(six)} {percent(float(six.sum()))}."
    )
