"""Walks and weight decay side by side: the paper's Table 1 with its flaws corrected.

Groups are made from columns. Both readings of the reference are given: the test loss without and
with the penalty, the squared norm with and without biases.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from isoloss.path import Path
from isoloss.report.curves import Methods, on_level, paired_change, summarize
from isoloss.report.page import NONE, Table

QUANTITIES = {
    "train_loss": "training loss",
    "test_loss": "test loss",
    "penalized_test_loss": "test loss with penalty",
    "test_metric": "test metric",
    "squared_norm": "squared norm",
    "squared_norm_weights": "squared norm without biases",
}
"""Columns of `Results.decay` that are compared, and what people read above them."""
DECAY = "weight decay"
FAIR = "weight decay, penalty chosen on held-out examples"
NOTES = (
    "Mean ± standard deviation over the runs; below, the 95 % bootstrap interval of the mean.",
    "(t) the penalty with the smallest mean test loss: a choice that looks at the test set.",
    "(v) the penalty with the smallest mean loss on examples held out of the training draw.",
)
LATEX = {
    **{character: f"\\{character}" for character in "#$%&_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
}


def chosen_per_run(decay: pd.DataFrame) -> pd.DataFrame:
    """The row of each run whose penalty had the smallest loss on held-out training examples."""
    if "validation_loss" not in decay:
        return decay.iloc[:0]
    usable = decay[np.isfinite(decay["validation_loss"]) & np.isfinite(decay["train_loss"])]
    return usable.loc[usable.groupby("run")["validation_loss"].idxmin()]


def comparison_table(methods: Methods, decay: pd.DataFrame) -> pd.DataFrame:
    """Every quantity of every group: mean, spread, interval over the runs.

    Args:
        methods: The walks of each method, by its name.
        decay: What `Results.decay` returned.

    Returns:
        A row for each group (`walk by METHOD`, weight decay, and weight decay with the penalty that
        each run chose on held-out examples), place (`start`, `end`, or empty), penalty (NaN of
        walks) and quantity, with columns `group`, `place`, `penalty`, `quantity`, `mean`, `std`,
        `low`, `high` (95 % bootstrap interval of the mean), `interval` (how it was made), `runs`,
        `lost` (networks left out as they became NaN or infinite), `best_on_test` (whether the mean
        test loss is the smallest of all penalties: a choice that looks at the test set) and
        `best_on_held_out` (likewise, by the mean loss on held-out training examples).
    """
    best = {
        "best_on_test": _best(decay, "test_loss"),
        "best_on_held_out": _best(decay, "validation_loss"),
    }
    walks = [row for name, paths in methods.items() for path in paths for row in _ends(name, path)]
    tables = [pd.DataFrame(walks)]
    if len(decay):  # the runs of one group are those of one penalty, or each has chosen its own
        tables.append(decay.assign(group=DECAY, place=""))
        tables.append(chosen_per_run(decay).assign(group=FAIR, place="", penalty=math.nan))
    by = ["group", "place", "penalty"]
    filled = [table.dropna(axis=1, how="all") for table in tables if len(table)]
    whole = pd.concat(filled).reindex(columns=[*by, *QUANTITIES])
    groups: Any = whole.groupby(by, sort=False, dropna=False)
    rows: list[dict[str, object]] = []
    for (group, place, penalty), table in groups:
        for quantity in QUANTITIES:
            summary = summarize(table[quantity].to_numpy(dtype=float))
            row = {"group": group, "place": place, "penalty": penalty, "quantity": quantity}
            lost = 0 if group.startswith("walk") else len(table) - summary.runs
            chosen = {name: penalty == value for name, value in best.items()}
            rows.append({**row, **asdict(summary), "lost": lost, **chosen})
    return pd.DataFrame(rows)


def changes_table(methods: Methods, decay: pd.DataFrame, metric: str) -> pd.DataFrame:
    """What a walk changes, paired over the runs: a row for each method, quantity and comparison.

    From the start of the walk to its end; from the start to its best point, which looks at the test
    set; and from the network that weight decay gives on the same seed, its penalty chosen on
    held-out examples, to the end of the walk. More accuracy is better, of any other metric less.
    """
    fair = chosen_per_run(decay)
    rows: list[dict[str, object]] = []
    for method, paths in methods.items():
        for quantity in ("test_loss", "test_metric"):
            rows_of = [on_level(path).reindex(columns=[quantity]).dropna() for path in paths]
            measured = [values[quantity] for values in rows_of if len(values)]
            probed = [path for path, values in zip(paths, rows_of, strict=True) if len(values)]
            higher = quantity == "test_metric" and metric == "accuracy"
            ends = [float(values.iloc[-1]) for values in measured]
            starts = [float(values.iloc[0]) for values in measured]
            best = [float(np.max(values) if higher else np.min(values)) for values in measured]
            pairs = {
                "start to end": (starts, ends),
                "start to best point, chosen on the test set": (starts, best),
            }
            if len(fair):
                known = dict(zip(fair["seed"], fair[quantity], strict=True))
                theirs = [float(known.get(_seed(path), math.nan)) for path in probed]
                pairs["weight decay, chosen on held-out examples, to end"] = (theirs, ends)
            for comparison, (before, after) in pairs.items() if probed else ():
                row = {"group": f"walk by {method}", "comparison": comparison, "quantity": quantity}
                rows.append({**row, **asdict(paired_change(before, after))})
    columns = ["group", "comparison", "quantity", "mean", "std", "low", "high", "interval", "runs"]
    return pd.DataFrame(rows, columns=[*columns, "t_p", "wilcoxon_p", "note"])


def equivalent_penalty(path: Path) -> float:
    """The penalty of the weight decay that is stationary where a walk has converged."""
    return float(on_level(path)["equivalent_penalty"].iloc[-1])


def equivalent_table(methods: Methods, trained: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """How near a walk and weight decay with the penalty at which it ended come to each other.

    A row for each run that has both. The objective is loss + penalty * squared norm, biases
    included, which both try to make small; walks by another regularizer are left out.
    """
    rows: list[dict[str, object]] = []
    for method, table in trained.items():
        paths = [path for path in methods.get(method, ()) if path.regularizer == "squared_norm"]
        walks = {_seed(path): path for path in paths}
        for network in table.to_dict("records"):
            if network["seed"] not in walks:
                continue
            end, penalty = on_level(walks[network["seed"]]).iloc[-1], float(network["penalty"])
            row: dict[str, Any] = {"method": method, "run": network["run"]}
            row |= {"seed": network["seed"], "penalty": penalty}
            for name, of_walk, of_decay in (
                ("loss", "loss", "train_loss"),
                ("squared_norm", "regularizer", "squared_norm"),
                ("test_loss", "test_loss", "test_loss"),
                ("test_metric", "test_metric", "test_metric"),
            ):
                row[f"walk_{name}"] = float(end.get(of_walk, math.nan))
                row[f"decay_{name}"] = float(network[of_decay])
            for who in ("walk", "decay"):
                norm = penalty * row[f"{who}_squared_norm"]
                row[f"{who}_objective"] = row[f"{who}_loss"] + norm
            rows.append(row)
    return pd.DataFrame(rows)


def squared_norms(theta: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> tuple[float, float]:
    """The squared norm of a network: of all parameters, and of those that are not biases.

    Those of one dimension are taken for biases; `shapes` is in the order of theta.
    """
    pieces = theta.double().split([math.prod(shape) for shape in shapes.values()])
    each = [piece.square().sum().item() for piece in pieces]
    weights = [x for x, shape in zip(each, shapes.values(), strict=True) if len(shape) > 1]
    return sum(each), sum(weights)


def _best(decay: pd.DataFrame, column: str) -> float:
    """The penalty with the smallest mean of a column; NaN where there is none."""
    if column not in decay:
        return math.nan
    finite = decay[np.isfinite(decay[column])]
    means: Any = finite.groupby("penalty")[column].mean()
    return float(means.idxmin()) if len(means) else math.nan


def _ends(method: str, path: Path) -> list[dict[str, Any]]:
    """The networks at a walk's start and end, as those of weight decay are recorded."""
    rows = on_level(path)
    kept = dict(zip(path.point_steps, path.points, strict=True))
    found: list[dict[str, Any]] = []
    for place, at in (("start", 0), ("end", -1)):
        row: Any = rows.iloc[at]
        one = {"group": f"walk by {method}", "place": place, "train_loss": row["loss"]}
        one |= {name: row.get(name, math.nan) for name in ("test_loss", "test_metric")}
        if row["step"] in kept:
            norms = squared_norms(kept[row["step"]], path.shapes)
            one["squared_norm"], one["squared_norm_weights"] = norms
        found.append(one)
    return found


