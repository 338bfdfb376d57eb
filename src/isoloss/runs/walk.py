"""One run of a walk: its settings, phase 1, the walk, its files."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor

from isoloss.errors import unknown
from isoloss.experiments import Experiment
from isoloss.methods import Method
from isoloss.path import Path, Record, Row, Stop
from isoloss.progress import FIGURES
from isoloss.projects import Project
from isoloss.regularizers import REGULARIZERS
from isoloss.runs.run import Contact, News, Run, made_with
from isoloss.settings import ONLY_IN_PYTHON, Count, Settings, override, parse_pairs
from isoloss.store import Results, run_folder
from isoloss.store.checkpoint import (
    Checkpoint,
    TrainingCheckpoint,
    load_start,
    save_start,
    training_folder,
)
from isoloss.store.folder import CHECKPOINT, save_walk, settle
from isoloss.subject import Start
from isoloss.trackers import Tracker, tracker_of_run
from isoloss.training import TrainingState
from isoloss.walking import traverse

Subject = Experiment | Project
"""What a run walks; it is sent to the process of each run."""

NO_STEPS = {"start", "correct"}  # kinds of rows that are no progress


class Level(Settings):
    """What is held, what is made small, and how both are computed."""

    regularizer: str = "squared_norm"
    rtol: float = Field(default=1e-3, gt=0, lt=1)
    dtype: Literal["float32", "float64"] | None = "float32"  # None is the problem's own
    chunk_size: Count | None = None  # None takes what is fastest here


@dataclass(frozen=True)
class WalkSettings:
    """Everything but the seed that determines a run of a walk."""

    subject: Subject
    method: Method
    stop: Stop
    record: Record
    level: Level
    device: str

    def config(self, seed: int) -> dict[str, Any]:
        """What goes into a run's `config.json`."""
        method = self.method.model_dump() if isinstance(self.method, Settings) else {}
        return {
            "experiment": self.subject.name,
            **self.subject.identity,
            "seed": seed,
            "device": self.device,
            "method": {"name": self.method.name, **method},
            "stop": self.stop.model_dump(exclude=ONLY_IN_PYTHON),
            "record": self.record.model_dump(),
            **self.level.model_dump(exclude_none=True),
        }


def walk_settings(
    subject: Subject, method: str, pairs: Sequence[str] = (), device: str = "cpu"
) -> WalkSettings:
    """The settings of a walk: the subject's own, changed by KEY=VALUE pairs."""
    walker = subject.method(method)
    start = cast("Settings", walker)
    stop, record = subject.stop(), subject.record(walker)
    level = Level(dtype=cast("Any", subject.default_dtype))
    given = parse_pairs(pairs, *(type(part) for part in (start, stop, record, level)))
    name = given.get("regularizer", level.regularizer)
    if name not in REGULARIZERS:
        raise unknown("regularizer", name or "none", REGULARIZERS)
    return WalkSettings(
        subject=subject,
        method=cast("Method", override(start, given)),
        stop=override(stop, given),
        record=override(record, given),
        level=override(level, given),
        device=device,
    )


