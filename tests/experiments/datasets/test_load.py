"""Loading whole data sets, from files made here."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_iris
from tests.experiments.datasets.conftest import Server
from tests.experiments.datasets.made import (
    AUTO_MPG,
    batch,
    described,
    idx,
    placed,
    random_batch,
    tar,
    zipped,
)

from isoloss.errors import InputError
from isoloss.experiments.datasets import DataError, files, iris, load, names
from isoloss.experiments.datasets.scale import standardize, unit_pixels

PATHS = [file.path for file in files.MNIST]
BATCHES = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]


def mnist_files() -> dict[str, bytes]:
    generator = np.random.default_rng(2)
    arrays = [
        generator.integers(0, 256, (7, 28, 28), dtype=np.uint8),
        np.array([5, 0, 4, 1, 9, 2, 1], np.uint8),
        generator.integers(0, 256, (3, 28, 28), dtype=np.uint8),
        np.array([7, 2, 1], np.uint8),
    ]
    return {path: zipped(idx(array)) for path, array in zip(PATHS, arrays, strict=True)}


@pytest.fixture
def mnist(own: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    made = mnist_files()
    monkeypatch.setitem(files.FORMS, "mnist", (placed(own, made),))
    return made


def test_pixels_are_divided_by_255_and_nothing_else() -> None:
    pixels = np.arange(256, dtype=np.uint8)
    scaled = unit_pixels(pixels)
    assert scaled.dtype == np.float32
    np.testing.assert_array_equal(scaled, (np.arange(256) / 255.0).astype(np.float32))


def test_loads_mnist(mnist: dict[str, bytes]) -> None:
    data = load("mnist")
    assert data.name == "mnist"
    assert data.train_inputs.shape == (7, 1, 28, 28)
    assert data.test_inputs.shape == (3, 1, 28, 28)
    assert data.train_inputs.dtype == data.test_inputs.dtype == np.float32
    assert data.train_targets.dtype == data.test_targets.dtype == np.int64
    assert data.train_targets.tolist() == [5, 0, 4, 1, 9, 2, 1]
    pixels = np.frombuffer(gzip.decompress(mnist[PATHS[2]])[16:], np.uint8)
    np.testing.assert_array_equal(data.test_inputs.ravel(), pixels.astype(np.float32) / 255)


def test_a_damaged_file_is_not_read(mnist: dict[str, bytes], own: Path) -> None:
    (own / PATHS[1]).write_bytes(mnist[PATHS[1]][:-1] + b"?")
    with pytest.raises(
        DataError, match=r"train-labels-idx1-ubyte.gz is not the official file: its"
    ):
        load("mnist")


@pytest.mark.parametrize(
    ("which", "array"),
    [
        (0, np.zeros((7, 28, 27), np.uint8)),
        (0, np.zeros((7, 28, 28), np.int8)),
        (0, np.zeros(7, np.uint8)),
        (1, np.zeros(6, np.uint8)),
        (1, np.full(7, 10, np.uint8)),
        (1, np.zeros(7, np.int32)),
        (1, np.zeros((7, 1), np.uint8)),
    ],
)
def test_files_that_do_not_fit_together_are_refused(
    which: int, array: np.ndarray, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = mnist_files() | {PATHS[which]: zipped(idx(array))}
    monkeypatch.setitem(files.FORMS, "mnist", (placed(own, made),))
    with pytest.raises(DataError, match=f"^{own / PATHS[which]} "):
        load("mnist")


def cifar10_contents() -> tuple[list[tuple[np.ndarray, np.ndarray]], dict[str, bytes]]:
    parts = [random_batch(2, seed) for seed in range(6)]
    return parts, {name: batch(*part) for name, part in zip(BATCHES, parts, strict=True)}


@pytest.mark.parametrize("form", ["folder", "archive"])
def test_loads_cifar10(form: str, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts, contents = cifar10_contents()
    in_folder = {f"cifar10/{name}": data for name, data in contents.items()}
    # The real archive is not in order either.
    in_archive = {f"cifar-10-batches-py/{n}": contents[n] for n in reversed(BATCHES)}
    archive = {"cifar10/cifar-10-python.tar.gz": zipped(tar(in_archive))}
    batches = tuple(described(*item) for item in in_folder.items())
    packed = tuple(described(*item) for item in archive.items())
    placed(own, in_folder if form == "folder" else archive)
    monkeypatch.setitem(files.FORMS, "cifar10", (batches, packed))
    data = load("cifar10")
    images = np.concatenate([images for images, _ in parts[:5]]).reshape(10, 3, 32, 32)
    np.testing.assert_array_equal(data.train_inputs, images.astype(np.float32) / 255)
    np.testing.assert_array_equal(data.train_targets, np.concatenate([y for _, y in parts[:5]]))
    np.testing.assert_array_equal(data.test_targets, parts[5][1])
    assert data.test_inputs.shape == (2, 3, 32, 32)
    assert data.test_inputs.dtype == np.float32


def test_a_changed_batch_within_an_archive_is_refused(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, contents = cifar10_contents()
    batches = tuple(described(f"cifar10/{name}", data) for name, data in contents.items())
    changed = contents | {"data_batch_3": contents["test_batch"]}
    packed = tar({f"cifar-10-batches-py/{name}": data for name, data in changed.items()})
    archive = placed(own, {"cifar10/cifar-10-python.tar.gz": zipped(packed)})
    monkeypatch.setitem(files.FORMS, "cifar10", (batches, archive))
    with pytest.raises(DataError, match=rf"data_batch_3 in {own}/.* is not the official file"):
        load("cifar10")


def test_loads_auto_mpg(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = AUTO_MPG * 5  # 15 cars have a horsepower
    monkeypatch.setitem(files.FORMS, "auto_mpg", (placed(own, {"auto_mpg/auto-mpg.data": text}),))
    data = load("auto_mpg")
    assert data.train_inputs.shape == (12, 9)
    assert data.test_inputs.shape == (3, 9)
    assert data.train_targets.shape == (12, 1)
    assert data.train_inputs.dtype == data.train_targets.dtype == np.float32
    np.testing.assert_allclose(data.train_inputs.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(data.train_inputs.std(axis=0, ddof=1), 1, rtol=1e-6)
    both = np.concatenate([data.train_targets, data.test_targets]).ravel()
    assert sorted(both.tolist()) == [18.0] * 5 + [24.0] * 5 + [26.0] * 5
    # 18 miles a gallon go with the USA, 24 with Japan, 26 with Europe.
    origin = data.train_inputs[:, 6:].argmax(axis=1)
    expected = {18.0: 2, 24.0: 1, 26.0: 0}
    assert [expected[mpg] for mpg in data.train_targets.ravel().tolist()] == origin.tolist()


def test_loads_iris_without_any_file() -> None:
    data = load("iris")
    assert data.train_inputs.shape == (120, 4)
    assert data.test_inputs.shape == (30, 4)
    assert data.train_targets.shape == (120,)
    assert data.train_targets.dtype == np.int64
    np.testing.assert_allclose(data.train_inputs.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(data.train_inputs.std(axis=0, ddof=1), 1, rtol=1e-6)
    assert np.bincount(data.train_targets).tolist() == [42, 36, 42]
    assert np.bincount(data.test_targets).tolist() == [8, 14, 8]


def test_two_rows_of_iris_are_those_of_the_references_file() -> None:
    corrected = np.asarray(load_iris().data)  # pyright: ignore
    features, _ = iris.raw()
    assert np.flatnonzero((features != corrected).any(axis=1)).tolist() == [34, 37]
    np.testing.assert_array_equal(features[[34, 37]], [[4.9, 3.1, 1.5, 0.1]] * 2)
    assert sorted(iris.TRAIN_ROWS + iris.TEST_ROWS) == list(range(150))


def test_standardizing_uses_the_training_rows_alone() -> None:
    train, test = np.array([[1.0, 10], [2, 30], [6, 20]]), np.array([[3.0, 40], [10, -20]])
    inputs, test_inputs = standardize(train, test)
    np.testing.assert_allclose(inputs * np.sqrt([7, 100]), train - [3, 20], rtol=1e-6)
    np.testing.assert_allclose(test_inputs * np.sqrt([7, 100]), test - [3, 20], rtol=1e-6)
    assert inputs.dtype == test_inputs.dtype == np.float32


def test_what_is_not_at_hand_is_downloaded(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.content = AUTO_MPG * 5
    file = described("auto_mpg/auto-mpg.data", server.content, server.url("good"))
    monkeypatch.setitem(files.FORMS, "auto_mpg", ((file,),))
    assert load("auto_mpg").train_inputs.shape == (12, 9)
    assert (cache / file.path).is_file()


def test_an_unknown_name_is_answered() -> None:
    with pytest.raises(InputError, match="unknown data set 'cifar'; did you mean cifar10"):
        load("cifar")
    assert "cifar10" in names()
