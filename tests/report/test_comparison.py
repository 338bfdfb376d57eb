"""The comparison's tables from networks few enough to do by hand, and the figures of them."""

import dataclasses
import re

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isoloss import Outcome, Path
from isoloss.report import comparison_scatter, comparison_table, decay_history, save
from isoloss.report.comparison import (
    DECAY,
    FAIR,
    changed,
    changes_table,
    chosen_per_run,
    compared,
    equivalent_table,
    latex,
    spread,
    squared_norms,
)
from isoloss.report.page import Table

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
        metadata={"config": {"seed": seed}},
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
    assert compared(table).rows[2][-1] == "1, 1 lost"


def test_walks_alone_and_decay_alone_can_be_tabled():
    assert set(comparison_table(WALKS, pd.DataFrame())["group"]) == {"walk by sqp"}
    assert set(comparison_table({}, decay())["group"]) == {DECAY, FAIR}


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
    ("figures", "expected"),
    [
        ((0.158, 0.0043, 0.151, 0.16), ("0.1580 ± 0.0043", "0.1510 to 0.1600")),
        ((343.9, 3.2, 341.6, 346.2), ("343.9 ± 3.2", "341.6 to 346.2")),
        ((2.5e-4, 1e-5, 2.4e-4, 2.6e-4), ("0.00025 ± 1e-05", "0.00024 to 0.00026")),
        ((7.86e7, 1.2e6, 7.7e7, 8e7), ("7.86e+07 ± 1.2e+06", "7.7e+07 to 8e+07")),
        ((0.5, float("nan"), float("nan"), float("nan")), ("0.5",)),
        ((float("nan"),) * 4, ("-",)),
        ((1.0, 0.0, 1.0, 1.0), ("1.0000 ± 0", "1.0000 to 1.0000")),
        ((0.0, 0.0, 0.0, 0.0), ("0.0000 ± 0", "0.0000 to 0.0000")),
        ((1.0965621, 5.9e-7, 1.0965619, 1.0965624), ("1.0966 ± 6e-07", "1.0966 to 1.0966")),
    ],
)
def test_figures_are_given_to_the_digits_their_spread_leaves(figures, expected):
    row = dict(zip(("mean", "std", "low", "high"), figures, strict=True))
    assert spread(row).split("\n") == list(expected)


def test_the_tables_for_people_hold_every_network():
    table = comparison_table(WALKS, decay())
    shown = compared(table)
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


def test_latex_has_as_many_cells_in_every_row():
    lines = latex(compared(comparison_table(WALKS, decay()))).splitlines()
    rows = [line for line in lines if re.search(r"\\\\(\[2pt\])?$", line)]
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
    written = latex(table).splitlines()[5].removesuffix(r" \\")
    for escape in ESCAPES:
        written = written.replace(escape, chr(0xE000 + list(ESCAPES).index(escape)))
    assert not set(written) & set("\\~^<>#$%&_{}")
    for k, special in enumerate(ESCAPES.values()):
        written = written.replace(chr(0xE000 + k), special)
    assert written == name


def test_markdown_keeps_bars_and_line_breaks_within_their_cell():
    text = Table(title="", columns=["", "x|y"], rows=[["a|b", "1\n2"]]).markdown()
    assert text.splitlines()[0] == r"| | x\|y |"
    assert text.splitlines()[2] == r"| a\|b | 1<br>2 |"


def test_a_walk_by_another_regularizer_is_not_compared_by_its_norm():
    other = dataclasses.replace(walk(7, [0.8, 0.3, 0.6]), regularizer="l1")
    trained = decay().iloc[:1]
    assert len(equivalent_table({"sqp": [walk(7, [0.8, 0.3, 0.6])]}, {"sqp": trained})) == 1
    assert len(equivalent_table({"sqp": [other]}, {"sqp": trained})) == 0
    panels = comparison_scatter({"sqp": [other]}, decay()).axes
    drawn = [sum(line.zorder == 4 for line in panel.lines) for panel in panels[:2]]
    assert drawn == [1, 0]


def test_a_probe_that_was_never_measured_is_left_out():
    path = walk(7, [np.nan] * 3)
    assert set(changes_table({"sqp": [path]}, decay(), "mse")["quantity"]) == {"test_metric"}
    comparison_scatter({"sqp": [path]}, decay())


def trained(epochs=(9,)):
    rows = [
        {
            "run": run,
            "penalty": penalty,
            "epoch": epoch,
            "train_loss": 0.1 + penalty + run / 100,
            "test_loss": 0.2 + penalty + epoch / 10,
            "test_metric": 0.5,
            "squared_norm": 5 + run,
            "squared_norm_weights": 4 + run,
        }
        for run in range(2)
        for penalty in (0.0, 0.1, 1.0)
        for epoch in epochs
    ]
    return pd.DataFrame(rows)


ONE = {"sqp": [walk(7, [0.9, 0.8, 0.7])]}


def test_walks_are_curves_and_weight_decay_dots_with_their_means():
    figure = comparison_scatter(ONE, trained(), title="X", metric="accuracy")
    panels = figure.axes[:4]
    assert panels[2].get_xlabel() == "training loss (without penalty)"
    assert panels[3].get_xlabel() == "squared norm R (with biases)"
    assert panels[2].get_ylabel() == "test accuracy"
    curves = [line for line in panels[1].lines if len(line.get_xdata()) == 3 and line.zorder == 4]
    np.testing.assert_allclose(curves[0].get_xdata(), [14, 9, 5])
    np.testing.assert_allclose(curves[0].get_ydata(), [0.9, 0.8, 0.7])
    means = panels[0].collections[-1].get_offsets()
    np.testing.assert_allclose(means, [[0.105, 1.1], [0.205, 1.2], [1.105, 2.1]])
    assert {text.get_text() for text in panels[0].texts} == {"0", "0.1", "1"}


def test_where_the_metric_is_the_loss_it_is_shown_once():
    assert len(comparison_scatter(ONE, trained(), metric="mse").axes) == 2 + 1


def test_weight_decay_alone_and_walks_alone_are_shown(tmp_path):
    for methods, table in (({}, trained()), (ONE, pd.DataFrame())):
        files = save(comparison_scatter(methods, table), tmp_path, "comparison")
        assert all(file.stat().st_size > 5000 for file in files)


def test_history_is_the_mean_over_runs():
    figure = decay_history(trained(epochs=(0, 5, 9)), metric="accuracy")
    first = figure.axes[0].lines[0]
    np.testing.assert_allclose(first.get_xdata(), [0, 5, 9])
    np.testing.assert_allclose(first.get_ydata(), 0.105)
    assert len(figure.axes[0].lines) == 3
