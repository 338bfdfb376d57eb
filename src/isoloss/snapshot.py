"""A walk between two steps, and who keeps it so that another process can go on from there."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from isoloss.errors import InputError
from isoloss.methods import Method, State
from isoloss.recorder import Recorded


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that a walk goes on from.

    Attributes:
        asked: What determines the walk, as far as it can be compared.
        chunk_size: `Problem.chunk_size`, which the last bits depend on.
        level: The loss held.
        state: Of the method; its step is not recorded yet.
        evaluations: Evaluations so far.
        recorded: What was recorded up to the step before.
    """

    asked: dict[str, Any]
    chunk_size: int | None
    level: float
    state: State
    evaluations: int
    recorded: Recorded


@runtime_checkable
class Checkpoint(Protocol):
    """Keeps snapshots of one walk; `isoloss.Checkpoint` does so in a folder."""

    def load(self, state: type, asked: Mapping[str, Any]) -> Snapshot | None:
        """The last snapshot that was kept whole.

        Args:
            state: Class of the method's state.
            asked: What determines the walk; a snapshot of another one is refused.

        Returns:
            The snapshot; None where there is none.
        """
        ...

    @property
    def due(self) -> bool:
        """Whether it is time for the next one; asked at every step."""
        ...

    def save(self, snapshot: Snapshot) -> None:
        """Keep a snapshot.

        Args:
            snapshot: The walk as it is now.
        """
        ...


def state_class(method: Method) -> type:
    """The class of a method's states, from what its `init` says that it returns.

    Args:
        method: The method.

    Returns:
        The class.

    Raises:
        InputError: It does not say.
    """
    found = typing.get_type_hints(type(method).init).get("return")
    if not isinstance(found, type) or not dataclasses.is_dataclass(found):
        raise InputError(
            f"a walk by {method.name} cannot be checkpointed, since its states' class is not "
            f"known; annotate {type(method).__name__}.init with the dataclass it returns"
        )
    return found


def differences(before: Any, now: Any, name: str = "") -> list[str]:
    """Where two nested mappings differ, a phrase each: `stop.steps was 5, now 6`."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        if before.get("name") != now.get("name"):  # another thing has other settings
            before, now = {"name": before.get("name")}, {"name": now.get("name")}
        keys = [*before, *(key for key in now if key not in before)]
        return [
            text
            for key in keys
            for text in differences(before.get(key), now.get(key), f"{name}.{key}".lstrip("."))
        ]
    if isinstance(before, list) and isinstance(now, list) and _nested(before, now):
        return [
            text
            for k, pair in enumerate(zip(before, now, strict=True))
            for text in differences(*pair, f"{name}.{k}".lstrip("."))
        ]
    return [] if before == now else [f"{name} was {before!r}, now {now!r}"]


def _nested(before: list[Any], now: list[Any]) -> bool:
    """Whether two lists are of one length and hold more than numbers and strings."""
    nested = any(isinstance(item, (list, Mapping)) for item in before)
    return len(before) == len(now) and nested
