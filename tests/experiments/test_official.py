"""The official files in $ISOLOSS_DATA: counts, first labels and known statistics."""

import io
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from isoloss.experiments.datasets import FORMS, floats, load, verify

OFFICIAL = os.environ.get("ISOLOSS_DATA", "")


def needs(*paths):
    absent = [path for path in paths if not (OFFICIAL and (Path(OFFICIAL) / path).is_file())]
    return pytest.mark.skipif(bool(absent), reason=f"not in $ISOLOSS_DATA: {', '.join(absent)}")


def paths(dataset):
    return [file.path for file in FORMS[dataset][0]]


@pytest.fixture(autouse=True)
def official(cache, monkeypatch):
    """Set again what the fixture that comes before this one has taken away."""
    monkeypatch.setenv("ISOLOSS_DATA", OFFICIAL)
    return Path(OFFICIAL)


@needs(*paths("mnist"))
def test_mnist():
    assert {report.state for report in verify("mnist")} == {"present"}
    data = load("mnist")
    assert data.train_examples.shape == (60000, 1, 28, 28)
    assert data.test_examples.shape == (10000, 1, 28, 28)
    assert data.train_targets[:5].tolist() == [5, 0, 4, 1, 9]
    assert data.test_targets[:5].tolist() == [7, 2, 1, 0, 4]
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(data.train_targets).tolist() == counts
    assert data.train_examples.mean(dtype=np.float64) / 255 == pytest.approx(0.1307, abs=5e-5)
    inputs = floats(data.train_examples)
    assert (inputs.min(), inputs.max()) == (0, 1)


@needs(*paths("cifar10"))
def test_cifar10():
    assert {report.state for report in verify("cifar10")} == {"present"}
    data = load("cifar10")
    assert data.train_examples.shape == (50000, 3, 32, 32)
    assert data.test_examples.shape == (10000, 3, 32, 32)
    assert data.train_targets[:5].tolist() == [6, 9, 9, 4, 1]
    assert data.test_targets[:5].tolist() == [3, 8, 8, 0, 6]
    assert np.bincount(data.train_targets).tolist() == [5000] * 10
    assert np.bincount(data.test_targets).tolist() == [1000] * 10
    means = [data.train_examples[:, plane].mean(dtype=np.float64) / 255 for plane in range(3)]
    np.testing.assert_allclose(means, [0.4914, 0.4822, 0.4465], atol=5e-5)
    inputs = floats(data.test_examples)
    assert (inputs.min(), inputs.max()) == (0, 1)


@needs(*paths("auto_mpg"))
def test_auto_mpg_is_what_pandas_makes_of_it(official):
    assert [report.state for report in verify("auto_mpg")] == ["present"]
    columns = ["MPG", "Cylinders", "Displacement", "Horsepower", "Weight", "Acceleration", "Year"]
    text = (official / "auto_mpg/auto-mpg.data").read_text().replace("\t", " ")
    table = pd.read_csv(
        io.StringIO(text), sep=r"\s+", na_values="?", names=[*columns, "Origin", "Name"]
    )
    assert len(table) == 398
    table = table.drop(columns="Name").dropna()
    assert len(table) == 392
    for column, origin in (("Europe", 2), ("Japan", 3), ("USA", 1)):
        table[column] = (table["Origin"] == origin).astype(float)
    table = table.drop(columns="Origin")
    train = table.sample(frac=0.8, random_state=0)
    test = table.drop(train.index)
    data = load("auto_mpg")
    assert (len(data.train_examples), len(data.test_examples)) == (314, 78)
    parts = (data.train_examples, data.train_targets), (data.test_examples, data.test_targets)
    for part, (inputs, targets) in zip((train, test), parts, strict=True):
        expected = ((part - train.mean()) / train.std()).drop(columns="MPG")
        np.testing.assert_allclose(inputs, expected.to_numpy(), rtol=1e-6, atol=1e-7)
        np.testing.assert_array_equal(targets, part[["MPG"]].to_numpy(np.float32))


@needs("iris/iris_training.csv", "iris/iris_test.csv")
def test_iris_is_tensorflows_two_files(official):
    train, test = (
        np.loadtxt(official / f"iris/iris_{part}.csv", delimiter=",", skiprows=1)
        for part in ("training", "test")
    )
    mean, deviation = train[:, :4].mean(axis=0), train[:, :4].std(axis=0, ddof=1)
    data = load("iris")
    parts = (data.train_examples, data.train_targets), (data.test_examples, data.test_targets)
    for table, (inputs, targets) in zip((train, test), parts, strict=True):
        np.testing.assert_allclose(inputs, (table[:, :4] - mean) / deviation, rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(targets, table[:, 4])
