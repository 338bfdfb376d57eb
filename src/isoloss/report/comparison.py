"""Walks and weight decay at equal training loss and equal norm, and how weight decay got there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from isoloss import experiments
from isoloss.arguments import check_columns, checked
from isoloss.errors import InputError
from isoloss.path import Path
from isoloss.report.drawn import few
from isoloss.report.page import NONE, Picture, Section, Table, color, drawing, picture
from isoloss.report.statistics import Array
from isoloss.report.tables import DECAY, QUANTITIES, Methods, Runs, on_level

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

ABSCISSAE = {
    "train_loss": "training loss (without penalty)",
    "squared_norm": "squared norm R (with biases)",
}
OF_WALK = {"train_loss": "loss", "squared_norm": "regularizer"}
MOST_OPEN = 30  # rows of a table of runs that is shown at once
MARKS = ("o", "s", "D", "^")


@checked
def comparison_scatter(
    methods: Methods, decay: pd.DataFrame, *, title: str = "", metric: str = "metric"
) -> Figure:
    """Test loss and metric against training loss and against squared norm.

    A walk is a curve from its start (hollow) to its end (full); a network of weight decay is a dot
    colored by its penalty, and the mean of each penalty is a large dot. Of more than 50 runs, 50
    are drawn. Walks by another regularizer than the squared norm are not drawn against it.

    Args:
        methods: The walks of each method, by its name.
        decay: What `Results.decay` returned.
        title: Above all panels.
        metric: Name of the test metric.
    """
    if len(decay):
        check_columns("decay", decay, "penalty", *QUANTITIES)
    ordinates = {"test_loss": "test loss (without penalty)"}
    if metric != "mse":  # where the metric is the loss once is enough
        ordinates["test_metric"] = f"test {metric}"
    penalties = sorted(decay["penalty"].unique()) if len(decay) else []
    with drawing(9.2, 0.9 + 3.3 * len(ordinates), title) as figure:
        from matplotlib.ticker import NullFormatter

        axes = figure.subplots(len(ordinates), 2, sharex="col", sharey="row", squeeze=False)
        for row, (y, y_label) in zip(axes, ordinates.items(), strict=True):
            for panel, (x, x_label) in zip(row, ABSCISSAE.items(), strict=True):
                draw_decay(panel, decay, penalties, x, y)
                for k, paths in enumerate(methods.values()):
                    for path in few(paths):
                        _draw_walk(panel, path, x, y, k)
                panel.set_xscale("log")
                panel.xaxis.set_minor_formatter(NullFormatter())  # they would overlap
                if y == "test_loss":
                    panel.set_yscale("log")
                panel.set(xlabel=x_label, ylabel=y_label)
                panel.label_outer()
        figure.legend(handles=_legend(methods, len(decay) > 0), loc="outside upper right", ncols=3)
        if penalties:
            penalty_bar(figure, axes, penalties)
    return figure


@checked
def decay_history(epochs: pd.DataFrame, *, title: str = "", metric: str = "metric") -> Figure:
    """Losses, metric and squared norm of weight decay against the epoch, mean over the runs.

    Args:
        epochs: What `Results.decay_epochs` returned, not empty.
        title: Above all panels.
        metric: Name of the test metric.
    """
    panels = {
        "train_loss": "training loss",
        "test_loss": "test loss",
        "test_metric": f"test {metric}",
        "squared_norm_weights": "squared norm\nwithout biases",
    }
    check_columns("epochs", epochs, "penalty", "epoch", *panels)
    if not len(epochs) or not np.isfinite(epochs[["penalty", "epoch"]].to_numpy(float)).all():
        raise InputError(
            "epochs must hold an epoch at least, and each its number and penalty, as "
            "Results.decay_epochs returns them"
        )
    penalties = sorted(epochs["penalty"].unique())
    means: Any = epochs.groupby(["penalty", "epoch"])[list(panels)].mean()
    with drawing(9.2, 6.0, title) as figure:
        axes = figure.subplots(2, 2, sharex=True, squeeze=False)
        colors = _colors(penalties)
        for panel, (name, label) in zip(axes.flat, panels.items(), strict=True):
            for k, penalty in enumerate(penalties):
                curve = means.loc[penalty][name]
                panel.plot(curve.index, curve, color=colors[k], linestyle="--" if k % 2 else "-")
            panel.set_ylabel(label)
            if name != "test_metric":
                panel.set_yscale("log")
        for panel in axes[-1]:
            panel.set_xlabel("epoch")
        penalty_bar(figure, axes, penalties)
    return figure


def draw_decay(
    panel: Axes, decay: pd.DataFrame, penalties: Sequence[float], x: str, y: str
) -> None:
    """Networks of weight decay as dots colored by the penalty, with the mean of each penalty."""
    if not penalties:
        return
    colors, groups = _colors(penalties), [decay[decay["penalty"] == p] for p in penalties]
    for shade, of_penalty in zip(colors, groups, strict=True):
        rows = of_penalty.iloc[few(range(len(of_penalty)))]
        panel.scatter(rows[x], rows[y], s=9, color=shade, alpha=0.6, linewidths=0)
    xs, ys = np.array([(rows[x].mean(), rows[y].mean()) for rows in groups]).T
    panel.plot(xs, ys, color="0.6", linewidth=0.8, zorder=1)
    panel.scatter(xs, ys, s=42, color=colors, edgecolors="black", linewidths=0.6, zorder=3)
    _name(panel, xs, ys, penalties)


def _name(panel: Axes, xs: Array, ys: Array, penalties: Sequence[float]) -> None:
    """Write the penalty beside each dot that is apart from those named before it."""
    from matplotlib.patheffects import withStroke

    named: list[tuple[float, float]] = []
    with np.errstate(invalid="ignore"):  # of networks that were lost
        spread = max(float(np.ptp(np.log(xs))), 1e-9), max(float(np.ptp(ys)), 1e-9)
    for x, y, penalty in zip(xs, ys, penalties, strict=True):
        here = float(np.log(x)) / spread[0], y / spread[1]
        if all(abs(here[0] - a) + abs(here[1] - b) > 0.05 for a, b in named):
            named.append(here)
            panel.annotate(
                _number(penalty),
                (x, y),
                xytext=(0, 6),
                textcoords="offset points",
                ha="center",
                fontsize=7,
                zorder=6,
                path_effects=[withStroke(linewidth=2, foreground="white")],
            )


def _draw_walk(panel: Axes, path: Path, x: str, y: str, k: int) -> None:
    rows = on_level(path).reindex(columns=[OF_WALK[x], y]).dropna()
    if not len(rows) or (x == "squared_norm" and path.regularizer != x):
        return
    xs, ys = rows.to_numpy(dtype=float).T
    panel.plot(xs, ys, color=color(k), linewidth=1.0, alpha=0.9, zorder=4)
    for at, face in ((0, "white"), (-1, color(k))):
        mark: dict[str, Any] = {"color": color(k), "markerfacecolor": face, "markersize": 6}
        panel.plot(xs[at], ys[at], MARKS[k % len(MARKS)], zorder=5, **mark)


def _legend(methods: Methods, decay: bool) -> list[Line2D]:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=color(k), marker=MARKS[k % len(MARKS)], label=f"walk by {name}")
        for k, name in enumerate(methods)
    ]
    if methods:
        hollow: dict[str, Any] = {"markerfacecolor": "white", "linestyle": "none"}
        label = "start of a walk (end: full)"
        handles.append(Line2D([], [], color="0.3", marker="o", label=label, **hollow))
    if decay:
        label = "weight decay, mean of a penalty"
        handles.append(
            Line2D([], [], color="0.6", marker="o", markeredgecolor="black", label=label)
        )
    return handles


def _colors(penalties: Sequence[float]) -> list[Any]:
    import matplotlib as mpl

    palette = mpl.colormaps[
        "cividis"
    ]  # read in grayscale and by the color-blind: even in lightness
    return [palette(k / max(1, len(penalties) - 1)) for k in range(len(penalties))]


def penalty_bar(figure: Figure, axes: Any, penalties: Sequence[float]) -> None:
    """A color bar of the penalties."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm, ListedColormap

    count = len(penalties)
    norm = BoundaryNorm(np.arange(count + 1) - 0.5, count)
    mapped = ScalarMappable(norm, ListedColormap(_colors(penalties)))
    bar = figure.colorbar(mapped, ax=axes, ticks=range(count), pad=0.01, aspect=40)
    bar.ax.minorticks_off()
    bar.ax.set_yticklabels([_number(penalty) for penalty in penalties])
    bar.set_label("penalty of weight decay")


