"""A run folder, of whatever kind of run: where it is, how it begins and ends.

`config.json` is written before the run, `outcome.json` last: it holds the checksums of the others,
and a run without it is not finished. Until then `checkpoint/` holds what the run continues from.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, Literal

import pandas as pd
from torch import Tensor

from isoloss.disk import (
    DamagedError,
    ResultsError,
    quarantine,
    refuse_links,
    refuse_links_in,
    remove,
    remove_folder,
)
from isoloss.endings import ASKED, LIMITS, ends_later
from isoloss.errors import InputError, shown
from isoloss.files import (
    FAILED,
    OUTCOME,
    Ending,
    digest_of,
    read_ending,
    read_json,
    write_folder,
    write_json,
)
from isoloss.outcome import Outcome
from isoloss.path import POINTS, STEPS, Path, write_path
from isoloss.snapshot import differences
from isoloss.store.checkpoint import CHECKPOINT

FINISHED, NON_FINITE = "finished", "non_finite"
NOT_FINISHED = "not finished"
REPLACED, REPORT = "replaced", "report"
LEFT_OUT = "left out"
STRAY = "its name is not that of a run, such as run-000"
MEMBERS, EPOCHS, FRONT = "members.parquet", "epochs.parquet", "front.parquet"
LONGEST_NAME = 200  # bytes of a method's or experiment's: files are named after it
_FILES = (STEPS, MEMBERS, EPOCHS, FRONT, POINTS)

Kind = Literal["traverse", "decay", "equivalent", "after-decay", "front"]
ASKED_BY = {outcome.value: part for outcome, part in ASKED.items()}
LATER = {outcome.value for outcome in (*LIMITS, Outcome.SLOWED)}
"""Outcomes of walks that keep what they go on from, once they are asked to end later."""

Tell = Callable[[str], object]
"""Receives what was found damaged, a sentence each."""


def run_folder(
    out: FilePath, experiment: str, method: str | None, index: int, kind: Kind = "traverse"
) -> FilePath:
    """Where a run is: `OUT/EXPERIMENT/KIND/METHOD/run-000`, without a method for `decay`, and with
    the name of the regularizer for `front`."""
    for name in (experiment, method or experiment):
        plain = FilePath(name).name == name != "" and name.isprintable()
        if not plain or len(name.encode(errors="replace")) > LONGEST_NAME:
            raise InputError(
                f"the name of an experiment or method must be that of a folder, got {shown(name)}"
            )
    return out / experiment / kind / (method or "") / f"run-{index:03d}"


def run_index(name: str) -> int | None:
    """The number of the run whose folder has that name; None where it is no run's."""
    found = re.fullmatch("run-([0-9]{3}|[1-9][0-9]{3,8})", name)
    return int(found[1]) if found else None


def runs_in(place: FilePath) -> tuple[list[FilePath], list[str]]:
    """The folders of runs in a folder, by their numbers, and the names of others there."""
    there = [one for one in place.glob("[!.]*") if one.is_dir() and one.name != REPLACED]
    runs = {one: run_index(one.name) for one in there}
    folders = sorted((k, one) for one, k in runs.items() if k is not None)
    return [one for _, one in folders], sorted(one.name for one, k in runs.items() if k is None)


def misplaced(
    config: Mapping[str, Any], experiment: str, kind: Kind, by: str | None, method: str | None
) -> str:
    """Why a run is not one of the folder that it is in but a copy of another's; empty if it is."""
    pairs = {"experiment": (config.get("experiment", experiment), experiment)}
    if by is not None:  # a walk
        pairs["method"] = by, str(method)
        if kind == "traverse":
            pairs["start"] = str(config.get("start")), "None"
    wrong = [f"its {what} is {its}" for what, (its, here) in pairs.items() if its != here]
    return f"{wrong[0]}, which is not that of its folder" if wrong else ""


def signs_of(config: Mapping[str, Any], weights: str) -> dict[str, Any]:
    """What no two runs of a kind share: the seed, and the digest of the file with the weights."""
    seed = None if "imported" in config else config.get("seed")
    return {"weights": weights} | ({} if seed is None else {f"seed, {seed}": seed})


