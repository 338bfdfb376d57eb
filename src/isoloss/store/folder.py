"""A run folder, of whatever kind of run: where it is, how it begins, goes on and ends.

`config.json` is written before the run, `outcome.json` last: it holds the checksums of the others,
and a run without it is not finished. While the run goes on, `checkpoint/` holds what it continues
from; it is deleted when the run is finished. docs/formats.md tells every field.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path as FilePath
from typing import Any, Literal

import pandas as pd
from torch import Tensor

from isoloss.errors import InputError
from isoloss.files import (
    FAILED,
    OUTCOME,
    DamagedError,
    Ending,
    ResultsError,
    Stamp,
    digest_of,
    read_ending,
    read_json,
    read_tensors,
    remove,
    sync,
    write_folder,
    write_json,
    write_tensors,
    writing,
)
from isoloss.outcome import Outcome
from isoloss.path import POINTS, STEPS, Path, write_path
from isoloss.snapshot import differences
from isoloss.store.lock import quarantine

FINISHED, NON_FINITE = "finished", "non_finite"
NOT_FINISHED = "not finished"
CHECKPOINT = "checkpoint"
MEMBERS, EPOCHS = "members.parquet", "epochs.parquet"
_FILES = (STEPS, MEMBERS, EPOCHS, POINTS)

Kind = Literal["traverse", "decay", "equivalent", "after-decay"]
Tell = Callable[[str], object]
"""Receives what was found damaged, a sentence each."""


def run_folder(
    out: FilePath, experiment: str, method: str | None, index: int, kind: Kind = "traverse"
) -> FilePath:
    """Where a run is: `OUT/EXPERIMENT/KIND/METHOD/run-000`; `decay` alone has no method."""
    return out / experiment / kind / (method or "") / f"run-{index:03d}"


def report_folder(out: FilePath, experiment: str) -> FilePath:
    """Where an experiment's figures and tables are."""
    return out / "report" / experiment


def check_out_folder(folder: FilePath) -> None:
    """Insist, without writing anything, that results can be written below a folder."""
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


# ---------------------------------------------------------------- how a run stands


def check(folder: FilePath, config: Mapping[str, Any]) -> bool:
    """Whether a run is finished, with all its files whole; nothing is changed.

    InputError where the folder holds a run with another configuration, ResultsError where it is of
    another version.
    """
    try:
        _check_config(folder, config)
        return _finished(folder)
    except DamagedError:
        return False


def begin(
    folder: FilePath, config: Mapping[str, Any], made_with: Mapping[str, Any], tell: Tell = str
) -> bool:
    """Lay claim to a run folder, as its only writer; False where the run is finished.

    What is damaged goes into its `quarantine`. Raises as `check`. `made_with`, versions and
    hardware, may differ without the run being another.
    """
    try:
        _check_config(folder, config)
    except DamagedError as error:
        _settle_config(folder, config, made_with, tell, error)
    try:
        finished = _finished(folder)
    except DamagedError as error:
        finished = False
        if (folder / OUTCOME).exists():
            tell(str(error))
            for name in (OUTCOME, *_FILES):
                quarantine(folder / name, folder)
    remove(*folder.glob(".*.part"), *folder.glob(".tmp*"))  # of a process that was killed
    if finished:
        _delete(folder / CHECKPOINT)
    return not finished


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


def save_walk(folder: FilePath, path: Path, extra: Mapping[str, Tensor] | None = None) -> None:
    """Write a walk, and further tensors by name, into its run folder, which was begun."""
    write_path(folder, path, extra, {"config": digest_of(load_config(folder))})
    _settle(folder, path.outcome.value)


def save_decay(
    folder: FilePath, stack: Stack, chosen: Stack | None, *, start: Tensor, indices: Tensor
) -> None:
    """Write a run of weight decay into its folder, which was begun.

    `stack` was trained on all training examples drawn, those of `indices`; `chosen`, where there
    is one, without the held-out ones, on which it was measured. `start` is where all began.
    """
    members = stack.last()
    if chosen is not None:
        held = chosen.last()
        for name in ("validation_loss", "validation_metric"):
            members[name] = held[name]
    lost = stack.lost.numpy()
    members["lost_epoch"] = lost
    members["status"] = [FINISHED if epoch < 0 else NON_FINITE for epoch in lost]
    ended = int((lost >= 0).sum())
    message = f"{len(lost) - ended} of {len(lost)} networks are finite at the end."
    digest = digest_of(load_config(folder))
    tensors = {"start": start, "ends": stack.ends, "indices": indices}
    write_folder(
        folder,
        {"outcome": FINISHED, "message": message, "config": digest},
        {MEMBERS: members, EPOCHS: stack.history, POINTS: tensors},
    )
    _settle(folder, FINISHED)


