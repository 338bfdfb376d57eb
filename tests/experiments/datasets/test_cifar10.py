"""The reader of CIFAR-10's pickles on batches made here: whole, damaged and malicious."""

from __future__ import annotations

import pickle
import pickletools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.experiments.datasets.made import array, batch, listed, random_batch, string, u4

from isoloss.experiments.datasets import DataError
from isoloss.experiments.datasets.cifar10 import parse_batch

IMAGES, LABELS = random_batch(3, seed=0)
WHOLE = batch(IMAGES, LABELS)
# The 9216 pixels are all alike to the reader; where something can go wrong is around them.
PIXELS = WHOLE.index(IMAGES.tobytes())
POSITIONS = st.one_of(
    st.integers(0, PIXELS + 3), st.integers(PIXELS + IMAGES.size - 4, len(WHOLE) - 1)
)
fuzz = settings(max_examples=500, deadline=None, derandomize=True)


def test_the_made_batch_is_what_python_2_wrote() -> None:
    read = pickle.loads(WHOLE, encoding="bytes")
    np.testing.assert_array_equal(read[b"data"], IMAGES)
    assert read[b"labels"] == LABELS.tolist()


def test_reads_images_and_classes() -> None:
    images, labels = parse_batch(WHOLE, "a batch")
    assert images.dtype == np.uint8
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(images, IMAGES.reshape(3, 3, 32, 32))
    np.testing.assert_array_equal(labels, LABELS)


