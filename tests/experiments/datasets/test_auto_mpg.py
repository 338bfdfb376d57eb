"""The reader of Auto MPG's text on lines made here, whole and damaged."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.experiments.datasets.made import AUTO_MPG

from isoloss.experiments.datasets import DataError
from isoloss.experiments.datasets.auto_mpg import parse_auto_mpg

fuzz = settings(max_examples=400, deadline=None, derandomize=True)


def plainly(text: bytes) -> np.ndarray:
    rows = [line.replace(b"?", b"nan").split(None, 8)[:8] for line in text.splitlines()]
    return np.array([[float(field) for field in row] for row in rows])


def test_reads_eight_numbers_a_line() -> None:
    table = parse_auto_mpg(AUTO_MPG, "a file")
    assert table.shape == (4, 8)
    np.testing.assert_array_equal(table[0], [18, 8, 307, 130, 3504, 12, 70, 1])
    assert np.isnan(table[1, 3])
    np.testing.assert_array_equal(table, plainly(AUTO_MPG))


LINE = AUTO_MPG.splitlines()[0]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        LINE.replace(b"\t", b" "),
        LINE.replace(b"18.0", b"nan"),
        LINE.replace(b"18.0", b"inf"),
        LINE.replace(b"18.0", b"1_8"),
        LINE.replace(b"18.0", b"-18.0"),
        LINE.replace(b"18.0", b"1e3"),
        LINE.replace(b"18.0", b"?"),
        LINE.replace(b"18.0", "\u0661".encode()),
        LINE.replace(b"18.0", b"9" * 5000),
        LINE.replace(b"  8 ", b"  8.5 "),
        LINE.replace(b"  1\t", b"  4\t"),
        LINE.replace(b"  1\t", b"  0\t"),
        LINE.replace(b" 70 ", b" 170 "),
        LINE.replace(b" 130.0 ", b" "),
        LINE[:-1],
        LINE + b"\r",
        LINE.replace(b"malibu", b'mal"ibu'),
    ],
)
def test_refuses_a_line_that_is_not_one(line: bytes) -> None:
    with pytest.raises(DataError, match="line 5 is not eight numbers, a tab and a quoted name"):
        parse_auto_mpg(AUTO_MPG + line + b"\n", "the file")


def test_refuses_no_text_and_endless_text() -> None:
    for text in (b"", b"\n", AUTO_MPG[:-1], AUTO_MPG[:-1] + b"x", AUTO_MPG * 10_000):
        with pytest.raises(DataError, match=r"^the file is"):
            parse_auto_mpg(text, "the file")


def test_a_truncation_is_refused_or_a_whole_number_of_lines() -> None:
    for length in range(len(AUTO_MPG)):
        text = AUTO_MPG[:length]
        try:
            table = parse_auto_mpg(text, "cut")
        except DataError:
            continue
        assert text.endswith(b'"\n')
        np.testing.assert_array_equal(table, plainly(text))


@fuzz
@given(st.integers(0, len(AUTO_MPG) - 1), st.integers(0, 255))
def test_a_changed_byte_is_refused_or_read_as_it_says(position: int, value: int) -> None:
    text = bytearray(AUTO_MPG)
    text[position] = value
    try:
        table = parse_auto_mpg(bytes(text), "changed")
    except DataError:
        return
    assert table.shape == (4, 8)
    np.testing.assert_array_equal(table, plainly(bytes(text)))
    assert all(math.isfinite(x) and x >= 0 for x in np.delete(table, 3, axis=1).flat)
    assert set(table[:, 7]) <= {1, 2, 3}
