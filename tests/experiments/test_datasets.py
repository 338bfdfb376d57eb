"""Finding, checking, reading and drawing, with made files in the place of the official ones."""

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_iris
from tests.experiments import made
from tests.experiments.made import AUTO_MPG, batch, placed, random_batch, tar_gz

from isoloss import experiments
from isoloss.errors import InputError
from isoloss.experiments import datasets, readers
from isoloss.experiments.datasets import DataError, at_hand, drawn, fetch, floats, load, verify

MPG = "auto_mpg/auto-mpg.data"
ARCHIVE = "cifar10/cifar-10-python.tar.gz"
CONTENT = b"the official bytes"


def states(name):
    return [(Path(report.file.path).name, report.state) for report in verify(name)]


def test_the_table_is_complete():
    assert tuple(datasets.FORMS) == ("iris", "auto_mpg", "mnist", "cifar10")
    lengths = {name: [len(form) for form in forms] for name, forms in datasets.FORMS.items()}
    assert lengths == {"iris": [0], "auto_mpg": [1], "mnist": [4], "cifar10": [6, 1]}
    for name, forms in datasets.FORMS.items():
        for file in (file for form in forms for file in form):
            assert file.path.startswith(f"{name}/")
            assert len(bytes.fromhex(file.sha256)) == 32
            assert file.urls or file not in forms[-1]
            assert all(url.endswith("/" + Path(file.path).name) for url in file.urls)


@pytest.mark.parametrize("ask", [fetch, verify, at_hand, load])
def test_an_unknown_name_is_answered_with_the_nearest(ask):
    with pytest.raises(InputError, match="unknown data set 'mnits'; did you mean mnist"):
        ask("mnits")


def test_the_users_folder_comes_before_the_cache(own, cache, table):
    table("toy", {"toy/a": CONTENT})
    placed(cache, {"toy/a": CONTENT})
    assert verify("toy")[0].where == cache / "toy/a"
    placed(own, {"toy/a": CONTENT})
    assert verify("toy")[0].where == own / "toy/a"


