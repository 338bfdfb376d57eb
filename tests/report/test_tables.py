"""The tables from walks and networks few enough to do by hand, and what people read of them."""

import dataclasses
import re

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.report.made import made_path

from isoloss import Outcome, Path
from isoloss.report import comparison_scatter, comparison_table, decay_history, readable, walk_table
from isoloss.report.comparison import changed, compared
from isoloss.report.page import Table
from isoloss.report.tables import (
    DECAY,
    FAIR,
    changes_table,
    chosen_per_run,
    ends_table,
    equivalent_table,
)

BEST = "start to best point, chosen on the test set"


def walk(seed, test, metric=(0.5, 0.5, 0.5), regularizer=(14.0, 9.0, 5.0)):
    steps = pd.DataFrame(
        {
            "step": [0, 1, 2],
            "kind": ["start", "sqp", "sqp"],
            "evaluations": [1, 2, 3],
            "loss": 0.5,
            "regularizer": regularizer,
            "test_loss": test,
            "test_metric": metric,
        }
    )
    points = torch.tensor([[1.0, 2.0, 3.0], [1.0, 0.0, 2.0]])
    return Path(
        steps, points, [0, 2], 0.5, Outcome.CONVERGED, "", "sqp", "squared_norm",
        {"weight": (2, 1), "bias": (1,)}, metadata={"config": {"seed": seed}},
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


FIRST = walk(7, [0.8, 0.3, 0.6])
WALKS = {"sqp": [FIRST, walk(8, [0.6, 0.5, 0.2])]}


def test_start_and_end_of_each_method_and_a_column_for_each():
    paper = [walk(k, [0.5] * 3, regularizer=(4 + 2 * k, 3, 1 + 2 * k)) for k in (0, 1)]
    table = walk_table({"paper": paper, "sqp": [FIRST]})
    by = table.set_index(["method", "quantity", "place"])
    assert by.loc[("paper", "R", "start"), "mean"] == 5.0
    assert by.loc[("paper", "R", "end"), "mean"] == 2.0
    assert by.loc[("paper", "R", "end"), "std"] == pytest.approx(2**0.5)
    assert by.loc[("paper", "steps", "end"), "mean"] == 2
    assert by.loc[("sqp", "R", "end"), "runs"] == 1
    assert np.isnan(by.loc[("sqp", "R", "end"), "std"])
    columns, rows = readable(table)
    assert columns == ["", "paper (2 runs)", "sqp (1 run)"]
    assert ["R, start", "5.0 ± 1.4", "14"] in rows
    assert ["steps, end", "2 ± 0", "2"] in rows
    assert {len(row) for row in rows} == {3}


def test_probes_of_any_name_are_in_the_table_of_start_and_end():
    paths = [made_path(seed=seed) for seed in (0, 2)]
    for path in paths:
        path.steps["held_out_loss"] = path.steps.pop("test_loss")
        path.steps["test_metric"] = np.nan  # a probe whose loss has no metric
    table = walk_table({"sqp": paths}).set_index(["quantity", "place"])
    assert "test metric" not in table.index.get_level_values("quantity")
    assert table.loc[("held out loss", "start"), "mean"] == pytest.approx(0.46)
    assert table.loc[("held out loss", "start"), "std"] == pytest.approx(0.01 * 2**0.5)
    assert "| held out loss, end |" in ends_table(table.reset_index()).markdown()


def test_the_order_is_that_of_the_papers_table():
    table = walk_table({"sqp": [made_path()]})
    assert list(table.loc[table["place"] == "end", "quantity"]) == [
        "R", "angle in degrees", "training loss", "test loss", "test metric", "steps", "evaluations"
    ]  # fmt: skip


def test_groups_come_from_columns_and_hold_their_own_runs():
    table = comparison_table(WALKS, decay())
    by = table.set_index(["group", "place", "penalty", "quantity"]).sort_index()
    for penalty, quantity, mean in (
        (0.0, "test_loss", 0.8),
        (0.1, "test_loss", 0.45),
        (0.1, "penalized_test_loss", 0.7),
        (10.0, "squared_norm", 0.15),
    ):
        row = by.loc[(DECAY, "", penalty, quantity)]
        assert (row["mean"], row["runs"]) == (pytest.approx(mean), 2)
    start, end = (by.loc["walk by sqp", place].droplevel(0) for place in ("start", "end"))
    assert (end.loc["squared_norm", "mean"], end.loc["squared_norm_weights", "mean"]) == (5, 1)
    assert end.loc["test_loss", "mean"] == pytest.approx(0.4)
    assert np.isnan(end.loc["penalized_test_loss", "mean"])
    assert (start.loc["squared_norm", "mean"], start.loc["train_loss", "std"]) == (14, 0)


def test_walks_alone_and_decay_alone_can_be_tabled():
    assert set(comparison_table(WALKS, pd.DataFrame())["group"]) == {"walk by sqp"}
    assert set(comparison_table({}, decay())["group"]) == {DECAY, FAIR}


def test_the_choice_on_the_test_set_is_marked_and_each_runs_own_is_beside_it():
    table = comparison_table(WALKS, decay(validation_loss=[0.3, 0.4, 1.0, 0.1, 0.2, 1.0]))
    assert set(table.loc[table["best_on_test"], "penalty"]) == {0.1}
    assert set(table.loc[table["best_on_held_out"], "penalty"]) == {0.0}
    assert chosen_per_run(decay())["penalty"].tolist() == [0.0, 0.1]
    table = comparison_table(WALKS, decay())
    fair = table[(table["group"] == FAIR) & (table["quantity"] == "test_loss")]
    assert (fair["mean"].item(), fair["runs"].item()) == (pytest.approx((0.9 + 0.4) / 2), 2)
    assert len(chosen_per_run(decay().drop(columns="validation_loss"))) == 0


def test_lost_networks_are_left_out_and_counted():
    lost = decay(test_loss=[0.9, 0.5, np.nan, 0.7, 0.4, 1.0], train_loss=[0.1, 0.2, np.nan] * 2)
    table = comparison_table({}, lost)
    row = table[(table["penalty"] == 10) & (table["quantity"] == "test_loss")].iloc[0]
    assert (row["mean"], row["runs"], row["lost"]) == (1.0, 1, 1)
    assert compared(table).rows[2][-1] == "1, 1 lost"


def test_changes_are_paired_by_run_and_seed():
    table = changes_table(WALKS, decay(), "accuracy").set_index(["quantity", "comparison"])
    losses = table.loc["test_loss"]["mean"]
    assert losses["start to end"] == pytest.approx(((0.6 - 0.8) + (0.2 - 0.6)) / 2)
    assert losses[BEST] == pytest.approx(((0.3 - 0.8) + (0.2 - 0.6)) / 2)
    fair = "weight decay, chosen on held-out examples, to end"
    assert losses[fair] == pytest.approx(((0.6 - 0.9) + (0.2 - 0.4)) / 2)
    assert (table["runs"] == 2).all()


@pytest.mark.parametrize(("metric", "expected"), [("accuracy", 0.4), ("mse", 0.0)])
def test_the_best_point_is_the_highest_accuracy_and_the_lowest_error(metric, expected):
    paths = {"sqp": [walk(0, [1.0, 1.0, 1.0], [0.5, 0.9, 0.6])]}
    table = changes_table(paths, pd.DataFrame(), metric).set_index(["quantity", "comparison"])
    assert table.loc[("test_metric", BEST), "mean"] == pytest.approx(expected)


def test_a_probe_that_was_never_measured_is_left_out():
    path = walk(7, [np.nan] * 3)
    assert set(changes_table({"sqp": [path]}, decay(), "mse")["quantity"]) == {"test_metric"}
    comparison_scatter({"sqp": [path]}, decay())


def test_a_walk_by_another_regularizer_is_not_compared_by_its_norm():
    other, trained = dataclasses.replace(FIRST, regularizer="l1"), decay().iloc[:1]
    assert len(equivalent_table({"sqp": [FIRST]}, {"sqp": trained})) == 1
    assert len(equivalent_table({"sqp": [other]}, {"sqp": trained})) == 0
    panels = comparison_scatter({"sqp": [other]}, decay()).axes
    assert [sum(line.zorder == 4 for line in panel.lines) for panel in panels[:2]] == [1, 0]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.5], "0.5"),
        ([np.nan], "-"),
        ([1.0, 1.0], "1.0000 ± 0\n1.0000 to 1.0000"),
        ([0.0, 0.0], "0.0000 ± 0\n0.0000 to 0.0000"),
        ([340.0, 348.0], "344.0 ± 5.7\n340.0 to 348.0"),
        ([0.1549, 0.161], "0.1580 ± 0.0043\n0.1549 to 0.1610"),
        ([2.4e-4, 2.6e-4], "0.00025 ± 1.4e-05\n0.00024 to 0.00026"),
        ([7.7e7, 8e7], "7.85e+07 ± 2.1e+06\n7.7e+07 to 8e+07"),
        ([1.0965617, 1.0965625], "1.0966 ± 6e-07\n1.0966 to 1.0966"),
    ],
)
def test_numbers_are_given_to_the_digits_their_spread_leaves(values, expected):
    runs = len(values)
    rows = decay().iloc[[0] * runs].assign(run=range(runs), test_loss=values)
    assert compared(comparison_table({}, rows)).rows[0][2] == expected


