"""A walk, or a training, kept in a folder while it goes on.

States are written by `torch.save`, which keeps strides and what memory tensors share, and read by
`torch.load(weights_only=True)`, which makes no object but of the classes that are named to it.
"""

from __future__ import annotations

import dataclasses
import enum
import io
import os
import threading
import time
import typing
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from isoloss import __version__
from isoloss.arguments import real
from isoloss.disk import ResultsError, as_folder
from isoloss.errors import InputError, one_line
from isoloss.outcome import Ending
from isoloss.recorder import Kept
from isoloss.snapshot import Snapshot, differences
from isoloss.store.generations import Generation, Generations

AnyState = TypeVar("AnyState")

_naming = threading.Lock()  # torch's list of classes is one for all threads

CHECKPOINT = "checkpoint"
"""The folder, in that of a run, of what the run continues from."""


class _Timed:
    """Generations that are written from time to time, of states of a class."""

    def __init__(self, folder: Path, rescue: Path, every: float) -> None:
        every = real("every", every, "a number of seconds, at least 0")
        if not every >= 0:
            raise InputError(f"every must be a number of seconds, at least 0, got {every}")
        self.folder = folder
        self._generations = Generations(folder, rescue)
        self.damage = self._generations.damage  # what load found damaged, a sentence each
        self._every = self._wait = every
        self._last = time.monotonic()
        self._classes: dict[str, type] = {}

    @property
    def due(self) -> bool:
        """Whether it is time for the next one."""
        return time.monotonic() - self._last >= self._wait

    @property
    def empty(self) -> bool:
        """Whether there is nothing whole to continue from."""
        return self._generations.load() is None

    def _unpack(self, found: Generation, kind: type[AnyState]) -> AnyState:
        """The state of a generation; nothing but the classes named is made, and no code is run."""
        before, now = found.about.get("classes", {}), _fields(self._classes)
        changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        if changed:
            raise ResultsError(
                f"{self.folder} was kept by isoloss {found.about.get('isoloss')} when "
                f"{changed[0]} had other fields; finish with that version, or start afresh in "
                f"another folder or with --restart"
            )
        try:
            unknown = self._unknown(found.payload)
            with self._known():
                content = io.BytesIO(found.payload)
                state = None if unknown else torch.load(content, weights_only=True)
        except Exception as error:
            raise ResultsError(
                f"{self.folder} holds a checkpoint that cannot be read ({type(error).__name__}); "
                f"start afresh in another folder or with --restart"
            ) from error
        if not isinstance(state, kind):
            what = unknown or f"a {type(state).__name__}"
            raise ResultsError(
                f"{self.folder} holds a checkpoint that asks for {what}, which is no part of this "
                f"walk; nothing of it was run: start afresh in another folder or with --restart"
            )
        return state

    def _save(self, state: object, about: dict[str, Any], points: Mapping[int, Tensor]) -> None:
        begun, content = time.monotonic(), io.BytesIO()
        try:
            torch.save(state, content)
            unknown = self._unknown(content.getvalue())
            why = f"it holds a {unknown}" if unknown else ""
        except Exception as error:
            why = one_line(error)
        if why:
            raise InputError(
                f"the state of the walk cannot be kept in a checkpoint ({why}); make it of "
                f"dataclasses of a module and enums, named in the types of its fields, of tensors, "
                f"arrays, numbers, strings, lists, tuples and dicts"
            )
        about = {**about, "isoloss": __version__, "classes": _fields(self._classes)}
        self._generations.save(about, content.getvalue(), points)
        self._last = time.monotonic()
        slow = (self._last - begun) / 0.05  # share of the time that writing may take
        self._wait = max(self._every, slow) if self._every else 0.0

    def _unknown(self, content: bytes) -> str:
        """The first class that a state asks for and that is no part of it; empty where all are."""
        with self._known():
            found = torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(content))
        return found[0] if found else ""

    @contextmanager
    def _known(self) -> Generator[None]:
        known: list[Any] = [*self._classes.values(), *_NUMPY, (_member, "builtins.getattr")]
        with _naming, torch.serialization.safe_globals(known):
            yield


class TrainingCheckpoint(_Timed):
    """Keeps a training's state; what is damaged goes into the `quarantine` of `rescue`."""

    def load(self, state: type[AnyState]) -> AnyState | None:
        """The last state that was kept whole; None where there is none, or one of another class."""
        self._last, found = time.monotonic(), self._generations.load()
        if found is None or found.about.get("state") != state.__qualname__:
            return None
        self._classes = named_classes(state)
        return self._unpack(found, state)

    def save(self, state: object) -> None:
        """Write a state, after `load`, over the older of the two."""
        self._classes = named_classes(type(state))
        self._save(state, {"state": type(state).__qualname__}, {})


