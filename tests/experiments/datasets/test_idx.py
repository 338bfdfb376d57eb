"""The IDX reader on files made here, whole and damaged."""

from __future__ import annotations

import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.experiments.datasets.made import CODES, idx, zipped

from isoloss.experiments.datasets import DataError
from isoloss.experiments.datasets.idx import parse_idx

SMALL = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
SMALL_GZ = zipped(idx(SMALL))
fuzz = settings(max_examples=300, deadline=None, derandomize=True)


@pytest.mark.parametrize("kind", CODES)
@pytest.mark.parametrize("pack", [zipped, bytes])
def test_reads_every_type_back(kind: str, pack: type) -> None:
    array = np.arange(-6, 6).reshape(3, 4).astype(kind)
    read = parse_idx(pack(idx(array)), "a file")
    assert read.dtype == array.dtype
    assert read.dtype.isnative
    np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "it starts with nothing"),
        (b"PK\x03\x04 a zip file", "it starts with 50 4b 03 04"),
        (b"\0\0\x07\x01\0\0\0\x01a", "it starts with 00 00 07 01"),
        (b"\0\0\x08\0", "0 dimensions"),
        (b"\0\0\x08\xff" + b"\0\0\0\x01" * 255 + b"a", "255 dimensions"),
        (b"\0\0\x08\x02\0\0\0\x01", "ends within its header"),
        (b"\0\0\x08\x01\0\0\0\0", "announces 0 bytes"),
        (b"\0\0\x08\x03" + b"\xff" * 12, "announces 79228162458924105385300197375 bytes"),
        (idx(SMALL)[:-1], "23 of the 24 bytes"),
        (idx(SMALL) + b"a", "goes on after"),
        (zipped(idx(SMALL) + b"a"), "goes on after"),
        (SMALL_GZ + b"a", "goes on after"),
        (SMALL_GZ + SMALL_GZ, "goes on after"),
        (SMALL_GZ[:-1], "is cut off"),
        (SMALL_GZ[:-8] + b"abcd" + SMALL_GZ[-4:], "compression is damaged"),
    ],
)
def test_refuses_what_is_not_exactly_one_array(data: bytes, why: str) -> None:
    with pytest.raises(DataError, match=r"^the file is not a whole IDX file: ") as caught:
        parse_idx(data, "the file")
    assert why in str(caught.value)


def test_a_bomb_is_decompressed_no_further_than_its_header_says() -> None:
    bomb = zipped(idx(SMALL) + bytes(50_000_000))
    tracemalloc.start()
    with pytest.raises(DataError, match="goes on after"):
        parse_idx(bomb, "bomb")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * len(bomb)


def test_a_large_announcement_sets_no_memory_aside() -> None:
    lie = b"\0\0\x08\x01" + struct.pack(">I", 2**30) + b"abc"
    tracemalloc.start()
    with pytest.raises(DataError, match="3 of the 1073741824 bytes"):
        parse_idx(zipped(lie), "lie")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


@pytest.mark.parametrize("data", [idx(SMALL), SMALL_GZ])
def test_every_truncation_is_refused(data: bytes) -> None:
    for length in range(len(data)):
        with pytest.raises(DataError):
            parse_idx(data[:length], "cut")


@fuzz
@given(st.integers(0, len(idx(SMALL)) - 1), st.integers(0, 255))
def test_a_changed_byte_is_refused_or_read_as_it_says(position: int, value: int) -> None:
    data = bytearray(idx(SMALL))
    data[position] = value
    try:
        read = parse_idx(bytes(data), "changed")
    except DataError:
        return
    assert idx(read) == data


@fuzz
@given(st.integers(0, len(SMALL_GZ) - 1), st.integers(0, 255))
def test_a_changed_compressed_byte_is_refused_or_harmless(position: int, value: int) -> None:
    data = bytearray(SMALL_GZ)
    data[position] = value
    try:
        read = parse_idx(bytes(data), "changed")
    except DataError:
        return
    np.testing.assert_array_equal(read, SMALL)


@fuzz
@given(st.binary(max_size=200), st.sampled_from([b"", b"\0\0\x08", b"\x1f\x8b\x08"]))
def test_noise_is_refused_or_read_as_it_says(noise: bytes, start: bytes) -> None:
    try:
        read = parse_idx(start + noise, "noise")
    except DataError:
        return
    assert idx(read) == start + noise
