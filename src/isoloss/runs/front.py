"""One run of a front: phase 1, and walks from level to level from what it ended with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from isoloss.errors import InputError
from isoloss.explore.branches import Plan, follow
from isoloss.explore.front import EVALUATIONS, Front, gathered
from isoloss.explore.levels import COUNT, given_levels, spaced_levels
from isoloss.methods import SQP
from isoloss.path import Row
from isoloss.runs.run import Contact, Interrupted, News
from isoloss.runs.walk import Subject, WalkRun, WalkSettings, walk_settings
from isoloss.store.folder import CHECKPOINT, FINISHED, save_front


@dataclass(frozen=True)
class FrontSettings(WalkSettings):
    """Everything but the seed that determines a run of a front."""

    levels: tuple[float, ...] = ()  # ascending; none spaces `count` of them
    count: int = COUNT

    def config(self, seed: int) -> dict[str, Any]:
        """What goes into a run's `config.json`."""
        chosen = {"levels": list(self.levels)} if self.levels else {"count": self.count}
        return {**super().config(seed), **chosen}


def front_settings(
    subject: Subject,
    regularizer: str,
    levels: Sequence[float] | None = None,
    count: int | None = None,
    pairs: Sequence[str] = (),
    device: str = "cpu",
) -> FrontSettings:
    """The settings of a front: those of walks, one along each level."""
    if not any(pair.startswith("evaluations=") for pair in pairs):
        pairs = [*pairs, f"evaluations={EVALUATIONS}"]
    walk = walk_settings(subject, "sqp", [*pairs, f"regularizer={regularizer}"], device)
    if levels is not None and count is not None:
        raise InputError("--levels and --count were both given; give one of them")
    given = () if levels is None else given_levels(levels)
    return FrontSettings(**vars(walk), levels=given, count=count or COUNT)


@dataclass(frozen=True)
class FrontRun(WalkRun):
    """One run of a front."""

    settings: FrontSettings

    goes_on: ClassVar[bool] = False  # its checkpoint is of walks with their own stop
    unit: ClassVar[str] = "levels"
    figures: ClassVar[str] = "loss {loss:.4g}, R {regularizer:.4g}"
    columns: ClassVar[dict[str, str]] = {
        "evaluations": "{evaluations:,}",
        "loss": "{loss:.4g} to {highest:.4g}",
        "R": "{regularizer:.4g} to {least:.4g}",
        "folds": "{folds}",
    }

    @property
    def total(self) -> int:
        """The levels on the way up and on the way down."""
        return 2 * (len(self.settings.levels) or self.settings.count) - 1

    def _work(self, contact: Contact) -> News:
        settings, start = self.settings, self._start(contact)
        theta = start.problem.current()
        plan = Plan(
            problem=start.problem,
            regularizer=settings.level.regularizer,
            levels=settings.levels or spaced_levels(start.problem, [theta], settings.count),
            stop=settings.stop,
            method=cast("SQP", settings.method),
            rtol=settings.level.rtol,
            probes=start.probes,
            also={},
            folder=self.folder / CHECKPOINT,
            every=self.checkpoint_every,
        )
        branch = follow(plan, 0, theta, lambda done, row: contact.tell("walking", done, row))
        if branch.interrupted:
            raise Interrupted
        found = gathered(plan, [branch])
        save_front(self.folder, *found.content)
        return self._told(found)

    def finished_before(self) -> News:
        return self._told(Front.load(self.folder))

    def _told(self, front: Front) -> News:
        best: list[Row] = front.best.to_dict("records")
        nothing: Row = {"loss": math.nan, "regularizer": math.nan}  # where no level was reached
        first, last = (best[0], best[-1]) if best else (nothing, nothing)
        row = {**first, "highest": last["loss"], "least": last["regularizer"]}
        row |= {"evaluations": front.evaluations, "folds": len(front.folds)}
        return News(self.index, "done", len(front.table), row, ending=FINISHED)
