"""The official files in $ISOLOSS_DATA: counts, first labels and known statistics."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from isoloss.experiments.datasets import files, iris, load, verify

OFFICIAL = os.environ.get("ISOLOSS_DATA", "")


def needs(*paths: str) -> pytest.MarkDecorator:
    absent = [path for path in paths if not (OFFICIAL and (Path(OFFICIAL) / path).is_file())]
    return pytest.mark.skipif(bool(absent), reason=f"not in $ISOLOSS_DATA: {', '.join(absent)}")


def paths(form: tuple[files.DataFile, ...]) -> list[str]:
    return [file.path for file in form]


@pytest.fixture(autouse=True)
def official(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set again what the fixture that comes before this one has taken away."""
    monkeypatch.setenv("ISOLOSS_DATA", OFFICIAL)
    return Path(OFFICIAL)


@needs(*paths(files.MNIST))
def test_mnist() -> None:
    assert {report.state for report in verify("mnist")} == {"present"}
    data = load("mnist")
    assert data.train_inputs.shape == (60000, 1, 28, 28)
    assert data.test_inputs.shape == (10000, 1, 28, 28)
    assert data.train_targets[:5].tolist() == [5, 0, 4, 1, 9]
    assert data.test_targets[:5].tolist() == [7, 2, 1, 0, 4]
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(data.train_targets).tolist() == counts
    assert data.train_examples.mean(dtype=np.float64) / 255 == pytest.approx(0.1307, abs=5e-5)
    assert (data.train_inputs.min(), data.train_inputs.max()) == (0, 1)


@needs(*paths(files.CIFAR10_BATCHES))
def test_cifar10() -> None:
    assert {report.state for report in verify("cifar10")} == {"present"}
    data = load("cifar10")
    assert data.train_examples.shape == (50000, 3, 32, 32)
    assert data.test_inputs.shape == (10000, 3, 32, 32)
    assert data.train_targets[:5].tolist() == [6, 9, 9, 4, 1]
    assert data.test_targets[:5].tolist() == [3, 8, 8, 0, 6]
    assert np.bincount(data.train_targets).tolist() == [5000] * 10
    assert np.bincount(data.test_targets).tolist() == [1000] * 10
    means = [data.train_examples[:, plane].mean(dtype=np.float64) / 255 for plane in range(3)]
    np.testing.assert_allclose(means, [0.4914, 0.4822, 0.4465], atol=5e-5)
    assert (data.test_inputs.min(), data.test_inputs.max()) == (0, 1)


@needs(files.AUTO_MPG.path)
def test_auto_mpg_is_what_pandas_makes_of_it(official: Path) -> None:
    assert [report.state for report in verify("auto_mpg")] == ["present"]
    columns = ["MPG", "Cylinders", "Displacement", "Horsepower", "Weight", "Acceleration", "Year"]
    text = (official / files.AUTO_MPG.path).read_text()
    table = pd.read_csv(
        io.StringIO(text),
        names=[*columns, "Origin"],
        na_values="?",
        comment="\t",
        sep=" ",
        skipinitialspace=True,
    )
    assert len(table) == 398
    table = table.dropna()
    assert len(table) == 392
    for column, origin in (("Europe", 2), ("Japan", 3), ("USA", 1)):
        table[column] = (table["Origin"] == origin).astype(float)
    table = table.drop(columns="Origin")
    train = table.sample(frac=0.8, random_state=0)
    test = table.drop(train.index)
    data = load("auto_mpg")
    for part, inputs, targets in (
        (train, data.train_inputs, data.train_targets),
        (test, data.test_inputs, data.test_targets),
    ):
        expected = ((part - train.mean()) / train.std()).drop(columns="MPG")
        np.testing.assert_allclose(inputs, expected.to_numpy(), rtol=1e-6, atol=1e-7)
        np.testing.assert_array_equal(targets, part[["MPG"]].to_numpy(np.float32))
    assert (len(data.train_inputs), len(data.test_inputs)) == (314, 78)


@needs("iris/iris_training.csv", "iris/iris_test.csv")
def test_iris_is_tensorflows_two_files(official: Path) -> None:
    features, classes = iris.raw()
    for name, rows in (("iris_training.csv", iris.TRAIN_ROWS), ("iris_test.csv", iris.TEST_ROWS)):
        with (official / "iris" / name).open(newline="") as stream:
            header, *lines = csv.reader(stream)
        expected = np.array(lines, float)
        assert int(header[0]) == len(expected) == len(rows)
        np.testing.assert_array_equal(features[list(rows)].round(4), expected[:, :4].round(4))
        np.testing.assert_array_equal(classes[list(rows)], expected[:, 4])


@needs("iris/tf_split_indices.json")
def test_iris_rows_are_those_of_the_list(official: Path) -> None:
    split = json.loads((official / "iris/tf_split_indices.json").read_text())
    assert list(iris.TRAIN_ROWS) == split["train"]
    assert list(iris.TEST_ROWS) == split["test"]
    uncorrected = {row["sklearn_index"]: tuple(row["csv_values"]) for row in split["mismatches"]}
    assert uncorrected == iris.UNCORRECTED
