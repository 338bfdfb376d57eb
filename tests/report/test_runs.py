"""Tables of what was run, how it came out, and where walks start and end."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from tests.report.made import made_path

from isoloss import Outcome, Path
from isoloss.report import markdown, outcome_table, settings_table, walk_table


def with_metadata(path, **config):
    metadata = {"config": config, "made_with": {"torch": "9"}, "folder": "out/run-004"}
    return dataclasses.replace(path, metadata=metadata)


def test_outcomes_of_walked_failed_and_unfinished_runs():
    methods = {"sqp": [with_metadata(made_path(9, 2), seed=3)], "paper": [made_path(5, 1, "paper")]}
    reasons = {"sqp": {"run-001": "no memory", "run-009": "not finished"}}
    table = outcome_table(methods, reasons).set_index(["method", "run"])
    assert table.index.tolist() == [
        ("paper", "run-000"), ("sqp", "run-001"), ("sqp", "run-004"), ("sqp", "run-009")
    ]  # fmt: skip
    walked = table.loc["sqp", "run-004"]
    assert (walked["seed"], walked["steps"], walked["R_start"]) == (3, 8, 302)
    assert walked["outcome"] == "converged"
    assert table.loc[("sqp", "run-001"), ["outcome", "message"]].tolist() == ["failed", "no memory"]
    assert table.loc["sqp", "run-009"]["outcome"] == "not finished"
    assert pd.isna(table.loc["sqp", "run-009"]["R_end"])


def test_the_end_is_the_last_measured_value():
    path = made_path(6)
    path.steps.loc[5, ["test_loss", "loss"]] = np.nan
    row = outcome_table({"sqp": [path]}, {}).iloc[0]
    assert row["test_loss_end"] == path.steps["test_loss"][4]
    assert row["R_end"] == path.steps["regularizer"][5]


def test_settings_show_every_value_once():
    paths = [
        with_metadata(made_path(3), seed=k, stop={"steps": 5, "seconds": None}) for k in (0, 1)
    ]
    table = settings_table({"sqp": paths, "paper": [made_path(3)]})
    assert table["sqp"].to_dict() == {
        "seed": "0, 1", "stop steps": "5", "stop seconds": "none", "torch": "9"
    }  # fmt: skip
    assert table["paper"]["seed"] == "not recorded"


def plain(*values):
    kinds = ["start"] + ["predict"] * (len(values) - 1)
    steps = pd.DataFrame({"kind": kinds, "regularizer": values, "loss": 0.5})
    return Path(steps, torch.zeros(1, 1), [0], 0.5, Outcome.STEP_LIMIT, "", "paper", "squared_norm")


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


def test_probes_of_any_name_are_in_the_table_of_start_and_end():
    paths = [made_path(seed=seed) for seed in (0, 2)]
    for path in paths:
        steps = path.steps
        steps["held_out_loss"] = steps.pop("test_loss")
        steps["test_metric"] = np.nan  # a probe whose loss has no metric
    table = walk_table({"sqp": paths}).set_index(["quantity", "place"])
    assert "test metric" not in table.index.get_level_values("quantity")
    assert table.loc[("held out loss", "start"), "mean"] == pytest.approx(0.46)
    assert table.loc[("held out loss", "start"), "std"] == pytest.approx(0.01 * 2**0.5)
    assert "| held out loss, end |" in markdown(table.reset_index())


def test_the_order_is_that_of_the_papers_table():
    table = walk_table({"sqp": [made_path()]})
    end = table.loc[table["place"] == "end", "quantity"]
    probes = ["test loss", "test metric"]
    assert list(end) == [
        "R", "angle in degrees", "training loss", *probes, "steps", "evaluations"
    ]  # fmt: skip
