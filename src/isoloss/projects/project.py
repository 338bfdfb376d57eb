"""What a user's file gives to walk, standing where an experiment stands for the commands."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from isoloss.errors import InputError
from isoloss.methods import Method, get_method
from isoloss.path import Record, Stop
from isoloss.problem import Problem
from isoloss.projects.loading import call, load_function
from isoloss.subject import Start

LONGEST_NAME = 120


@dataclass(frozen=True)
class Project:
    """A function of a user's file: `build(seed)` returns a problem, or a problem and probes.

    Attributes:
        file: The file, absolute.
        function: The function's name.
        runs: Runs of a walk, if nothing else is asked for.
        default_dtype: None: the problem's own.
    """

    file: FilePath
    function: str
    runs: int = 1
    default_dtype: None = None

    @classmethod
    def of(cls, text: str) -> Project:
        """The project that a user means, its file run and its function looked at.

        Args:
            text: `FILE.py:FUNCTION`.

        Returns:
            The project.

        Raises:
            InputError: There is no such file or function, or it does not take a seed.
        """
        project = cls.named(text)
        if not project.file.is_file():
            file = text.rpartition(":")[0]
            raise InputError(f"there is no file {file}; 'isoloss new' prints one to begin with")
        if len(project.name) > LONGEST_NAME:
            raise InputError(
                f"{project.name[:30]}... is too long a name for a folder; give the file or the "
                f"function a shorter one, of at most {LONGEST_NAME} letters together"
            )
        load_function(project.file, project.function)
        return project

    @classmethod
    def named(cls, text: str) -> Project:
        """The project of that name, whose file need not be there and is not run.

        Args:
            text: `FILE.py:FUNCTION`.

        Returns:
            The project.

        Raises:
            InputError: It is not of that form.
        """
        path, colon, function = text.rpartition(":")
        if not colon or not function.isidentifier() or not path.endswith(".py"):
            raise InputError(
                f"{text} is not possible; write FILE.py:FUNCTION, as my_project.py:build"
            )
        return cls(FilePath(path).resolve(), function)

    @property
    def name(self) -> str:
        """The name of its results' folder: of the file and the function, in letters that are safe.

        It is never that of an experiment or of the report, and never a path.
        """
        stem, function = (
            re.sub(r"[^A-Za-z0-9_-]", "_", part) for part in (self.file.stem, self.function)
        )
        return f"{stem}.{function}"

    @property
    def identity(self) -> dict[str, Any]:
        """What tells it from others of its name in a run's settings, with a hash of the file."""
        digest = hashlib.sha256(self.file.read_bytes()).hexdigest()
        return {
            "project": {"file": self.file.name, "function": self.function, "sha256": digest[:16]}
        }

    def prepare(self) -> None:
        """Nothing is to be fetched."""

    def stop(self) -> Stop:
        """The usual end of a walk."""
        return Stop()

    def method(self, name: str) -> Method:
        """The method of that name with its usual settings."""
        return get_method(name)

    def record(self, method: Method) -> Record:
        """What is usually kept of a walk."""
        return Record(points_every=method.stride)

    def start(
        self,
        seed: int,
        *,
        device: str = "auto",
        dtype: torch.dtype | None = None,
        weights: Tensor | None = None,
        training: object = None,
        after_epoch: object = None,
        chunk_size: int | None = None,
    ) -> Start:
        """Call the function, with torch's, NumPy's and Python's random numbers seeded.

        Args:
            seed: What it is called with.
            device: Not used: the function decides.
            dtype: Type in which the problem is evaluated; None leaves the problem's own.
            weights: What a walk that goes on began with, shape (parameters,).
            training: Not used: the function trains by itself, and anew when a walk goes on.
            after_epoch: Likewise.
            chunk_size: Examples evaluated at once; None leaves the problem's own.

        Returns:
            The problem and its probes.

        Raises:
            InputError: The function failed, returned something else, or gave other weights than
                those that the walk began with.
        """
        del device, training, after_epoch
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        random.seed(seed)
        function = load_function(self.file, self.function)
        problem, probes = self._parts(call(function, seed, self.file))
        if dtype is not None and dtype != problem.dtype:
            problem = problem.with_dtype(dtype)
            probes = {name: probe.with_dtype(dtype) for name, probe in probes.items()}
        if chunk_size is not None:
            problem = problem.with_chunk_size(chunk_size)
        if weights is not None and not torch.equal(weights.to(problem.device), problem.current()):
            raise InputError(
                f"{self.function}({seed}) in {self.file.name} gave other weights than when the "
                f"walk began; make it give the same for the same seed, or begin anew with --restart"
            )
        return Start(problem, probes)

    def _parts(self, given: Any) -> tuple[Problem, dict[str, Problem]]:
        problem, probes = given, cast("Any", {})
        if isinstance(given, tuple) and len(cast("tuple[Any, ...]", given)) == 2:
            problem, probes = cast("tuple[Any, Any]", given)
        named = isinstance(probes, Mapping) and all(
            isinstance(name, str) and isinstance(probe, Problem)
            for name, probe in cast("Mapping[Any, Any]", probes).items()
        )
        if not isinstance(problem, Problem) or not named:
            kind = type(given).__name__
            if isinstance(given, tuple):
                kind = f"({', '.join(type(one).__name__ for one in cast('tuple[Any]', given))})"
            raise InputError(
                f"{self.function} in {self.file.name} returned {kind}; return an isoloss.Problem, "
                f"or a problem and probes, as return problem, {{'test': test_problem}}"
            )
        return problem, dict(cast("Mapping[str, Problem]", probes))


def is_project(text: str) -> bool:
    """Whether a command's argument means a file rather than the name of an experiment."""
    return ":" in text or text.endswith(".py")


def template() -> str:
    """A project's file to begin with, which runs as it is."""
    return FilePath(__file__).with_name("template.py").read_text(encoding="utf-8")
