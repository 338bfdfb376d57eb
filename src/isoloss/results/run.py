"""One run of a walk on disk: `config.json`, `steps.parquet`, `points.safetensors`, `outcome.json`.

`config.json` is written before the run, `outcome.json` last: a run without it is not finished.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from isoloss.errors import InputError, IsolossError
from isoloss.outcome import Outcome
from isoloss.path import Path
from isoloss.results.files import write_json, write_table, write_tensors

FORMAT_VERSION = 1
FAILED = "failed"


class ResultsError(IsolossError):
    """Files of a run cannot be read; the text names the file and what is wrong with it."""


def begin(folder: FilePath, config: Mapping[str, Any], made_with: Mapping[str, Any]) -> bool:
    """Lay claim to a run folder.

    Args:
        folder: The run's folder; made when missing.
        config: Everything that determines the run.
        made_with: Versions and hardware, which may differ without the run being another.

    Returns:
        Whether there is anything to do: False where the run is finished.

    Raises:
        InputError: The folder holds a run with another configuration; the difference is shown.
        ResultsError: The configuration there cannot be read.
    """
    file = folder / "config.json"
    if file.exists():
        before = _read_json(file)["config"]
        differences = _differences(before, dict(config))
        if differences:
            raise InputError(
                f"{folder} holds a run with other settings ({'; '.join(differences)}); give "
                f"another --out, or move that folder away"
            )
        return not is_finished(folder)
    content = {"format_version": FORMAT_VERSION, "config": config, "made_with": made_with}
    write_json(file, content)
    return True


def is_finished(folder: FilePath) -> bool:
    """Whether a run's walk has ended by itself, rather than by an interruption or an error."""
    file = folder / "outcome.json"
    if not file.exists():
        return False
    return _read_json(file)["outcome"] not in (FAILED, Outcome.INTERRUPTED.value)


def save(folder: FilePath, path: Path, extra: Mapping[str, torch.Tensor] | None = None) -> None:
    """Write a walk into its run folder.

    Args:
        folder: The run's folder.
        path: The walk.
        extra: Further tensors to keep beside the points, by name.
    """
    write_table(folder / "steps.parquet", path.steps)
    tensors = {"points": path.points, "point_steps": torch.tensor(path.point_steps)}
    write_tensors(folder / "points.safetensors", {**tensors, **(extra or {})})
    write_json(
        folder / "outcome.json",
        {
            "format_version": FORMAT_VERSION,
            "outcome": path.outcome.value,
            "message": path.message,
            "level": path.level,
            "method": path.method,
            "regularizer": path.regularizer,
            "shapes": [[name, list(shape)] for name, shape in path.shapes.items()],
        },
    )


def save_failure(folder: FilePath, message: str) -> None:
    """Write that a run ended in an error, with the error's sentence."""
    content = {"format_version": FORMAT_VERSION, "outcome": FAILED, "message": message}
    write_json(folder / "outcome.json", content)


def failure(folder: FilePath) -> str | None:
    """The sentence of a failed run; None for a run that did not fail."""
    file = folder / "outcome.json"
    ending = _read_json(file) if file.exists() else {}
    return ending["message"] if ending.get("outcome") == FAILED else None


def load_config(folder: FilePath) -> dict[str, Any]:
    """Everything that determines a run, as `begin` was given it."""
    return _read_json(folder / "config.json")["config"]


def load(folder: FilePath) -> Path:
    """Read a walk back.

    Args:
        folder: The run's folder.

    Returns:
        The walk; its `metadata` holds the run's configuration, versions and extra tensors.

    Raises:
        ResultsError: A file is missing, damaged, or of a newer format.
    """
    config, ending = _read_json(folder / "config.json"), _read_json(folder / "outcome.json")
    if ending["outcome"] == FAILED:
        raise ResultsError(f"{folder} holds a run that failed: {ending['message']}")
    try:
        tensors = load_file(folder / "points.safetensors")
        steps = pd.read_parquet(folder / "steps.parquet")
        return Path(
            steps=steps,
            points=tensors.pop("points"),
            point_steps=tensors.pop("point_steps").tolist(),
            level=ending["level"],
            outcome=Outcome(ending["outcome"]),
            message=ending["message"],
            method=ending["method"],
            regularizer=ending["regularizer"],
            shapes={name: tuple(shape) for name, shape in ending["shapes"]},
            metadata={**config, "tensors": tensors, "folder": str(folder)},
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ResultsError(f"{folder} cannot be read: {error}; run it again elsewhere") from error


def _read_json(file: FilePath) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        version = content["format_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultsError(f"{file} cannot be read: {error}; move its folder away") from error
    if version > FORMAT_VERSION:
        raise ResultsError(
            f"{file} has format {version}, newer than the {FORMAT_VERSION} this isoloss reads; "
            f"upgrade isoloss"
        )
    return content


def _differences(before: Any, now: Any, name: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [*before, *(key for key in now if key not in before)]
        return [
            text
            for key in keys
            for text in _differences(before.get(key), now.get(key), f"{name}.{key}".lstrip("."))
        ]
    return [] if before == now else [f"{name} was {before!r}, now {now!r}"]