@pytest.mark.parametrize("named", ["", "~/data"])
def test_a_home_is_filled_in_and_no_name_is_no_folder(named, tmp_path, table, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ISOLOSS_DATA", named)
    table("toy", {"toy/a": CONTENT})
    placed(tmp_path, {"toy/a": CONTENT, "data/toy/a": CONTENT})
    assert at_hand("toy") == (named != "")


def test_a_home_of_nobody_is_named(monkeypatch, refuses):
    monkeypatch.setenv("ISOLOSS_DATA", "~no-such-user/data")
    with refuses("ISOLOSS_DATA='~no-such-user/data' names no user's home", error=DataError):
        at_hand("mnist")


@pytest.mark.parametrize("closed", ["is_file", "read_bytes"])
def test_what_cannot_be_read_is_named(closed, own, table, monkeypatch, refuses):
    table("toy", {"toy/a": CONTENT})
    placed(own, {"toy/a": CONTENT})

    def refused(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, closed, refused)
    with refuses(f"{own / 'toy/a'} cannot be read: Permission denied", error=DataError):
        verify("toy")


def test_a_folder_is_not_a_file(own, table):
    table("toy", {"toy/a": CONTENT})
    (own / "toy/a").mkdir(parents=True)
    assert states("toy") == [("a", "missing")]


@pytest.mark.parametrize(
    ("content", "why"),
    [(AUTO_MPG[:-1], "it has 1619 bytes instead of 1620"), (b"", "it has 0 bytes")]
    + [(AUTO_MPG[:k] + b"?" + AUTO_MPG[k + 1 :], "its SHA-256 is") for k in (0, 700, 1619)],
)
def test_a_damaged_file_never_comes_to_a_reader(content, why, own, table, monkeypatch, refuses):
    table("auto_mpg", {MPG: AUTO_MPG})
    placed(own, {MPG: content})
    [report] = verify("auto_mpg")
    assert report.state == "damaged"
    assert why in report.problem
    monkeypatch.setitem(readers.READERS, "auto_mpg", lambda files: pytest.fail(str(list(files))))
    with refuses(str(own / MPG), "is not the official file", why, "delete it", error=DataError):
        load("auto_mpg")
    assert (own / MPG).read_bytes() == content


def test_the_bytes_that_are_parsed_are_those_that_were_compared(own, table, monkeypatch):
    table("auto_mpg", {MPG: AUTO_MPG})
    placed(own, {MPG: AUTO_MPG})
    read = Path.read_bytes

    def read_and_replace(path):
        content = read(path)
        path.write_bytes(b"replaced behind its back")
        return content

    monkeypatch.setattr(Path, "read_bytes", read_and_replace)
    assert load("auto_mpg").train_examples.shape == (12, 9)


def test_a_file_that_goes_is_missed(own, cache, table, monkeypatch, refuses):
    table("auto_mpg", {MPG: AUTO_MPG})
    placed(own, {MPG: AUTO_MPG})

    def gone(files):
        (own / MPG).unlink()
        list(files)

    monkeypatch.setitem(readers.READERS, "auto_mpg", gone)
    remedy = "place it there, or run `isoloss data fetch auto_mpg`"
    with refuses(f"{MPG} is not in {own} or {cache}; {remedy}", error=DataError):
        load("auto_mpg")


def test_loads_mnist_as_floats_in_0_1(own, table):
    pixels = np.random.default_rng(2).integers(0, 256, (7, 28, 28), dtype=np.uint8)
    classes = np.array([5, 0, 4, 1, 9, 2, 1], np.uint8)
    files = made.mnist(pixels, classes, pixels[:3], classes[:3])
    table("mnist", files)
    placed(own, files)
    data = load("mnist")
    inputs, test_inputs = floats(data.train_examples), floats(data.test_examples)
    np.testing.assert_array_equal(inputs[:, 0], (pixels / 255.0).astype(np.float32))
    np.testing.assert_array_equal(test_inputs, inputs[:3])
    assert inputs.dtype == np.float32
    assert data.train_targets.tolist() == classes.tolist()
    assert data.test_targets.tolist() == [5, 0, 4]


def test_cifar10_is_the_same_from_its_batches_and_from_their_archive(own, table):
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    parts = [random_batch(2, seed) for seed in range(6)]
    folder = {f"cifar10/{name}": batch(*part) for name, part in zip(names, parts, strict=True)}
    # the official archive holds other files too, and is not in order
    members = {"cifar-10-batches-py/batches.meta": b"meta", "cifar-10-batches-py/readme.html": b""}
    members |= {f"cifar-10-batches-py/{name}": folder[f"cifar10/{name}"] for name in names[::-1]}
    archive = {ARCHIVE: tar_gz(members)}
    table("cifar10", folder, archive)
    assert states("cifar10") == [("cifar-10-python.tar.gz", "missing")]
    for files in (archive, folder):
        placed(own, files)
        assert states("cifar10") == [(Path(path).name, "present") for path in files]
        data = load("cifar10")
        images = np.concatenate([data.train_examples, data.test_examples])
        classes = np.concatenate([data.train_targets, data.test_targets])
        wanted = np.concatenate([images for images, _ in parts])
        np.testing.assert_array_equal(images, wanted.reshape(12, 3, 32, 32))
        np.testing.assert_array_equal(classes, np.concatenate([labels for _, labels in parts]))
        assert len(data.test_targets) == 2
        (own / ARCHIVE).unlink(missing_ok=True)
    (own / "cifar10/data_batch_1").write_bytes(b"damaged")
    assert states("cifar10")[:2] == [("data_batch_1", "damaged"), ("data_batch_2", "present")]
    (own / "cifar10/data_batch_1").unlink()
    assert states("cifar10")[:2] == [("data_batch_1", "missing"), ("data_batch_2", "present")]


def test_what_is_not_at_hand_is_downloaded(server, cache, table):
    server.content = AUTO_MPG
    table("auto_mpg", {MPG: AUTO_MPG}, urls=(server.url("good"),))
    assert load("auto_mpg").train_examples.shape == (12, 9)
    assert (cache / MPG).read_bytes() == AUTO_MPG


def test_iris_is_tensorflows_split_without_any_file():
    assert verify("iris") == fetch("iris") == []
    assert sorted(readers.IRIS_TRAIN + readers.IRIS_TEST) == list(range(150))
    table = np.array(load_iris().data)
    table[[34, 37]] = [4.9, 3.1, 1.5, 0.1]  # as in the UCI's file
    train, test = table[list(readers.IRIS_TRAIN)], table[list(readers.IRIS_TEST)]
    mean, deviation = train.mean(axis=0), train.std(axis=0, ddof=1)
    data = load("iris")
    np.testing.assert_allclose(
        data.train_examples, (train - mean) / deviation, rtol=1e-6, atol=1e-6
    )
    np.testing.assert_allclose(data.test_examples, (test - mean) / deviation, rtol=1e-6, atol=1e-6)


@given(count=st.integers(1, 10), seed=st.integers(0, 2**63 - 1))
def test_draws_rows_without_repeating_any(count, seed):
    rows = drawn(10, count, seed)
    # Results on disk name only the seed: its draw stays what it is.
    generator = np.random.Generator(np.random.PCG64(seed))
    assert rows.tolist() == generator.choice(10, count, replace=False).tolist()
    assert rows.dtype == np.int64
    assert len(set(rows.tolist())) == count


def test_a_run_takes_the_rows_drawn_as_floats(own, table):
    pixels = np.random.default_rng(2).integers(0, 256, (9, 28, 28), dtype=np.uint8)
    classes = np.arange(9, dtype=np.uint8)
    files = made.mnist(pixels, classes, pixels[:3], classes[:3])
    table("mnist", files)
    placed(own, files)
    data = dataclasses.replace(experiments.get("MNIST_CONV"), draw=4).data(seed=0)
    rows = drawn(9, 4, seed=0)
    assert data.indices.tolist() == data.targets.tolist() == rows.tolist()
    np.testing.assert_array_equal(data.inputs[:, 0], pixels[rows].astype(np.float32) / 255)
    np.testing.assert_array_equal(data.test_inputs[:, 0], pixels[:3].astype(np.float32) / 255)
    whole = dataclasses.replace(experiments.get("MNIST_FF"), draw=None).data(seed=0)
    assert whole.inputs.shape == (9, 28 * 28)
    assert whole.indices.tolist() == whole.targets.tolist() == list(range(9))


IMAGES, _ = random_batch(3, seed=0)


# As Python 2 wrote it: strings are bytes, also in the names of numpy's types.
PYTHON_2 = (
    b"\x80\x02}q\x01(U\x06labelsq\x02]q\x03(K\x06K\x09K\x04eU\x04dataq\x04"
    b"cnumpy.core.multiarray\n_reconstruct\nq\x05cnumpy\nndarray\nq\x06K\x00\x85U\x01b\x87Rq\x07"
    b"(K\x01J\x03\x00\x00\x00M\x00\x0c\x86cnumpy\ndtype\nq\x08U\x02u1K\x00K\x01\x87Rq\x09"
    b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T\x00\x24\x00\x00"
) + (IMAGES.tobytes() + b"tbu.")
ENTRIES = {b"labels": [6, 9, 4], b"data": IMAGES}


@pytest.mark.parametrize(
    "content", [PYTHON_2, *(pickle.dumps(ENTRIES, number) for number in (3, 4))]
)
def test_a_batch_is_read_back_whatever_pickled_it(content):
    pixels, classes = readers.batch(content)
    np.testing.assert_array_equal(pixels, IMAGES.reshape(3, 3, 32, 32))
    assert classes.tolist() == [6, 9, 4]
    assert (pixels.dtype, classes.dtype) == (np.uint8, np.int64)


class Touch:
    """Unpickled by Python, this creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_no_pickled_code_is_run(protocol, tmp_path):
    target = tmp_path / "touched"
    malicious = pickle.dumps({b"data": Touch(target)}, protocol)
    with pytest.raises(DataError):
        readers.batch(malicious)
    assert not target.exists()
    pickle.loads(malicious)
    assert target.exists()


@pytest.mark.parametrize(
    ("code", "named"),
    [
        (b"cposix\nsystem\n(U\x04true\x85R.", "posix.system"),
        (b"(U\x04trueiposix\nsystem\n.", "posix.system"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "os.system"),
        (b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.", "numpy.ndarray.tofile"),
        (b"cnumpy.core.multiarray\nscalar\n.", "numpy.core.multiarray.scalar"),
        (b"cbuiltins\neval\n.", "builtins.eval"),
        (b"c\x1b[2J\rnumpy\nndarray\n.", r"\x1b[2J\rnumpy.ndarray"),
        (PYTHON_2.replace(b"cnumpy\ndtype\n", b"cos\nsystem\n"), "os.system"),
    ],
)
def test_anything_else_that_a_pickle_asks_for_is_refused_by_name(code, named, refuses):
    with refuses(f"asks for '{named}'", "nothing of it was run", "fetch cifar10", error=DataError):
        readers.batch(code)


def test_auto_mpg_drops_cars_without_a_horsepower_and_splits_origins():
    inputs, targets, test_inputs, test_targets = readers.auto_mpg([("", AUTO_MPG)])
    assert (targets.shape, test_targets.shape) == ((12, 1), (3, 1))
    assert inputs.dtype == targets.dtype == test_inputs.dtype == np.float32
    both = np.concatenate([targets, test_targets]).ravel()
    assert sorted(both) == [18] * 5 + [24] * 5 + [26] * 5
    # cylinders to year, then Europe, Japan, USA
    cars = {
        18: [8, 307, 130, 3504, 12, 70, 0, 0, 1],
        24: [4, 113, 95, 2372, 15, 72, 0, 1, 0],
        26: [4, 97, 46, 1835, 20.5, 70, 1, 0, 0],
    }
    train, test = ([cars[int(y)] for y in part[:, 0]] for part in (targets, test_targets))
    mean, deviation = np.mean(train, axis=0), np.std(train, axis=0, ddof=1)
    np.testing.assert_allclose(inputs, (train - mean) / deviation, rtol=1e-6)
    np.testing.assert_allclose(test_inputs, (test - mean) / deviation, rtol=1e-6)
