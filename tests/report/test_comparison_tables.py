"""The comparison's tables from networks few enough to do by hand."""

import re

import numpy as np
import pandas as pd
import pytest
import torch

from isoloss import Outcome, Path
from isoloss.report.comparison_tables import (
    DECAY,
    FAIR,
    changes_table,
    chosen_per_run,
    comparison_table,
    networks,
    squared_norms,
)
from isoloss.report.comparison_text import changes_to_markdown, figure, to_latex, to_markdown

SHAPES = {"weight": (2, 1), "bias": (1,)}


def walk(seed, test, metric=(0.5, 0.5, 0.5), loss=0.5):
    steps = pd.DataFrame(
        {
            "step": [0, 1, 2],
            "kind": ["start", "sqp", "sqp"],
            "evaluations": [1, 2, 3],
            "loss": loss,
            "regularizer": [14.0, 9.0, 5.0],
            "test_loss": test,
            "test_metric": metric,
        }
    )
    points = torch.tensor([[1.0, 2.0, 3.0], [1.0, 0.0, 2.0]])
    return Path(
        steps, points, [0, 2], 0.5, Outcome.CONVERGED, "", "sqp", "squared_norm", SHAPES,
        {"config": {"seed": seed}},
    )  # fmt: skip


def decay(**changes):
    """Penalties 0, 1e-1 and 1e1 (names that contain each other), two runs."""
    table = pd.DataFrame(
        {
            "run": [0, 0, 0, 1, 1, 1],
            "seed": [7, 7, 7, 8, 8, 8],
            "penalty": [0.0, 0.1, 10.0] * 2,
            "train_loss": [0.1, 0.2, 1.0, 0.3, 0.4, 1.2],
            "test_loss": [0.9, 0.5, 1.0, 0.7, 0.4, 1.0],
            "penalized_test_loss": [0.9, 0.8, 9.0, 0.7, 0.6, 9.0],
            "test_metric": [0.5, 0.6, 0.3, 0.7, 0.8, 0.3],
            "squared_norm": [9.0, 3.0, 0.1, 8.0, 2.0, 0.2],
            "squared_norm_weights": [8.0, 2.0, 0.0, 7.0, 1.0, 0.0],
            "validation_loss": [0.3, 0.4, 1.0, 0.5, 0.2, 1.0],
            "status": "finished",
        }
    )
    return table.assign(**changes)


WALKS = {"sqp": [walk(7, [0.8, 0.3, 0.6]), walk(8, [0.6, 0.5, 0.2])]}


def by(table):
    return table.set_index(["group", "place", "penalty", "quantity"]).sort_index()


def test_groups_come_from_columns_and_hold_their_own_runs():
    table = comparison_table(WALKS, decay())
    means = {
        (row["group"], row["place"], row["penalty"], row["quantity"]): (row["mean"], row["runs"])
        for row in table.to_dict("records")
    }
    assert means[DECAY, "", 0.0, "test_loss"] == (pytest.approx(0.8), 2)
    assert means[DECAY, "", 0.1, "test_loss"] == (pytest.approx(0.45), 2)
    assert means[DECAY, "", 0.1, "penalized_test_loss"] == (pytest.approx(0.7), 2)
    assert means[DECAY, "", 10.0, "squared_norm"] == (pytest.approx(0.15), 2)


def test_walks_have_both_norms_and_no_penalty():
    table = by(comparison_table(WALKS, decay()))
    end = table.loc["walk by sqp", "end"].droplevel(0)
    assert end.loc["squared_norm", "mean"] == 5
    assert end.loc["squared_norm_weights", "mean"] == 1
    assert end.loc["test_loss", "mean"] == pytest.approx(0.4)
    assert np.isnan(end.loc["penalized_test_loss", "mean"])
    start = table.loc["walk by sqp", "start"].droplevel(0)
    assert start.loc["squared_norm", "mean"] == 14
    assert start.loc["train_loss", "std"] == 0


def test_the_choice_on_the_test_set_is_marked_and_the_fair_one_beside_it():
    table = comparison_table(WALKS, decay(validation_loss=[0.3, 0.4, 1.0, 0.1, 0.2, 1.0]))
    assert set(table.loc[table["best_on_test"], "penalty"]) == {0.1}
    assert set(table.loc[table["best_on_held_out"], "penalty"]) == {0.0}


def test_each_run_chooses_its_own_penalty_on_what_was_held_out():
    chosen = chosen_per_run(decay())
    assert chosen["penalty"].tolist() == [0.0, 0.1]
    table = comparison_table(WALKS, decay())
    fair = table[(table["group"] == FAIR) & (table["quantity"] == "test_loss")]
    assert fair["mean"].item() == pytest.approx((0.9 + 0.4) / 2)
    assert fair["runs"].item() == 2
    assert len(chosen_per_run(decay().drop(columns="validation_loss"))) == 0


