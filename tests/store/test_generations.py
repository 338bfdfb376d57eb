"""Two generations of a checkpoint, written over and over, and killed in between."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isoloss.store import generations
from isoloss.store.generations import Generations

ENDS = ["killed before the points", "killed after the points", "newest damaged"]


class KilledError(Exception):
    pass


def point(number: int) -> torch.Tensor:
    return torch.full((3,), float(number), dtype=torch.float64)


def newest(folder: Path) -> Path:
    """The file of the two with the higher number."""
    headers = {slot: json.loads((folder / slot).read_bytes().splitlines()[0]) for slot in "ab"}
    return folder / max(headers, key=lambda slot: headers[slot]["number"])


@given(
    drops=st.lists(st.sets(st.integers(0, 11)), min_size=12, max_size=12),
    ends=st.lists(st.sampled_from(["", "", *ENDS]), min_size=12, max_size=12),
)
def test_what_was_kept_last_is_read_back_whatever_happened(tmp_path_factory, drops, ends):
    folder = tmp_path_factory.mktemp("kept")
    store, now = Generations(folder / "c", folder), (None, set[int]())
    for number, (drop, end) in enumerate(zip(drops, ends, strict=True)):
        before = now
        with pytest.MonkeyPatch.context() as patched:
            if end == "killed before the points":
                patched.setattr(generations, "write_blocks", killed)
            if "killed" in end:
                patched.setattr(generations, "atomically", killed)
            with contextlib.suppress(KilledError):
                points = (now[1] - drop) | {number}  # a point that was let go never comes back
                store.save({"n": number}, bytes([number]), {k: point(k) for k in points})
                now = number, points
        if end == "newest damaged":
            content = newest(folder / "c").read_bytes()
            newest(folder / "c").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
            now = before if before[0] is not None else (None, set())
        if end:
            store = Generations(folder / "c", folder)
            found = store.load()
            assert len(store.damage) == (end == "newest damaged")
            assert (found is None) == (now[0] is None)
            if found is not None:
                assert (found.about["n"], found.payload) == (now[0], bytes([now[0]]))
                assert found.points == {k: point(k).numpy().tobytes() for k in now[1]}


def killed(*_: object) -> None:
    raise KilledError
