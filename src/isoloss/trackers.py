"""Rows of a walk to TensorBoard, MLflow, W&B, and all callbacks of a walk as one."""

from __future__ import annotations

import math
import os
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path as FilePath
from typing import Any, cast

import numpy as np
from torch import Tensor

from isoloss.arguments import checked
from isoloss.errors import InputError, check_takes, kind, require_extra, said, unknown
from isoloss.files import FAILED
from isoloss.path import Path, Row

Callback = Callable[[Row], bool | None]
Figures = dict[str, float]

EXTRA = "trackers"
SECONDS_TO_FLUSH = 10  # less than between two checkpoints, so that a resumed curve has no gap
# what MLflow takes in one call, and of a value
MOST_METRICS, MOST_PARAMS, LONGEST_VALUE = 1000, 100, 500


class Callbacks:
    """What a walk tells, to all who want to know."""

    def __init__(self, given: Callback | Sequence[Callback] | None) -> None:
        self._all: list[Any] = [given] if callable(given) else list(given or ())
        for one in self._all:
            check_takes("callback", one, "row")

    def begin(self, settings: Mapping[str, Any]) -> None:
        """The settings, before the first row."""
        for one in self._all:
            if callable(getattr(one, "begin", None)):
                one.begin(settings)

    def __call__(self, row: Row) -> bool:
        """A row; whether any asks for the end, which all hear of."""
        answers = [one(row) for one in self._all]
        return any(map(_is_true, answers))

    def end(self, path: Path | None) -> None:
        """The path, or None where an error ended the walk."""
        for one in self._all:
            if callable(getattr(one, "end", None)):
                with suppress(KeyboardInterrupt):  # which would lose the path
                    one.end(path)


def _is_true(answer: Any) -> bool:
    """Whether it is True, NumPy's and torch's included; anything else ends no walk."""
    if isinstance(answer, np.bool_) or (isinstance(answer, Tensor) and answer.numel() == 1):
        answer = answer.item()
    return answer is True


