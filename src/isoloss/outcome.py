"""Why a walk ended, and what to do about it."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import torch

from isoloss.errors import unknown


class Outcome(enum.Enum):
    """Why a walk ended. The value is its name in files.

    Attributes:
        sentence: What happened.
        remedy: What to do when it was not wanted.
        remedy_in_float64: What to do in a walk that is in float64 already.
    """

    sentence: str
    remedy: str
    remedy_in_float64: str

    def __new__(
        cls, value: str, sentence: str, remedy: str, remedy_in_float64: str | None = None
    ) -> Outcome:
        """Make a member whose value is its name alone."""
        member = object.__new__(cls)
        member._value_ = value
        member.sentence = sentence
        member.remedy = remedy
        member.remedy_in_float64 = remedy_in_float64 or remedy
        return member

    CONVERGED = (
        "converged",
        "The regularizer is stationary on the level set.",
        "For a closer end, lower Stop(kkt_residual=...).",
    )
    REGULARIZER_REACHED = (
        "regularizer_reached",
        "The regularizer fell to the value asked for.",
        "To go on, lower Stop(regularizer_below=...).",
    )
    STEP_LIMIT = (
        "step_limit",
        "The number of steps asked for was taken before convergence.",
        "To go on, raise Stop(steps=...).",
    )
    EVALUATION_LIMIT = (
        "evaluation_limit",
        "The number of evaluations asked for was used before convergence.",
        "To go on, raise Stop(evaluations=...).",
    )
    TIME_LIMIT = (
        "time_limit",
        "The time asked for was used before convergence.",
        "To go on, raise Stop(seconds=...).",
    )
    SLOWED = (
        "slowed",
        "The last steps gained less than was asked for.",
        "To go on, lower Stop(gain=...); 0 asks for no such end.",
    )
    INTERRUPTED = (
        "interrupted",
        "The walk was stopped from outside: by a callback, Stop(when=...) or Ctrl-C.",
        "To go on, start from the last point.",
    )
    CORRECTION_LIMIT = (
        "correction_limit",
        "The corrector did not return to the level set.",
        "Its fixed step may jump over the tolerance band: lower Paper(corrector_step=...), or "
        "raise Paper(max_corrections=...).",
    )
    NON_FINITE = (
        "non_finite",
        "The loss or a gradient was not finite; the last good point is kept.",
        "Check the data and the model at the next point, or use dtype=torch.float64.",
        "Check the data and the model at the next point.",
    )
    STALLED = (
        "stalled",
        "No step could be found that stays on the level set and lowers the regularizer.",
        "The floating-point noise of the loss may be reached: use dtype=torch.float64, or a larger "
        "rtol.",
        "The regularizer or the loss may have a kink here (max, abs, ReLU), or the noise of "
        "float64 is reached: smooth the kink, or give a larger rtol or Stop(kkt_residual=...).",
    )
    LEVEL_UNREACHABLE = (
        "level_unreachable",
        "The walk ended before it reached its level.",
        "Hold a level nearer to the start's loss, or train further before the walk.",
    )
    CONSTRAINT_UNREACHABLE = (
        "constraint_unreachable",
        "The walk ended before it met all that is held.",
        "Loosen a bound that is named, or start from weights that are nearer to meeting it.",
    )
    GRADIENT_VANISHED = (
        "gradient_vanished",
        "The gradient of the loss vanished, so that the level set has no tangent here.",
        "At the least loss the level set is a single point: hold a level above it, or start from "
        "another point.",
    )

    @classmethod
    def _missing_(cls, value: object) -> Outcome:
        raise unknown("outcome", value, [member.value for member in cls])

    @property
    def success(self) -> bool:
        """Whether the walk ended where it was asked to: converged, or a stop that was asked for."""
        return self not in {
            Outcome.CORRECTION_LIMIT,
            Outcome.NON_FINITE,
            Outcome.STALLED,
            Outcome.LEVEL_UNREACHABLE,
            Outcome.CONSTRAINT_UNREACHABLE,
            Outcome.GRADIENT_VANISHED,
            Outcome.INTERRUPTED,
        }


@dataclass(frozen=True)
class Ending:
    """An outcome with the figures of this walk."""

    outcome: Outcome
    detail: str = ""  # the figures, a part of a sentence
    remedy: str = ""  # where it is another than the outcome's

    def message(self, dtype: torch.dtype) -> str:
        """The sentence, the figures and the remedy of a walk in this type."""
        figures = f" ({self.detail})" if self.detail else ""
        exact = dtype == torch.float64
        usual = self.outcome.remedy_in_float64 if exact else self.outcome.remedy
        return f"{self.outcome.sentence.rstrip('.')}{figures}. {self.remedy or usual}"
