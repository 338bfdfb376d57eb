"""One run of weight decay on disk.

`config.json` as a walk's; `members.parquet`, a row for each penalty; `epochs.parquet`, one for each
epoch measured and penalty; `points.safetensors` with `start` (parameters,), `ends` (penalties,
parameters) and the `indices` of the draw; `outcome.json` last: a run without it is not finished.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path as FilePath

import pandas as pd
import torch
from torch import Tensor

from isoloss.files import (
    DamagedError,
    Stamp,
    read_table,
    read_tensors,
    write_table,
    write_tensors,
)
from isoloss.store.folder import seal, stamps, whole

FINISHED = "finished"
NON_FINITE = "non_finite"


@dataclass(frozen=True)
class Stack:
    """What training a stack of networks gave.

    Attributes:
        history: A row for each epoch measured and penalty.
        ends: The networks at the end, shape (penalties, parameters).
        lost: The epoch at which each was found to be NaN or infinite; -1 of one that was not.
    """

    history: pd.DataFrame
    ends: Tensor
    lost: Tensor

    def last(self) -> pd.DataFrame:
        """The rows of the last epoch, one for each penalty."""
        epochs = self.history["epoch"]
        return self.history.loc[epochs == epochs.max()].reset_index(drop=True)


def save(
    folder: FilePath, stack: Stack, chosen: Stack | None, *, start: Tensor, indices: Tensor
) -> None:
    """Write a run of weight decay into its folder.

    Args:
        folder: The run's folder.
        stack: The networks trained on all training examples, measured on the test set.
        chosen: Those trained without the held-out examples and measured on these; None where
            nothing was held out.
        start: Where all networks started, shape (parameters,).
        indices: Which training examples were drawn.
    """
    members = stack.last()
    if chosen is not None:
        held = chosen.last()
        for name in ("validation_loss", "validation_metric"):
            members[name] = held[name]
    lost = stack.lost.numpy()
    members["lost_epoch"] = lost
    members["status"] = [FINISHED if epoch < 0 else NON_FINITE for epoch in lost]
    tensors = {"start": start, "ends": stack.ends, "indices": indices}

    def write() -> dict[str, Stamp]:
        return {
            "members.parquet": write_table(folder / "members.parquet", members),
            "epochs.parquet": write_table(folder / "epochs.parquet", stack.history),
            "points.safetensors": write_tensors(folder / "points.safetensors", tensors),
        }

    ended = int((lost >= 0).sum())
    message = f"{len(lost) - ended} of {len(lost)} networks are finite at the end."
    seal(folder, {"outcome": FINISHED, "message": message}, write)


def load_members(folder: FilePath) -> pd.DataFrame:
    """The row for each penalty of a run.

    Args:
        folder: The run's folder.

    Returns:
        The table.

    Raises:
        DamagedError: A file is missing, torn or changed.
    """
    return _table(folder, "members.parquet")


def load_epochs(folder: FilePath) -> pd.DataFrame:
    """The row for each epoch measured and penalty of a run; raises as `load_members`."""
    return _table(folder, "epochs.parquet")


def load_ends(folder: FilePath) -> Tensor:
    """The networks at the end of a run, shape (penalties, parameters); raises likewise."""
    file = folder / "points.safetensors"
    stamp = stamps(whole(folder)).get(file.name)
    try:
        return torch.atleast_2d(read_tensors(file, stamp)["ends"])
    except KeyError as error:
        raise DamagedError(f"{file} is damaged: it holds no {error}") from error


def _table(folder: FilePath, name: str) -> pd.DataFrame:
    return read_table(folder / name, stamps(whole(folder)).get(name))
