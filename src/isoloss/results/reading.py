"""What the commands wrote, read back."""

from __future__ import annotations

from pathlib import Path as FilePath

from isoloss.errors import InputError
from isoloss.path import Path
from isoloss.results import run


def run_folder(out: FilePath, experiment: str, method: str, index: int) -> FilePath:
    """Where a run of a walk is: `OUT/EXPERIMENT/traverse/METHOD/run-000`."""
    return out / experiment / "traverse" / method / f"run-{index:03d}"


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
        """Names of the experiments of which there are walks."""
        return sorted(found.parent.name for found in self.folder.glob("*/traverse"))

    def methods(self, experiment: str) -> list[str]:
        """Names of the methods by which an experiment was walked."""
        return sorted(found.name for found in (self.folder / experiment / "traverse").glob("*"))

    def paths(self, experiment: str, method: str) -> list[Path]:
        """The walks of an experiment by a method, in the order of the runs.

        Args:
            experiment: For example `"IRIS_FF"`.
            method: For example `"paper"`.

        Returns:
            Every run that has ended, interrupted ones included; failed ones are left out.
        """
        return [
            run.load(folder)
            for folder in self._runs(experiment, method)
            if (folder / "outcome.json").exists() and run.failure(folder) is None
        ]

    def unfinished(self, experiment: str, method: str) -> dict[str, str]:
        """Why runs are not among `paths`, by the name of their folder."""
        reasons: dict[str, str] = {}
        for folder in self._runs(experiment, method):
            if not (folder / "outcome.json").exists():
                reasons[folder.name] = "not finished"
            elif message := run.failure(folder):
                reasons[folder.name] = message
        return reasons

    def _runs(self, experiment: str, method: str) -> list[FilePath]:
        return sorted((self.folder / experiment / "traverse" / method).glob("run-*"))


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
