"""The first 400 steps of the authors' own code, recorded, against the walk by `paper`."""

from __future__ import annotations

import itertools
import os
import pathlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from isoloss import Path, Problem, Record, Stop, experiments, traverse

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"


def keras_to_torch(flat: NDArray[np.float32], model: nn.Module) -> Tensor:
    """Theta in the order of a model of dense layers, from Keras' kernels and biases."""
    pieces: list[NDArray[np.float32]] = []
    start = 0
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            a, b = layer.in_features, layer.out_features
            kernel = flat[start : start + a * b].reshape(a, b)
            pieces += [kernel.T.ravel(), flat[start + a * b : start + a * b + b]]
            start += a * b + b
    assert start == len(flat)
    return torch.from_numpy(np.concatenate(pieces))


@dataclass(frozen=True)
class Golden:
    """A recorded trace and our walk from its start, all points kept."""

    recorded: dict[str, NDArray[Any]]
    path: Path
    last_saved: Tensor  # the last point that the reference saved, as our theta

    @property
    def first(self) -> int:
        """The number of the reference's first correction, from 1."""
        return int(self.recorded["corrector_index"][0])

    def before_steps(self, count: int | None = None) -> pd.DataFrame:
        """Our rows of the states from which the recorded predictor steps were taken.

        Row k is the state after step k, the record's the one before step `predictor_index`.
        """
        return self.path.steps.iloc[self.recorded["predictor_index"][:count] - 1]


def golden(name: str) -> Golden:
    with np.load(GOLDEN / f"{name}.npz") as file:
        recorded = {key: file[key] for key in file.files}
    experiment = experiments.get(name)
    data, model = experiment.data(0), experiment.network(0)
    problem, test = (
        Problem(model, experiment.loss, pair, metric=experiment.metric)
        for pair in ((data.inputs, data.targets), (data.test_inputs, data.test_targets))
    )
    path = traverse(
        problem,
        start=keras_to_torch(recorded["theta_keras"], model),
        level=float(recorded["level"]),
        method=experiment.paper,
        stop=Stop(steps=400),
        record=Record(points_at_most=None),
        probes={"test": test},
        progress=False,
    )
    return Golden(recorded, path, keras_to_torch(recorded["theta_keras_last_saved"], model))


@pytest.fixture(scope="module")
def iris() -> Golden:
    return golden("IRIS_FF")


@pytest.fixture(scope="module")
def mpg() -> Golden:
    where = pathlib.Path(os.environ.get("ISOLOSS_DATA", "")) / "auto_mpg" / "auto-mpg.data"
    if "ISOLOSS_DATA" not in os.environ or not where.is_file():
        pytest.skip("auto_mpg/auto-mpg.data is not at hand in $ISOLOSS_DATA")
    return golden("MPG_FF")


def relative_error(ours: Any, recorded: NDArray[Any]) -> float:
    assert len(ours) == len(recorded) > 40
    return float(np.max(np.abs(np.asarray(ours) - recorded) / np.abs(recorded)))


@pytest.fixture(params=["iris", "mpg"])
def trace(request: pytest.FixtureRequest) -> Golden:
    return request.getfixturevalue(request.param)


def test_every_step_agrees_up_to_the_first_correction(trace: Golden) -> None:
    n = trace.first - 1
    steps, before = trace.path.steps, trace.before_steps(n)
    recorded = {name: values[:n] for name, values in trace.recorded.items() if values.ndim}
    assert (steps["kind"].iloc[1:n] == "predict").all()
    for ours, theirs in (
        ("regularizer", "squared_norm"),
        ("loss", "train_loss"),
        ("test_loss", "test_loss"),
        ("test_metric", "test_metric"),
    ):
        assert relative_error(before[ours], recorded[theirs]) < 1e-5, ours
    lengths = steps["step_length"].to_numpy()[1 : n + 1]
    assert relative_error(lengths, recorded["predictor_step_length"]) < 1e-5
    angles = before["angle_degrees"].to_numpy()
    assert np.abs(angles - recorded["angle_degrees"]).max() < 1e-3


def test_every_point_is_on_the_level_set_in_float64(iris: Golden) -> None:
    experiment = experiments.get("IRIS_FF")
    data = experiment.data(0)
    exact = Problem(
        experiment.network(0), experiment.loss, (data.inputs, data.targets), dtype=torch.float64
    )
    for theta in iris.path.points[::20].double():
        assert abs(exact.loss(theta).item() - iris.path.level) <= 1e-5 * (1 + 1e-3)


@pytest.mark.parametrize(("name", "first", "off"), [("iris", 84, 0), ("mpg", 46, 1)])
def test_corrections_come_when_and_as_often_as_the_references(
    request: pytest.FixtureRequest, name: str, first: int, off: int
) -> None:
    trace: Golden = request.getfixturevalue(name)
    kinds = trace.path.steps["kind"].tolist()
    assert trace.first == first
    assert abs(kinds.index("correct") - first) <= off
    assert abs(kinds[:401].count("correct") - len(trace.recorded["corrector_index"])) <= 2
    if name == "iris":
        in_a_row = itertools.takewhile(lambda kind: kind == "correct", kinds[first:])
        assert 10 <= len(list(in_a_row)) <= 12


def test_the_walk_stays_with_the_references_to_the_end(trace: Golden) -> None:
    ours = trace.before_steps()["regularizer"]
    assert len(ours) > 380
    assert relative_error(ours, trace.recorded["squared_norm"]) < 5e-3
    distances = (trace.path.points.double() - trace.last_saved.double()).norm(dim=1)
    assert distances.min() < 0.01 * distances[0]
    losses = trace.path.steps["loss"].to_numpy()
    predicted = np.flatnonzero(trace.path.steps["kind"] == "predict")
    assert (np.abs(losses[predicted - 1] - trace.path.level) <= 1e-5).all()
