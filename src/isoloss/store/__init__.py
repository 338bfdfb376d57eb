"""What the commands write: folders and checkpoints of runs, and here all of it read back, once."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, TypeVar

import pandas as pd
import torch
from torch import Tensor

from isoloss.arguments import checked
from isoloss.disk import DamagedError, ResultsError, Stamp, as_folder, refuse_links
from isoloss.errors import InputError, IsolossError, said
from isoloss.files import FAILED, OUTCOME, read_ending, read_json, read_table, read_tensors
from isoloss.path import POINTS, Path, check_table, read_path
from isoloss.store.checkpoint import Checkpoint as Checkpoint
from isoloss.store.folder import (
    EPOCHS,
    FINISHED,
    LEFT_OUT,
    MEMBERS,
    NOT_FINISHED,
    STRAY,
    Kind,
    copies,
    load_config,
    misplaced,
    run_folder,
    runs_in,
    signs_of,
)
from isoloss.store.folder import check_out_folder as check_out_folder
from isoloss.store.folder import report_folder as report_folder

KINDS = ("traverse", "decay", "front")
MEASURED = (
    *("penalty", "epoch", "train_loss", "test_loss", "test_metric"),
    *("squared_norm", "squared_norm_weights"),
)
"""Columns of both tables of weight decay."""


MOST_REASONS = 2  # why runs have no walk, in a sentence
MAPPED = os.name == "posix"  # elsewhere a file that is mapped cannot be replaced


@dataclass(frozen=True)
class Decay:
    """One run of weight decay; its networks are read when they are asked for."""

    file: FilePath  # with the networks
    stamp: Stamp  # of it
    seed: int
    members: pd.DataFrame  # a row for each penalty
    epochs: pd.DataFrame  # a row for each epoch measured and penalty
    parameters: int
    config: dict[str, Any]

    def ends(self) -> Tensor:
        """The networks at the end, shape (penalties, parameters)."""
        return self.tensors()["ends"]

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of the run: `ends`, `start`, `indices`."""
        return read_tensors(self.file, self.stamp)


Runs = dict[str, Path | Decay | str]
"""Runs by the names of their folders; of those that cannot be read the reason."""

AnyRun = TypeVar("AnyRun", Path, Decay, str)


@dataclass(frozen=True)
class _Kept:
    """A run that was read."""

    written: tuple[int, int, int]  # which file its `outcome.json` is, and as of when
    weights: str  # SHA-256 of the file with its weights
    run: Path | Decay


def load_decay(folder: FilePath) -> Decay:
    """Read a run of weight decay; ResultsError where it failed or a file is not whole."""
    ending = read_ending(folder)
    if ending.content["outcome"] == FAILED:
        raise ResultsError(f"{folder} holds a run that failed: {ending.content['message']}")
    if ending.content["outcome"] != FINISHED:
        raise DamagedError(f"{folder} holds no run of weight decay that has ended")
    stamps = ending.stamps
    try:
        members, epochs = (read_table(folder / name, stamps[name]) for name in (MEMBERS, EPOCHS))
        points, seed = stamps[POINTS], ending.about["config"]["seed"]
        ends = read_tensors(folder / POINTS, points, mapped=MAPPED)["ends"]
    except KeyError as error:
        raise DamagedError(f"{folder} holds no run of weight decay: it has no {error}") from error
    check_table(folder / MEMBERS, members, [*MEASURED, "lost_epoch"], ["status"])
    check_table(folder / EPOCHS, epochs, MEASURED, [])
    if ends.ndim != 2 or len(ends) != len(members) or not ends.is_floating_point():
        wrong = f"ends of shape {tuple(ends.shape)} are none of the {len(members)} trained"
        raise DamagedError(f"{folder / POINTS} is damaged: {wrong}")
    config, size = ending.about["config"], ends.shape[1]
    return Decay(folder / POINTS, points, seed, members, epochs, size, config)


