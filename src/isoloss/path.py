"""What a walk is asked (`Stop`, `Record`) and what it returns (`Path`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from isoloss.errors import InputError
from isoloss.flat import load_into
from isoloss.outcome import Outcome
from isoloss.settings import Settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]
"""One accepted step: the columns of `Path.steps`."""

COLUMNS = (
    "step",
    "kind",
    "evaluations",
    "seconds",
    "loss",
    "level_error",
    "regularizer",
    "angle_degrees",
    "kkt_residual",
    "equivalent_penalty",
    "step_length",
    "arc_length",
)


class Stop(Settings):
    """When a walk ends; whichever comes first.

    Attributes:
        kkt_residual: At or below this sine of the angle between the gradients the walk has
            converged; 0 asks for the exact end.
        regularizer_below: R at or below which to end; None for no such end.
        steps: Steps to take; corrector steps are not counted.
        evaluations: Evaluations of loss and gradient to use; None for no limit.
        seconds: Wall-clock time to use; None for no limit.
        when: A function of the row just recorded (a dict of the columns of `Path.steps`); the walk
            ends once it returns True.
    """

    kkt_residual: NonNegativeFloat = 1e-3
    regularizer_below: float | None = None
    steps: PositiveInt = 20_000
    evaluations: PositiveInt | None = None
    seconds: PositiveFloat | None = None
    when: Callable[[Row], bool] | None = None


class Record(Settings):
    """What is kept of a walk, counted in points on the level set.

    Attributes:
        probes_every: Measure the probes at every such point; the first and the last always.
        points_every: Keep the weights of every such point; the first and the last always.
        points_at_most: Keep no more weights than this, evenly along the walk: whenever there are
            more, every other one is let go and the spacing doubles. None keeps them all.
    """

    probes_every: PositiveInt = 1
    points_every: PositiveInt = 1
    points_at_most: int | None = Field(default=200, ge=2)


@dataclass(frozen=True)
class Path:
    """The sequence of points of a walk, with what was measured at each.

    Attributes:
        steps: A row per accepted step, the start first. Columns: step, kind (start, predict,
            correct, sqp), evaluations (cumulative), seconds (cumulative), loss, level_error
            ((L - c) / c), regularizer, angle_degrees, kkt_residual, equivalent_penalty,
            step_length, arc_length, and `NAME_loss`, `NAME_metric` of each probe, NaN where it was
            not measured.
        points: Weights of the points kept, shape (points kept, parameters).
        point_steps: The step of each point kept.
        level: The loss c that was held.
        outcome: Why the walk ended.
        message: The outcome's sentence with this walk's figures and the remedy.
        method: Name of the method.
        regularizer: Name of the regularizer.
        shapes: Shape of each parameter by name, in the order of theta.
        buffers: The model's buffers (running statistics and the like) during the walk, by name.
        metadata: What the run was made with, where it was read from files.
    """

    steps: pd.DataFrame
    points: Tensor
    point_steps: list[int]
    level: float
    outcome: Outcome
    message: str
    method: str
    regularizer: str
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    buffers: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    metadata: dict[str, Any] = field(default_factory=dict[str, Any])

    def load_into(self, model: nn.Module, k: int = -1) -> None:
        """Write a kept point into a model's parameters, in place.

        Args:
            model: A model of the architecture that was walked.
            k: Which of the kept points; the last by default.

        Raises:
            InputError: There is no such point, or the model is another.
        """
        if not -len(self.points) <= k < len(self.points):
            raise InputError(f"k={k} is not possible: {len(self.points)} points were kept")
        load_into(model, self.points[k], self.shapes)

    def plot(self, against: str = "step") -> Figure:
        """Angle, regularizer and probes along the walk, in stacked panels.

        Args:
            against: `"step"`, `"evaluations"`, `"arc_length"` or `"regularizer"`.

        Returns:
            A matplotlib figure, to change, to save, or to show in a notebook.

        Raises:
            InputError: There is no such abscissa.
        """
        from isoloss.report import walk_panels  # pictures are above walks: only on demand

        return walk_panels({self.method: [self]}, against=against)

    def __repr__(self) -> str:
        """One line: method, steps, loss, regularizer from start to end, outcome."""
        first, last = self.steps.iloc[0], self.steps.iloc[-1]
        return (
            f"Path({self.method}, {last['step']} steps, {last['evaluations']} evaluations, "
            f"level {self.level:.6g}, {self.regularizer} {first['regularizer']:.6g} -> "
            f"{last['regularizer']:.6g}, {self.outcome.value})"
        )