def _seed(path: Path) -> int | None:
    return path.metadata.get("config", {}).get("seed")


def compared(table: pd.DataFrame) -> Table:
    """The table of `comparison_table` for people: a row for each network."""
    rows: list[list[str]] = []
    groups: Any = table.groupby(["group", "place", "penalty"], sort=False, dropna=False)
    for (group, place, penalty), of_network in groups:
        by: Any = of_network.set_index("quantity")
        test = by.loc["test_loss"]
        marks = " (t)" * bool(test["best_on_test"]) + " (v)" * bool(test["best_on_held_out"])
        name = f"{DECAY}, {penalty:g}{marks}" if group == DECAY else group
        runs = f"{test['runs']}, {test['lost']} lost" if test["lost"] else str(test["runs"])
        means = [spread(by.loc[quantity]) for quantity in QUANTITIES]
        rows.append([f"{name}, {place}" if place else name, *means, runs])
    return Table(
        title="Every network, mean over the runs",
        columns=["network", *QUANTITIES.values(), "runs"],
        rows=rows,
        caption=" ".join(NOTES),
    )


def changed(table: pd.DataFrame) -> Table:
    """The table of `changes_table` for people."""
    return Table(
        title="What the walk changed, paired over the runs",
        columns=["change of", "mean change", "from", "t-test p", "Wilcoxon p", "runs", "note"],
        rows=[
            [
                f"{row['group']}: {QUANTITIES[row['quantity']]}",
                spread(row),
                str(row["comparison"]),
                *(NONE if math.isnan(row[p]) else f"{row[p]:.2g}" for p in ("t_p", "wilcoxon_p")),
                str(row["runs"]),
                str(row["note"]),
            ]
            for row in table.to_dict("records")
        ],
        caption="Mean ± standard deviation of the change; below, its 95 % bootstrap interval. The "
        "best point is chosen on the test set, so its change is too good.",
    )


