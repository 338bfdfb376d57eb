"""One run of a walk: phase 1, the walk, its files."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor

from isoloss._version import __version__
from isoloss.path import Path, Row
from isoloss.progress import describe
from isoloss.runs.claim import as_only_writer, is_finished, keep_or_stop
from isoloss.runs.news import SECONDS_BETWEEN_NEWS, THREADS, News
from isoloss.runs.settings import DTYPES, WalkSettings
from isoloss.store.checkpoint import Checkpoint, TrainingCheckpoint
from isoloss.store.folder import (
    CHECKPOINT,
    begin,
    load_start,
    save_start,
    save_walk,
    training_folder,
)
from isoloss.subject import Start
from isoloss.training import TrainingState
from isoloss.walking import traverse


@dataclass(frozen=True)
class Origin:
    """Where a walk starts, instead of at the end of phase 1.

    Attributes:
        name: What it is, in `config.json`.
        weights: The network, shape (parameters,).
    """

    name: str
    weights: Tensor


@dataclass(frozen=True)
class WalkRun:
    """One run of a walk.

    Attributes:
        index: Number of the run, from 0.
        seed: Determines the run.
        folder: Where its files go.
        settings: Everything else that determines the run.
        checkpoint_every: Seconds between checkpoints.
        origin: Where it starts; None starts at the end of phase 1.
    """

    index: int
    seed: int
    folder: FilePath
    settings: WalkSettings
    checkpoint_every: float = 30.0
    origin: Origin | None = None

    def config(self) -> dict[str, Any]:
        """Everything that determines the run."""
        start = {} if self.origin is None else {"start": self.origin.name}
        return {**self.settings.config(self.seed), **start}

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
            f"{row['test_loss']:.4g}" if "test_loss" in row else "",
        )

    def describe(self, row: Row) -> dict[str, str]:
        """Regularizer and angle for the progress line."""
        return describe(row)

    def finished(self) -> bool:
        """Whether there is nothing to do; nothing is changed.

        Returns:
            Whether the run is finished, with all its files whole.
        """
        return is_finished(self.folder, self.config())

    def execute(self, tell: Callable[[News], None], cancelled: Callable[[], bool]) -> News:
        """Train, walk, write, as the only writer to the folder; go on where there is something.

        Args:
            tell: Receives news, at most ten times a second.
            cancelled: Asked as often; the walk is kept and interrupted once it returns True.

        Returns:
            The last news, once everything is written.
        """
        return as_only_writer(self, lambda notes: self._execute(tell, cancelled, notes))

    def _execute(
        self, tell: Callable[[News], None], cancelled: Callable[[], bool], notes: list[str]
    ) -> News:
        settings, config = self.settings, self.config()
        if not begin(self.folder, config, made_with(), notes.append):
            return self._done(Path.load(self.folder), notes)
        start = self._start(tell, cancelled, config, notes)
        checkpoint = Checkpoint(self.folder / CHECKPOINT, self.checkpoint_every)
        told = 0.0
        done: int | None = None

        def callback(row: Row) -> bool:
            nonlocal told, done
            before = checkpoint.progress if done is None else done
            done = before + (row["kind"] not in ("start", "correct"))
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
            checkpoint=checkpoint,
            progress=False,
        )
        notes += checkpoint.damage
        size = _number(start.problem.chunk_size)
        save_walk(self.folder, path, {**start.extra, "chunk_size": size})
        return self._done(path, notes)

    def _start(
        self,
        tell: Callable[[News], None],
        cancelled: Callable[[], bool],
        config: dict[str, Any],
        notes: list[str],
    ) -> Start:
        """Phase 1, or what it ended with before."""
        kept = load_start(self.folder, notes.append)
        weights = None if self.origin is None else self.origin.weights
        if kept is not None:
            weights = kept["weights"]
        if weights is None:
            tell(News(self.index, "training"))
        folder = training_folder(self.folder)
        checkpoint = TrainingCheckpoint(folder, self.folder, self.checkpoint_every)
        level = self.settings.level
        size = level.chunk_size
        if size is None and kept is not None and "chunk_size" in kept:
            size = int(kept["chunk_size"]) or None
        start = self.settings.subject.start(
            self.seed,
            device=self.settings.device,
            dtype=None if level.dtype is None else DTYPES[level.dtype],
            weights=weights,
            training=checkpoint.load(TrainingState) if weights is None else None,
            after_epoch=partial(keep_or_stop, checkpoint, cancelled),
            chunk_size=size,
        )
        notes += checkpoint.damage
        if kept is None:
            weights = start.problem.current()
            chosen = _number(start.problem.chunk_size)  # measured again it might be another
            save_start(self.folder, config, {"weights": weights, "chunk_size": chosen})
        return start

    def _done(self, path: Path, notes: list[str]) -> News:
        last: Row = path.steps.iloc[-1].to_dict()
        done = sum(kind not in ("start", "correct") for kind in path.steps["kind"])
        return News(self.index, "done", done, last, ending=path.outcome.value, notes=tuple(notes))


def _number(size: int | None) -> torch.Tensor:
    """A chunk size for a file of tensors; 0 stands for the usual one."""
    return torch.tensor(size or 0)


def made_with() -> dict[str, Any]:
    """Versions and hardware that a run's bits depend on."""
    return {
        "isoloss": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": THREADS,
    }
