"""Tables over runs."""

from __future__ import annotations

import numpy as np
import pytest
from tests.report.made import made_path

from isoloss.report import markdown, walk_table


def test_probes_of_any_name_are_in_the_table_of_start_and_end() -> None:
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


def test_the_order_is_that_of_the_papers_table() -> None:
    table = walk_table({"sqp": [made_path()]})
    end = table.loc[table["place"] == "end", "quantity"]
    probes = ["test loss", "test metric"]
    assert list(end) == [
        "R", "angle in degrees", "training loss", *probes, "steps", "evaluations"
    ]  # fmt: skip