@dataclass(frozen=True)
class WalkRun(Run):
    """One run of a walk."""

    settings: WalkSettings
    # where it starts instead of at the end of phase 1: a name in `config.json`, and the weights
    origin: tuple[str, Tensor] | None = None
    trackers: tuple[Tracker, ...] = ()

    unit: ClassVar[str] = "steps"
    figures: ClassVar[str] = FIGURES
    goes_on: ClassVar[bool] = True
    columns: ClassVar[dict[str, str]] = {
        "evaluations": "{evaluations:,}",
        "R": "{regularizer:.4g}",
        "angle": "{angle_degrees:.2f}",
        "test loss": "{test_loss:.4g}",
    }

    @property
    def total(self) -> int | None:
        """The steps that end it, where they usually do."""
        return self.settings.stop.steps if self.settings.method.takes_all_steps else None

    def tracked(self, names: Sequence[str]) -> WalkRun:
        """The same run, logged by the trackers of these names."""
        about = {"experiment": self.settings.subject.name, "run": self.index, "seed": self.seed}
        found = [tracker_of_run(name, self.folder, **about) for name in dict.fromkeys(names)]
        return replace(self, trackers=tuple(found))

    def config(self) -> dict[str, Any]:
        """Everything that determines the run."""
        start = {} if self.origin is None else {"start": self.origin[0]}
        return {**super().config(), **start}

    def _work(self, contact: Contact) -> News:
        settings = self.settings
        start = self._start(contact)
        checkpoint = Checkpoint(self.folder / CHECKPOINT, self.checkpoint_every)
        taken = 0
        for tracker in self.trackers:
            tracker.tell = contact.notes.append

        def callback(row: Row) -> bool:
            nonlocal taken
            taken += row["kind"] not in NO_STEPS
            return contact.tell("walking", checkpoint.progress + taken, row)

        with contact.keeping_nothing():
            path = traverse(
                start.problem,
                regularizer=settings.level.regularizer,
                method=settings.method,
                rtol=settings.level.rtol,
                stop=settings.stop,
                record=settings.record,
                probes=start.probes,
                callback=[*self.trackers, callback],
                checkpoint=checkpoint,
                progress=False,
            )
        contact.notes += checkpoint.damage
        # its usual end is no limit to raise: what it would go on from takes room
        usual = settings.method.takes_all_steps and settings.stop == settings.subject.stop()
        extra = {**start.extra, "chunk_size": _size(start)}
        settle(self.folder, self.config(), made_with())
        save_walk(self.folder, path, extra, for_good=usual)
        return self._done(path)

    def finished_before(self) -> News:
        return self._done(Path.load(self.folder))

    def _start(self, contact: Contact) -> Start:
        """Phase 1, or what it ended with before."""
        kept = load_start(self.folder, contact.notes.append)
        weights = None if self.origin is None else self.origin[1]
        level, size = self.settings.level, self.settings.level.chunk_size
        if kept is not None:
            weights = kept["weights"]
            size = size or int(kept["chunk_size"]) or None
        folder = training_folder(self.folder)
        checkpoint = TrainingCheckpoint(folder, self.folder, self.checkpoint_every)
        if weights is None:
            contact.tell("training")
        # of an experiment's training there is something to keep, after each epoch
        own = isinstance(self.settings.subject, Project)
        with contact.keeping_nothing() if own else nullcontext():
            start = self.settings.subject.start(
                self.seed,
                device=self.settings.device,
                dtype=None if level.dtype is None else getattr(torch, level.dtype),
                weights=weights,
                training=checkpoint.load(TrainingState) if weights is None else None,
                after_epoch=partial(contact.keep_or_stop, checkpoint),
                chunk_size=size,
            )
        contact.notes += checkpoint.damage
        if kept is None:  # measured again, the size might be another
            tensors = {"weights": start.problem.current(), "chunk_size": _size(start)}
            save_start(self.folder, tensors)
        return start

    def _done(self, path: Path) -> News:
        last: Row = path.steps.iloc[-1].to_dict()
        done = sum(kind not in NO_STEPS for kind in path.steps["kind"])
        return News(self.index, "done", done, last, ending=path.outcome.value)


def after_decay_runs(results: Results, walk: WalkSettings) -> list[WalkRun]:
    """Walks from each run's network of weight decay with the smallest loss on held-out examples."""
    from isoloss.report.tables import chosen_per_run  # slow to load

    name, runs = walk.subject.name, list[WalkRun]()
    table = results.decay(name)
    points = results.decay_points(name) if len(table) else torch.empty(0)
    for position, row in chosen_per_run(table).to_dict("index").items():
        index, seed, penalty = int(row["run"]), int(row["seed"]), float(row["penalty"])
        folder = run_folder(results.folder, name, walk.method.name, index, "after-decay")
        origin = f"weight decay, penalty {penalty:g}", points[cast("int", position)].clone()
        runs.append(WalkRun(index, seed, folder, walk, origin=origin))
    return runs


def _size(start: Start) -> Tensor:
    """The chunk size for a file of tensors; 0 stands for the usual one."""
    return torch.tensor(start.problem.chunk_size or 0)
