"""Readers: pickles that ask for more than a batch may, and the columns of Auto MPG."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from tests.experiments.made import AUTO_MPG, random_batch

from isoloss.experiments import readers
from isoloss.experiments.datasets import DataError

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
