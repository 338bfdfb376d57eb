"""What all tests share: one thread, the same examples every time, and a word for refusals."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

os.environ["OMP_NUM_THREADS"] = "1"  # as in the processes of runs; read when torch is loaded

import hypothesis
import pytest
import torch

from isoloss import InputError
from isoloss.runs import pool

pool.PRELOADED.append("sklearn.datasets")
"""Which most runs of the tests load, for Iris: now once."""

torch.set_num_threads(1)
hypothesis.settings.register_profile(
    "isoloss", deadline=None, derandomize=True, max_examples=25, database=None
)
hypothesis.settings.load_profile("isoloss")

SLOW = {"walked", "reported", "written", "browser"}
"""Fixtures that take a second or more."""


def pytest_configure() -> None:
    """Heed Ctrl-C, which what a shell starts in the background ignores: tests press it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that wait for a slow fixture."""
    for item in items:
        if SLOW & set(getattr(item, "fixturenames", ())):
            item.add_marker("slow")


Refuses = Callable[..., AbstractContextManager[None]]


@contextmanager
def _refuses(*words: str, error: type[Exception] = InputError) -> Iterator[None]:
    with pytest.raises(error) as caught:
        yield
    text = str(caught.value)
    assert re.fullmatch(r"\S[^\n]{10,400}", text), f"not one plain sentence: {text!r}"
    missing = [word for word in words if word not in text]
    assert not missing, f"{missing} not in {text!r}"


@pytest.fixture(scope="session")
def refuses() -> Refuses:
    """A context that insists on an InputError of one sentence holding all the words."""
    return _refuses
