"""The settings of a walk of an experiment, from the experiment's own and `--set KEY=VALUE`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

import torch
from pydantic import Field

from isoloss.errors import InputError, unknown
from isoloss.methods import Method
from isoloss.path import Record, Stop
from isoloss.regularizers import REGULARIZERS
from isoloss.settings import Settings
from isoloss.subject import Subject

AnySettings = TypeVar("AnySettings", bound=Settings)

DTYPES = {"float32": torch.float32, "float64": torch.float64}
NO_FILE = {"when"}  # settings that only Python can give


class Level(Settings):
    """What is held, what is made small, and how both are computed.

    Attributes:
        regularizer: Name of a regularizer with its default settings, such as `l1`.
        rtol: Relative tolerance of the level, below 1.
        dtype: `float32` or `float64`; None is the problem's own.
        chunk_size: Training examples evaluated at once; None takes what is fastest here.
    """

    regularizer: str = "squared_norm"
    rtol: float = Field(default=1e-3, gt=0, lt=1)
    dtype: Literal["float32", "float64"] | None = "float32"
    chunk_size: int | None = Field(default=None, ge=1)


@dataclass(frozen=True)
class WalkSettings:
    """Everything but the seed that determines a run of a walk.

    Attributes:
        subject: What is walked.
        method: How to step.
        stop: When to end.
        record: What to keep.
        level: Tolerance and type.
        device: For example `cpu` or `cuda`.
    """

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
            "stop": self.stop.model_dump(exclude=NO_FILE),
            "record": self.record.model_dump(),
            **self.level.model_dump(exclude_none=True),
        }


def walk_settings(
    subject: Subject, method: str, pairs: Sequence[str] = (), device: str = "cpu"
) -> WalkSettings:
    """The settings of a walk, from the experiment's and from KEY=VALUE pairs.

    Args:
        subject: What is walked.
        method: Name of the method.
        pairs: `KEY=VALUE`, where KEY is a setting of the method, of `Stop`, of `Record`, `rtol`,
            `dtype` or `regularizer`; VALUE `none` stands for None.
        device: Where to compute.

    Returns:
        The settings.

    Raises:
        InputError: A name or a value is not possible.
    """
    walker = subject.method(method)
    start = cast("Settings", walker)
    stop, record = subject.stop(), subject.record(walker)
    level = Level(dtype=cast("Any", subject.default_dtype))
    given = parse_pairs(pairs, *(type(part) for part in (start, stop, record, level)))
    name = given.get("regularizer", level.regularizer)
    if name not in REGULARIZERS:
        raise unknown("regularizer", str(name), REGULARIZERS)
    return WalkSettings(
        subject=subject,
        method=cast("Method", override(start, given)),
        stop=override(stop, given),
        record=override(record, given),
        level=override(level, given),
        device=device,
    )


def parse_pairs(pairs: Sequence[str], *kinds: type[Settings]) -> dict[str, str | None]:
    """What was given as `--set KEY=VALUE`.

    Args:
        pairs: `KEY=VALUE`; VALUE `none` stands for None.
        kinds: Of the settings that KEY may be one of.

    Returns:
        VALUE by KEY.

    Raises:
        InputError: A pair is none, comes twice, or names no setting.
    """
    known = [key for kind in kinds for key in kind.model_fields if key not in NO_FILE]
    given: dict[str, str | None] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise InputError(f"--set {pair} is not possible; write KEY=VALUE, as in steps=500")
        if key in given:
            raise InputError(f"--set {key} was given twice; give it once")
        if key not in known:
            raise unknown("setting", key, known)
        given[key] = None if value.lower() == "none" else value
    return given


def override(part: AnySettings, given: Mapping[str, str | None]) -> AnySettings:
    """Settings with those of them changed that were given; raises InputError for a bad value."""
    mine = {key: value for key, value in given.items() if key in type(part).model_fields}
    return type(part)(**{**part.model_dump(), **mine})
