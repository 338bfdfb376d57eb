"""A user's own model, data and training, given to the commands as FILE.py:FUNCTION."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import random
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isoloss.errors import InputError, IsolossError, check_takes, one_line, unknown
from isoloss.methods import Method, get_method
from isoloss.path import Record, Stop
from isoloss.problem import Problem
from isoloss.subject import Start

LONGEST_NAME = 120
INSTALLED = {"site-packages", "dist-packages"}
NOT_OURS = (FilePath(__file__).parent, FilePath(sysconfig.get_path("stdlib")).resolve())
"""Folders of isoloss and Python, whose versions are kept with every run."""


def is_project(text: str) -> bool:
    """Whether a command's argument means a file rather than the name of an experiment."""
    return ":" in text or text.endswith(".py")


@dataclass(frozen=True)
class Project:
    """A function of a user's file: `build(seed)` returns a problem, or a problem and probes."""

    file: FilePath  # absolute
    function: str
    runs: int = 1
    default_dtype: None = None  # the problem's own
    imported: tuple[FilePath, ...] = ()  # the files beside or below it that it is made of, too

    @classmethod
    def of(cls, text: str) -> Project:
        """The project FILE.py:FUNCTION, its file run and its function looked at."""
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
        return replace(project, imported=_loaded_beside(project.file))

    @classmethod
    def named(cls, text: str) -> Project:
        """The project FILE.py:FUNCTION, whose file need not be there and is not run."""
        path, colon, function = text.rpartition(":")
        if not colon or not function.isidentifier() or not path.endswith(".py"):
            raise InputError(
                f"a project must be FILE.py:FUNCTION, as in my_project.py:build, got {text}"
            )
        return cls(FilePath(path).resolve(), function)

    @property
    def name(self) -> str:
        """The name of its results' folder, which no experiment has and which is no path."""
        parts = self.file.stem, self.function
        return ".".join(re.sub(r"[^A-Za-z0-9_-]", "_", part) for part in parts)

    @property
    def identity(self) -> dict[str, Any]:
        """What tells it from others of its name in a run's settings, with hashes of its files."""
        own = {"file": self.file.name, "function": self.function, "sha256": _hash(self.file)}
        beside = {
            file.relative_to(self.file.parent).as_posix(): _hash(file) for file in self.imported
        }
        return {"project": {**own, "imports": beside} if beside else own}

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
        dtype: torch.dtype | None = None,
        weights: Tensor | None = None,
        chunk_size: int | None = None,
        **_: object,
    ) -> Start:
        """Call the function, with torch's, NumPy's and Python's random numbers seeded."""
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        random.seed(seed)
        function = load_function(self.file, self.function)
        try:
            problem, probes = self._parts(function(seed))
        except IsolossError:
            raise
        except (Exception, SystemExit) as error:
            called = f"{self.function}({seed}) in {self.file.name}"
            raise _failed(called, error, self.file) from error
        if dtype is not None and dtype != problem.dtype:
            problem = problem.with_dtype(dtype)
            probes = {name: probe.with_dtype(dtype) for name, probe in probes.items()}
        if chunk_size is not None:
            problem = problem.with_chunk_size(chunk_size)
        if weights is not None and not torch.equal(weights.to(problem.device), problem.current()):
            raise InputError(
                f"{self.function}({seed}) in {self.file.name} gave other weights than when the "
                f"walk began; make it give the same for the same seed, or start over with --restart"
            )
        return Start(problem, probes)

    def _parts(self, given: Any) -> tuple[Problem, dict[str, Problem]]:
        pair = isinstance(given, tuple) and len(given) == 2
        problem, probes = given if pair else (given, {})
        if (
            isinstance(problem, Problem)
            and isinstance(probes, Mapping)
            and all(isinstance(k, str) and isinstance(v, Problem) for k, v in probes.items())
        ):
            return problem, dict(probes)
        kind = type(given).__name__
        if isinstance(given, tuple):
            kind = f"({', '.join(type(one).__name__ for one in given)})"
        raise InputError(
            f"{self.function} in {self.file.name} must return an isoloss.Problem, or a problem "
            f"and probes, as return problem, {{'test': test_problem}}; it returned {kind}"
        )


def load_function(file: FilePath, name: str) -> Callable[[int], Any]:
    """Run a Python file and give one of its functions, which has to take a seed."""
    module, what = _module(file), f"{name} in {file.name}"
    found = getattr(module, name, None)
    if found is None:
        functions = inspect.getmembers(module, inspect.isfunction)
        own = [one for one, _ in functions if not one.startswith("_")]
        raise unknown(f"function of {file.name}", name, own or ["none"])
    if not callable(found):
        kind = type(found).__name__
        raise InputError(f"{what} must be a function that takes a seed, got {kind}")
    check_takes(what, found, "seed")
    return found


def _module(file: FilePath) -> ModuleType:
    """The module of a file, whose folder comes first among those from which it imports."""
    folder = str(file.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    name = f"isoloss_project_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise InputError(f"{file} must be a Python file, as in FILE.py:FUNCTION")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look the module up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _failed(file.name, error, file) from error
    return module


def _loaded_beside(file: FilePath) -> tuple[FilePath, ...]:
    """The files of modules loaded from a file's folder and from below, but for installed ones."""
    folder, found = file.parent, set[FilePath]()
    for name, module in list(sys.modules.items()):
        origin = getattr(module, "__file__", None)
        if not isinstance(origin, str) or name in ("__main__", "__mp_main__"):
            continue
        place = FilePath(origin).resolve()
        if place == file or not place.is_relative_to(folder) or not place.is_file():
            continue
        if INSTALLED.isdisjoint(place.relative_to(folder).parts) and not any(
            place.is_relative_to(other) for other in NOT_OURS
        ):
            found.add(place)
    return tuple(sorted(found))


def _hash(file: FilePath) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def _failed(what: str, error: BaseException, file: FilePath) -> InputError:
    place = str(file.resolve())
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename in (place, str(file))]
    if isinstance(error, SyntaxError) and error.lineno is not None:
        lines.append(error.lineno)
    where = f" in line {lines[-1]}" if lines else ""
    return InputError(
        f"{what} failed{where} ({type(error).__name__}: {one_line(error)}); fix it and try again"
    )
