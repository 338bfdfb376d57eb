"""A run folder, of whatever kind of run.

`config.json` is written before the run, `outcome.json` last: it holds the checksums of the others,
and a run without it is not finished. While the run goes on, `checkpoint/` holds what it goes on
from; it is deleted when the run is finished. docs/formats.md tells every field.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path as FilePath
from typing import Any

from torch import Tensor

from isoloss.errors import InputError
from isoloss.files import (
    DamagedError,
    ResultsError,
    Stamp,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)
from isoloss.outcome import Outcome
from isoloss.snapshot import differences
from isoloss.storage import remove, sync, writing
from isoloss.store.quarantine import quarantine

FAILED = "failed"
CHECKPOINT = "checkpoint"
_FILES = ("steps.parquet", "members.parquet", "epochs.parquet", "points.safetensors")

Tell = Callable[[str], object]
"""Receives what was found damaged, a sentence each."""


def check(folder: FilePath, config: Mapping[str, Any]) -> bool:
    """Look at a run folder, changing nothing.

    Args:
        folder: The run's folder, which need not exist.
        config: Everything that determines the run.

    Returns:
        Whether the run is finished, with all its files whole.

    Raises:
        InputError: The folder holds a run with another configuration; the difference is shown.
        ResultsError: It is of a newer format.
    """
    try:
        before = load_config(folder)
    except DamagedError:
        return False
    different = differences(before, dict(config))
    if different:
        raise InputError(
            f"{folder} holds a run with other settings ({'; '.join(different)}); give another "
            f"--out, or --restart to move that run aside and begin anew"
        )
    try:
        return whole(folder)["outcome"] not in (FAILED, Outcome.INTERRUPTED.value)
    except DamagedError:
        return False


def begin(
    folder: FilePath, config: Mapping[str, Any], made_with: Mapping[str, Any], tell: Tell = str
) -> bool:
    """Lay claim to a run folder, as its only writer; what is damaged goes into its `quarantine`.

    Args:
        folder: The run's folder; made when missing.
        config: Everything that determines the run.
        made_with: Versions and hardware, which may differ without the run being another.
        tell: Receives what was found damaged, a sentence each.

    Returns:
        Whether there is anything to do: False where the run is finished.

    Raises:
        InputError: The folder holds a run with another configuration; the difference is shown.
        ResultsError: It is of a newer format.
    """
    if check(folder, config):
        _delete(folder / CHECKPOINT)
        return False
    _settle_config(folder, config, made_with, tell)
    if (folder / "outcome.json").exists():
        try:
            whole(folder)
        except DamagedError as error:
            tell(str(error))
            for name in ("outcome.json", *_FILES):
                quarantine(folder / name, folder)
    remove(*folder.glob(".*.part"), *folder.glob(".tmp*"))  # of a process that was killed
    return not check(folder, config)


def seal(
    folder: FilePath, content: Mapping[str, Any], write: Callable[[], Mapping[str, Stamp]]
) -> None:
    """Write the files of a run that has ended, and last the `outcome.json` that vouches for them.

    Args:
        folder: The run's folder.
        content: `outcome`, `message`, and what else `outcome.json` tells.
        write: Writes the files and returns their stamps by name.
    """
    # the outcome of an interruption is not that of the files which come now
    remove(folder / "outcome.json")
    stamps = write()
    files = {name: asdict(stamp) for name, stamp in stamps.items()}
    config = _digest(load_config(folder))
    write_json(folder / "outcome.json", {**content, "config": config, "files": files})
    if content["outcome"] != Outcome.INTERRUPTED.value:
        _delete(folder / CHECKPOINT)


def whole(folder: FilePath) -> dict[str, Any]:
    """What `outcome.json` tells, once every file that it names is found to be whole.

    Args:
        folder: The run's folder.

    Returns:
        Its content.

    Raises:
        DamagedError: A file is missing, torn or changed.
        ResultsError: It is of a newer format.
    """
    file = folder / "outcome.json"
    ending = read_json(file)
    if type(ending.get("outcome")) is not str or type(ending.get("message")) is not str:
        raise DamagedError(f"{file} is damaged: it names no outcome")
    digest = _digest(load_config(folder))
    if ending.get("config", digest) != digest:
        raise DamagedError(f"{file} is of a run with other settings")
    for name, stamp in stamps(ending).items():
        stamp.check(folder / name)
    return ending


def stamps(ending: Mapping[str, Any]) -> dict[str, Stamp]:
    """Checksums of a run's files, from its outcome; none in format 1, and none of a failure."""
    files = ending.get("files", {})
    return {name: Stamp(**files[name]) for name in _FILES if name in files}


