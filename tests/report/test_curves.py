"""Means and spreads over runs, from tables small enough to do by hand."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from isoloss import Outcome, Path
from isoloss.report import band, curve, markdown, on_level, walk_table


def walk(kinds, values, test=None):
    steps = pd.DataFrame(
        {
            "step": range(len(kinds)),
            "kind": kinds,
            "evaluations": range(1, len(kinds) + 1),
            "regularizer": values,
            "loss": 0.5,
            "test_loss": values if test is None else test,
        }
    )
    return Path(steps, torch.zeros(1, 1), [0], 0.5, Outcome.STEP_LIMIT, "", "paper", "squared_norm")


def plain(*values):
    return walk(["start"] + ["predict"] * (len(values) - 1), list(values))


def test_rows_that_a_correction_follows_are_left_out():
    path = walk(["start", "predict", "correct", "correct", "predict"], [9.0, 8.0, 7.0, 6.0, 5.0])
    rows = on_level(path)
    assert rows["progress"].tolist() == [0, 1, 2]
    assert rows["regularizer"].tolist() == [9.0, 6.0, 5.0]


def test_mean_and_sample_standard_deviation_by_hand():
    curve = band([plain(1.0, 3.0), plain(3.0, 7.0)], "regularizer")
    assert curve.x.tolist() == [0, 1]
    assert curve.mean.tolist() == [2.0, 5.0]
    assert curve.std.tolist() == pytest.approx([2**0.5, 8**0.5])
    assert curve.beyond == []


def test_the_mean_ends_with_the_shortest_run_and_the_others_go_on_alone():
    curve = band([plain(1.0, 2.0), plain(1.0, 4.0, 5.0, 6.0)], "regularizer")
    assert curve.x.tolist() == [0, 1]
    assert curve.mean.tolist() == [1.0, 3.0]
    ((steps, values),) = curve.beyond
    assert steps.tolist() == [1, 2, 3]
    assert values.tolist() == [4.0, 5.0, 6.0]


def test_one_run_has_no_standard_deviation():
    assert np.isnan(band([plain(1.0, 2.0)], "regularizer").std).all()


def test_values_not_measured_are_left_out():
    path = walk(["start", "predict", "predict"], [1.0, 2.0, 3.0], [5.0, np.nan, 7.0])
    curve = band([path, path], "test_loss")
    assert curve.x.tolist() == [0, 2]
    assert curve.mean.tolist() == [5.0, 7.0]


def test_the_table_holds_start_and_end_of_each_method():
    table = walk_table({"paper": [plain(4.0, 1.0), plain(6.0, 3.0)], "sqp": [plain(5.0, 2.0)]})
    by = table.set_index(["method", "quantity", "place"])
    assert by.loc[("paper", "R", "start"), "mean"] == 5.0
    assert by.loc[("paper", "R", "end"), "mean"] == 2.0
    assert by.loc[("paper", "R", "end"), "std"] == pytest.approx(2**0.5)
    assert by.loc[("paper", "steps", "end"), "mean"] == 1
    assert by.loc[("sqp", "R", "end"), "runs"] == 1
    assert np.isnan(by.loc[("sqp", "R", "end"), "std"])


def test_the_table_for_people_has_a_column_per_method():
    table = walk_table({"paper": [plain(4.0, 1.0), plain(6.0, 3.0)], "sqp": [plain(5.0, 2.0)]})
    lines = markdown(table).splitlines()
    assert lines[0] == "| | paper (2 runs) | sqp (1 run) |"
    assert "| R, start | 5.0 ± 1.4 | 5 |" in lines
    assert "| steps, end | 1 ± 0 | 1 |" in lines
    assert len({line.count("|") for line in lines}) == 1


def costly(values, evaluations, arcs, test=None):
    path = walk(["start"] + ["sqp"] * (len(values) - 1), list(values), test)
    return dataclasses.replace(
        path, steps=path.steps.assign(evaluations=evaluations, arc_length=arcs)
    )


def test_against_evaluations_runs_are_interpolated_where_all_are():
    a = costly([9.0, 5.0, 1.0], [1, 3, 5], [0.0, 1.0, 2.0])
    b = costly([8.0, 4.0], [1, 4], [0.0, 3.0])
    curve = band([a, b], "regularizer", "evaluations")
    assert curve.x.tolist() == [1, 3, 4]
    assert curve.mean.tolist() == pytest.approx([8.5, (5 + 8 - 4 * 2 / 3) / 2, (3 + 4) / 2])
    assert curve.std[0] == pytest.approx(0.5**0.5)
    ((x, y),) = curve.beyond
    assert x.tolist() == [4, 5]
    assert y.tolist() == [3, 1]


def test_against_the_arc_length_steps_of_no_length_count_once():
    path = costly([9.0, 5.0, 4.0, 1.0], [1, 2, 3, 4], [0.0, 1.0, 1.0, 2.0])
    assert band([path], "regularizer", "arc_length").x.tolist() == [0, 1, 2]


def test_against_the_regularizer_only_new_lows_are_taken():
    path = costly([9.0, 5.0, 6.0, 5.0, 1.0], range(5), range(5), [0.1, 0.2, 0.3, 0.4, 0.5])
    x, y = curve(path, "test_loss", "regularizer")
    assert x.tolist() == [1, 5, 9]
    assert y.tolist() == [0.5, 0.2, 0.1]


def test_runs_that_never_meet_have_no_mean_but_are_shown():
    a, b = (costly(v, [1, 2], [0.0, 1.0]) for v in ([9.0, 8.0], [5.0, 4.0]))
    curve = band([a, b], "evaluations", "regularizer")
    assert len(curve.mean) == 0
    assert sorted(x.tolist() for x, _ in curve.beyond) == [[4, 5], [8, 9]]


def test_unknown_columns_and_abscissae_are_refused(refuses):
    with refuses("evaluation", "evaluations"):
        band([plain(1.0)], "loss", "evaluation")
    with refuses("tost_loss", "test_loss"):
        band([plain(1.0)], "tost_loss")