def equalized(table: pd.DataFrame) -> Table:
    """The table of `equivalent_table` for people, the walk and weight decay side by side."""
    whom = {"walk": "walk", "decay": "weight decay"}
    quantities = ("loss", "squared_norm", "objective", "test_loss", "test_metric")
    heads = [f"{name.replace('_', ' ')}, {who}" for name in quantities for who in whom.values()]
    return Table(
        title="Trained with the penalty at which each walk ended",
        columns=["walk", "penalty", *heads],
        rows=[
            [
                f"{row['method']}, seed {row['seed']}",
                f"{row['penalty']:.3g}",
                *(f"{row[f'{who}_{name}']:.4g}" for name in quantities for who in whom),
            ]
            for row in table.to_dict("records")
        ],
        caption="The objective is loss + penalty x squared norm, which both make small.",
    )


def spread(row: Any) -> str:
    """A mean with its spread, and its interval on a line below, to the digits the spread leaves."""
    mean, std, low, high = (float(row[name]) for name in ("mean", "std", "low", "high"))
    if math.isnan(mean):
        return NONE
    if math.isnan(std):
        return f"{mean:.4g}"
    if abs(mean) >= 1e5 or (std and abs(mean) < 1e-3):
        text, interval = f"{mean:.3g} ± {std:.2g}", f"{low:.3g} to {high:.3g}"
    else:
        digits = 4
        if mean:  # five figures of the mean at most
            digits = max(0, digits - math.floor(math.log10(abs(mean))))
        if std > 1e-12 * abs(mean):
            digits = min(digits, max(0, 1 - math.floor(math.log10(std))))
        spread = f"{std:.{digits}f}"
        text = f"{mean:.{digits}f} ± {spread if float(spread) else f'{std:.1g}'}"
        interval = f"{low:.{digits}f} to {high:.{digits}f}"
    return text if math.isnan(low) else f"{text}\n{interval}"


def latex(table: Table) -> str:
    """A table as a LaTeX `tabular` with rules of `booktabs`; lines within entries as small rows."""
    lines = [
        "% needs \\usepackage{booktabs}",
        f"\\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}",
        "\\toprule",
        " & ".join(map(_escaped, table.columns)) + r" \\",
        "\\midrule",
    ]
    for row in table.rows:
        parts = [entry.partition("\n") for entry in row]
        lines.append(" & ".join(_escaped(first) for first, _, _ in parts) + r" \\")
        if any(second for _, _, second in parts):
            small = [f"\\scriptsize {_escaped(low)}" if low else "" for _, _, low in parts]
            lines.append(" & ".join(small) + r" \\[2pt]")
    lines += ["\\bottomrule", "\\end{tabular}", f"% {table.caption}"]
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text)
