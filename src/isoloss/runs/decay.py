"""One run of weight decay: one start and draw of examples, trained with every penalty."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import Tensor

from isoloss.errors import InputError
from isoloss.experiments.catalog import Data, Experiment
from isoloss.flat import flatten
from isoloss.losses import METRICS
from isoloss.path import Row
from isoloss.runs.run import Contact, News, Run
from isoloss.settings import Count, Settings, override, parse_pairs
from isoloss.store import Results, run_folder
from isoloss.store.checkpoint import TrainingCheckpoint
from isoloss.store.folder import CHECKPOINT, FINISHED, Stack, save_decay
from isoloss.training import Training, TrainingState, check_penalties

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


@dataclass(frozen=True)
class DecaySettings:
    """Everything but the seed that determines a run of weight decay."""

    experiment: Experiment
    penalties: tuple[float, ...]  # weights of the squared norm, ascending
    options: DecayOptions
    device: str = "cpu"

    def config(self, seed: int) -> dict[str, Any]:
        """What goes into a run's `config.json`."""
        return {
            "experiment": self.experiment.name,
            "seed": seed,
            "device": self.device,
            "penalties": list(self.penalties),
            **self.options.model_dump(),
        }


def decay_settings(
    experiment: Experiment,
    penalties: Sequence[float] | None = None,
    epochs: int | None = None,
    pairs: Sequence[str] = (),
    device: str = "cpu",
) -> DecaySettings:
    """The settings of a run: the paper's, changed by what is given; KEY is of `DecayOptions`."""
    chosen = sorted(experiment.penalties if penalties is None else penalties)
    check_penalties(chosen)
    for one, next_ in itertools.pairwise(chosen):
        if one == next_:
            raise InputError(f"penalty {one:g} was given twice; give it once")
    measurements = 50 if experiment.draw is None else 10  # fewer where the test set is large
    every = experiment.decay_epochs // measurements
    default = DecayOptions(epochs=experiment.decay_epochs, record_every=every)
    also = [] if epochs is None else [f"epochs={epochs}"]
    options = override(default, parse_pairs([*pairs, *also], DecayOptions))
    return DecaySettings(experiment, tuple(chosen), options, device)


def equivalent_runs(
    results: Results,
    experiment: Experiment,
    method: str,
    epochs: int | None = None,
    device: str = "cpu",
) -> list[DecayRun]:
    """Training from each walk's start with the penalty at which it ended, where positive."""
    from isoloss.report.tables import equivalent_penalty  # slow to load

    runs: list[DecayRun] = []
    pairs = ["include_biases=true", "held_out=0"]  # as the walk's R is of biases too
    for path in results.paths(experiment.name, method):
        penalty = equivalent_penalty(path)
        if math.isfinite(penalty) and penalty > 0:
            settings = decay_settings(experiment, [penalty], epochs, pairs, device)
            index = int(FilePath(path.metadata["folder"]).name.removeprefix("run-"))
            folder = run_folder(results.folder, experiment.name, method, index, "equivalent")
            runs.append(DecayRun(index, path.metadata["config"]["seed"], folder, settings))
    return runs


@dataclass
class SweepState:
    """All that a sweep needs to continue from the end of an epoch."""

    training: TrainingState
    lost: Tensor  # the epoch at which a member was found NaN or infinite, -1 of others; int64
    history: list[dict[str, list[float]]] = field(default_factory=list[dict[str, list[float]]])