class Touch:
    """Unpickled by Python, this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_no_pickled_code_is_run(protocol: int, tmp_path: Path) -> None:
    target = tmp_path / "touched"
    malicious = pickle.dumps({b"data": Touch(target)}, protocol=protocol)
    with pytest.raises(DataError):
        parse_batch(malicious, "malicious")
    assert not target.exists()
    pickle.loads(malicious)
    assert target.exists()


@pytest.mark.parametrize(
    ("code", "named"),
    [
        (b"cposix\nsystem\n(U\x04true\x85R.", "asks for posix.system"),
        (b"(U\x04trueiposix\nsystem\n.", "INST of posix.system"),
        (b"cnumpy.core.multiarray\nscalar\n.", "asks for numpy.core.multiarray.scalar"),
        (b"cnumpy\nndarray.tofile\n.", "asks for numpy.ndarray.tofile"),
        (b"cbuiltins\neval\n.", "asks for builtins.eval"),
        (b"c\x1b[2J\rnumpy\nndarray\n.", r"asks for \x1b[2J\rnumpy.ndarray"),
        (b"\x8c\x02os\x8c\x06system\x93.", "SHORT_BINUNICODE"),
        (b"\x82\x01.", "EXT1"),
        (b"Pabc\n.", "PERSID"),
        (b"S'\\d'\n.", "STRING"),
        (b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.", "BINUNICODE8"),
        (b"\xfe.", "operation unknown"),
        (b"cnumpy\nndarray\n)R.", "EMPTY_TUPLE"),
        (b"cnumpy\nndarray\nK\x01\x85R.", "calls something other"),
        (b"cnumpy\ndtype\nU\x02O8K\x00K\x01\x87R.", "calls something other"),
        (b"cnumpy\ndtype\nU\x02u1NK\x01\x87R.", "calls something other"),
        (b"}K\x01b.", "sets the state"),
        (b"}N\x85R.", "calls something other"),
        (array(IMAGES) + b"K\x00\x85R.", "calls something other"),
        (b"R.", "lacks its values"),
        (b"t.", "lacks its mark"),
        (b"K\x01(e.", "lacks its list"),
        (b"](K\x01K\x02u.", "lacks its dict"),
        (b"}(]Nu.", "keys are not strings"),
        (b"}(Nu.", "keys are not strings"),
        (b"}(U\x01aNU\x01aNu.", "a key twice"),
        (b"}(U\x01aNu(U\x01aNu.", "a key twice"),
        (b"K\x01.", "not one dictionary"),
        (b"}}.", "not one dictionary"),
        (b"(}.", "not one dictionary"),
        (b".", "lacks its values"),
        (b"}.}", "goes on after its end"),
        (b"", "cut off at byte 0"),
        (b"T\xff\xff\xff\xff.", "cut off"),
        (b"T\xff\xff\xff\x7f.", "cut off"),
        (b"}r\xff\xff\xff\xff.", "other entries"),
        (b"\x80\x04}.", "protocol 4 instead of 2"),
        (b"c" + b"a" * 100 + b"\nb\n.", "cut off"),
    ],
)
def test_all_else_is_refused_by_name(code: bytes, named: str) -> None:
    with pytest.raises(DataError, match=r"^the file is not a CIFAR-10 batch: ") as caught:
        parse_batch(code, "the file")
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def labels_of(*codes: bytes) -> bytes:
    return listed(list(codes))


@pytest.mark.parametrize(
    "wrong",
    [
        {"labels": labels_of(b"K\x01", b"K\x02")},
        {"labels": labels_of(b"K\x01", b"K\x02", b"K\x0a")},
        {"labels": labels_of(b"K\x01", b"K\x02", b"J" + u4(-1))},
        {"labels": labels_of(b"K\x01", b"K\x02", b"\x89")},
        {"labels": labels_of(b"K\x01", b"K\x02", b"]")},
        {"labels": b"K\x01"},
        {"filenames": listed([string(b"a")])},
        {"filenames": listed([b"K\x01"] * 3)},
        {"batch_label": b"K\x01"},
        {"data": string(b"a" * 9216)},
        {"data": array(IMAGES[:, :100])},
        {"data": array(IMAGES).replace(b"M\x00\x0c\x86", b"M\x01\x0c\x86")},
        {"data": array(IMAGES).replace(b"J\x03\0\0\0", b"J\xfd\xff\xff\xff")},
        {"data": array(IMAGES).replace(b"U\x02u1", b"U\x02i1")},
        {"data": array(IMAGES).replace(b"\x89T", b"K\x00T")},
        {"data": array(IMAGES).replace(b"U\x01|", b"U\x01>")},
        {"data": array(IMAGES).replace(b"(K\x01", b"(" + array(IMAGES), 1)},
        {"more": b"K\x01"},
    ],
)
def test_refuses_other_entries(wrong: dict[str, bytes]) -> None:
    with pytest.raises(DataError, match=r"^the file is not a CIFAR-10 batch: "):
        parse_batch(batch(IMAGES, LABELS, **wrong), "the file")


@fuzz
@given(st.one_of(st.integers(0, len(WHOLE) - 1), POSITIONS))
def test_a_truncation_is_refused(length: int) -> None:
    with pytest.raises(DataError):
        parse_batch(WHOLE[:length], "cut")


@fuzz
@given(POSITIONS, st.integers(0, 255))
def test_a_changed_byte_is_refused_or_changes_one_value(position: int, value: int) -> None:
    data = bytearray(WHOLE)
    data[position] = value
    try:
        images, labels = parse_batch(bytes(data), "changed")
    except DataError:
        return
    assert images.shape == (3, 3, 32, 32)
    assert images.dtype == np.uint8
    assert labels.shape == (3,)
    assert labels.min() >= 0
    assert labels.max() <= 9
    changed = np.count_nonzero(images.reshape(3, -1) != IMAGES) + np.count_nonzero(labels != LABELS)
    assert changed <= 1


@fuzz
@given(st.lists(st.sampled_from([op.code.encode("latin-1") for op in pickletools.opcodes])))
def test_operations_in_any_order_are_refused(codes: list[bytes]) -> None:
    with pytest.raises(DataError):
        parse_batch(b"".join(codes), "noise")


def test_deep_nesting_is_no_harm() -> None:
    with pytest.raises(DataError, match="not one dictionary"):
        parse_batch(b"N" + b"\x85" * 20_000 + b".", "deep")
    deep = b"N" + b"\x85" * 20_000
    with pytest.raises(DataError, match="calls something other"):
        parse_batch(b"cnumpy\ndtype\n" + deep + b"R.", "deep")