class Results:
    """A results folder.

    What is read of an experiment is kept, so that no file is read twice, until another experiment
    is asked for or the run is done again. The weights of walks take memory only once they are
    used: they are mapped from their files, which must not be overwritten in place meanwhile (no
    command does). Methods take the name of an experiment, for example `"IRIS_FF"`, and that of a
    method, for example `"paper"`.

    Args:
        folder: What was given to `--out`.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = as_folder(folder)
        self._experiment = ""
        self._kept: dict[FilePath, _Kept] = {}

    def experiments(self) -> list[str]:
        """Names of the experiments of which there are walks, fronts or runs of weight decay."""
        found = [one for kind in KINDS for one in self.folder.glob(f"*/{kind}")]
        return sorted({one.parent.name for one in found if one.parent.name.isprintable()})

    @checked
    def methods(self, experiment: str) -> list[str]:
        """Names of the methods by which an experiment was walked."""
        place = run_folder(self.folder, experiment, None, 0).parent
        found = [one for one in place.glob("[!.]*") if one.is_dir()]
        return sorted(one.name for one in found if one.name.isprintable())

    @checked
    def paths(self, experiment: str, method: str) -> list[Path]:
        """The walks of an experiment by a method, in the order of the runs.

        Returns:
            Every run that has ended, interrupted ones included; those that failed, and those of
            which a file is damaged, are left out, and `unfinished` says why.
        """
        return [*_only(Path, self._read(experiment, "traverse", method)).values()]

    @checked
    def walks(self, experiment: str) -> dict[str, list[Path]]:
        """The walks of an experiment by each method that has any.

        Returns:
            What `paths` returns, by the method's name.

        Raises:
            InputError: There is no walk.
        """
        found = {name: self.paths(experiment, name) for name in self.methods(experiment)}
        found = {name: paths for name, paths in found.items() if paths}
        if not found:
            reasons = {
                f"{name}, {run}": why
                for name in self.methods(experiment)
                for run, why in self.unfinished(experiment, name).items()
            }
            raise no_walk(self.folder, experiment, reasons)
        return found

    @checked
    def unfinished(self, experiment: str, method: str) -> dict[str, str]:
        """Why runs are not among `paths`, by the name of their folder."""
        return _only(str, self._read(experiment, "traverse", method))

    @checked
    def decay(self, experiment: str) -> pd.DataFrame:
        """The networks that weight decay gave: a row for each run and penalty.

        Returns:
            Columns `run`, `seed`, `penalty`, `epoch` (the last), `train_loss`,
            `penalized_train_loss`, `train_metric`, `test_loss`, `penalized_test_loss`,
            `test_metric`, `squared_norm`, `squared_norm_weights` (without biases), `lost_epoch`,
            `status` (`finished`, or `non_finite` of a network that became NaN or infinite), and,
            where examples were held out, `validation_loss` and `validation_metric` of the network
            trained with the same penalty on the others. Runs in their order, penalties ascending;
            empty where no run is finished.
        """
        return _joined(self._read(experiment, "decay"), lambda run: run.members)

    @checked
    def decay_epochs(self, experiment: str) -> pd.DataFrame:
        """How these networks came about: a row for each run, epoch measured and penalty.

        Returns:
            The columns of `decay` but `lost_epoch`, `status` and those of validation.
        """
        return _joined(self._read(experiment, "decay"), lambda run: run.epochs)

    @checked
    def decay_points(self, experiment: str, rows: Sequence[int] | None = None) -> Tensor:
        """The networks themselves.

        Args:
            experiment: Name of the experiment.
            rows: Of which rows of `decay`, ascending; all by default.

        Returns:
            Shape (networks, parameters): a row for each of these, in the order of `decay`;
            parameters in the order of `model.named_parameters()`.
        """
        found, first = list[Tensor](), 0
        for run in _only(Decay, self._read(experiment, "decay")).values():
            end = first + len(run.members)
            here = [k - first for k in (range(first, end) if rows is None else rows)]
            if here := [k for k in here if 0 <= k < end - first]:
                found.append(run.ends()[here])
            first = end
        return torch.cat(found) if found else torch.empty(0, 0)

    @checked
    def decay_unfinished(self, experiment: str) -> dict[str, str]:
        """Why runs of weight decay are not among `decay`, by the name of their folder."""
        return _only(str, self._read(experiment, "decay"))

    @checked
    def equivalent(self, experiment: str, method: str) -> pd.DataFrame:
        """Weight decay with the penalty at which each walk ended: the columns of `decay`."""
        return _joined(self._read(experiment, "equivalent", method), lambda run: run.members)

    @checked
    def after_decay(self, experiment: str, method: str) -> list[Path]:
        """The walks from the best networks of weight decay, in the order of the runs."""
        return [*_only(Path, self._read(experiment, "after-decay", method)).values()]

    def _read(self, experiment: str, kind: Kind, method: str | None = None) -> Runs:
        """The runs of a kind by the names of their folders; of those not whole the reason."""
        if experiment != self._experiment:
            self._experiment, self._kept = experiment, {}
        place = run_folder(self.folder, experiment, method, 0, kind).parent
        refuse_links(self.folder, place)
        folders, strays = runs_in(place)
        found: Runs = {}
        for folder in folders:
            try:
                found[folder.name] = self._one(folder, experiment, kind, method, len(folders))
            except Exception as error:
                known = isinstance(error, IsolossError)
                found[folder.name] = str(error) if known else f"cannot be read: {said(error)}"
        whole = [one for one in folders if not isinstance(found[one.name], str)]
        for name, why in self._strange(whole).items():
            found[name] = f"{LEFT_OUT}: {why}"
        return found | dict.fromkeys(strays, f"{LEFT_OUT}: {STRAY}")

    def _one(
        self, folder: FilePath, experiment: str, kind: Kind, method: str | None, runs: int
    ) -> Path | Decay | str:
        refuse_links(folder.parent, folder)
        if not (folder / OUTCOME).exists():
            return NOT_FINISHED
        now = (folder / OUTCOME).lstat()
        written = now.st_ino, now.st_mtime_ns, now.st_size
        if folder not in self._kept or self._kept[folder].written != written:
            ending = read_json(folder / OUTCOME)
            if ending.get("outcome") == FAILED:
                return str(ending.get("message"))
            if kind in ("decay", "equivalent"):
                run = load_decay(folder)
            else:
                run = self._keep(read_path(folder, mapped=MAPPED), runs)
            self._kept[folder] = _Kept(written, ending["files"][POINTS]["sha256"], run)
        run = self._kept[folder].run
        why = misplaced(
            _config(run), experiment, kind, run.method if isinstance(run, Path) else None, method
        )
        return f"{LEFT_OUT}: {why}" if why else run

    def _keep(self, path: Path, runs: int) -> Path:  # noqa: ARG002
        """What is kept of a walk that was read, one of so many in a folder."""
        return path

    def _strange(self, folders: Sequence[FilePath]) -> dict[str, str]:
        """Why runs cannot be among the others: copies of one of these, or of another network."""
        runs = {folder: self._kept[folder] for folder in folders}
        sizes = {folder.name: _size(kept.run) for folder, kept in runs.items()}
        (usual, _), *_ = Counter(sizes.values()).most_common(1) or [(0, 0)]
        found = {
            name: f"it has {size} parameters, the others {usual}"
            for name, size in sizes.items()
            if size != usual
        }
        signs = {
            folder.name: signs_of(_config(kept.run), kept.weights)
            for folder, kept in runs.items()
            if folder.name not in found
        }
        return found | copies(signs)


def no_walk(folder: FilePath, experiment: str, reasons: Mapping[str, str]) -> InputError:
    """An error, to be raised, where there is no walk; with the reasons, by run, where there
    are runs."""
    command = f"'isoloss traverse {called(folder, experiment)} --out {folder}'"
    if not reasons:
        return InputError(f"{folder} holds no walk of {experiment}; make one with {command}")
    said = [f"{run}: {why}" for run, why in [*reasons.items()][:MOST_REASONS]]
    said += [f"and {more} more"] if (more := len(reasons) - len(said)) else []
    return InputError(
        f"{folder} holds no walk of {experiment} that can be read ({'; '.join(said)}); "
        f"once that is put right, call {command} again"
    )


def called(folder: FilePath, experiment: str) -> str:
    """What commands call an experiment: its name, FILE.py:FUNCTION of a project's runs."""
    for file in sorted((folder / experiment).glob("**/run-*/config.json")):
        try:
            project = load_config(file.parent).get("project")
        except ResultsError:
            continue
        if isinstance(project, dict) and {"file", "function"} <= project.keys():
            return f"{project['file']}:{project['function']}"
    return experiment