def _number(penalty: float) -> str:
    """A penalty as short as it can be said: 0, 1e-6, 0.25."""
    digits, e, power = f"{penalty:.2e}".partition("e")
    if not e:  # infinite, or none
        return digits
    return min(f"{penalty:g}", f"{float(digits):g}e{int(power)}", key=len)


def compared(table: pd.DataFrame, *, folded: bool = False) -> Table:
    """The table of `comparison_table` for people: a row for each network."""
    rows: list[list[str]] = []
    groups: Any = table.groupby(["group", "place", "penalty"], sort=False, dropna=False)
    for (group, place, penalty), of_network in groups:
        by: Any = of_network.set_index("quantity")
        test = by.loc["test_loss"]
        marks = " (t)" * bool(test["best_on_test"]) + " (v)" * bool(test["best_on_held_out"])
        name = f"{DECAY}, {penalty:g}{marks}" if group == DECAY else group
        runs = f"{test['runs']}, {test['lost']} lost" if test["lost"] else str(test["runs"])
        means = [_spread(by.loc[quantity]) for quantity in QUANTITIES]
        rows.append([f"{name}, {place}" if place else name, *means, runs])
    return Table(
        title="Every network, mean over the runs",
        columns=["network", *QUANTITIES.values(), "runs"],
        rows=rows,
        caption="Mean ± standard deviation over the runs; below, the 95 % bootstrap interval of "
        "the mean. (t) the penalty with the smallest mean test loss: a choice that looks at the "
        "test set. (v) the penalty with the smallest mean loss on examples held out of the "
        "training draw.",
        folded=folded,
    )