def test_lost_networks_are_left_out_and_counted():
    lost = decay(test_loss=[0.9, 0.5, np.nan, 0.7, 0.4, 1.0], train_loss=[0.1, 0.2, np.nan] * 2)
    table = comparison_table({}, lost)
    row = table[(table["penalty"] == 10) & (table["quantity"] == "test_loss")].iloc[0]
    assert (row["mean"], row["runs"], row["lost"]) == (1.0, 1, 1)
    assert "1, 1 lost" in to_markdown(table)


def test_walks_alone_and_decay_alone_can_be_tabled():
    assert set(comparison_table(WALKS, pd.DataFrame())["group"]) == {"walk by sqp"}
    assert set(comparison_table({}, decay())["group"]) == {DECAY, FAIR}
    assert len(networks({}, decay())) == 6 + 2


def test_norms_of_a_network():
    assert squared_norms(torch.tensor([1.0, 2.0, 3.0]), SHAPES) == (14.0, 5.0)


def test_changes_are_paired_by_run_and_seed():
    table = changes_table(WALKS, decay(), "accuracy").set_index(["quantity", "comparison"])
    losses = table.loc["test_loss"]["mean"]
    assert losses["start to end"] == pytest.approx(((0.6 - 0.8) + (0.2 - 0.6)) / 2)
    best = "start to best point, chosen on the test set"
    assert losses[best] == pytest.approx(((0.3 - 0.8) + (0.2 - 0.6)) / 2)
    fair = "weight decay, chosen on held-out examples, to end"
    assert losses[fair] == pytest.approx(((0.6 - 0.9) + (0.2 - 0.4)) / 2)
    assert (table["runs"] == 2).all()


def test_the_best_point_is_the_highest_accuracy_and_the_lowest_error():
    paths = {"sqp": [walk(0, [1.0, 1.0, 1.0], [0.5, 0.9, 0.6])]}
    for metric, expected in (("accuracy", 0.4), ("mse", 0.0)):
        table = changes_table(paths, pd.DataFrame(), metric).set_index(["quantity", "comparison"])
        row = table.loc["test_metric", "start to best point, chosen on the test set"]
        assert row["mean"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((0.158, 0.0043, 0.151, 0.16), ("0.1580 ± 0.0043", "0.1510 to 0.1600")),
        ((343.9, 3.2, 341.6, 346.2), ("343.9 ± 3.2", "341.6 to 346.2")),
        ((2.5e-4, 1e-5, 2.4e-4, 2.6e-4), ("0.00025 ± 1e-05", "0.00024 to 0.00026")),
        ((7.86e7, 1.2e6, 7.7e7, 8e7), ("7.86e+07 ± 1.2e+06", "7.7e+07 to 8e+07")),
        ((0.5, float("nan"), float("nan"), float("nan")), ("0.5", "")),
        ((float("nan"),) * 4, ("", "")),
        ((1.0, 0.0, 1.0, 1.0), ("1.0000 ± 0", "1.0000 to 1.0000")),
        ((0.0, 0.0, 0.0, 0.0), ("0.0000 ± 0", "0.0000 to 0.0000")),
        ((1.0965621, 5.9e-7, 1.0965619, 1.0965624), ("1.0966 ± 6e-07", "1.0966 to 1.0966")),
    ],
)
def test_figures_are_given_to_the_digits_their_spread_leaves(given, expected):
    assert figure(*given) == expected


def test_the_tables_for_people_hold_every_network():
    table = comparison_table(WALKS, decay())
    lines = to_markdown(table).splitlines()
    names = [line.split(" | ")[0].removeprefix("| ") for line in lines[2:8]]
    assert names == [
        "walk by sqp, start",
        "walk by sqp, end",
        "weight decay, 0",
        "weight decay, 0.1 (t) (v)",
        "weight decay, 10",
        FAIR,
    ]
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    changes = changes_to_markdown(changes_table(WALKS, decay(), "accuracy")).splitlines()
    assert len({line.count("|") for line in changes}) == 1


def test_latex_has_as_many_cells_in_every_row():
    lines = to_latex(comparison_table(WALKS, decay())).splitlines()
    rows = [line for line in lines if re.search(r"\\\\(\[2pt\])?$", line)]
    assert len({row.count("&") for row in rows}) == 1
    assert "±" not in "".join(rows)
    assert sum("weight decay" in row for row in rows) == 4
