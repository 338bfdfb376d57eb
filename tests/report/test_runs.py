"""Tables of what was run and how it came out."""

import dataclasses

import numpy as np
import pandas as pd
from tests.report.made import made_path

from isoloss.report import outcome_table, settings_table


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
