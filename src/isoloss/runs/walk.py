"""One run of a walk: phase 1, the walk, its files."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import torch

from isoloss._version import __version__
from isoloss.path import Row
from isoloss.progress import describe
from isoloss.results import run
from isoloss.runs.settings import DTYPES, WalkSettings
from isoloss.walk import traverse

SECONDS_BETWEEN_NEWS = 0.1
THREADS = 1
"""Of torch in each run's process: the cores are shared out among the runs."""


@dataclass(frozen=True)
class News:
    """What a run reports while it goes on.

    Attributes:
        index: Which run.
        phase: waiting, training, walking, or done.
        done: Steps so far.
        row: The last row of the walk, if it has begun.
        ending: Once done: the outcome's value, or the sentence of the error.
        failed: Whether the run ended in an error.
    """

    index: int
    phase: str
    done: int = 0
    row: Row | None = None
    ending: str = ""
    failed: bool = False


@dataclass(frozen=True)
class WalkRun:
    """One run of a walk.

    Attributes:
        index: Number of the run, from 0.
        seed: Determines the run.
        folder: Where its files go.
        settings: Everything else that determines the run.
    """

    index: int
    seed: int
    folder: FilePath
    settings: WalkSettings

    @property
    def unit(self) -> str:
        """What progress is counted in."""
        return "steps"

    @property
    def headings(self) -> tuple[str, ...]:
        """What `numbers` are."""
        return ("steps", "evaluations", "R", "angle", "test loss")

    def numbers(self, done: int, row: Row) -> tuple[str, ...]:
        """A line of the summary."""
        return (
            f"{done:,}",
            f"{row['evaluations']:,}",
            f"{row['regularizer']:.4g}",
            f"{row['angle_degrees']:.2f}",
            f"{row['test_loss']:.4g}",
        )

    def describe(self, row: Row) -> dict[str, str]:
        """Regulariser and angle for the progress line."""
        return describe(row)

    def begin(self) -> bool:
        """Lay claim to the folder; False where the run is finished already.

        Returns:
            Whether there is anything to do.
        """
        return run.begin(self.folder, self.settings.config(self.seed), made_with())

    def execute(self, tell: Callable[[News], None], cancelled: Callable[[], bool]) -> News:
        """Train, walk, write.

        Args:
            tell: Receives news, at most ten times a second.
            cancelled: Asked as often; the walk is interrupted once it returns True.

        Returns:
            The last news, once everything is written.
        """
        tell(News(self.index, "training"))
        settings = self.settings
        start = settings.experiment.start(
            self.seed, device=settings.device, dtype=DTYPES[settings.level.dtype]
        )
        told = 0.0
        done = 0

        def callback(row: Row) -> bool:
            nonlocal told, done
            done += row["kind"] not in ("start", "correct")
            now = time.monotonic()
            if now - told < SECONDS_BETWEEN_NEWS:
                return False
            told = now
            tell(News(self.index, "walking", done, row))
            return cancelled()

        path = traverse(
            start.problem,
            regularizer=settings.level.regularizer,
            method=settings.method,
            rtol=settings.level.rtol,
            stop=settings.stop,
            record=settings.record,
            probes=start.probes,
            callback=callback,
            progress=False,
        )
        run.save(self.folder, path, {"indices": start.data.indices})
        last: Row = path.steps.iloc[-1].to_dict()
        return News(self.index, "done", done, last, ending=path.outcome.value)


def made_with() -> dict[str, Any]:
    """Versions and hardware that a run's bits depend on."""
    return {
        "isoloss": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": THREADS,
    }
