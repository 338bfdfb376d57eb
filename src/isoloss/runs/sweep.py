"""One stack of networks trained with one penalty each, measured on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from isoloss.losses import METRICS
from isoloss.training import Training, TrainingState

Pair = tuple[Tensor, Tensor]
"""Inputs and targets."""


@dataclass
class SweepState:
    """All that a sweep needs to go on from the end of an epoch.

    Attributes:
        training: The networks and Adam.
        lost: The epoch after which each member was first found to be NaN or infinite; -1 of one
            that was not, shape (members,), int64.
        history: What was measured so far, a dict of columns for each epoch measured.
    """

    training: TrainingState
    lost: Tensor
    history: list[dict[str, list[float]]] = field(default_factory=list[dict[str, list[float]]])

    @property
    def epoch(self) -> int:
        """Epochs so far."""
        return self.training.epoch


class Sweep:
    """Networks from one start on one draw of examples, one for each penalty.

    Args:
        model: Gives the architecture.
        loss: Name of the per-example loss.
        metric: Name of the metric.
        penalties: One for each network.
        train: Training examples.
        tests: Examples to measure on, by name.
        include_biases: Whether the penalty is on biases too.
        epochs: Epochs to train.
        record_every: Epochs between two measurements; the first and the last are measured too.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: str,
        metric: str,
        penalties: Sequence[float],
        train: Pair,
        tests: dict[str, Pair],
        *,
        include_biases: bool,
        epochs: int,
        record_every: int,
    ) -> None:
        self._metric = METRICS[metric]
        self._penalties = torch.tensor(penalties, dtype=torch.float64)
        self._measured = {"train": train, **tests}
        self._include_biases = include_biases
        self._epochs = epochs
        self._record_every = record_every
        self._training = Training(
            model, loss, *train, penalties=penalties, include_biases=include_biases
        )

    def init(self, start: Tensor) -> SweepState:
        """The state before the first epoch.

        Args:
            start: Where all networks start, shape (parameters,).

        Returns:
            The state, in which the start has been measured.
        """
        members = self._training.members
        training = self._training.init(start.expand(members, -1))
        state = SweepState(training, torch.full((members,), -1))
        self._measure(state)
        return state

    def finished(self, state: SweepState) -> bool:
        """Whether all epochs are done."""
        return state.epoch >= self._epochs

    def step(self, state: SweepState) -> None:
        """Train for one epoch and measure where that is due; the state is changed in place."""
        self._training.epoch(state.training)
        fresh = self._training.norms(state.training).whole.isfinite().logical_not().cpu()
        state.lost[fresh & (state.lost < 0)] = state.epoch
        if state.epoch % self._record_every == 0 or self.finished(state):
            self._measure(state)

    def thetas(self, state: SweepState) -> Tensor:
        """The networks, shape (members, parameters)."""
        return self._training.thetas(state.training)

    def history(self, state: SweepState) -> pd.DataFrame:
        """A row for each epoch measured and penalty, with the columns that `_measure` fills."""
        return pd.concat([pd.DataFrame(columns) for columns in state.history], ignore_index=True)

    def _measure(self, state: SweepState) -> None:
        norms = self._training.norms(state.training)
        penalty = self._penalties * (norms.whole if self._include_biases else norms.weights).cpu()
        columns: dict[str, Tensor] = {}
        for name, pair in self._measured.items():
            loss, metric = self._training.evaluate(state.training, *pair, self._metric)
            columns[f"{name}_loss"] = loss.cpu()
            columns[f"penalized_{name}_loss"] = loss.cpu() + penalty
            columns[f"{name}_metric"] = metric.cpu()
        columns["squared_norm"], columns["squared_norm_weights"] = norms.whole, norms.weights
        measured: dict[str, Any] = {
            "penalty": self._penalties.tolist(),
            "epoch": [state.epoch] * self._training.members,
            **{name: values.tolist() for name, values in columns.items()},
        }
        state.history.append(measured)
