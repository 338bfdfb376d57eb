"""The examples run in their quick form and find what they say they find."""

from __future__ import annotations

import math
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from isoloss.errors import DataError
from isoloss.experiments import datasets

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Run an example as the command does, and give what it left behind and printed."""

    def runner(name: str) -> tuple[dict[str, Any], str]:
        monkeypatch.setattr("sys.argv", [name, "--quick"])
        monkeypatch.chdir(tmp_path)
        with torch.random.fork_rng():
            left = runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return left, capsys.readouterr().out

    return runner


def held(path: Any) -> bool:
    return path.steps["level_error"].abs().max() <= 1.01e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["digits_mlp", "transformer_text", "huber_regression", "training_script"]
)
def test_the_squared_norm_falls_at_one_training_loss(name: str, run) -> None:
    left, printed = run(name)
    path = left["path"]
    assert held(path)
    assert path.steps["regularizer"].iloc[-1] < 0.8 * path.steps["regularizer"].iloc[0]
    assert f"{path.steps['regularizer'].iloc[0]:.0f}" in printed or "%" in printed


@pytest.mark.slow
def test_a_network_with_batch_norm_is_walked_in_eval_mode(run) -> None:
    if not datasets.at_hand("cifar10"):
        pytest.skip("CIFAR-10 is not at hand: isoloss data fetch cifar10")
    left, printed = run("resnet18_cifar10")
    path = left["path"]
    assert held(path)
    assert path.steps["regularizer"].iloc[-1] < 0.96 * path.steps["regularizer"].iloc[0]
    assert path.level < 0.9 * math.log(10)  # it has learned something
    assert "parameters" in printed


def test_an_absent_data_set_is_said(run, monkeypatch, tmp_path) -> None:
    def absent(name: str) -> None:
        raise DataError(f"{name} is not there")

    monkeypatch.setattr(datasets, "load", absent)
    with pytest.raises(SystemExit, match="isoloss data fetch cifar10"):
        run("resnet18_cifar10")


def test_the_end_of_a_walk_is_scikit_learns_logistic_regression(run) -> None:
    left, printed = run("logistic_regression")
    assert left["difference"] < 1e-4
    assert f"{left['difference']:.1e}" in printed


@pytest.mark.slow
def test_flat_and_small_are_two_things(run) -> None:
    left, printed = run("flatness")
    assert left["path"].regularizer == "hessian_trace"
    assert held(left["path"])
    assert left["flat"][1] < 0.7 * left["flat"][0]
    assert "Minimizing squared_norm" in printed


@pytest.mark.slow
def test_flattest_and_sharpest_are_far_apart(run) -> None:
    left, printed = run("sharpness")
    down, up = (left["paths"][what] for what in ("flattest", "sharpest"))
    assert held(down)
    assert held(up)
    start = down.steps["regularizer"].iloc[0]
    assert down.steps["regularizer"].iloc[-1] < 0.8 * start
    assert -up.steps["regularizer"].iloc[-1] > 3 * start
    assert f"{start:.3g}" in printed


@pytest.mark.slow
def test_fairest_and_least_fair_are_far_apart(run) -> None:
    left, printed = run("fairness")
    fairest, least = (left["paths"][what] for what in ("fairest", "least fair"))
    assert held(fairest)
    assert held(least)
    assert fairest.steps["regularizer"].iloc[-1] < 1e-3
    assert (-least.steps["regularizer"].iloc[-1]) ** 0.5 > 0.2
    problem, validation, most = left["problem"], left["held_out"], 1.001 * left["present"]
    assert validation.loss(least.points[-1]).item() > most  # for which it is held, too
    level = problem.loss(problem.current()).item()
    for what in ("fairest", "least fair"):
        path = left["paths"][f"{what}, validation loss held"]
        for point in path.points:
            assert problem.loss(point).item() == pytest.approx(level, rel=1.01e-3)
            assert validation.loss(point).item() <= most * (1 + 1e-9)
        assert abs(path.steps["regularizer"]).iloc[[0, -1]].is_monotonic_increasing == (
            what == "least fair"
        )
    assert "gap 0." in printed


def test_one_can_go_far(run) -> None:
    left, _ = run("distance")
    assert left["path"].steps["level_error"].iloc[-1] <= 1.01e-3
    assert left["distance"] > left["size"]
    problem, trained = left["problem"], left["trained"]
    start, end = (problem.loss(theta).item() for theta in (trained, left["path"].points[-1]))
    assert end == pytest.approx(start, rel=1.01e-3)


@pytest.mark.slow
def test_equally_good_networks_predict_otherwise(run) -> None:
    left, printed = run("multiplicity")
    problem, validation = left["problem"], left["validation"]
    level = problem.loss(problem.current()).item()
    assert (left["intervals"].table["low"] < left["intervals"].table["start"] - 1).any()
    ends = [end for one in left["intervals"].values() for end in (one.low_end, one.high_end)]
    for end in [*ends, *left["networks"].ends]:
        assert problem.loss(end.theta).item() == pytest.approx(level, rel=1.01e-3)
        assert validation.loss(end.theta) <= 1.02 * 1.0011 * left["now"]
    assert left["networks"].discrepancy > 0
    assert "either label" in printed
    assert Path("multiplicity.png").stat().st_size > 10_000


@pytest.mark.slow
def test_no_network_of_weight_decay_lies_below_the_front(run, tmp_path) -> None:
    left, printed = run("front")
    best = left["front"].best
    for row in left["rows"]:
        least = best.loc[best["level"] == row["train_loss"], "regularizer"].item()
        assert least <= 1.001 * row["squared_norm"]
        assert f"on the front {least:.4g}" in printed
    assert (tmp_path / "front.png").stat().st_size > 10_000
