"""One run of weight decay: one start and draw of examples, trained with every penalty."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from isoloss.errors import InputError
from isoloss.experiments.catalog import Data, Experiment
from isoloss.flat import flatten
from isoloss.path import Row
from isoloss.runs.claim import as_only_writer, is_finished, keep_or_stop
from isoloss.runs.news import SECONDS_BETWEEN_NEWS, News
from isoloss.runs.settings import override, parse_pairs
from isoloss.runs.sweep import Pair, Sweep, SweepState
from isoloss.runs.walk import made_with
from isoloss.settings import Settings
from isoloss.store.checkpoint import TrainingCheckpoint
from isoloss.store.folder import CHECKPOINT, FINISHED, Stack, begin, save_decay
from isoloss.training import check_penalties

MEASUREMENTS = {True: 50, False: 10}
"""How often a run is measured: where all examples are few, and where the test set is large."""


class DecayOptions(Settings):
    """How to train with weight decay.

    Attributes:
        epochs: Passes over the training examples.
        include_biases: Whether the penalty is on biases too, as the walk's R is; the reference's is
            on weight matrices and kernels alone.
        held_out: Part of the training examples on which the best penalty is chosen, below one half:
            with every penalty a second network is trained on the others. 0 leaves that out.
        record_every: Epochs between two measurements of losses and norms.
    """

    epochs: PositiveInt
    include_biases: bool = False
    held_out: float = Field(default=0.2, ge=0, le=0.5)
    record_every: PositiveInt = 10


@dataclass(frozen=True)
class DecaySettings:
    """Everything but the seed that determines a run of weight decay.

    Attributes:
        experiment: The experiment.
        penalties: Weights of the squared norm, ascending.
        options: How to train.
        device: For example `cpu` or `cuda`.
    """

    experiment: Experiment
    penalties: tuple[float, ...]
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
    """The settings of a run, from the experiment's and from what was given.

    Args:
        experiment: The experiment.
        penalties: Weights of the squared norm; None takes the paper's.
        epochs: Passes over the training examples; None takes the paper's.
        pairs: `KEY=VALUE`, where KEY is an option of `DecayOptions`.
        device: Where to compute.

    Returns:
        The settings, with the penalties in ascending order.

    Raises:
        InputError: A name or a value is not possible.
    """
    chosen = sorted(experiment.penalties if penalties is None else penalties)
    check_penalties(chosen)
    for one, next_ in itertools.pairwise(chosen):
        if one == next_:
            raise InputError(f"penalty {one:g} was given twice; give it once")
    every = experiment.decay_epochs // MEASUREMENTS[experiment.draw is None]
    default = DecayOptions(epochs=experiment.decay_epochs, record_every=every)
    also = [] if epochs is None else [f"epochs={epochs}"]
    options = override(default, parse_pairs([*pairs, *also], DecayOptions))
    return DecaySettings(experiment, tuple(chosen), options, device)


@dataclass(frozen=True)
class DecayRun:
    """One run of weight decay.

    Attributes:
        index: Number of the run, from 0.
        seed: Determines the run: start, draw of examples, and which of them are held out.
        folder: Where its files go.
        settings: Everything else that determines the run.
        checkpoint_every: Seconds between checkpoints.
    """

    index: int
    seed: int
    folder: FilePath
    settings: DecaySettings
    checkpoint_every: float = 30.0

    @property
    def unit(self) -> str:
        """What progress is counted in: the epochs of the training with examples held out, too."""
        return "epochs in all" if self.settings.options.held_out else "epochs"

    @property
    def headings(self) -> tuple[str, ...]:
        """What `numbers` are."""
        return (self.unit, "networks", "lost", "best penalty", "its test loss")

    def numbers(self, done: int, row: Row) -> tuple[str, ...]:
        """A line of the summary."""
        return (
            f"{done:,}",
            f"{row['networks']}",
            f"{row['lost']}",
            f"{row['penalty']:g}",
            f"{row['test_loss']:.4g}",
        )

    def describe(self, row: Row) -> dict[str, str]:
        """The best penalty so far and its test loss, for the progress line."""
        return {
            "first": f"best penalty {row['penalty']:g}",
            "second": f"test loss {row['test_loss']:.4g}",
        }

    @property
    def epochs(self) -> int:
        """Epochs of all stacks together."""
        stacks = 2 if self.settings.options.held_out else 1
        return stacks * self.settings.options.epochs

    def finished(self) -> bool:
        """Whether there is nothing to do; nothing is changed.

        Returns:
            Whether the run is finished, with all its files whole.
        """
        return is_finished(self.folder, self.settings.config(self.seed))

    def execute(self, tell: Callable[[News], None], cancelled: Callable[[], bool]) -> News:
        """Train, measure, write, as the only writer to the folder.

        Args:
            tell: Receives news, at most ten times a second.
            cancelled: Asked after each epoch; the run is kept and interrupted once it says True.

        Returns:
            The last news, once everything is written.
        """
        return as_only_writer(self, lambda notes: self._execute(tell, cancelled, notes))

    def _execute(
        self, tell: Callable[[News], None], cancelled: Callable[[], bool], notes: list[str]
    ) -> News:
        config = self.settings.config(self.seed)
        if not begin(self.folder, config, made_with(), notes.append):
            return News(self.index, "done", self.epochs, ending=FINISHED, notes=tuple(notes))
        experiment, options = self.settings.experiment, self.settings.options
        data = experiment.data(self.seed)
        start = flatten(list(experiment.network(self.seed).parameters()))
        train, test = (
            (x.to(self.settings.device), y.to(self.settings.device))
            for x, y in ((data.inputs, data.targets), (data.test_inputs, data.test_targets))
        )
        told, done = 0.0, 0
        news = News(self.index, "training")
        tell(news)

        def follow(name: str, sweep: Sweep) -> Stack:
            nonlocal told, done, news
            folder = self.folder / CHECKPOINT / name
            checkpoint = TrainingCheckpoint(folder, self.folder, self.checkpoint_every)
            state = checkpoint.load(SweepState) or sweep.init(start.to(self.settings.device))
            notes.extend(checkpoint.damage)
            done += state.epoch
            while not sweep.finished(state):
                sweep.step(state)
                done += 1
                if sweep.finished(state):
                    checkpoint.save(state)
                keep_or_stop(checkpoint, cancelled, state)
                now = time.monotonic()
                if now - told >= SECONDS_BETWEEN_NEWS:
                    told = now
                    tell(News(self.index, "training", done, news.row))
            return Stack(sweep.history(state), sweep.thetas(state), state.lost)

        whole = follow("whole", self._sweep(train, {"test": test}))
        news = News(self.index, "training", done, _best(whole))
        chosen = None
        if options.held_out:
            kept, aside = hold_out(data, options.held_out, self.seed)
            parts = _rows(train, kept), {"validation": _rows(train, aside)}
            chosen = follow("chosen", self._sweep(*parts))
        save_decay(self.folder, whole, chosen, start=start, indices=data.indices)
        return News(self.index, "done", done, _best(whole), ending=FINISHED, notes=tuple(notes))

    def _sweep(self, train: Pair, tests: dict[str, Pair]) -> Sweep:
        experiment, options = self.settings.experiment, self.settings.options
        return Sweep(
            experiment.network(self.seed).to(self.settings.device),
            experiment.loss,
            experiment.metric,
            self.settings.penalties,
            train,
            tests,
            include_biases=options.include_biases,
            epochs=options.epochs,
            record_every=options.record_every,
        )


def hold_out(data: Data, part: float, seed: int) -> tuple[Tensor, Tensor]:
    """Divide the training examples of a run at random.

    Args:
        data: The examples.
        part: Part to hold out, below one.
        seed: Of numpy's PCG64 generator, with a stream apart from the draw's.

    Returns:
        Row numbers of those to train on and of those held out, each in the order of the data.
    """
    count = len(data.targets)
    generator = np.random.Generator(np.random.PCG64([seed, 1]))
    aside = generator.choice(count, size=max(1, round(part * count)), replace=False)
    held = torch.zeros(count, dtype=torch.bool)
    held[torch.from_numpy(aside)] = True
    return (~held).nonzero().squeeze(1), held.nonzero().squeeze(1)


def _rows(pair: Pair, rows: Tensor) -> Pair:
    return pair[0][rows.to(pair[0].device)], pair[1][rows.to(pair[1].device)]


def _best(stack: Stack) -> Row:
    """The penalty with the smallest test loss, for the display alone."""
    last = stack.last()
    finite = last.loc[last["test_loss"].notna()]
    best = finite.loc[finite["test_loss"].idxmin()] if len(finite) else last.iloc[0]
    row: Row = best.to_dict()
    return {**row, "networks": len(last), "lost": int((stack.lost >= 0).sum())}