class Sweep:
    """Networks from one start on one draw of examples, one for each penalty."""

    def __init__(
        self, settings: DecaySettings, seed: int, train: Pair, tests: dict[str, Pair]
    ) -> None:
        self._settings = settings
        self._measured = {"train": train, **tests}
        self._training = Training(
            settings.experiment.network(seed).to(settings.device),
            settings.experiment.loss,
            *train,
            penalties=settings.penalties,
            include_biases=settings.options.include_biases,
        )

    def init(self, start: Tensor) -> SweepState:
        """The state before the first epoch, with the start measured; it is of all networks."""
        members = self._training.members
        training = self._training.init(start.expand(members, -1))
        state = SweepState(training, torch.full((members,), -1))
        self._measure(state)
        return state

    def finished(self, state: SweepState) -> bool:
        """Whether all epochs are done."""
        return state.training.epoch >= self._settings.options.epochs

    def step(self, state: SweepState) -> None:
        """Train for one epoch and measure where that is due; the state is changed in place."""
        self._training.epoch(state.training)
        epoch = state.training.epoch
        fresh = self._training.norms(state.training).whole.isfinite().logical_not().cpu()
        state.lost[fresh & (state.lost < 0)] = epoch
        if epoch % self._settings.options.record_every == 0 or self.finished(state):
            self._measure(state)

    def stack(self, state: SweepState) -> Stack:
        """The networks and what was measured of them."""
        history = [pd.DataFrame(columns) for columns in state.history]
        ends = self._training.thetas(state.training)
        return Stack(pd.concat(history, ignore_index=True), ends, state.lost)

    def _measure(self, state: SweepState) -> None:
        settings, norms = self._settings, self._training.norms(state.training)
        penalized = norms.whole if settings.options.include_biases else norms.weights
        penalty = torch.tensor(settings.penalties, dtype=torch.float64) * penalized.cpu()
        metric_of = METRICS[settings.experiment.metric]
        columns: dict[str, Tensor] = {}
        for name, pair in self._measured.items():
            loss, metric = self._training.evaluate(state.training, *pair, metric_of)
            columns[f"{name}_loss"] = loss.cpu()
            columns[f"penalized_{name}_loss"] = loss.cpu() + penalty
            columns[f"{name}_metric"] = metric.cpu()
        columns["squared_norm"], columns["squared_norm_weights"] = norms.whole, norms.weights
        measured: dict[str, Any] = {
            "penalty": list(settings.penalties),
            "epoch": [state.training.epoch] * self._training.members,
            **{name: values.tolist() for name, values in columns.items()},
        }
        state.history.append(measured)


@dataclass(frozen=True)
class DecayRun(Run):
    """One run of weight decay."""

    settings: DecaySettings

    unit: ClassVar[str] = "epochs"
    figures: ClassVar[str] = "best penalty {penalty:.4g}, test loss {test_loss:.4g}"
    columns: ClassVar[dict[str, str]] = {
        "networks": "{networks}",
        "lost": "{lost}",
        "best penalty": "{penalty:.4g}",
        "test loss": "{test_loss:.4g}",
    }

    @property
    def total(self) -> int:
        """Epochs of all trainings together, that with examples held out included."""
        options = self.settings.options
        return (2 if options.held_out else 1) * options.epochs

    def _work(self, contact: Contact) -> News:
        settings = self.settings
        data = settings.experiment.data(self.seed)
        start = flatten(list(settings.experiment.network(self.seed).parameters()))
        train, test = (
            (x.to(settings.device), y.to(settings.device))
            for x, y in ((data.inputs, data.targets), (data.test_inputs, data.test_targets))
        )
        done, best = 0, None
        contact.tell("training")

        def follow(name: str, sweep: Sweep) -> Stack:
            nonlocal done
            folder = self.folder / CHECKPOINT / name
            checkpoint = TrainingCheckpoint(folder, self.folder, self.checkpoint_every)
            state = checkpoint.load(SweepState) or sweep.init(start.to(settings.device))
            contact.notes += checkpoint.damage
            done += state.training.epoch
            while not sweep.finished(state):
                sweep.step(state)
                done += 1
                if sweep.finished(state):
                    checkpoint.save(state)
                contact.keep_or_stop(checkpoint, state)
                contact.tell("training", done, best)
            return sweep.stack(state)

        whole = follow("whole", Sweep(settings, self.seed, train, {"test": test}))
        best = _best(whole)
        chosen = None
        if settings.options.held_out:
            kept, aside = hold_out(data, settings.options.held_out, self.seed)
            parts = _rows(train, kept), {"validation": _rows(train, aside)}
            chosen = follow("chosen", Sweep(settings, self.seed, *parts))
        save_decay(self.folder, whole, chosen, start=start, indices=data.indices)
        return News(self.index, "done", done, best, ending=FINISHED)

    def _finished_before(self) -> News:
        return News(self.index, "done", self.total, ending=FINISHED)


def hold_out(data: Data, part: float, seed: int) -> tuple[Tensor, Tensor]:
    """Rows to train on and rows held out, drawn by PCG64 in a stream apart from the examples'."""
    count = len(data.targets)
    generator = np.random.Generator(np.random.PCG64([seed, 1]))
    aside = np.sort(generator.choice(count, size=max(1, round(part * count)), replace=False))
    kept = np.setdiff1d(np.arange(count), aside)
    return torch.from_numpy(kept), torch.from_numpy(aside)


def _rows(pair: Pair, rows: Tensor) -> Pair:
    return pair[0][rows.to(pair[0].device)], pair[1][rows.to(pair[1].device)]


def _best(stack: Stack) -> Row:
    """The penalty with the smallest test loss, for the display alone."""
    last = stack.last()
    row: Row = last.sort_values("test_loss", kind="stable").iloc[0].to_dict()  # NaN comes last
    return {**row, "networks": len(last), "lost": int((stack.lost >= 0).sum())}