def save_failure(folder: FilePath, message: str) -> None:
    """Write that a run ended in an error, with the error's sentence."""
    write_json(folder / "outcome.json", {"outcome": FAILED, "message": message})


def failure(folder: FilePath) -> str | None:
    """The sentence of a failed run; None for a run that did not fail."""
    file = folder / "outcome.json"
    ending = read_json(file) if file.exists() else {}
    return ending["message"] if ending.get("outcome") == FAILED else None


def problem(folder: FilePath) -> str | None:
    """Why the results of a run cannot be read, a sentence; None where they can."""
    if not (folder / "outcome.json").exists():
        return "not finished"
    try:
        ending = whole(folder)
    except ResultsError as error:
        return str(error)
    return ending["message"] if ending["outcome"] == FAILED else None


def load_config(folder: FilePath) -> dict[str, Any]:
    """Everything that determines a run, as `begin` was given it."""
    file = folder / "config.json"
    content = read_json(file)
    config = content.get("config")
    if not isinstance(config, dict):
        raise DamagedError(f"{file} is damaged: it holds no configuration")
    if content["format_version"] == 1 and "method" in config:  # there was but one regularizer
        config = {"regularizer": "squared_norm", **config}
    return config


def training_folder(folder: FilePath) -> FilePath:
    """Where phase 1 is kept while it goes on."""
    return folder / CHECKPOINT / "training"


def save_start(folder: FilePath, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Keep what phase 1 ended with, so that it is not done again; its checkpoints go.

    Args:
        folder: The run's folder.
        config: Everything that determines the run.
        tensors: What to keep, by name.
    """
    kept, training = folder / CHECKPOINT, training_folder(folder)
    with writing(training):  # as long as it is there, a missing start.json was never written
        training.mkdir(parents=True, exist_ok=True)
    stamp = write_tensors(kept / "start.safetensors", tensors)
    write_json(kept / "start.json", {"config": _digest(config), "start": asdict(stamp)})
    _delete(training)


def load_start(folder: FilePath, tell: Tell = str) -> dict[str, Tensor] | None:
    """What `save_start` kept; what is damaged is moved into quarantine.

    Args:
        folder: The run's folder.
        tell: Receives what was found damaged, a sentence each.

    Returns:
        The tensors; None where there are none that are whole.
    """
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


def _settle_config(
    folder: FilePath, config: Mapping[str, Any], made_with: Mapping[str, Any], tell: Tell
) -> None:
    """Write `config.json` where there is none that is whole."""
    file = folder / "config.json"
    try:
        load_config(folder)
    except DamagedError as error:
        others = [folder / name for name in ("outcome.json", CHECKPOINT, *_FILES)]
        others = [other for other in others if other.exists() and not _vouches_for_nothing(other)]
        if file.exists() or others:
            tell(str(error))
        quarantine(file, folder)
        if not _is_of(folder, config):  # nothing tells what the others are results of
            for other in others:
                quarantine(other, folder)
        write_json(file, {"config": config, "made_with": made_with})


def _vouches_for_nothing(file: FilePath) -> bool:
    """Whether a file is the `outcome.json` of a run that failed, perhaps before it had begun."""
    try:
        return file.name == "outcome.json" and read_json(file).get("outcome") == FAILED
    except ResultsError:
        return False


def _is_of(folder: FilePath, config: Mapping[str, Any]) -> bool:
    """Whether what is left of a run tells that it was made with a configuration."""
    for name in ("outcome.json", f"{CHECKPOINT}/start.json"):
        try:
            if read_json(folder / name).get("config") == _digest(config):
                return True
        except ResultsError:
            continue
    return False


def _digest(config: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def _delete(checkpoint: FilePath) -> None:
    """Delete what a run does not go on from any more."""
    if checkpoint.exists():
        with writing(checkpoint):
            shutil.rmtree(checkpoint)
            sync(checkpoint.parent)
