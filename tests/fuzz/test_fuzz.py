"""The short form; the long one is `python -m tests.fuzz`."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from tests.fuzz.archives import try_logs
from tests.fuzz.battery import Findings, attempt, limited, try_calls
from tests.fuzz.commands import COMMANDS, try_commands

from isoloss import InputError

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer")


@pytest.mark.slow
def test_no_wrong_argument_of_a_public_function_ends_in_a_traceback(tmp_path: Path) -> None:
    found = try_calls(tmp_path, 300, 1)
    assert found.wrong == []
    assert found.ended["InputError"] > 200
    assert found.ended.total() == 300


@pytest.mark.slow
def test_no_wrong_word_of_a_command_ends_in_a_traceback(tmp_path: Path) -> None:
    found = try_commands(tmp_path, 5 * len(COMMANDS), 1)
    assert found.wrong == []
    assert found.ended["exit code 2"] > 3 * len(COMMANDS)


@pytest.mark.slow
def test_no_damage_of_a_log_concerns_another(tmp_path: Path) -> None:
    found = try_logs(tmp_path, 24, 1)
    assert (found.wrong, found.ended["well"]) == ([], 24)


def test_what_is_no_error_of_isoloss_or_does_not_end_is_found() -> None:
    found = Findings()
    attempt(lambda: 1 / 0, "a", found)
    attempt(lambda: int("x"), "b", found)
    attempt(lambda: _raise(InputError("two\nlines, or more than that")), "c", found)
    attempt(lambda: _raise(InputError("a sentence for the user")), "d", found)
    attempt(lambda: _raise(RecursionError("deep")), "e", found)
    attempt(_endless, "f", found)
    assert [line[:1] for line in found.wrong] == ["a", "b", "c", "e", "f"]
    assert "not ended after 0.05 s" in found.wrong[-1]


def _raise(error: Exception) -> None:
    raise error


def _endless() -> None:
    with limited(0.05):
        while True:
            pass