class Tracker(ABC):
    """A callback that logs a walk: its settings once, a row a step, and how it ended.

    Whatever fails in it becomes one warning; the walk continues, and the rest is not logged. A
    tracker can follow several walks, one after another.

    Args:
        config: Further settings to log beside those of the walk, such as `{"seed": 0}`.
    """

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        self._config = dict(config or {})
        self.tell: Callable[[str], object] = _warn  # receives the sentence
        self._begun = self._lost = False
        self._step, self._logged = 0, Figures()

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Log the settings; `traverse` calls it before the first row.

        Args:
            settings: Those of the walk, `isoloss.walk(...).settings`.
        """
        self._begun, self._lost, self._step, self._logged = True, False, 0, {}
        self._try(lambda: self._open(_flat({**settings, **self._config})))

    def __call__(self, row: Row) -> None:
        """Log a row; what was not measured is left out.

        Args:
            row: The columns of `Path.steps`.
        """
        self._step, self._logged = row["step"], _figures(row)
        self._try(lambda: self._log(self._step, self._logged))

    def end(self, path: Path | None) -> None:
        """Log the outcome; `traverse` calls it whatever ends the walk.

        Args:
            path: The walk; None where an error ended it.
        """
        if not self._begun:  # a callback before this one failed
            return
        self._begun = False
        outcome, message, late = FAILED, "an error ended the walk", Figures()
        if path is not None:
            outcome, message = path.outcome.value, path.message
            last = [path.steps.iloc[-1].to_dict()] if len(path.steps) else []
            late = {k: v for row in last for k, v in _figures(row).items() if k not in self._logged}
        if late:  # probes may be measured at the last point after its row was told
            self._try(lambda: self._log(self._step, late))
        self._try(lambda: self._close({"outcome": outcome, "message": message}))

    @abstractmethod
    def _open(self, settings: dict[str, bool | float | str]) -> None: ...

    @abstractmethod
    def _log(self, step: int, figures: Figures) -> None: ...

    @abstractmethod
    def _close(self, ending: dict[str, str]) -> None: ...

    def _try(self, work: Callable[[], None]) -> None:
        if self._lost:
            return
        try:
            work()
        except Exception as error:
            self._lost = True
            self.tell(
                f"{type(self).__name__} failed at step {self._step} ({said(error)}); the walk "
                f"continues without it"
            )


class TensorBoard(Tracker):
    """Logs a walk to TensorBoard's event files.

    Columns are scalars, settings and outcome are texts, and the walk is a line of the table of
    hyperparameters. A walk that is resumed from a checkpoint continues its curves.

    Args:
        dir: The folder of this walk; that above it is for `tensorboard --logdir`.
        config: Further settings to log beside those of the walk, such as `{"seed": 0}`.

    Raises:
        InputError: TensorBoard is not installed.
    """

    @checked
    def __init__(
        self,
        dir: str | os.PathLike[str],  # noqa: A002  # as its own writer calls it
        *,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(config)
        require_extra("tensorboard", EXTRA)
        self._dir = os.fspath(dir)
        self._writer: Any = None

    def _open(self, settings: dict[str, bool | float | str]) -> None:
        self._settings, self._writer = settings, None

    def _log(self, step: int, figures: Figures) -> None:
        from torch.utils.tensorboard.summary import hparams
        from torch.utils.tensorboard.writer import SummaryWriter

        if self._writer is None:  # now it is known which steps of an earlier one are to go
            self._writer = SummaryWriter(self._dir, purge_step=step, flush_secs=SECONDS_TO_FLUSH)
            self._writer.add_text("settings", _table(self._settings), step)
            experiment, begun, self._ended = hparams(self._settings, figures)
            for summary in (experiment, begun):
                self._writer.file_writer.add_summary(summary, step)
        for name, figure in figures.items():
            self._writer.add_scalar(name, figure, step)

    def _close(self, ending: dict[str, str]) -> None:
        if self._writer is not None:
            self._writer.add_text("outcome", _table(ending), self._step)
            self._writer.file_writer.add_summary(self._ended, self._step)
            self._writer.close()


class MLflow(Tracker):
    """Logs a walk to a run of MLflow.

    Settings are parameters, columns are metrics, `outcome` and `message` are tags. A walk that is
    resumed from a checkpoint is a new run, unless `run_id` says which.

    Args:
        experiment: The name of MLflow's experiment; it is made if there is none.
        run_name: The run's name; None leaves it to MLflow.
        run_id: A run to log to, which is left open; None makes one.
        tracking_uri: Where to, such as `"sqlite:///mlflow.db"` or a server's address; None is
            MLflow's own choice, `MLFLOW_TRACKING_URI` included.
        config: Further settings to log beside those of the walk, such as `{"seed": 0}`.

    Raises:
        InputError: MLflow is not installed.
    """

    @checked
    def __init__(
        self,
        experiment: str = "isoloss",
        *,
        run_name: str | None = None,
        run_id: str | None = None,
        tracking_uri: str | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(config)
        require_extra("mlflow", EXTRA)
        self._experiment, self._name = experiment, run_name
        self._given, self._uri = run_id, tracking_uri

    def _open(self, settings: dict[str, bool | float | str]) -> None:
        mlflow = require_extra("mlflow", EXTRA)
        # not by mlflow.start_run, whose run would be that of the user's own calls
        self._client, self._waiting, self._flushed = mlflow.MlflowClient(self._uri), [], 0.0
        self._run = self._given
        if self._given is None:
            known = _experiment(self._client, self._experiment)
            self._run = self._client.create_run(known, run_name=self._name).info.run_id
        values = {name: str(value)[:LONGEST_VALUE] for name, value in settings.items()}
        params = [mlflow.entities.Param(*pair) for pair in values.items()]
        for k in range(0, len(params), MOST_PARAMS):
            self._client.log_batch(self._run, params=params[k : k + MOST_PARAMS])

    def _log(self, step: int, figures: Figures) -> None:
        metric = require_extra("mlflow", EXTRA).entities.Metric
        now = time.time()
        if len(self._waiting) + len(figures) > MOST_METRICS:
            self._flush()
        self._waiting += [metric(name, one, int(now * 1e3), step) for name, one in figures.items()]
        if now - self._flushed > 1:  # a call each would take longer than many a step
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self._client.log_batch(self._run, metrics=self._waiting)
        self._waiting, self._flushed = [], time.time()

    def _close(self, ending: dict[str, str]) -> None:
        self._flush()
        for name, text in ending.items():
            self._client.set_tag(self._run, name, text)
        if self._given is None:
            status = "FAILED" if ending["outcome"] == FAILED else "FINISHED"
            self._client.set_terminated(self._run, status)


class WandB(Tracker):
    """Logs a walk to Weights & Biases, or to what has the same `init`, `log` and `finish`.

    A walk that is resumed from a checkpoint is a new run, unless `id` and `resume` say which.

    Args:
        project: The project; None takes `WANDB_PROJECT`, else `"isoloss"`.
        module: Another module in place of `wandb`, such as `trackio`.
        config: Further settings to log beside those of the walk, such as `{"seed": 0}`.
        **init: What else its `init` takes: `name`, `group`, `mode="offline"`, ...

    Raises:
        InputError: W&B is not installed, or the module has no `init`.
    """

    @checked
    def __init__(
        self,
        project: str | None = None,
        *,
        module: Any = None,
        config: Mapping[str, Any] | None = None,
        **init: Any,
    ) -> None:
        super().__init__(config)
        if module is None:
            require_extra("wandb", EXTRA)
        elif not callable(getattr(module, "init", None)):
            raise InputError(
                f"module must be imported and have init, as wandb and trackio do, got "
                f"{kind(module)}"
            )
        self._project, self._module, self._init = project, module, init

    def _open(self, settings: dict[str, bool | float | str]) -> None:
        module = self._module or require_extra("wandb", EXTRA)
        project = self._project or os.environ.get("WANDB_PROJECT") or "isoloss"
        self._run = module.init(project=project, config=settings, **self._init)

    def _log(self, step: int, figures: Figures) -> None:
        self._run.log(figures, step=step)

    def _close(self, ending: dict[str, str]) -> None:
        if hasattr(self._run, "summary"):
            self._run.summary.update(ending)
        else:
            self._run.log(ending, step=self._step)
        self._run.finish()


def _tensorboard(folder: FilePath, **config: Any) -> Tracker:
    method, experiment = folder.parent, folder.parents[2]
    return TensorBoard(experiment / "tensorboard" / method.name / folder.name, config=config)


def _experiment(client: Any, name: str) -> str:
    """The id of MLflow's experiment, which is made if there is none."""
    found = client.get_experiment_by_name(name)
    try:
        return client.create_experiment(name) if found is None else found.experiment_id
    except Exception:  # another process was first
        if (found := client.get_experiment_by_name(name)) is None:
            raise
        return found.experiment_id