def save_failure(folder: FilePath, message: str) -> None:
    """Write that a run ended in an error, with the error's sentence."""
    write_json(folder / OUTCOME, {"outcome": FAILED, "message": message})


def failure(folder: FilePath) -> str | None:
    """The sentence of a failed run; None for a run that did not fail."""
    file = folder / OUTCOME
    ending = read_json(file) if file.exists() else {}
    return ending["message"] if ending.get("outcome") == FAILED else None


# ---------------------------------------------------------------- what phase 1 ended with


def training_folder(folder: FilePath) -> FilePath:
    """Where phase 1 is kept while it goes on."""
    return folder / CHECKPOINT / "training"


def save_start(folder: FilePath, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Keep what phase 1 ended with, so that it is not done again; its checkpoints go."""
    kept, training = folder / CHECKPOINT, training_folder(folder)
    with writing(training):  # as long as it is there, a missing start.json was never written
        training.mkdir(parents=True, exist_ok=True)
    stamp = write_tensors(kept / "start.safetensors", tensors)
    write_json(kept / "start.json", {"config": digest_of(config), "start": asdict(stamp)})
    _delete(training)


def load_start(folder: FilePath, tell: Tell = str) -> dict[str, Tensor] | None:
    """What `save_start` kept; None where nothing is whole: what is damaged goes into quarantine."""
    kept = folder / CHECKPOINT
    remove(*kept.glob(".*.part"), *kept.glob(".tmp*"))
    written = (kept / "start.json").exists() or not training_folder(folder).exists()
    if not written or not any(kept.glob("start.*")):
        return None
    try:
        stamp = Stamp(**read_json(kept / "start.json")["start"])
        found = read_tensors(kept / "start.safetensors", stamp)
    except DamagedError as error:
        for name in ("start.json", "start.safetensors"):
            quarantine(kept / name, folder)
        tell(str(error))
        return None
    _delete(training_folder(folder))
    return found


# ---------------------------------------------------------------- parts of the above


def _check_config(folder: FilePath, config: Mapping[str, Any]) -> None:
    different = differences(load_config(folder), dict(config))
    if different:
        raise InputError(
            f"{folder} holds a run with other settings ({'; '.join(different)}); give another "
            f"--out, or --restart to move that run aside and start afresh"
        )


def _finished(folder: FilePath) -> bool:
    return whole(folder).content["outcome"] not in (FAILED, Outcome.INTERRUPTED.value)


def _settle_config(
    folder: FilePath,
    config: Mapping[str, Any],
    made_with: Mapping[str, Any],
    tell: Tell,
    damage: DamagedError,
) -> None:
    """Write a `config.json` that is missing or damaged, and move away what it may not be of."""
    file = folder / "config.json"
    others = [folder / name for name in (OUTCOME, CHECKPOINT, *_FILES)]
    others = [other for other in others if other.exists() and not _vouches_for_nothing(other)]
    if file.exists() or others:
        tell(str(damage))
    quarantine(file, folder)
    if not _is_of(folder, config):  # nothing tells what the others are results of
        for other in others:
            quarantine(other, folder)
    write_json(file, {"config": config, "made_with": made_with})


def _vouches_for_nothing(file: FilePath) -> bool:
    """Whether a file is the `outcome.json` of a run that failed, perhaps before it had begun."""
    try:
        return file.name == OUTCOME and read_json(file).get("outcome") == FAILED
    except ResultsError:
        return False


def _is_of(folder: FilePath, config: Mapping[str, Any]) -> bool:
    """Whether what is left of a run tells that it was made with a configuration."""
    for name in (OUTCOME, f"{CHECKPOINT}/start.json"):
        try:
            if read_json(folder / name).get("config") == digest_of(config):
                return True
        except ResultsError:
            continue
    return False


def _settle(folder: FilePath, outcome: str) -> None:
    """Once a run has ended for good, delete what it would have continued from."""
    if outcome != Outcome.INTERRUPTED.value:
        _delete(folder / CHECKPOINT)


def _delete(checkpoint: FilePath) -> None:
    if checkpoint.exists():
        with writing(checkpoint):
            shutil.rmtree(checkpoint)
            sync(checkpoint.parent)
