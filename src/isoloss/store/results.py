"""What the commands wrote, read back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path as FilePath

import pandas as pd
import torch
from torch import Tensor

from isoloss.errors import InputError
from isoloss.path import Path
from isoloss.store import decay, run
from isoloss.store.folder import load_config, problem


def run_folder(out: FilePath, experiment: str, method: str, index: int) -> FilePath:
    """Where a run of a walk is: `OUT/EXPERIMENT/traverse/METHOD/run-000`."""
    return out / experiment / "traverse" / method / f"run-{index:03d}"


def decay_folder(out: FilePath, experiment: str, index: int) -> FilePath:
    """Where a run of weight decay is: `OUT/EXPERIMENT/decay/run-000`."""
    return out / experiment / "decay" / f"run-{index:03d}"


def equivalent_folder(out: FilePath, experiment: str, method: str, index: int) -> FilePath:
    """Where weight decay with a walk's penalty is: `OUT/NAME/equivalent/METHOD/run-000`."""
    return out / experiment / "equivalent" / method / f"run-{index:03d}"


def after_decay_folder(out: FilePath, experiment: str, method: str, index: int) -> FilePath:
    """Where a walk from weight decay's best network is: `OUT/NAME/after-decay/METHOD/run-000`."""
    return out / experiment / "after-decay" / method / f"run-{index:03d}"


def report_folder(out: FilePath, experiment: str) -> FilePath:
    """Where an experiment's figures and tables are: `OUT/report/EXPERIMENT`."""
    return out / "report" / experiment


class Results:
    """A results folder.

    Args:
        folder: What was given to `--out`.
    """

    def __init__(self, folder: FilePath) -> None:
        self.folder = folder

    def experiments(self) -> list[str]:
        """Names of the experiments of which there are walks or runs of weight decay."""
        kinds = ("traverse", "decay")
        return sorted(
            {found.parent.name for kind in kinds for found in self.folder.glob(f"*/{kind}")}
        )

    def methods(self, experiment: str) -> list[str]:
        """Names of the methods by which an experiment was walked."""
        return sorted(found.name for found in (self.folder / experiment / "traverse").glob("*"))

    def paths(self, experiment: str, method: str) -> list[Path]:
        """The walks of an experiment by a method, in the order of the runs.

        Args:
            experiment: For example `"IRIS_FF"`.
            method: For example `"paper"`.

        Returns:
            Every run that has ended, interrupted ones included; those that failed, and those of
            which a file is damaged, are left out, and `unfinished` says why.
        """
        folders = self._runs(experiment, method)
        return [run.load(folder) for folder in folders if problem(folder) is None]

    def walks(self, experiment: str) -> dict[str, list[Path]]:
        """The walks of an experiment by each method that has any.

        Args:
            experiment: For example `"IRIS_FF"`.

        Returns:
            What `paths` returns, by the method's name.

        Raises:
            InputError: There is no walk.
        """
        found = {name: self.paths(experiment, name) for name in self.methods(experiment)}
        found = {name: paths for name, paths in found.items() if paths}
        if not found:
            raise InputError(
                f"{self.folder} holds no walk of {experiment}; make one with 'isoloss traverse "
                f"{experiment} --out {self.folder}'"
            )
        return found

    def unfinished(self, experiment: str, method: str) -> dict[str, str]:
        """Why runs are not among `paths`, by the name of their folder."""
        return _problems(self._runs(experiment, method))

    def decay(self, experiment: str) -> pd.DataFrame:
        """The networks that weight decay gave: a row for each run and penalty.

        Args:
            experiment: For example `"IRIS_FF"`.

        Returns:
            Columns `run`, `seed`, `penalty`, `epoch` (the last), `train_loss`,
            `penalized_train_loss`, `train_metric`, `test_loss`, `penalized_test_loss`,
            `test_metric`, `squared_norm`, `squared_norm_weights` (without biases), `lost_epoch`,
            `status` (`finished`, or `non_finite` of a network that became NaN or infinite), and,
            where examples were held out, `validation_loss` and `validation_metric` of the network
            trained with the same penalty on the others. Runs in their order, penalties ascending;
            empty where no run is finished.
        """
        return _tables(self._decay_runs(experiment), decay.load_members)

    def decay_epochs(self, experiment: str) -> pd.DataFrame:
        """How these networks came about: a row for each run, epoch measured and penalty.

        Args:
            experiment: For example `"IRIS_FF"`.

        Returns:
            The columns of `decay` but `lost_epoch`, `status` and those of validation.
        """
        return _tables(self._decay_runs(experiment), decay.load_epochs)

    def decay_points(self, experiment: str) -> Tensor:
        """The networks themselves.

        Args:
            experiment: For example `"IRIS_FF"`.

        Returns:
            Shape (networks, parameters): a row for each of `decay`, in its order; parameters in the
            order of `model.named_parameters()`.
        """
        folders = self._decay_runs(experiment)
        return torch.cat([decay.load_ends(f) for f in folders]) if folders else torch.empty(0, 0)

    def decay_unfinished(self, experiment: str) -> dict[str, str]:
        """Why runs of weight decay are not among `decay`, by the name of their folder."""
        return _problems(sorted((self.folder / experiment / "decay").glob("run-*")))

    def equivalent(self, experiment: str, method: str) -> pd.DataFrame:
        """Weight decay with the penalty at which each walk ended: the columns of `decay`."""
        folder = self.folder / experiment / "equivalent" / method
        return _tables(_whole(folder.glob("run-*")), decay.load_members)

    def after_decay(self, experiment: str, method: str) -> list[Path]:
        """The walks from the best networks of weight decay, in the order of the runs."""
        folder = self.folder / experiment / "after-decay" / method
        return [run.load(one) for one in _whole(folder.glob("run-*"))]

    def _decay_runs(self, experiment: str) -> list[FilePath]:
        return _whole((self.folder / experiment / "decay").glob("run-*"))

    def _runs(self, experiment: str, method: str) -> list[FilePath]:
        return sorted((self.folder / experiment / "traverse" / method).glob("run-*"))


def _whole(folders: Iterable[FilePath]) -> list[FilePath]:
    return [folder for folder in sorted(folders) if problem(folder) is None]


def _tables(folders: Sequence[FilePath], load: Callable[[FilePath], pd.DataFrame]) -> pd.DataFrame:
    tables: list[pd.DataFrame] = []
    for folder in folders:
        table = load(folder)
        table.insert(0, "run", int(folder.name.removeprefix("run-")))
        table.insert(1, "seed", load_config(folder)["seed"])
        tables.append(table)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _problems(folders: Sequence[FilePath]) -> dict[str, str]:
    found = {folder.name: problem(folder) for folder in folders}
    return {name: reason for name, reason in found.items() if reason is not None}


def open_results(folder: str | FilePath = "results") -> Results:
    """Open what the commands wrote.

    Args:
        folder: What was given to `--out`.

    Returns:
        The results.

    Raises:
        InputError: There is no such folder.
    """
    folder = FilePath(folder)
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; make results with 'isoloss reproduce NAME'")
    return Results(folder)