def _mlflow(folder: FilePath, **config: Any) -> Tracker:
    method, experiment = folder.parent.name, folder.parents[2].name
    mlflow = require_extra("mlflow", EXTRA)
    if mlflow.get_tracking_uri().startswith(
        "sqlite"
    ):  # which runs would spoil by making it at once
        with suppress(Exception):  # it will be said by the run
            _experiment(mlflow.MlflowClient(), experiment)
    return MLflow(experiment, run_name=f"{method}/{folder.name}", config=config)


def _wandb(folder: FilePath, **config: Any) -> Tracker:
    group = f"{folder.parents[2].name}/{folder.parent.name}"
    quiet = {"silent": True}  # its lines would go between those of the progress of all runs
    return WandB(group=group, name=f"{group}/{folder.name}", settings=quiet, config=config)


TRACKERS = {"tensorboard": _tensorboard, "mlflow": _mlflow, "wandb": _wandb}
"""What `isoloss traverse --track` takes: from a run's `OUT/EXPERIMENT/traverse/METHOD/RUN`."""


def tracker_of_run(name: str, folder: FilePath, **config: Any) -> Tracker:
    """The tracker of that name for a run of the commands; InputError where there is none."""
    if name not in TRACKERS:
        raise unknown("tracker", name, TRACKERS)
    return TRACKERS[name](folder, **config)


def _warn(sentence: str) -> None:
    warnings.warn(sentence, stacklevel=2)


def _figures(row: Row) -> Figures:
    """The numbers of a row that were measured."""
    numbers = {name: one for name, one in row.items() if not isinstance(one, str)}
    numbers = {k: int(v) if isinstance(v, bool) else v for k, v in numbers.items()}
    return {k: v for k, v in numbers.items() if k != "step" and not math.isnan(v)}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, bool | float | str]:
    """Settings of settings by names with dots; what is no number is text."""
    found: dict[str, bool | float | str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= _flat(cast("Mapping[str, Any]", value), f"{prefix}{name}.")
        else:
            plain = isinstance(value, bool | int | float | str)
            found[f"{prefix}{name}"] = value if plain else str(value)
    return found


def _table(of: Mapping[str, Any]) -> str:
    """A table as Markdown has it."""
    lines = [f"| {name} | {str(value).replace('|', chr(92) + '|')} |" for name, value in of.items()]
    return "\n".join(["| | |", "| --- | --- |", *lines])
