"""What a run walks: an experiment of the paper or a project of a user's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from isoloss.methods import Paper
from isoloss.path import Record, Stop
from isoloss.problem import Problem
from isoloss.training import TrainingState


class Begun(Protocol):
    """A trained network, ready to walk."""

    @property
    def problem(self) -> Problem:
        """Its training loss."""
        ...

    @property
    def probes(self) -> Mapping[str, Problem]:
        """What is measured along the walk."""
        ...

    @property
    def extra(self) -> Mapping[str, Tensor]:
        """What is to be kept of it beside the points."""
        ...


class Subject(Protocol):
    """Something that a seed determines a run of; sent to the process of each run."""

    @property
    def name(self) -> str:
        """Names its folder of results: one component of a path."""
        ...

    @property
    def identity(self) -> Mapping[str, Any]:
        """What tells it from others of its name, for a run's `config.json`."""
        ...

    @property
    def runs(self) -> int:
        """Runs of a walk, if nothing else is asked for."""
        ...

    @property
    def paper(self) -> Paper:
        """The paper's method with its settings."""
        ...

    @property
    def default_dtype(self) -> str | None:
        """Name of the type in which it is evaluated; None for that of the problem."""
        ...

    def prepare(self) -> None:
        """Fetch what its runs need, before they are spread over the cores."""
        ...

    def stop(self) -> Stop:
        """The end of a walk."""
        ...

    def record(self, method: str) -> Record:
        """What is kept of a walk by a method."""
        ...

    def start(
        self,
        seed: int,
        *,
        device: str = ...,
        dtype: torch.dtype | None = ...,
        weights: Tensor | None = ...,
        training: TrainingState | None = ...,
        after_epoch: Callable[[TrainingState], object] | None = ...,
        chunk_size: int | None = ...,
    ) -> Begun:
        """Train, or load the weights that training ended with before."""
        ...
