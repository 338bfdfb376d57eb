"""Loading a function from a user's file, every failure said in one sentence."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path as FilePath
from types import ModuleType
from typing import Any

from isoloss.errors import InputError, IsolossError, one_line, unknown


def load_function(file: FilePath, name: str) -> Callable[[int], Any]:
    """Run a Python file and give one of its functions, which has to take a seed.

    The file's folder comes first among those from which it imports, as when it is run by itself.

    Args:
        file: The file.
        name: The function's name.

    Returns:
        The function.

    Raises:
        InputError: The file cannot be run, has no such function, or it cannot be called as
            `name(seed)`.
    """
    module = _module(file)
    found = getattr(module, name, None)
    if found is None:
        own = [
            k for k, v in vars(module).items() if inspect.isfunction(v) and not k.startswith("_")
        ]
        raise unknown(f"function of {file.name}", name, own or ["none"])
    if not callable(found):
        raise InputError(
            f"{name} in {file.name} is of type {type(found).__name__}; give a function that takes "
            f"a seed"
        )
    try:
        signature = inspect.signature(found)
        signature.bind(0)
    except TypeError as error:
        raise InputError(
            f"{name} in {file.name} cannot be called as {name}(seed) ({one_line(error)}); write "
            f"def {name}(seed), with defaults for all else"
        ) from error
    return found


def call(function: Callable[[int], Any], seed: int, file: FilePath) -> Any:
    """What a user's function returns for a seed.

    Args:
        function: The function.
        seed: The seed.
        file: Where it is.

    Returns:
        What it returned.

    Raises:
        InputError: It raised an error, which is named with its line; isoloss's own come as they
            are.
    """
    try:
        return function(seed)
    except IsolossError:
        raise
    except (Exception, SystemExit) as error:
        raise _failed(f"{function.__name__}({seed}) in {file.name}", error, file) from error


def _module(file: FilePath) -> ModuleType:
    folder = str(file.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    name = f"isoloss_project_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise InputError(f"{file} is no Python file; give FILE.py:FUNCTION")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look the module up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _failed(file.name, error, file) from error
    return module


def _failed(what: str, error: BaseException, file: FilePath) -> InputError:
    place = str(file.resolve())
    if isinstance(error, SyntaxError) and error.lineno is not None:
        where = f" in line {error.lineno}"
    else:
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename in (place, str(file))
        ]
        where = f" in line {lines[-1]}" if lines else ""
    return InputError(
        f"{what} failed{where} ({type(error).__name__}: {one_line(error)}); mend it and try again"
    )
