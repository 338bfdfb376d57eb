"""The comparison's figures show the numbers they were given."""

import numpy as np
import pandas as pd
import torch

from isoloss import Outcome, Path
from isoloss.report import save
from isoloss.report.comparison import comparison_scatter, decay_history


def walk():
    steps = pd.DataFrame(
        {
            "kind": ["start", "sqp", "sqp"],
            "loss": [0.5, 0.5, 0.5],
            "regularizer": [30.0, 20.0, 10.0],
            "test_loss": [0.9, 0.8, 0.7],
            "test_metric": [0.1, 0.2, 0.3],
        }
    )
    return Path(steps, torch.zeros(1, 1), [0], 0.5, Outcome.CONVERGED, "", "sqp", "squared_norm")


def decay(epochs=(9,)):
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


def test_walks_are_curves_and_weight_decay_dots_with_their_means():
    figure = comparison_scatter({"sqp": [walk()]}, decay(), title="X", metric="accuracy")
    panels = figure.axes[:4]
    assert panels[2].get_xlabel() == "training loss (without penalty)"
    assert panels[3].get_xlabel() == "squared norm R (with biases)"
    assert panels[2].get_ylabel() == "test accuracy"
    curves = [line for line in panels[1].lines if len(line.get_xdata()) == 3 and line.zorder == 4]
    np.testing.assert_allclose(curves[0].get_xdata(), [30, 20, 10])
    np.testing.assert_allclose(curves[0].get_ydata(), [0.9, 0.8, 0.7])
    means = panels[0].collections[-1].get_offsets()
    np.testing.assert_allclose(means, [[0.105, 1.1], [0.205, 1.2], [1.105, 2.1]])
    assert {text.get_text() for text in panels[0].texts} == {"0", "0.1", "1"}


def test_where_the_metric_is_the_loss_it_is_shown_once():
    assert len(comparison_scatter({"sqp": [walk()]}, decay(), metric="mse").axes) == 2 + 1


def test_weight_decay_alone_and_walks_alone_are_shown(tmp_path):
    for methods, table in (({}, decay()), ({"sqp": [walk()]}, pd.DataFrame())):
        files = save(comparison_scatter(methods, table), tmp_path, "comparison")
        assert all(file.stat().st_size > 5000 for file in files)


def test_history_is_the_mean_over_runs():
    figure = decay_history(decay(epochs=(0, 5, 9)), metric="accuracy")
    first = figure.axes[0].lines[0]
    np.testing.assert_allclose(first.get_xdata(), [0, 5, 9])
    np.testing.assert_allclose(first.get_ydata(), 0.105)
    assert len(figure.axes[0].lines) == 3
