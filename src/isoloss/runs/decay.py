"""One run of weight decay: one start and draw of examples, trained with every penalty."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path as FilePath
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor

from isoloss.errors import DeviceError, InputError, one_line
from isoloss.evaluation.failures import out_of_memory
from isoloss.experiments.catalog import Data, Experiment
from isoloss.flat import flatten
from isoloss.path import Row
from isoloss.runs.run import Contact, Interrupted, News, Run
from isoloss.runs.sweep import DecayOptions, Pair, Sweep, SweepState
from isoloss.settings import override, parse_pairs
from isoloss.store import Results, run_folder
from isoloss.store.checkpoint import TrainingCheckpoint
from isoloss.store.folder import CHECKPOINT, FINISHED, Stack, save_decay
from isoloss.training import check_penalties


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

    def counted(self, done: int) -> str:
        """Those of each training, once both are done; before, of both together."""
        epochs = self.settings.options.epochs
        both = done == self.total > epochs
        return f"2 \u00d7 {epochs:,}" if both else super().counted(done)

    @classmethod
    def work_all(cls, contacts: Sequence[Contact]) -> Iterator[News]:
        """Train the runs that are alike in one stack."""
        alike: dict[str, list[Contact]] = {}
        for contact in contacts:
            settings = cast("DecayRun", contact.run).settings
            same = {**settings.config(0), "penalties": len(settings.penalties)}
            alike.setdefault(str(same), []).append(contact)
        for several in alike.values():
            yield from _trained_together(several)

    def _work(self, contact: Contact) -> News:
        (news,) = self.work_all([contact])
        return news

    def finished_before(self) -> News:
        return News(self.index, "done", self.total, ending=FINISHED)


def _trained_together(contacts: Sequence[Contact]) -> Iterator[News]:
    """Train runs in one stack, or in several where memory does not hold it."""
    said = ""
    try:
        trained = _train(contacts)
    except (Exception, Interrupted) as error:
        if isinstance(error, Interrupted) or not out_of_memory(error):
            yield from (contact.ended_by(error) for contact in contacts)
            return
        said = one_line(error)
    else:
        for contact, done in zip(contacts, trained, strict=True):
            yield contact.end(partial(_saved, cast("DecayRun", contact.run), done))
        return
    # here, where the error no longer holds what did not fit
    middle = len(contacts) // 2
    if middle:
        yield from _trained_together(contacts[:middle])
        yield from _trained_together(contacts[middle:])
        return
    settings = cast("DecayRun", contacts[0].run).settings
    yield contacts[0].ended_by(
        DeviceError(
            f"{settings.device} has too little memory to train {len(settings.penalties)} networks "
            f"at once ({said}); free some of it, or give fewer penalties"
        )
    )


@dataclass(frozen=True)
class _Trained:
    """What training with every penalty gave for one run."""

    start: Tensor
    indices: Tensor
    whole: Stack
    chosen: Stack | None


def _train(contacts: Sequence[Contact]) -> list[_Trained]:
    """Train what is left of runs that are alike."""
    for contact in contacts:
        contact.tell("training")
    runs = [cast("DecayRun", contact.run) for contact in contacts]
    settings = runs[0].settings
    draws = [settings.experiment.data(runs[0].seed)]
    for run in runs[1:]:  # all have one test set
        draw, first = settings.experiment.data(run.seed), draws[0]
        shared = {"test_inputs": first.test_inputs, "test_targets": first.test_targets}
        draws.append(replace(draw, **shared))
    networks = (settings.experiment.network(run.seed) for run in runs)
    starts = torch.stack([flatten(list(network.parameters())) for network in networks])

    def stacked(rows: Sequence[Tensor]) -> Pair:
        each = list(zip(draws, rows, strict=True))
        inputs = torch.stack([draw.inputs[own] for draw, own in each])
        targets = torch.stack([draw.targets[own] for draw, own in each])
        return inputs.to(settings.device), targets.to(settings.device)

    own = {"train": stacked([torch.arange(len(draw.targets)) for draw in draws])}
    test = draws[0].test_inputs.to(settings.device), draws[0].test_targets.to(settings.device)
    whole = _follow("whole", contacts, starts, own, {"test": test}, [None] * len(runs), 0)
    chosen: Sequence[Stack | None] = [None] * len(runs)
    if settings.options.held_out:
        held = [
            hold_out(draw, settings.options.held_out, run.seed)
            for draw, run in zip(draws, runs, strict=True)
        ]
        kept, aside = zip(*held, strict=True)
        own = {"train": stacked(kept), "validation": stacked(aside)}
        best = [_best(stack) for stack in whole]
        chosen = _follow("chosen", contacts, starts, own, {}, best, settings.options.epochs)
    results = zip(starts, draws, whole, chosen, strict=True)
    return [_Trained(start, draw.indices, all_, part) for start, draw, all_, part in results]


def _follow(
    name: str,
    contacts: Sequence[Contact],
    starts: Tensor,
    own: Mapping[str, Pair],
    test: Mapping[str, Pair],
    best: Sequence[Row | None],
    done: int,  # epochs of trainings before this one
) -> list[Stack]:
    """One training of all penalties, kept from time to time; runs that stand at another epoch are
    in a stack of their own."""
    runs = [cast("DecayRun", contact.run) for contact in contacts]
    checkpoints, states = list[TrainingCheckpoint](), list[SweepState | None]()
    for run, contact in zip(runs, contacts, strict=True):
        folder = run.folder / CHECKPOINT / name
        checkpoints.append(TrainingCheckpoint(folder, run.folder, run.checkpoint_every))
        states.append(checkpoints[-1].load(SweepState))
        contact.notes += checkpoints[-1].damage
    epochs = [0 if state is None else state.training.epoch for state in states]
    found: dict[int, Stack] = {}
    for epoch in sorted(set(epochs)):
        these = [k for k in range(len(runs)) if epochs[k] == epoch]
        settings, device = runs[0].settings, runs[0].settings.device
        sweep = Sweep(
            settings.experiment,
            settings.options,
            [runs[k].settings.penalties for k in these],
            {key: (inputs[these], targets[these]) for key, (inputs, targets) in own.items()},
            test,
        )
        kept = [state for k in these if (state := states[k]) is not None]
        if kept:
            sweep.resume(kept)
        else:
            sweep.start(starts[these].to(device))
        while not sweep.finished:
            sweep.step()
            stop = [contacts[k].tell("training", done + sweep.epoch, best[k]) for k in these]
            if any(stop) or sweep.finished or any(checkpoints[k].due for k in these):
                for k, state in zip(these, sweep.states(), strict=True):
                    checkpoints[k].save(state)
            if any(stop):
                raise Interrupted
        for k in these:
            contacts[k].notes += sweep.notes
        found |= zip(these, sweep.stacks(), strict=True)
    return [found[k] for k in range(len(runs))]


def _saved(run: DecayRun, done: _Trained) -> News:
    """Write what a run gave; its last news."""
    save_decay(run.folder, done.whole, done.chosen, start=done.start, indices=done.indices)
    return News(run.index, "done", run.total, _best(done.whole), ending=FINISHED)


def hold_out(data: Data, part: float, seed: int) -> tuple[Tensor, Tensor]:
    """Rows to train on and rows held out, drawn by PCG64 in a stream apart from the examples'."""
    count = len(data.targets)
    generator = np.random.Generator(np.random.PCG64([seed, 1]))
    aside = np.sort(generator.choice(count, size=max(1, round(part * count)), replace=False))
    kept = np.setdiff1d(np.arange(count), aside)
    return torch.from_numpy(kept), torch.from_numpy(aside)


def _best(stack: Stack) -> Row:
    """The penalty with the smallest test loss, for the display alone."""
    last = stack.last()
    row: Row = last.sort_values("test_loss", kind="stable").iloc[0].to_dict()  # NaN comes last
    return {**row, "networks": len(last), "lost": int((stack.lost >= 0).sum())}
