"""Calls with a wrong argument or two, each bounded in time; what they raise must be isoloss's."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fuzz.calls import Call, World, calls
from tests.fuzz.values import wrong

from isoloss import IsolossError

SECONDS = 60.0
"""In which each try has to end."""


class TooLong(BaseException):
    """A try did not end in time; no Exception, so that nothing takes it for an error of its own."""


@dataclass
class Findings:
    """How tries ended, and those that ended otherwise than they should, a line each."""

    ended: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def try_calls(scratch: Path, tries: int, seed: int) -> Findings:
    """Call public functions in turn, with wrong arguments."""
    found, rng = Findings(), random.Random(seed)
    with inside(scratch):
        made = calls(World(scratch))
        for k in range(tries):
            call = made[k % len(made)]
            if k % len(made) == 0:
                gc.collect()
            names = rng.sample(
                sorted(call.arguments), min(len(call.arguments), rng.choice((1, 1, 2)))
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                mutated = {name: wrong(rng, call.arguments[name]) for name in names}
            what = f"{k}: {call.name}({', '.join(f'{n}={_said(v)}' for n, v in mutated.items())})"
            attempt(lambda call=call, given=mutated: _made(call, given), what, found)
    return found


def _made(call: Call, mutated: dict[str, Any]) -> Any:
    given = {**call.arguments, **mutated}
    placed = [given.pop(name) for name in list(given) if name.startswith("*")]
    return call.function(*placed, **given)


def attempt(do: Callable[[], object], what: str, found: Findings) -> None:
    """Do something that ends in time, well or by an error of isoloss in one sentence."""
    try:
        with limited(SECONDS), warnings.catch_warnings():
            warnings.simplefilter("error")
            ending = do()
        found.ended[ending if str(ending).startswith("exit code") else "well"] += 1
    except IsolossError as error:
        found.ended[type(error).__name__] += 1
        sentence = str(error)
        if "\n" in sentence or not 10 < len(sentence) < 1000:
            found.wrong.append(f"{what}: no sentence: {sentence[:300]!r}")
    except (Exception, TooLong) as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        own = [f for f in traceback.extract_tb(error.__traceback__) if "/isoloss/" in f.filename]
        place = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""
        text = str(error).split("\n")[0][:150]
        found.ended[f"{type(error).__name__}, wrongly"] += 1
        found.wrong.append(f"{what}: {type(error).__name__}: {text} [{place} {at.name}]")


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise TooLong after some seconds; in the main thread."""

    def over(*_: object) -> None:
        raise TooLong(f"not ended after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def inside(scratch: Path) -> Iterator[None]:
    """Be in a folder, deep enough for ../.., which is also the home."""
    place, before = scratch / "home" / "a" / "b", Path.cwd()
    place.mkdir(parents=True)
    home = os.environ.get("HOME")
    os.environ["HOME"] = str(scratch / "home")
    os.chdir(place)
    try:
        yield
    finally:
        os.chdir(before)
        os.environ.pop("HOME")
        if home is not None:
            os.environ["HOME"] = home


def _said(value: object) -> str:
    try:
        return f"{type(value).__name__} {str(value)[:40]!r}"
    except Exception:
        return type(value).__name__
