"""What goes wrong because of what a user gave, said in one sentence."""

from __future__ import annotations

import difflib
import importlib
import inspect
import sysconfig
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

MOST = 2**63 - 1
"""The largest whole number that files and random number generators hold."""
LONGEST = 80
"""Characters of a user's value that a sentence shows."""
LIBRARIES = (str(Path(__file__).parent), *sysconfig.get_paths().values(), "<")
"""How the names of files begin that are not a user's own."""


class IsolossError(Exception):
    """Base of every error that isoloss raises on purpose; its text is one sentence."""


class InputError(IsolossError, ValueError):
    """A value the user gave cannot be used; the text names the value, the reason, the remedy."""


class DerivativeError(InputError):
    """A derivative that is needed does not exist, or is not the derivative it claims to be."""


class DeviceError(IsolossError):
    """A device has too little memory for what was asked, or has failed."""


class RankError(IsolossError):
    """A process of a group has failed, no longer answers, or does something else than the rest."""


class DataError(IsolossError):
    """A data set cannot be had or read."""


def unknown(what: str, value: object, known: Iterable[str]) -> InputError:
    """An error, to be raised, for a name that is not known, with the nearest suggested."""
    names = sorted(set(known))
    folded = {name.casefold(): name for name in names}
    given = value.casefold()[:200] if isinstance(value, str) else ""
    near = difflib.get_close_matches(given, folded, n=3, cutoff=0.5)
    listing = ", ".join(names)
    if not near:
        return InputError(f"unknown {what} {shown(value)}; there is: {listing}.")
    hint = " or ".join(folded[name] for name in near)
    return InputError(f"unknown {what} {shown(value)}; did you mean {hint}? There is: {listing}.")


def check_takes(what: str, function: Callable[..., Any], *arguments: str) -> None:
    """Insist that a user's function can be called as isoloss calls it."""
    called = getattr(function, "forward", function)  # of a torch module, which hides it
    try:
        inspect.signature(called).bind(*arguments)
    except TypeError as error:
        raise InputError(
            f"{what} cannot be called with ({', '.join(arguments)}) ({one_line(error)}); give a "
            f"function that takes just these"
        ) from error
    except ValueError:  # written in C, without a signature
        pass


def one_line(error: BaseException) -> str:
    """What another library's error says, in its first line, for use within a sentence."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    line = " ".join(" ".join(lines[:2] if lines[0].endswith(":") else lines[:1]).split())
    if len(line) > 160:  # whole sentences, where there are any
        line = line[:160].rpartition(". ")[0] or line[:160]
    return line.rstrip(".")


def said(error: BaseException) -> str:
    """The type of another library's error and what it says, for use within a sentence."""
    return f"{type(error).__name__}: {one_line(error)}"


def placed(error: BaseException) -> str:
    """The same with the last line of the user's own code that it came through, if any."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(LIBRARIES) and "-packages" not in frame.filename
    ]
    if not frames:
        return said(error)
    cell = "ipykernel" in frames[-1].filename
    place = "a cell" if cell else Path(frames[-1].filename).name
    return f"{said(error)}, in line {frames[-1].lineno} of {place}"


def shown(value: object) -> str:
    """A value as Python writes it, in one line that is not long, for use within a sentence."""
    try:
        return shortened(repr(value))
    except Exception:  # too deep, too many digits, or the user's own
        return kind(value)


def shortened(text: str) -> str:
    """Text in one line that is not long."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 4]} ..."


def printable(text: str) -> str:
    """Text in which nothing moves a terminal's cursor and all can be encoded, for it to be printed.

    Sentences may hold what a file received from somebody else says.
    """
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def kind(value: object) -> str:
    """The type of a value with its article, for use within a sentence: `an int`."""
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def require_extra(module: str, extra: str) -> Any:
    """Import a module that an optional extra brings; an InputError says how to install it."""
    try:
        found = importlib.import_module(module)
        if not getattr(found, "__file__", True):  # a folder of that name, such as W&B leaves behind
            raise ModuleNotFoundError(module)
        return found
    except ImportError as error:
        gone = isinstance(error, ModuleNotFoundError)
        what = "is not installed" if gone else f"cannot be imported ({one_line(error)})"
        raise InputError(f"{module} {what}; pip install 'isoloss[{extra}]'") from error