def test_the_tables_for_people_hold_every_network_in_markdown_and_latex():
    shown = compared(comparison_table(WALKS, decay()))
    assert [row[0] for row in shown.rows] == [
        "walk by sqp, start",
        "walk by sqp, end",
        "weight decay, 0",
        "weight decay, 0.1 (t) (v)",
        "weight decay, 10",
        FAIR,
    ]
    assert {len(row) for row in shown.rows} == {len(shown.columns)} == {8}
    lines = shown.markdown().splitlines()
    assert len(lines) == 2 + 6
    assert len({line.count("|") for line in lines}) == 1
    assert "<br>" in lines[2]
    changes = changed(changes_table(WALKS, decay(), "accuracy"))
    assert changes.rows[0][:3:2] == ["walk by sqp: test loss", "start to end"]
    assert {len(row) for row in changes.rows} == {len(changes.columns)}
    rows = [line for line in shown.latex().splitlines() if re.search(r"\\\\(\[2pt\])?$", line)]
    assert len({row.count("&") for row in rows}) == 1
    assert "±" not in "".join(rows)
    assert sum("weight decay" in row for row in rows) == 4


ESCAPES = {
    r"\textbackslash{}": "\\",
    r"\textasciitilde{}": "~",
    r"\textasciicircum{}": "^",
    r"\textless{}": "<",
    r"\textgreater{}": ">",
    **{f"\\{special}": special for special in "#$%&_{}"},
}


