"""The first 400 steps of the authors' own code, from its own start: `golden/NAME.npz`.

The reference's index i counts steps from 1 and its values belong to the point before step i; row k
of `Path.steps` is the point after step k. So its values at i are ours in row i - 1, while its step
length at i is that of our row i.
"""

from __future__ import annotations

import itertools
import os
import pathlib
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from isoloss import Path, Problem, Record, Stop, experiments, traverse
from isoloss.flat import flatten

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
STEPS = 400

NEEDED = {"IRIS_FF": (), "MPG_FF": ("auto_mpg/auto-mpg.data",)}
FIRST_CORRECTION = {"IRIS_FF": range(84, 85), "MPG_FF": range(45, 48)}
CORRECTIONS_IN_A_ROW = {"IRIS_FF": range(10, 13), "MPG_FF": range(1, 3)}


class Walked(NamedTuple):
    name: str
    path: Path
    golden: dict[str, NDArray[np.float64]]

    @property
    def kinds(self) -> list[str]:
        return self.path.steps["kind"].tolist()

    @property
    def before_correction(self) -> NDArray[np.int64]:
        """The reference's steps from 1 to the last before either walk's first correction."""
        indices = self.golden["predictor_index"].astype(int)
        first = min(self.kinds.index("correct"), int(self.golden["corrector_index"][0]))
        return indices[indices < first]

    def recorded(self, key: str) -> NDArray[np.float64]:
        return self.golden[key][: len(self.before_correction)]

    def column(self, key: str) -> NDArray[np.float64]:
        return self.path.steps[key].to_numpy()[self.before_correction - 1]


def from_keras(flat: NDArray[np.float32], network: nn.Module) -> torch.Tensor:
    """The flat vector of kernels (inputs x outputs) and biases in torch's order."""
    pieces, start = [], 0
    for parameter in network.parameters():
        shape, size = parameter.shape, parameter.numel()
        piece = torch.from_numpy(flat[start : start + size].copy())
        pieces.append(piece.view(*reversed(shape)).T if len(shape) == 2 else piece)
        start += size
    assert start == len(flat)
    return flatten(pieces)


@pytest.fixture(scope="module", params=["IRIS_FF", "MPG_FF"])
def walked(request: pytest.FixtureRequest) -> Walked:
    name = request.param
    folder = pathlib.Path(os.environ.get("ISOLOSS_DATA", ""))
    for file in NEEDED[name]:
        if not (folder / file).is_file():
            pytest.skip(f"{file} is not in $ISOLOSS_DATA")
    experiment = experiments.get(name)
    data, network = experiment.data(0), experiment.network(0)
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
        golden = dict(file)
    train, test = (
        Problem(network, experiment.loss, pair, metric=experiment.metric)
        for pair in ((data.inputs, data.targets), (data.test_inputs, data.test_targets))
    )
    path = traverse(
        train,
        start=from_keras(golden["theta_keras"], network),
        level=float(golden["level"]),
        method=experiment.paper,
        stop=Stop(when=lambda row: row["step"] == STEPS),
        record=Record(points_every=50),
        probes={"test": test},
        progress=False,
    )
    return Walked(name, path, golden)


def test_the_whole_walk_is_compared(walked: Walked) -> None:
    assert len(walked.kinds) == STEPS + 1
    assert len(walked.before_correction) >= min(FIRST_CORRECTION[walked.name]) - 2


def test_the_start_is_the_authors(walked: Walked) -> None:
    row = walked.path.steps.iloc[0]
    assert row["loss"] == pytest.approx(float(walked.golden["level"]), rel=1e-6)
    assert row["regularizer"] == pytest.approx(float(walked.golden["squared_norm"][0]), rel=1e-6)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("regularizer", "squared_norm"),
        ("loss", "train_loss"),
        ("test_loss", "test_loss"),
        ("test_metric", "test_metric"),
    ],
)
def test_values_agree_to_five_digits_up_to_the_first_correction(
    walked: Walked, ours: str, theirs: str
) -> None:
    np.testing.assert_allclose(walked.column(ours), walked.recorded(theirs), rtol=1e-5)


def test_angles_agree_up_to_the_first_correction(walked: Walked) -> None:
    angles, expected = walked.column("angle_degrees"), walked.recorded("angle_degrees")
    np.testing.assert_allclose(angles, expected, rtol=0, atol=1e-3)


def test_step_lengths_agree_up_to_the_first_correction(walked: Walked) -> None:
    lengths = walked.path.steps["step_length"].to_numpy()[walked.before_correction]
    np.testing.assert_allclose(lengths, walked.recorded("predictor_step_length"), rtol=1e-5)


def test_the_first_correction_comes_where_the_authors_does(walked: Walked) -> None:
    assert int(walked.golden["corrector_index"][0]) in FIRST_CORRECTION[walked.name]
    assert walked.kinds.index("correct") in FIRST_CORRECTION[walked.name]


def test_the_first_corrections_are_as_many_in_a_row(walked: Walked) -> None:
    first = next(list(run) for kind, run in itertools.groupby(walked.kinds) if kind == "correct")
    assert len(first) in CORRECTIONS_IN_A_ROW[walked.name]


def test_there_are_as_many_corrections_in_all(walked: Walked) -> None:
    theirs = len(walked.golden["corrector_index"])
    assert abs(walked.kinds.count("correct") - theirs) <= 2


def test_squared_norms_agree_to_half_a_percent_to_the_end(walked: Walked) -> None:
    indices = walked.golden["predictor_index"].astype(int)
    ours = walked.path.steps["regularizer"].to_numpy()[indices - 1]
    np.testing.assert_allclose(ours, walked.golden["squared_norm"], rtol=5e-3)


def test_every_point_predicted_from_is_inside_the_authors_band(walked: Walked) -> None:
    losses = walked.path.steps["loss"].to_numpy()
    predicted = np.flatnonzero(np.array(walked.kinds) == "predict")
    assert (np.abs(losses[predicted - 1] - walked.path.level) <= 1e-5).all()
