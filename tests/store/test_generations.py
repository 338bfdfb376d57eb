"""Two generations of a checkpoint, written over and over, and killed in between."""

from __future__ import annotations

import contextlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isoloss.store import generations
from isoloss.store.generations import Generations


class KilledError(Exception):
    pass


def point(number: int) -> torch.Tensor:
    return torch.full((3,), float(number), dtype=torch.float64)


@given(
    drops=st.lists(st.sets(st.integers(0, 11)), min_size=12, max_size=12),
    kills=st.lists(st.sampled_from(["", "", "before", "after"]), min_size=12, max_size=12),
)
def test_what_was_kept_last_is_read_back_whenever_it_was_killed(tmp_path_factory, drops, kills):
    folder = tmp_path_factory.mktemp("kept")
    store, last, points = Generations(folder / "c", folder), None, set[int]()
    for number, (drop, kill) in enumerate(zip(drops, kills, strict=True)):
        with pytest.MonkeyPatch.context() as patched:
            if kill == "before":
                patched.setattr(generations, "write_blocks", killed)
            if kill:
                patched.setattr(generations, "write_bytes", killed)
            with contextlib.suppress(KilledError):
                now = (points - drop) | {number}  # a point that was let go never comes back
                store.save({"n": number}, bytes([number]), {k: point(k) for k in now})
                last, points = number, now
        if kill:
            store = Generations(folder / "c", folder)
            found = store.load()
            assert store.damage == []
            assert (found is None) == (last is None)
            if found is not None:
                assert (found.about["n"], found.payload) == (last, bytes([last]))
                assert found.points == {k: point(k).numpy().tobytes() for k in points}


def killed(*_: object) -> None:
    raise KilledError