@given(st.text("\\~^<>#$%&_{}ab ", min_size=1))
def test_latex_escapes_every_special_character(name):
    table = Table(title="", columns=["network"], rows=[[name]])
    written = table.latex().splitlines()[5].removesuffix(r" \\")
    for escape in ESCAPES:
        written = written.replace(escape, chr(0xE000 + list(ESCAPES).index(escape)))
    assert not set(written) & set("\\~^<>#$%&_{}")
    for k, special in enumerate(ESCAPES.values()):
        written = written.replace(chr(0xE000 + k), special)
    assert written == name


def test_markdown_keeps_bars_and_line_breaks_within_their_cell():
    text = Table(title="", columns=["", "x|y"], rows=[["a|b", "1\n2"]]).markdown()
    assert text.splitlines() == [r"| | x\|y |", "| --- | ---: |", r"| a\|b | 1<br>2 |"]


def test_walks_are_curves_and_weight_decay_dots_with_their_means():
    figure = comparison_scatter({"sqp": [FIRST]}, decay(), title="X", metric="accuracy")
    panels = figure.axes[:4]
    assert panels[2].get_xlabel() == "training loss (without penalty)"
    assert panels[3].get_xlabel() == "squared norm R (with biases)"
    assert panels[2].get_ylabel() == "test accuracy"
    curves = [line for line in panels[1].lines if len(line.get_xdata()) == 3 and line.zorder == 4]
    np.testing.assert_allclose(curves[0].get_xydata(), [[14, 0.8], [9, 0.3], [5, 0.6]])
    means = panels[0].collections[-1].get_offsets()
    np.testing.assert_allclose(means, [[0.2, 0.8], [0.3, 0.45], [1.1, 1.0]])
    assert {text.get_text() for text in panels[0].texts} == {"0", "0.1", "10"}


def test_walks_or_decay_may_stand_alone_and_the_loss_as_metric_is_shown_once():
    assert len(comparison_scatter(WALKS, decay(), metric="mse").axes) == 2 + 1
    assert len(comparison_scatter({}, decay()).axes[0].collections) == 4
    assert len(comparison_scatter(WALKS, pd.DataFrame()).axes[0].lines) == 2 * 3


def test_history_is_the_mean_over_runs():
    epochs = pd.concat([decay(epoch=epoch) for epoch in (0, 5, 9)])
    lines = decay_history(epochs, metric="accuracy").axes[0].lines
    assert len(lines) == 3
    np.testing.assert_allclose(lines[0].get_xdata(), [0, 5, 9])
    np.testing.assert_allclose(lines[0].get_ydata(), 0.2)
