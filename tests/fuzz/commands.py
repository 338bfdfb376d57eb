"""Commands with wrong arguments, in this process: what they plan is done, their runs are not."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from tests.fuzz.battery import Findings, attempt, inside
from tests.fuzz.values import WORDS
from tests.report.made import made_path, write_decay, write_run
from typer.testing import CliRunner

from isoloss.cli import main
from isoloss.runs.run import Display, News

COMMANDS: list[list[str]] = [
    ["experiments"],
    ["data", "fetch", "iris"],
    ["data", "verify", "iris"],
    ["traverse", "IRIS_FF", "--runs", "2", "--seed", "1", "--method", "sqp", "--out", "OUT",
     "--device", "cpu", "--set", "steps=5", "--checkpoint-every", "3", "--engine", "local"],
    ["decay", "IRIS_FF", "--runs", "2", "--seed", "1", "--penalties", "0,1", "--epochs", "3",
     "--out", "OUT", "--device", "cpu", "--set", "record_every=2"],
    ["compare", "IRIS_FF", "--method", "sqp", "--epochs", "3", "--out", "RESULTS", "--device",
     "cpu", "--set", "steps=3"],
    ["front", "IRIS_FF", "--runs", "2", "--seed", "1", "--levels", "0.1,0.2", "--regularizer", "l1",
     "--out", "OUT", "--device", "cpu", "--set", "evaluations=3", "--checkpoint-every", "3"],
    ["report", "NOTHING", "--out", "RESULTS"],
    ["reproduce", "IRIS_FF", "--runs", "1", "--seed", "1", "--out", "OUT", "--device", "cpu",
     "--quick"],
    ["verify", "RESULTS"],
    ["check", "IRIS_FF", "--seed", "1", "--regularizer", "l1", "--device", "cpu"],
    ["check", "model.py:build", "--seed", "1", "--regularizer", "l1"],
    ["traverse", "model.py:build", "--runs", "1", "--out", "OUT"],
    ["new"],
]  # fmt: skip
PROJECT = """
import torch, isoloss
def build(seed):
    model = torch.nn.Linear(2, 1)
    return isoloss.Problem(model, "mse", (torch.ones(3, 2), torch.zeros(3, 1)))
not_a_function = 3
def fails(seed): return [][seed]
def takes_nothing(): pass
"""


def try_commands(scratch: Path, tries: int, seed: int) -> Findings:
    """Type commands in turn with wrong words in them, some of them missing or added."""
    found, rng = Findings(), random.Random(seed)
    write_run(scratch / "results", made_path(5), 0)
    write_decay(scratch / "results", 0)
    with inside(scratch), unexecuted():
        Path("model.py").write_text(PROJECT)
        for k in range(tries):
            words = _mutated(COMMANDS[k % len(COMMANDS)], rng)
            there = {"OUT": str(scratch / f"out-{k % 7}"), "RESULTS": str(scratch / "results")}
            given = [there.get(word, word) for word in words]
            attempt(lambda given=given: _typed(given), f"{k}: {' '.join(words)[:300]!r}", found)
    return found


def _typed(words: list[str]) -> str:
    """How a command ended: its exit code."""
    with CliRunner().isolation() as (out, err, *_):
        code: Any = 0
        try:
            main(words)
        except SystemExit as end:
            code = end.code or 0
        said = (out.getvalue() + err.getvalue()).decode()
    assert code in (0, 1, 2), code
    assert "Traceback" not in said
    assert not code or said, "it ended without a word"
    return f"exit code {code}"


def _mutated(command: list[str], rng: random.Random) -> list[str]:
    words = list(command)
    for _ in range(rng.choice((1, 1, 2))):
        at, wrong = rng.randrange(len(words) + 1), rng.choice(WORDS)
        if rng.random() < 0.3 and "model.py:build" in words:
            wrong = f"model.py:{rng.choice(('not_a_function', 'fails', 'takes_nothing', 'x'))}"
            at = words.index("model.py:build")
        if at == len(words) or rng.random() < 0.1:
            words.insert(at, wrong)
        elif rng.random() < 0.1:
            del words[at]
        elif not words[at].startswith("--") or rng.random() < 0.1:
            words[at] = wrong
        words = words or [wrong]
    return words


@contextmanager
def unexecuted() -> Iterator[None]:
    """Runs say at once that they are done: each is a process of its own and catches its errors."""

    def run_all(planned: Any, show: Any, say: Any) -> int:
        for one in planned:
            one.config()
            show(News(one.index, "walking", 1, {
                "loss": 1.0, "regularizer": 1.0, "angle_degrees": 1.0, "penalty": 0.0,
                "test_loss": 1.0,
            }))  # fmt: skip
            show(News(one.index, "done", ending="[/red] no markup", failed=one.index == 1))
        return 0

    assert Display  # whose lines and table show what runs said
    with mock.patch("isoloss.cli.runs.run_all", run_all):
        yield
