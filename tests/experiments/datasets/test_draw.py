"""Drawing training examples."""

from __future__ import annotations

import numpy as np
import pytest

from isoloss.errors import InputError
from isoloss.experiments.datasets import Dataset, draw

TOY = Dataset(
    "toy",
    np.arange(20, dtype=np.float32).reshape(10, 2),
    np.arange(10, dtype=np.int64),
    np.ones((3, 2), np.float32),
    np.zeros(3, np.int64),
)


def test_draws_rows_without_repeating_any() -> None:
    part, rows = draw(TOY, 6, seed=1)
    assert rows.dtype == np.int64
    assert len(set(rows.tolist())) == 6
    np.testing.assert_array_equal(part.train_targets, rows)
    np.testing.assert_array_equal(part.train_inputs[:, 0], 2 * rows)
    assert part.train_inputs.dtype == np.float32
    assert part.test_inputs is TOY.test_inputs
    assert part.name == "toy"


def test_only_what_is_drawn_is_made_float() -> None:
    pixels = np.arange(40, dtype=np.uint8).reshape(10, 1, 2, 2)
    whole = Dataset("toy", pixels, TOY.train_targets, pixels[:3], TOY.test_targets)
    part, rows = draw(whole, 4, seed=0)
    assert part.train_inputs.dtype == part.test_inputs.dtype == np.float32
    np.testing.assert_array_equal(part.train_inputs, pixels[rows].astype(np.float32) / 255)
    assert part.train_inputs is part.train_inputs
    assert "train_inputs" not in vars(whole)


def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    first, again, other = (draw(TOY, 10, seed)[1].tolist() for seed in (3, 3, 4))
    assert first == again
    assert first != other
    assert sorted(other) == list(range(10))


def test_a_draw_is_a_copy() -> None:
    part, _ = draw(TOY, 10, seed=0)
    part.train_inputs[:] = -1
    assert TOY.train_inputs.min() == 0


def test_the_draw_of_a_seed_stays_what_it_is() -> None:
    # Results on disk name only the seed.
    assert (
        draw(TOY, 5, seed=0)[1].tolist()
        == np.random.Generator(np.random.PCG64(0)).choice(10, 5, replace=False).tolist()
    )


@pytest.mark.parametrize("count", [0, -1, 11])
def test_refuses_an_impossible_count(count: int) -> None:
    with pytest.raises(InputError, match=f"count={count} .* give a number from 1 to 10"):
        draw(TOY, count, seed=0)


def test_refuses_a_negative_seed() -> None:
    with pytest.raises(InputError, match="seed=-1"):
        draw(TOY, 1, seed=-1)
