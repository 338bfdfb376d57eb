"""What a walk is asked (`Stop`, `Record`) and what it returns (`Path`)."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from numbers import Integral
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    StrictFloat,
    ValidationError,
)
from torch import Tensor, nn

from isoloss.arguments import check_columns, check_fields, checked, real
from isoloss.disk import DamagedError, ResultsError, as_folder
from isoloss.errors import MOST, InputError, kind, shown
from isoloss.files import (
    FAILED,
    OUTCOME,
    read_ending,
    read_json,
    read_table,
    read_tensors,
    write_folder,
)
from isoloss.flat import Layout, dense
from isoloss.names import load_into
from isoloss.outcome import Outcome
from isoloss.settings import Count, Settings

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]
"""One accepted step: the columns of `Path.steps`."""

COLUMNS = (
    "step", "kind", "evaluations", "seconds", "loss", "level_error", "regularizer", "angle_degrees",
    "kkt_residual", "equivalent_penalty", "step_length", "arc_length",
)  # fmt: skip


class Stop(Settings):
    """When a walk ends; whichever comes first.

    Attributes:
        kkt_residual: At or below this sine of the angle between the gradients the walk has
            converged; 0 asks for the exact end.
        regularizer_below: R at or below which to end; None for no such end.
        steps: Steps to take; corrector steps are not counted.
        evaluations: Evaluations of loss and gradient after which no step begins. One that has
            begun is brought to its end, so that a walk by `sqp` may use some tens more, far from
            the end; its points are those of a longer walk. None for no limit.
        seconds: Wall-clock time to use, the checks at the start included; no evaluation of a step
            begins later. None for no limit.
        gain: Share of R by which the second half of a walk's evaluations has to lower it, once
            there are 200, and 20 points in that half. A walk that gains less, and whose KKT
            residual, above 0.01, has not halved there, ends as slowed: at the kinks of ReLU it
            would not converge. 0 for no such end; by `paper`, of short steps, there is none.
        when: A function of the row just recorded (a dict of the columns of `Path.steps`); the walk
            ends once it returns True.
    """

    kkt_residual: NonNegativeFloat = 1e-3
    regularizer_below: float | None = None
    steps: Count = 20_000
    evaluations: Count | None = None
    seconds: PositiveFloat | None = None
    gain: float = Field(default=1e-3, ge=0, lt=1)
    when: Callable[[Row], bool] | None = None


class Record(Settings):
    """What is kept of a walk, counted in points on the level set.

    Attributes:
        probes_every: Measure the probes at every such point; the first and the last always.
        points_every: Keep the weights of every such point; the first and the last always.
        points_at_most: Keep no more weights than this, evenly along the walk: whenever there are
            more, every other one is let go and the spacing doubles. None keeps them all.
    """

    probes_every: Count = 1
    points_every: Count = 1
    points_at_most: int | None = Field(default=200, ge=2, le=MOST)


@dataclass(frozen=True)
class Path:
    """The sequence of points of a walk, with what was measured at each.

    Attributes:
        steps: A row per accepted step, the start first. Columns: step, kind (start, predict,
            correct, sqp), evaluations (cumulative), seconds (since the call), loss, level_error
            ((L - c) / c; L - c where `atol` was given), regularizer, angle_degrees,
            kkt_residual, equivalent_penalty, step_length, arc_length, and `NAME_loss`,
            `NAME_metric` of each probe, NaN where it was not measured. Where more than a level is
            held: `level_multiplier`, `level_active` and, for each constraint, `NAME_value`,
            `NAME_multiplier` (by how much R would fall for each unit by which the bound rose),
            `NAME_active` (whether it is at the bound) and `NAME_evaluations` (that it took so
            far, of its own problem); `evaluations` are then those of the training set and of
            these by their examples over the training set's.
        points: Weights of the points kept, shape (points kept, parameters).
        point_steps: The step of each point kept.
        level: The loss c that was held.
        outcome: Why the walk ended.
        message: The outcome's sentence with this walk's figures and the remedy.
        method: Name of the method.
        regularizer: Name of the regularizer.
        constraints: What was held beside the level, by name: quantity, kind, bound, tolerances; and
            the level where it was an upper bound.
        shapes: Shape of each parameter by name, in the order of theta.
        buffers: The model's buffers (running statistics and the like) during the walk, by name.
        frozen: Digest of each frozen parameter by name, to tell another model.
        state_keys: Name of the parameter or buffer behind each key of the model's `state_dict()`.
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
    buffers: dict[str, Any] = field(default_factory=dict[str, Any])
    frozen: dict[str, str] = field(default_factory=dict[str, str])
    state_keys: dict[str, str] = field(default_factory=dict[str, str])
    constraints: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    metadata: dict[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        check_fields(self)
        for name, buffer in self.buffers.items():  # complex or sparse ones too
            if not isinstance(buffer, Tensor) or buffer.is_meta:
                raise InputError(f"buffers[{name!r}] must be a tensor, got {kind(buffer)}")
        check_columns("steps", self.steps, *(name for name in COLUMNS if name in self.steps))
        if not len(self.steps) or (self.points.ndim != 2 and self.points.numel()):
            raise InputError(
                f"a path must have a step and points of shape (points, parameters), got "
                f"{len(self.steps)} steps and points of shape {tuple(self.points.shape)}"
            )

    @checked
    def load_into(self, model: nn.Module, k: int = -1) -> None:
        """Write a kept point into a model's parameters, and the walk's buffers, in place, by name.

        It is in the mode that was walked that the model then has the loss that was held: batch norm
        in training mode uses other statistics, and the loss may be far off.

        Args:
            model: A model of the architecture that was walked. It may be wrapped otherwise
                (`DataParallel`, `torch.compile`) or be under another prefix.
            k: Which of the kept points; the last by default.

        Raises:
            InputError: There is no such point, the model's parameters are coarser than float32, or
                it is another: its trainable parameters, its buffers, or the values of its frozen
                parameters. It is left as it was then.
        """
        load_into(model, self._point(k), self.shapes, self.buffers, self.frozen)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the path to files, for `Path.load`; its `metadata` is left out.

        Args:
            folder: Where to: a folder that is new, empty, or holds an earlier path, which is
                replaced. It holds `steps.parquet`, `points.safetensors` (points, their steps,
                buffers) and, written last, `outcome.json` with the checksums of both.

        Raises:
            InputError: The folder holds anything else.
        """
        place = as_folder(folder)
        there = sorted(file.name for file in place.glob("[!.]*"))
        others = [name for name in there if name not in (STEPS, POINTS, OUTCOME)]
        if others or (there and OUTCOME not in there):
            raise InputError(
                f"folder must be new, empty, or hold an earlier path alone, got {place} with "
                f"{(others or there)[0]}"
            )
        if there:
            read_json(place / OUTCOME)  # another's file of this name is not replaced
        write_path(place, self)

    @staticmethod
    def load(folder: str | os.PathLike[str]) -> Path:
        """Read what `save` wrote, or the folder of a run that the commands wrote.

        Args:
            folder: The folder, for example `"results/IRIS_FF/traverse/sqp/run-000"`.

        Returns:
            The path, bit for bit, on the CPU. Its `metadata` holds `folder`; of a run also
            `config`, `made_with`, and further `tensors`.

        Raises:
            InputError: There is no path in the folder.
            ResultsError: A file is missing, torn, changed or of another format, or the run failed.
        """
        return read_path(as_folder(folder))

    @checked
    def state_dict(self, k: int = -1) -> dict[str, Tensor]:
        """A kept point as `model.state_dict()` would give it, buffers included.

        Frozen parameters are not kept with a path; with some, load it by
        `model.load_state_dict(path.state_dict(), strict=False)` into a model that has them.

        Args:
            k: Which of the kept points; the last by default.

        Returns:
            New tensors by the keys of the model's `state_dict()`.

        Raises:
            InputError: There is no such point.
        """
        held = {**self.buffers, **Layout(self.shapes).named(self._point(k))}
        keys = self.state_keys or {name: name for name in held}
        return {key: held[name].clone() for key, name in keys.items() if name in held}

    def _point(self, k: int) -> Tensor:
        if not len(self.points):
            held = "all that is held" if self.constraints else "its level"
            raise InputError(f"no point of the walk met {held}, so none is kept: {self.message}")
        if not isinstance(k, Integral) or not -len(self.points) <= k < len(self.points):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError(
                f"k must be the number of one of the {len(self.points)} points kept, got {shown(k)}"
            )
        return self.points[int(k)]

    def __repr__(self) -> str:
        """One line: method, steps, loss, regularizer from start to end, outcome."""
        first, last = (
            {"step": None, "evaluations": None, "regularizer": math.nan, **self.steps.iloc[k]}
            for k in (0, -1)
        )
        return (
            f"Path({self.method}, {last['step']} steps, {count(last['evaluations'])} evaluations, "
            f"level {real('level', self.level):.6g}, {self.regularizer} "
            f"{first['regularizer']:.6g} -> {last['regularizer']:.6g}, {self.outcome.value})"
        )


def count(evaluations: Any) -> str:
    """Evaluations as text: a whole number, unless others than the training set's are among them."""
    return f"{evaluations:.1f}" if isinstance(evaluations, float) else str(evaluations)


STEPS, POINTS = "steps.parquet", "points.safetensors"
_BUFFER = "buffers."  # before the name of each buffer among the tensors
_COMPLEX = "complex_buffers."  # likewise, of complex ones as pairs of numbers


def write_path(
    folder: FilePath,
    path: Path,
    extra: Mapping[str, Tensor] | None = None,
    content: Mapping[str, Any] | None = None,
) -> None:
    """Write a path into a folder, with further tensors and further content of `outcome.json`."""
    tensors = {"points": path.points, "point_steps": torch.tensor(path.point_steps, device="cpu")}
    for name, each in path.buffers.items():
        if each.is_complex():  # safetensors has no complex128
            tensors[f"{_COMPLEX}{name}"] = torch.view_as_real(each.resolve_conj()).clone()
        else:
            tensors[f"{_BUFFER}{name}"] = dense(each).clone()
    tensors.update(extra or {})
    ending = {
        "outcome": path.outcome.value,
        "message": path.message,
        "level": path.level,
        "method": path.method,
        "regularizer": path.regularizer,
        "shapes": [[name, list(shape)] for name, shape in path.shapes.items()],
        "frozen": path.frozen,
        "state_keys": path.state_keys,
        "constraints": path.constraints,
        **(content or {}),
    }
    write_folder(folder, ending, {STEPS: path.steps, POINTS: tensors})


def read_path(folder: FilePath, *, mapped: bool = False) -> Path:
    """Read what `write_path` wrote, each file once; `mapped` as in `read_tensors`."""
    if not (folder / OUTCOME).exists():
        what = f"which has no {OUTCOME}" if folder.exists() else "which is not there"
        raise InputError(
            f"folder must hold a path that was saved or a run that has ended, got {folder}, {what}"
        )
    found = read_ending(folder)
    ending, stamps = found.content, found.stamps
    if ending["outcome"] == FAILED:
        raise ResultsError(f"{folder} holds a run that failed: {ending['message']}")
    if "level" not in ending or not {STEPS, POINTS} <= stamps.keys():
        raise InputError(f"folder must hold a path, got {folder}, which holds something else")
    steps = read_table(folder / STEPS, stamps[STEPS])
    check_table(folder / STEPS, steps, [name for name in COLUMNS if name != "kind"], ["kind"])
    tensors = read_tensors(folder / POINTS, stamps[POINTS], mapped=mapped)
    try:
        said = _Said.model_validate(ending)
        points, point_steps = tensors.pop("points"), tensors.pop("point_steps").tolist()
        buffers = [name for name in tensors if name.startswith(_BUFFER)]
        for name in [name for name in tensors if name.startswith(_COMPLEX)]:
            buffers.append(name.replace(_COMPLEX, _BUFFER, 1))
            tensors[buffers[-1]] = torch.view_as_complex(tensors.pop(name))
        _check_points(points, point_steps, len(steps), dict(said.shapes))
        return Path(
            steps=steps,
            points=points,
            point_steps=point_steps,
            outcome=Outcome(ending["outcome"]),
            level=said.level,
            message=said.message,
            method=said.method,
            regularizer=said.regularizer,
            shapes=dict(said.shapes),
            frozen=said.frozen,
            state_keys=said.state_keys,
            constraints=said.constraints,
            buffers={name.removeprefix(_BUFFER): tensors.pop(name) for name in buffers},
            metadata={**found.about, "tensors": tensors, "folder": str(folder)},
        )
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise DamagedError(f"{folder / OUTCOME} is damaged: {place}: {first['msg']}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{folder} is damaged: {type(error).__name__}: {error}") from error


class _Said(BaseModel):
    """What `outcome.json` says of a walk, of the types that it is read as."""

    model_config = ConfigDict(allow_inf_nan=False)

    level: StrictFloat
    message: str
    method: str
    regularizer: str
    shapes: list[tuple[str, tuple[NonNegativeInt, ...]]]
    frozen: dict[str, str]
    state_keys: dict[str, str]
    constraints: dict[str, dict[str, Any]] = {}


def check_table(
    file: FilePath, table: pd.DataFrame, numbers: Iterable[str], words: Iterable[str]
) -> None:
    """Insist that a table has rows, these columns, and numbers in all but those of words."""
    words = list(words)
    kinds = {str(name): table[name].dtype.kind for name in table}
    wrong = [f"it has no column {name}" for name in (*numbers, *words) if name not in kinds]
    for name, letter in kinds.items():
        if (letter not in "iufb") != (name in words):
            wrong.append(f"{name} must hold {'words' if name in words else 'numbers'}")
    if wrong or not len(table):
        raise DamagedError(f"{file} is damaged: {[*wrong, 'it has no rows'][0]}")


def _check_points(
    points: Tensor, steps: list[int], rows: int, shapes: Mapping[str, tuple[int, ...]]
) -> None:
    if len(points) != len(steps):
        raise ValueError(f"{len(points)} points are kept, but the steps of {len(steps)} are named")
    if any(b <= a for a, b in pairwise([-1, *steps, rows])):
        raise ValueError(f"points are kept of steps that are not in order among the {rows}")
    size = sum(map(math.prod, shapes.values()))
    if len(points) and (points.shape[1:] != (size,) or not points.is_floating_point()):
        raise ValueError(f"points of shape {tuple(points.shape)} are none of {size} parameters")