def _config(run: Path | Decay) -> dict[str, Any]:
    return run.config if isinstance(run, Decay) else run.metadata.get("config", {})


def _size(run: Path | Decay) -> int:
    return run.parameters if isinstance(run, Decay) else math.prod(run.points.shape[1:])


def _only(kind: type[AnyRun], found: Runs) -> dict[str, AnyRun]:
    return {name: run for name, run in found.items() if isinstance(run, kind)}


def _joined(runs: Runs, table: Callable[[Decay], pd.DataFrame]) -> pd.DataFrame:
    """The tables of runs below one another, with the run and its seed before their columns."""
    tables: list[pd.DataFrame] = []
    for name, run in _only(Decay, runs).items():
        whole = table(run).copy()
        whole.insert(0, "run", int(name.removeprefix("run-")))
        whole.insert(1, "seed", run.seed)
        tables.append(whole)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def open_results(folder: str | os.PathLike[str] = "results") -> Results:
    """Open what the commands wrote.

    Args:
        folder: What was given to `--out`.

    Returns:
        The results.

    Raises:
        InputError: There is no such folder.
    """
    place = as_folder(folder)
    if not place.is_dir():
        raise InputError(f"there is no folder {place}; make results with 'isoloss reproduce NAME'")
    return Results(place)
