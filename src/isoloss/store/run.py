"""One run of a walk on disk: `config.json`, `steps.parquet`, `points.safetensors`, `outcome.json`.

See folder.py for how they come about, and docs/formats.md for every field.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path as FilePath

import torch

from isoloss.files import (
    DamagedError,
    ResultsError,
    Stamp,
    read_json,
    read_table,
    read_tensors,
    write_table,
    write_tensors,
)
from isoloss.outcome import Outcome
from isoloss.path import Path
from isoloss.store.folder import FAILED, seal, stamps, whole


def save(folder: FilePath, path: Path, extra: Mapping[str, torch.Tensor] | None = None) -> None:
    """Write a walk into its run folder.

    Args:
        folder: The run's folder, begun.
        path: The walk.
        extra: Further tensors to keep beside the points, by name.
    """
    tensors = {"points": path.points, "point_steps": torch.tensor(path.point_steps)}
    tensors.update(extra or {})

    def write() -> dict[str, Stamp]:
        return {
            "steps.parquet": write_table(folder / "steps.parquet", path.steps),
            "points.safetensors": write_tensors(folder / "points.safetensors", tensors),
        }

    content = {
        "outcome": path.outcome.value,
        "message": path.message,
        "level": path.level,
        "method": path.method,
        "regularizer": path.regularizer,
        "shapes": [[name, list(shape)] for name, shape in path.shapes.items()],
    }
    seal(folder, content, write)


def load(folder: FilePath) -> Path:
    """Read a walk back.

    Args:
        folder: The run's folder.

    Returns:
        The walk; its `metadata` holds the run's configuration, versions and extra tensors.

    Raises:
        DamagedError: A file is missing, torn or changed.
        ResultsError: The run failed, or a file is of a newer format.
    """
    ending = whole(folder)
    if ending["outcome"] == FAILED:
        raise ResultsError(f"{folder} holds a run that failed: {ending['message']}")
    config, stamped = read_json(folder / "config.json"), stamps(ending)
    tensors = read_tensors(folder / "points.safetensors", stamped.get("points.safetensors"))
    steps = read_table(folder / "steps.parquet", stamped.get("steps.parquet"))
    try:
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
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{folder} is damaged: {type(error).__name__}: {error}") from error
