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
from safetensors import SafetensorError, safe_open
from torch import Tensor

from isoloss.results.files import write_json, write_table, write_tensors
from isoloss.results.run import FORMAT_VERSION, ResultsError, begin, failure

__all__ = ["Stack", "begin", "failure", "load_ends", "load_epochs", "load_members", "save"]

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
    folder: FilePath, whole: Stack, chosen: Stack | None, *, start: Tensor, indices: Tensor
) -> None:
    """Write a run of weight decay into its folder.

    Args:
        folder: The run's folder.
        whole: The networks trained on all training examples, measured on the test set.
        chosen: Those trained without the held-out examples and measured on these; None where
            nothing was held out.
        start: Where all networks started, shape (parameters,).
        indices: Which training examples were drawn.
    """
    members = whole.last()
    if chosen is not None:
        held = chosen.last()
        for name in ("validation_loss", "validation_metric"):
            members[name] = held[name]
    lost = whole.lost.numpy()
    members["lost_epoch"] = lost
    members["status"] = [FINISHED if epoch < 0 else NON_FINITE for epoch in lost]
    write_table(folder / "members.parquet", members)
    write_table(folder / "epochs.parquet", whole.history)
    tensors = {"start": start, "ends": whole.ends, "indices": indices}
    write_tensors(folder / "points.safetensors", tensors)
    ended = int((lost >= 0).sum())
    write_json(
        folder / "outcome.json",
        {
            "format_version": FORMAT_VERSION,
            "outcome": FINISHED,
            "message": f"{len(lost) - ended} of {len(lost)} networks are finite at the end.",
        },
    )


def load_members(folder: FilePath) -> pd.DataFrame:
    """The row for each penalty of a run.

    Args:
        folder: The run's folder.

    Returns:
        The table.

    Raises:
        ResultsError: The file is missing or damaged.
    """
    return _table(folder / "members.parquet")


def load_epochs(folder: FilePath) -> pd.DataFrame:
    """The row for each epoch measured and penalty of a run; raises as `load_members`."""
    return _table(folder / "epochs.parquet")


def load_ends(folder: FilePath) -> Tensor:
    """The networks at the end of a run, shape (penalties, parameters); raises likewise."""
    file = folder / "points.safetensors"
    try:
        with safe_open(file, "pt") as tensors:
            ends: Tensor = tensors.get_tensor("ends")
    except (OSError, KeyError, SafetensorError) as error:
        raise ResultsError(f"{file} cannot be read: {error}; run it again elsewhere") from error
    return ends if ends.ndim == 2 else torch.atleast_2d(ends)


def _table(file: FilePath) -> pd.DataFrame:
    try:
        return pd.read_parquet(file)
    except (OSError, ValueError) as error:
        raise ResultsError(f"{file} cannot be read: {error}; run it again elsewhere") from error