def copies(signs: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Why runs, by name, cannot be other runs than one before them."""
    seen: dict[tuple[str, Any], str] = {}
    found: dict[str, str] = {}
    for name, of_run in signs.items():
        for sign in of_run.items():
            if (first := seen.setdefault(sign, name)) != name:
                found[name] = f"it is a copy of {first}: it has the same {sign[0]}"
    return found


def report_folder(out: FilePath, experiment: str) -> FilePath:
    """Where an experiment's figures and tables are."""
    return out / REPORT / experiment


def check_out_folder(folder: FilePath, *below: FilePath) -> None:
    """Insist, without writing anything, that results can be written to folders below a folder."""
    nearest = folder.absolute()
    while not nearest.exists():
        nearest = nearest.parent
    if not nearest.is_dir():
        raise InputError(f"--out must name a folder, got {folder}, but {nearest} is a file")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(
            f"--out must be a folder that can be written to, got {folder}, but {nearest} may not "
            f"be written to"
        )
    for place in below:
        refuse_links(folder, place)


# ---------------------------------------------------------------- how a run stands


def check(folder: FilePath, config: Mapping[str, Any], *, later: bool = False) -> bool:
    """Whether nothing is left to do for a run, with all its files whole; nothing is changed.

    It may be asked to end `later` than before, if it is a walk.
    """
    try:  # InputError for another configuration, ResultsError for another version are raised
        if _goes_on(folder, config, later):
            return False
        ended = _ended(folder)
        return ended in LATER or (ended is not None and not (folder / CHECKPOINT).exists())
    except DamagedError:
        return False


def begin(
    folder: FilePath,
    config: Mapping[str, Any],
    made_with: Mapping[str, Any],
    tell: Tell = str,
    *,
    later: bool = False,
) -> bool:
    """Lay claim to a run folder, as its only writer; False where the run is finished.

    `later` as for `check`. A finished walk that goes on to a later end stays as it was, with its
    settings, until `settle` and what it then comes to replace it.
    """
    refuse_links_in(folder)
    stays = False
    try:  # raises as `check`; with another `made_with`, the run is the same
        anew = _goes_on(folder, config, later)
        if anew:
            with suppress(DamagedError):  # of which is told below
                stays = _ended(folder) is not None
                if not stays:
                    remove(folder / OUTCOME)
    except DamagedError as error:
        _quarantine_config(folder, config, tell, str(error))
        anew = True
    if anew and not stays:
        write_json(folder / "config.json", {"config": config, "made_with": made_with})
    ended = None
    try:
        ended = _ended(folder)
    except DamagedError as error:
        if (folder / OUTCOME).exists():
            tell(str(error))
            for name in (OUTCOME, *_FILES):
                quarantine(folder / name, folder)
    remove(*folder.glob(".*.part"), *folder.glob(".tmp*"))  # of a process that was killed
    if ended is not None and ended not in LATER:
        _delete_checkpoint(folder)
    return ended is None or stays


def settle(folder: FilePath, config: Mapping[str, Any], made_with: Mapping[str, Any]) -> None:
    """Let a run that has come to a later end have the settings that asked for it."""
    if differences(load_config(folder), dict(config)):
        remove(folder / OUTCOME)  # which is of the earlier one
        write_json(folder / "config.json", {"config": config, "made_with": made_with})


def whole(folder: FilePath) -> Ending:
    """How a run ended, once every file that its `outcome.json` names is found to be whole."""
    ending = read_ending(folder)
    for name, stamp in ending.stamps.items():
        stamp.check(folder / name)
    return ending


def problem(folder: FilePath) -> str | None:
    """Why the results of a run cannot be read, a sentence; None where they can."""
    if not (folder / OUTCOME).exists():
        return NOT_FINISHED
    try:
        ending = whole(folder).content
    except ResultsError as error:
        return str(error)
    return ending["message"] if ending["outcome"] == FAILED else None


def load_config(folder: FilePath) -> dict[str, Any]:
    """Everything that determines a run, as `begin` was given it."""
    file = folder / "config.json"
    config = read_json(file).get("config")
    if not isinstance(config, dict):
        raise DamagedError(f"{file} is damaged: it holds no configuration")
    return config


# ---------------------------------------------------------------- how it ends


@dataclass(frozen=True)
class Stack:
    """What training a stack of networks with weight decay gave."""

    history: pd.DataFrame  # a row for each epoch measured and penalty
    ends: Tensor  # the networks at the end, shape (penalties, parameters)
    lost: Tensor  # the epoch at which each was found to be NaN or infinite; -1 if it was not

    def last(self) -> pd.DataFrame:
        """The rows of the last epoch, one for each penalty."""
        epochs = self.history["epoch"]
        return self.history.loc[epochs == epochs.max()].reset_index(drop=True)


def save_walk(
    folder: FilePath,
    path: Path,
    extra: Mapping[str, Tensor] | None = None,
    *,
    for_good: bool = False,
) -> None:
    """Write a walk, and further tensors by name, into its run folder, which was begun.

    What it would go on from stays where it was interrupted, and unless it ended `for_good` where it
    may be asked to end later.
    """
    write_path(folder, path, extra, {"config": digest_of(load_config(folder))})
    if path.outcome is not Outcome.INTERRUPTED and (for_good or path.outcome.value not in LATER):
        _delete_checkpoint(folder)


def save_decay(
    folder: FilePath, stack: Stack, chosen: Stack | None, *, start: Tensor, indices: Tensor
) -> None:
    """Write a run of weight decay that was begun; `chosen` was trained without those held out."""
    members = stack.last()
    if chosen is not None:
        held = ["validation_loss", "validation_metric"]
        members[held] = chosen.last()[held]
    lost = stack.lost.numpy()
    members["lost_epoch"] = lost
    members["status"] = [FINISHED if epoch < 0 else NON_FINITE for epoch in lost]
    message = f"{(lost < 0).sum()} of {len(lost)} networks are finite at the end."
    digest = digest_of(load_config(folder))
    tensors = {"start": start, "ends": stack.ends, "indices": indices}
    write_folder(
        folder,
        {"outcome": FINISHED, "message": message, "config": digest},
        {MEMBERS: members, EPOCHS: stack.history, POINTS: tensors},
    )
    _delete_checkpoint(folder)


def save_front(
    folder: FilePath,
    content: Mapping[str, Any],
    files: Mapping[str, pd.DataFrame | Mapping[str, Tensor]],
) -> None:
    """Write a front into its run folder, which was begun."""
    write_folder(folder, {**content, "config": digest_of(load_config(folder))}, files)
    _delete_checkpoint(folder)


def save_failure(folder: FilePath, message: str) -> None:
    """Write that a run ended in an error, with the error's sentence."""
    write_json(folder / OUTCOME, {"outcome": FAILED, "message": message})


# ---------------------------------------------------------------- parts of the above


def _goes_on(folder: FilePath, config: Mapping[str, Any], later: bool) -> bool:
    """Whether a run is the same but for a later end, which it has not come to.

    InputError where it is another one, or what it would go on from is gone.
    """
    before = load_config(folder)
    different = differences(before, dict(config))
    if not different:
        return False
    gone = ""
    old, new = before.get("stop"), config.get("stop")
    same = later and not differences({**before, "stop": None}, {**config, "stop": None})
    if same and isinstance(old, dict) and isinstance(new, dict) and ends_later(old, new):
        try:
            ended = _ended(folder)
        except DamagedError:
            ended = None
        if ended is None:
            return True
        asked = ASKED_BY.get(ended)
        if asked is None or old[asked] == new[asked]:
            return False  # what ended it would again
        if (folder / CHECKPOINT).is_dir():
            return True
        gone = ", and what it would go on from is gone"
    raise InputError(
        f"{folder} holds a run with other settings ({'; '.join(different)}){gone}; give another "
        f"--out, or --restart to move that run aside and start afresh"
    )


def _ended(folder: FilePath) -> str | None:
    """The outcome of a run whose files are whole; None where it has not finished."""
    outcome = whole(folder).content["outcome"]
    return None if outcome in (FAILED, Outcome.INTERRUPTED.value) else outcome


def _quarantine_config(
    folder: FilePath, config: Mapping[str, Any], tell: Tell, damage: str
) -> None:
    """Move away a damaged `config.json`, and results of which nothing else tells the settings."""
    file = folder / "config.json"
    others = [folder / name for name in (CHECKPOINT, *_FILES) if (folder / name).exists()]
    if file.exists() or others:
        tell(damage)
    quarantine(file, folder)
    try:
        same = read_json(folder / OUTCOME).get("config") == digest_of(config)
    except ResultsError:
        same = False
    if others and not same:
        for other in (folder / OUTCOME, *others):
            quarantine(other, folder)


def _delete_checkpoint(folder: FilePath) -> None:
    """Once a run has ended for good, delete what it would have continued from."""
    remove_folder(folder / CHECKPOINT)
