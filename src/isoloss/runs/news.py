"""What a run reports while it goes on."""

from __future__ import annotations

from dataclasses import dataclass

from isoloss.outcome import Outcome
from isoloss.path import Row

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
        notes: What the user should know beside that, a sentence each.
    """

    index: int
    phase: str
    done: int = 0
    row: Row | None = None
    ending: str = ""
    failed: bool = False
    notes: tuple[str, ...] = ()

    @property
    def interrupted(self) -> bool:
        """Whether the run was interrupted, and goes on the next time."""
        return self.ending == Outcome.INTERRUPTED.value and not self.failed
