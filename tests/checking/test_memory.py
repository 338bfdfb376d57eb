"""A walk that would not fit into memory is refused before its first evaluation."""

from __future__ import annotations

import pytest
import torch
from tests.problems import classifier

from isoloss import SQP, Stop, traverse
from isoloss.checking import memory
from isoloss.errors import DeviceError


@pytest.mark.parametrize(
    ("vectors", "remedy"),
    [
        (93, ""),
        (92, "SQP\\(memory=39\\), or"),
        (50, "SQP\\(memory=18\\), or"),
        (40, "; use a device"),
    ],
)
def test_both_figures_are_named(monkeypatch: pytest.MonkeyPatch, vectors: int, remedy: str) -> None:
    problem = classifier().problem(dtype=torch.float32)
    monkeypatch.setattr(memory, "_left", lambda _: vectors * problem.size * 4)
    stop = Stop(evaluations=5)
    if not remedy:
        traverse(problem, stop=stop, progress=False)
        return
    with pytest.raises(DeviceError, match=f"holds up to 93 vectors.* GB, and cpu has.*{remedy}"):
        traverse(problem, stop=stop, progress=False)
    assert problem.evaluations == 0
    if "memory=" in remedy:
        fits = int("".join(filter(str.isdigit, remedy)))
        traverse(problem, method=SQP(memory=fits), stop=stop, progress=False)
        with pytest.raises(DeviceError):
            traverse(problem, method=SQP(memory=fits + 1), stop=stop, progress=False)


def test_the_memory_of_this_machine_is_known() -> None:
    left = memory._left(torch.device("cpu"))
    assert left is not None
    assert 2**28 < left < 2**50