class Checkpoint(_Timed):
    """Keeps a walk in a folder, so that another process can continue it.

    The last two are kept, each complete and checksummed; what is damaged is moved into
    `quarantine` beside the folder, and the one before is used.

    Args:
        folder: A folder of its own; made where missing.
        every: Seconds between two; 0 keeps every step.

    Attributes:
        folder: The folder.
        progress: Steps that the walk found there had taken, corrections not counted.

    Raises:
        InputError: `folder` is no path of a folder, or `every` is negative.
    """

    def __init__(self, folder: str | os.PathLike[str], every: float = 30.0) -> None:
        place = as_folder(folder)
        super().__init__(place, place.parent, every)
        self.progress = 0

    def load(self, state: type, asked: Mapping[str, Any]) -> Snapshot | None:
        """The last snapshot that was kept whole, as `Keeper.load`."""
        self._classes = named_classes(Snapshot, state, Ending)
        self._last, found = time.monotonic(), self._generations.load()
        if found is None:
            return None
        different = differences(found.about["asked"], asked)
        if different:
            raise InputError(
                f"{self.folder} keeps another walk ({'; '.join(different)}); give another folder"
            )
        snapshot = self._unpack(found, Snapshot)
        theta = snapshot.state.point.theta
        kept: list[Kept] = []
        for count, step in found.about["kept"]:
            content = torch.frombuffer(bytearray(found.points[step]), dtype=theta.dtype)
            # a clone: memory from torch is aligned, which some products' last bits depend on
            kept.append(Kept(count, step, content.clone().to(theta.device)))
        self.progress = snapshot.recorded.progress
        recorded = replace(snapshot.recorded, kept=tuple(kept))
        return replace(snapshot, asked=dict(asked), recorded=recorded)

    def save(self, snapshot: Snapshot) -> None:
        """Write a snapshot over the older of the two; of the points only new ones."""
        recorded = snapshot.recorded
        rows = recorded.rows[: recorded.length]
        bare = replace(snapshot, asked={}, recorded=replace(recorded, rows=rows, kept=()))
        kept = [[kept.count, kept.step] for kept in recorded.kept]
        about = {"asked": snapshot.asked, "kept": kept}
        self._save(bare, about, {kept.step: kept.theta for kept in recorded.kept})


def load_start(folder: Path, tell: Callable[[str], object] = str) -> dict[str, Tensor] | None:
    """What phase 1 of a run ended with, if it has; `tell` receives what was found damaged."""
    kept = TrainingCheckpoint(training_folder(folder), folder, 0.0)
    found: dict[str, Tensor] | None = kept.load(dict)
    for sentence in kept.damage:
        tell(sentence)
    return found


def save_start(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Keep what phase 1 ended with, so that it is not done again."""
    kept = TrainingCheckpoint(training_folder(folder), folder, 0.0)
    kept.load(dict)  # it becomes the newest of the training's states
    kept.save(dict(tensors))


def training_folder(folder: Path) -> Path:
    """Where phase 1 of a run is kept."""
    return folder / CHECKPOINT / "training"


def named_classes(*classes: type) -> dict[str, type]:
    """Dataclasses and enums by name: those given, and those that their fields' types name."""
    found: dict[str, type] = {}
    waiting: list[Any] = list(classes)
    while waiting:
        kind = waiting.pop()
        waiting.extend(typing.get_args(kind))
        if not isinstance(kind, type) or kind in found.values():
            continue
        if issubclass(kind, enum.Enum) or dataclasses.is_dataclass(kind):
            found[f"{kind.__module__}.{kind.__qualname__}"] = kind
        if dataclasses.is_dataclass(kind):
            try:
                waiting.extend(typing.get_type_hints(kind).values())
            except NameError as error:
                raise InputError(
                    f"the types of the fields of {kind.__name__} cannot be found ({error}); import "
                    f"them where the class is defined"
                ) from error
    return found


def _fields(classes: Mapping[str, type]) -> dict[str, list[str]]:
    return {
        name: [field.name for field in dataclasses.fields(kind)]
        for name, kind in sorted(classes.items())
        if dataclasses.is_dataclass(kind)
    }


def _member(kind: Any, name: str) -> enum.Enum:
    """What some versions of Python ask of `getattr` when they make a member of an enum."""
    if not (isinstance(kind, type) and issubclass(kind, enum.Enum)):
        raise TypeError(f"{kind} is no enum")
    return kind[name]


_NUMPY: list[Any] = [
    np.ndarray,
    np.dtype,
    np.empty(0).__reduce__()[0],  # reconstructs arrays
    np.float64(0).__reduce__()[0],  # and numbers
    *{type(np.dtype(code)) for code in np.typecodes["All"] if code not in "OV"},
]
