"""Walks and weight decay side by side: the paper's Table 1 with its flaws corrected.

Groups are made from columns. Both readings of the reference are given: the test loss without and
with the penalty, the squared norm with and without biases.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from isoloss.path import Path
from isoloss.report.curves import on_level
from isoloss.report.statistics import paired_change, summarize

QUANTITIES = {
    "train_loss": "training loss",
    "test_loss": "test loss",
    "penalized_test_loss": "test loss with penalty",
    "test_metric": "test metric",
    "squared_norm": "squared norm",
    "squared_norm_weights": "squared norm without biases",
}
"""Columns of the table of `networks`, and what people read above them."""

DECAY = "weight decay"
FAIR = "weight decay, penalty chosen on held-out examples"


def networks(methods: Mapping[str, Sequence[Path]], decay: pd.DataFrame) -> pd.DataFrame:
    """All networks that are compared, a row each.

    Args:
        methods: The walks of each method, by its name.
        decay: What `Results.decay` returned.

    Returns:
        Columns `group` (`walk by METHOD`, `weight decay`, or `FAIR`), `place` (`start`, `end`, or
        empty), `penalty` (NaN of walks), `run`, `seed` and those of `QUANTITIES`. A walk's losses
        have no penalty. Rows of `FAIR` are those of weight decay, in each run the one with the
        smallest loss on the held-out part of the training examples.
    """
    rows = [
        row
        for method, paths in methods.items()
        for k, path in enumerate(paths)
        for row in _of_walk(method, k, path)
    ]
    tables = [pd.DataFrame(rows, columns=["group", "place", "run", "seed", *QUANTITIES])]
    if len(decay):
        tables.append(decay.assign(group=DECAY, place=""))
        fair = chosen_per_run(decay)
        if len(fair):
            tables.append(fair.assign(group=FAIR, place=""))
    columns = ["group", "place", "penalty", "run", "seed", *QUANTITIES]
    filled = [table.dropna(axis=1, how="all") for table in tables if len(table)]
    return pd.concat(filled, ignore_index=True).reindex(columns=columns)


def chosen_per_run(decay: pd.DataFrame) -> pd.DataFrame:
    """The row of each run whose penalty had the smallest loss on held-out training examples.

    Args:
        decay: What `Results.decay` returned.

    Returns:
        Rows of it, at most one a run; none where nothing was held out.
    """
    if "validation_loss" not in decay:
        return decay.iloc[:0]
    usable = decay[np.isfinite(decay["validation_loss"]) & np.isfinite(decay["train_loss"])]
    return usable.loc[usable.groupby("run")["validation_loss"].idxmin()]


def comparison_table(methods: Mapping[str, Sequence[Path]], decay: pd.DataFrame) -> pd.DataFrame:
    """Every quantity of every group: mean, spread, interval over the runs.

    Args:
        methods: The walks of each method, by its name.
        decay: What `Results.decay` returned.

    Returns:
        A row for each group, place, penalty and quantity, with columns `group`, `place`,
        `penalty`, `quantity`, `mean`, `std`, `low`, `high` (95 % bootstrap interval of the mean),
        `interval` (how it was made), `runs`, `lost` (networks left out as they became NaN or
        infinite), `best_on_test` (whether the mean test loss is the smallest of all penalties: a
        choice that looks at the test set) and `best_on_held_out` (likewise, by the mean loss on
        held-out training examples).
    """
    whole = networks(methods, decay)
    best = {
        "best_on_test": _best(decay, "test_loss"),
        "best_on_held_out": _best(decay, "validation_loss"),
    }
    # the runs of one group are those of one penalty, but where each run has chosen its own
    whole["penalty"] = whole["penalty"].where(whole["group"] != FAIR)
    groups: Any = whole.groupby(["group", "place", "penalty"], sort=False, dropna=False)
    rows: list[dict[str, object]] = []
    for (group, place, penalty), table in groups:
        for quantity in QUANTITIES:
            summary = summarize(table[quantity].to_numpy(dtype=float))
            rows.append(
                {
                    "group": group,
                    "place": place,
                    "penalty": penalty,
                    "quantity": quantity,
                    **asdict(summary),
                    "lost": 0 if group.startswith("walk") else len(table) - summary.runs,
                    **{name: penalty == value for name, value in best.items()},
                }
            )
    return pd.DataFrame(rows)


def changes_table(
    methods: Mapping[str, Sequence[Path]], decay: pd.DataFrame, metric: str
) -> pd.DataFrame:
    """What a walk changes, paired over the runs.

    Args:
        methods: The walks of each method, by its name.
        decay: What `Results.decay` returned.
        metric: Name of the test metric; it tells whether more of it is better.

    Returns:
        A row for each method, quantity (`test_loss`, `test_metric`) and comparison: from the start
        of the walk to its end; from the start to its best point, which looks at the test set; and
        from the network that weight decay gives on the same seed, its penalty chosen on held-out
        examples, to the end of the walk. Columns `group`, `comparison`, `quantity`, those of
        `Summary` for the change, `t_p`, `wilcoxon_p`, `note`.
    """
    fair = chosen_per_run(decay)
    rows: list[dict[str, object]] = []
    for method, paths in methods.items():
        for quantity in ("test_loss", "test_metric"):
            probed = [path for path in paths if quantity in path.steps]
            measured = [on_level(path)[quantity].dropna() for path in probed]
            higher = quantity == "test_metric" and metric == "accuracy"
            ends = [float(values.iloc[-1]) for values in measured]
            starts = [float(values.iloc[0]) for values in measured]
            pairs: dict[str, tuple[list[float], list[float]]] = {
                "start to end": (starts, ends),
                "start to best point, chosen on the test set": (
                    starts,
                    [float(np.max(values) if higher else np.min(values)) for values in measured],
                ),
            }
            if len(fair):
                known = dict(zip(fair["seed"], fair[quantity], strict=True))
                theirs = [float(known.get(_seed(path), math.nan)) for path in probed]
                pairs["weight decay, chosen on held-out examples, to end"] = (theirs, ends)
            for comparison, (before, after) in pairs.items() if probed else ():
                change = paired_change(before, after)
                rows.append(
                    {
                        "group": f"walk by {method}",
                        "comparison": comparison,
                        "quantity": quantity,
                        **asdict(change.change),
                        "t_p": change.t_p,
                        "wilcoxon_p": change.wilcoxon_p,
                        "note": change.note,
                    }
                )
    columns = ["group", "comparison", "quantity", "mean", "std", "low", "high", "interval", "runs"]
    return pd.DataFrame(rows, columns=[*columns, "t_p", "wilcoxon_p", "note"])


def equivalent_penalty(path: Path) -> float:
    """The penalty of the weight decay that is stationary where a walk has converged."""
    return float(on_level(path)["equivalent_penalty"].iloc[-1])


def equivalent_table(
    methods: Mapping[str, Sequence[Path]], trained: Mapping[str, pd.DataFrame]
) -> pd.DataFrame:
    """How near a walk and weight decay with the penalty at which it ended come to each other.

    Args:
        methods: The walks of each method, by its name.
        trained: What `Results.equivalent` returned, by the method's name.

    Returns:
        A row for each run that has both, with columns `method`, `run`, `seed`, `penalty`, and with
        `walk_` and `decay_` before them `loss`, `squared_norm`, `test_loss`, `test_metric` and
        `objective`: loss + penalty * squared norm, biases included, which both try to make small.
    """
    rows: list[dict[str, object]] = []
    for method, table in trained.items():
        walks = {_seed(path): path for path in methods.get(method, ())}
        for network in table.to_dict("records"):
            if network["seed"] not in walks:
                continue
            path = walks[network["seed"]]
            end, penalty = on_level(path).iloc[-1], network["penalty"]
            loss, norm = float(end["loss"]), float(end["regularizer"])
            rows.append(
                {
                    "method": method,
                    "run": network["run"],
                    "seed": network["seed"],
                    "penalty": penalty,
                    "walk_loss": loss,
                    "decay_loss": network["train_loss"],
                    "walk_squared_norm": norm,
                    "decay_squared_norm": network["squared_norm"],
                    "walk_test_loss": end.get("test_loss", math.nan),
                    "decay_test_loss": network["test_loss"],
                    "walk_test_metric": end.get("test_metric", math.nan),
                    "decay_test_metric": network["test_metric"],
                    "walk_objective": loss + penalty * norm,
                    "decay_objective": network["train_loss"] + penalty * network["squared_norm"],
                }
            )
    return pd.DataFrame(rows)


def _best(decay: pd.DataFrame, column: str) -> float:
    """The penalty with the smallest mean of a column; NaN where there is none."""
    if column not in decay:
        return math.nan
    finite = decay[np.isfinite(decay[column])]
    means: Any = finite.groupby("penalty")[column].mean()
    return float(means.idxmin()) if len(means) else math.nan


def _of_walk(method: str, k: int, path: Path) -> list[dict[str, object]]:
    """The rows of a walk's start and end."""
    rows = on_level(path)
    kept = dict(zip(path.point_steps, path.points, strict=True))
    found: list[dict[str, object]] = []
    for place, at in (("start", 0), ("end", -1)):
        row = rows.iloc[at]
        theta = kept.get(int(row["step"]))
        squares = squared_norms(theta, path.shapes) if theta is not None else (math.nan, math.nan)
        found.append(
            {
                "group": f"walk by {method}",
                "place": place,
                "run": k,
                "seed": _seed(path),
                "train_loss": row["loss"],
                "test_loss": row.get("test_loss", math.nan),
                "test_metric": row.get("test_metric", math.nan),
                "squared_norm": squares[0],
                "squared_norm_weights": squares[1],
            }
        )
    return found


def squared_norms(theta: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> tuple[float, float]:
    """The squared norm of a network with and without biases.

    Args:
        theta: Flat parameters, shape (parameters,).
        shapes: Shape of each parameter by name, in the order of theta.

    Returns:
        Of all parameters, and of those that are matrices or kernels.
    """
    pieces = theta.double().split([math.prod(shape) for shape in shapes.values()])
    each = [piece.square().sum().item() for piece in pieces]
    return sum(each), sum(
        x for x, shape in zip(each, shapes.values(), strict=True) if len(shape) > 1
    )


def _seed(path: Path) -> int | None:
    return path.metadata.get("config", {}).get("seed")
