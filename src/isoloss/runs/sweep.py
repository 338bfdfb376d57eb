"""Networks of one or more runs of weight decay, trained in one stack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from pydantic import Field
from torch import Tensor

from isoloss.experiments.catalog import Experiment
from isoloss.losses import METRICS
from isoloss.settings import Count, Settings
from isoloss.store.folder import Stack
from isoloss.training import Norms, Training, TrainingState

Pair = tuple[Tensor, Tensor]  # inputs and targets


class DecayOptions(Settings):
    """How to train with weight decay."""

    epochs: Count
    # the penalty on biases too, as the walk's R is; the reference's is on matrices and kernels
    include_biases: bool = False
    # part of the training examples on which the best penalty is chosen: with every penalty a second
    # network is trained on the others
    held_out: float = Field(default=0.2, ge=0, le=0.5)
    record_every: Count = 10  # epochs


@dataclass
class SweepState:
    """All that a run needs to continue from the end of an epoch."""

    training: TrainingState
    lost: Tensor  # the epoch at which a member was found NaN or infinite, -1 of others; int64
    history: list[dict[str, list[float]]] = field(default_factory=list[dict[str, list[float]]])


class Sweep:
    """For each run, networks from its start on its draw of examples, one for each penalty.

    `own` are pairs with a leading axis of the runs, of which the one named train is trained on;
    `test` is of them all.
    """

    def __init__(
        self,
        experiment: Experiment,
        options: DecayOptions,
        penalties: Sequence[Sequence[float]],  # of each run, as many of one as of another
        own: Mapping[str, Pair],
        test: Mapping[str, Pair],
    ) -> None:
        inputs, targets = own["train"]
        self._options, self._penalties = options, penalties
        self._measured = {
            **{name: (pair, True) for name, pair in own.items()},
            **{name: (pair, False) for name, pair in test.items()},
        }
        self._metric = METRICS[experiment.metric]
        self._training = Training(
            experiment.network(0).to(inputs.device),  # one of its kind: all start elsewhere
            experiment.loss,
            inputs,
            targets,
            penalties=[penalty for each in penalties for penalty in each],
            include_biases=options.include_biases,
            own_examples=True,
        )
        self.notes = self._training.notes

    def start(self, starts: Tensor) -> None:
        """Begin from vectors of shape (runs, parameters), and measure there."""
        each, runs = len(self._penalties[0]), len(starts)
        self._state = self._training.init(starts.repeat_interleave(each, dim=0))
        self._lost = torch.full((runs * each,), -1)
        self._history: list[list[dict[str, list[float]]]] = [[] for _ in range(runs)]
        self._measure(self._training.norms(self._state))

    def resume(self, states: Sequence[SweepState]) -> None:
        """Continue from states of all runs, which stand at the same epoch."""
        self._state = self._training.join([one.training for one in states])
        self._lost = torch.cat([one.lost for one in states])
        self._history = [list(one.history) for one in states]

    @property
    def epoch(self) -> int:
        """Epochs so far."""
        return self._state.epoch

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return self.epoch >= self._options.epochs

    def step(self) -> None:
        """Train for one epoch, and measure where that is due."""
        self._training.epoch(self._state)
        norms = self._training.norms(self._state)
        fresh = norms.whole.isfinite().logical_not().cpu()
        self._lost[fresh & (self._lost < 0)] = self.epoch
        if self.finished or self.epoch % self._options.record_every == 0:
            self._measure(norms)

    def states(self) -> list[SweepState]:
        """Where each run stands, copies."""
        runs = len(self._penalties)
        each = zip(
            self._training.split(self._state, runs), self._lost.chunk(runs), self._history,
            strict=True,
        )  # fmt: skip
        return [SweepState(training, lost.clone(), list(rows)) for training, lost, rows in each]

    def stacks(self) -> list[Stack]:
        """Each run's networks and what was measured of them."""
        runs = len(self._penalties)
        ends = self._training.thetas(self._state).cpu().chunk(runs)
        each = zip(self._history, ends, self._lost.chunk(runs), strict=True)
        return [
            Stack(pd.concat([pd.DataFrame(rows) for rows in history], ignore_index=True), end, lost)
            for history, end, lost in each
        ]

    def _measure(self, norms: Norms) -> None:
        penalized = norms.whole if self._options.include_biases else norms.weights
        penalties = [penalty for each in self._penalties for penalty in each]
        penalty = torch.tensor(penalties, dtype=torch.float64) * penalized.cpu()
        columns: dict[str, Tensor] = {}
        for name, (pair, own) in self._measured.items():
            found = self._training.evaluate(self._state, *pair, self._metric, own_examples=own)
            loss, metric = (values.cpu() for values in found)
            columns[f"{name}_loss"] = loss
            columns[f"penalized_{name}_loss"] = loss + penalty
            columns[f"{name}_metric"] = metric
        columns["squared_norm"], columns["squared_norm_weights"] = norms.whole, norms.weights
        runs, each = len(self._penalties), len(self._penalties[0])
        for k, history in enumerate(self._history):
            measured: dict[str, Any] = {
                "penalty": list(self._penalties[k]),
                "epoch": [self.epoch] * each,
                **{name: values.chunk(runs)[k].tolist() for name, values in columns.items()},
            }
            history.append(measured)
