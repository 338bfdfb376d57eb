"""A walk kept in a folder while it goes on."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from isoloss.errors import InputError
from isoloss.files import ResultsError
from isoloss.outcome import Ending
from isoloss.recorder import Kept
from isoloss.snapshot import Snapshot, differences
from isoloss.store.pack import pack, unpack
from isoloss.store.slots import Content, Slots

AnyState = TypeVar("AnyState")

MOST_OF_THE_TIME = 0.05
"""Share of a walk's time that its checkpoints may take: where writing is slow they are fewer."""


class _Timed:
    """Slots that are written to from time to time."""

    def __init__(self, folder: Path, rescue: Path, every: float) -> None:
        if not every >= 0:
            raise InputError(f"every={every} is not possible; give seconds from 0")
        self.folder = folder
        self._slots = Slots(folder, rescue)
        self._every = every
        self._wait = every
        self._last = time.monotonic()

    @property
    def damage(self) -> list[str]:
        """What was found damaged when loading, a sentence each."""
        return self._slots.damage

    @property
    def due(self) -> bool:
        """Whether it is time for the next one."""
        return time.monotonic() - self._last >= self._wait

    def _load(self) -> Content | None:
        self._last = time.monotonic()
        return self._slots.load()

    def _save(self, content: Content, begun: float) -> None:
        self._slots.save(content)
        self._last = time.monotonic()
        cost = self._last - begun
        self._wait = max(self._every, cost / MOST_OF_THE_TIME) if self._every else 0.0

    def _of_another_version(self, error: Exception) -> ResultsError:
        return ResultsError(
            f"{self.folder} was kept by another version of isoloss and cannot be gone on from "
            f"({error}); finish with that version, or begin anew with --restart"
        )


class TrainingCheckpoint(_Timed):
    """Keeps the state of a training in a folder, as `Checkpoint` does a walk's.

    Args:
        folder: A folder of its own.
        rescue: In whose `quarantine` goes what is damaged.
        every: Seconds between two.
    """

    def load(self, state: type[AnyState]) -> AnyState | None:
        """The last state that was kept whole.

        Args:
            state: Its class.

        Returns:
            The state; None where there is none.

        Raises:
            ResultsError: It is of another version of isoloss.
        """
        content = self._load()
        if content is None:
            return None
        try:
            found = unpack(content.tree, content.storages, (state,))
            if not isinstance(found, state):
                raise ValueError(f"it is not of a {state.__name__}")
        except ValueError as error:
            raise self._of_another_version(error) from error
        return found

    def save(self, state: object) -> None:
        """Write a state over the older of the two."""
        begun = time.monotonic()
        self._save(Content(*pack(state)), begun)


class Checkpoint(_Timed):
    """Keeps a walk in a folder, so that it can go on from there after the process has ended.

    The last two are kept, each complete in itself and checksummed; what is damaged is moved into
    `quarantine` beside the folder, and the one before is used.

    Args:
        folder: A folder of its own.
        every: Seconds between two; 0 keeps every step.

    Attributes:
        folder: The folder.
        progress: Steps that the walk found there had taken, corrections not counted.

    Raises:
        InputError: `every` is negative.
    """

    def __init__(self, folder: str | Path, every: float = 30.0) -> None:
        super().__init__(Path(folder), Path(folder).parent, every)
        self.progress = 0

    def load(self, state: type, asked: Mapping[str, Any]) -> Snapshot | None:
        """The last snapshot that was kept whole.

        Args:
            state: Class of the method's state.
            asked: What determines the walk.

        Returns:
            The snapshot; None where there is none.

        Raises:
            InputError: It is of another walk; the difference is shown.
            ResultsError: It is of another version of isoloss.
        """
        content = self._load()
        if content is None:
            return None
        before = content.tree["asked"]
        different = differences(before, _comparable(asked, before))
        if different:
            raise InputError(
                f"{self.folder} keeps another walk ({'; '.join(different)}); give another folder"
            )
        try:
            snapshot: Snapshot = unpack(
                content.tree["snapshot"], content.storages, (Snapshot, state, Ending)
            )
            kept = {
                step: Kept(count, step, content.points[step])
                for count, step in content.tree["kept"]
            }
        except (KeyError, ValueError, TypeError) as error:
            raise self._of_another_version(error) from error
        recorded = snapshot.recorded
        last = recorded.last
        if last is not None:
            last = kept.get(last.step, last)
        rows: list[dict[str, Any]] = [dict(row) for row in content.rows]
        self.progress = recorded.progress
        recorded = replace(recorded, rows=rows, kept=tuple(kept.values()), last=last)
        return replace(snapshot, asked=dict(asked), recorded=recorded)

    def save(self, snapshot: Snapshot) -> None:
        """Write a snapshot over the older of the two.

        Args:
            snapshot: The walk as it is now.

        Raises:
            StorageError: It cannot be written; those before are still valid.
        """
        begun = time.monotonic()
        recorded = snapshot.recorded
        bare = replace(snapshot, asked={}, recorded=replace(recorded, rows=[], kept=()))
        tree, storages = pack(bare)
        kept = [[kept.count, kept.step] for kept in recorded.kept]
        content = Content(
            tree={"asked": snapshot.asked, "snapshot": tree, "kept": kept},
            storages=storages,
            rows=recorded.rows[: recorded.length],
            points={kept.step: kept.theta for kept in recorded.kept},
        )
        self._save(content, begun)


def _comparable(asked: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """What determines a walk, as told by checkpoints of the time when `before` was kept.

    At first they told of a regularizer and of probes the names alone, nothing of the losses, and of
    methods without settings not the class.
    """
    if not isinstance(before.get("regularizer"), str):
        return dict(asked)
    method = {key: value for key, value in asked["method"].items() if key in before["method"]}
    older = {
        **asked,
        "regularizer": asked["regularizer"]["name"],
        "probes": sorted(asked["probes"]),
        "method": method,
    }
    del older["problem"]
    return older