def changed(table: pd.DataFrame) -> Table:
    """The table of `changes_table` for people."""
    return Table(
        title="What the walk changed, paired over the runs",
        columns=["change of", "mean change", "from", "t-test p", "Wilcoxon p", "runs", "note"],
        rows=[
            [
                f"{row['group']}: {QUANTITIES[row['quantity']]}",
                _spread(row),
                str(row["comparison"]),
                *(NONE if math.isnan(row[p]) else f"{row[p]:.2g}" for p in ("t_p", "wilcoxon_p")),
                str(row["runs"]),
                str(row["note"]),
            ]
            for row in table.to_dict("records")
        ],
        caption="Mean ± standard deviation of the change; below, its 95 % bootstrap interval. The "
        "best point is chosen on the test set, so its change is too optimistic.",
    )


def equalized(table: pd.DataFrame) -> Table:
    """The table of `equivalent_table` for people, the walk and weight decay side by side."""
    quantities = ("loss", "squared_norm", "objective", "test_loss", "test_metric")
    both = [(who, name) for name in quantities for who in ("walk", "decay")]
    heads = [f"{name}, {who}".replace("_", " ").replace("decay", DECAY) for who, name in both]
    return Table(
        title="Trained with the penalty at which each walk ended",
        columns=["walk", "penalty", *heads],
        rows=[
            [
                f"{row['method']}, seed {row['seed']}",
                f"{row['penalty']:.3g}",
                *(f"{row[f'{who}_{name}']:.4g}" for who, name in both),
            ]
            for row in table.to_dict("records")
        ],
        caption="The objective is loss + penalty x squared norm, which both minimize.",
        folded=len(table) > MOST_OPEN,
    )


def _spread(row: Any) -> str:
    """A mean with its spread, and its interval on a line below, to the digits the spread leaves."""
    mean, std, low, high = (float(row[name]) for name in ("mean", "std", "low", "high"))
    if math.isnan(mean):
        return NONE
    if math.isnan(std):
        return f"{mean:.4g}"
    if abs(mean) >= 1e5 or (std and abs(mean) < 1e-3):
        text, interval = f"{mean:.3g} ± {std:.2g}", f"{low:.3g} to {high:.3g}"
    else:
        digits = max(0, 4 - math.floor(math.log10(abs(mean) or 1)))  # five figures of it at most
        if std > 1e-12 * abs(mean):
            digits = min(digits, max(0, 1 - math.floor(math.log10(std))))
        spread = f"{std:.{digits}f}"
        text = f"{mean:.{digits}f} ± {spread if float(spread) else f'{std:.1g}'}"
        interval = f"{low:.{digits}f} to {high:.{digits}f}"
    return text if math.isnan(low) else f"{text}\n{interval}"


def comparison_section(
    runs: Runs, tables: list[Table], epochs: pd.DataFrame, folder: FilePath
) -> Section:
    """Draw the comparison into a folder, where there is weight decay, below its tables."""
    known = runs.experiment in experiments.names()  # of others there is never weight decay
    text = ["These results hold no weight decay yet: the walks stand alone."] if known else []
    pictures = list[Picture]()
    words = {"title": runs.experiment, "metric": runs.metric}
    if len(runs.decay):
        text = [
            _ran(runs.decay),
            "In the scatter, a walk is a curve from its hollow start to its full end, at one "
            "training loss; dots are networks trained with weight decay, colored by the penalty.",
        ]
        pictures = [
            picture(
                comparison_scatter(runs.methods, runs.decay, **words),
                folder,
                "comparison",
                title="At equal training loss, and at equal squared norm",
                alt="Test loss and metric of the walks, as curves, and of networks trained with "
                "weight decay, as dots, against training loss and against squared norm. "
                f"{_best(runs.decay)}",
            ),
            picture(
                decay_history(epochs, **words),
                folder,
                "decay",
                title="How weight decay got there",
                alt="Mean training loss, test loss, test metric and squared norm of weight decay "
                "against the epoch, a curve for each penalty.",
                folded=True,
            ),
        ]
    title = "The walks beside weight decay" if known else "Start and end, with intervals"
    return Section(title=title, text=text, tables=tables, pictures=pictures)


def _ran(decay: pd.DataFrame) -> str:
    listed = ", ".join(_number(penalty) for penalty in np.unique(decay["penalty"]).tolist())
    lost = int(np.sum(decay["status"] != "finished"))
    ended = (
        f"{lost} of {len(decay)} networks became infinite or not a number and are counted as lost."
        if lost
        else f"All {len(decay)} networks stayed finite."
    )
    return (
        f"Weight decay from {len(np.unique(decay['run']))} random starts with penalties {listed}, "
        f"for {int(np.max(decay['epoch']))} epochs. {ended}"
    )


def _best(decay: pd.DataFrame) -> str:
    groups: Any = decay.groupby("penalty")
    means: Any = groups["test_loss"].mean().dropna()
    if not len(means):
        return ""
    return (
        f"The smallest mean test loss of weight decay is {means.min():.4g}, at penalty "
        f"{_number(means.idxmin())}."
    )
