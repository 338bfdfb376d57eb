"""What a run walks: an experiment of the paper or a project of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from isoloss.methods import Method
from isoloss.path import Record, Stop
from isoloss.problem import Problem
from isoloss.training import TrainingState


@dataclass(frozen=True)
class Start:
    """A trained network, ready to walk.

    Attributes:
        problem: Its training loss.
        probes: What is measured along the walk, by name.
        model: The network; None where only the user's function knows it.
        extra: Tensors that a run keeps beside its points, by name.
    """

    problem: Problem
    probes: Mapping[str, Problem]
    model: nn.Module | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])


class Subject(Protocol):
    """Something that a seed determines a run of; sent to the process of each run."""

    @property
    def name(self) -> str: ...  # names its folder of results: one component of a path

    @property
    def identity(self) -> Mapping[str, Any]: ...  # what tells it from others of its name

    @property
    def runs(self) -> int: ...  # of a walk, unless another number is asked for

    @property
    def default_dtype(self) -> str | None: ...  # in which it is evaluated; None: the problem's own

    def prepare(self) -> None: ...  # fetches what its runs need, before they are spread

    def method(self, name: str) -> Method: ...  # with the settings that suit this subject

    def stop(self) -> Stop: ...  # the end of a walk

    def record(self, method: Method) -> Record: ...  # what is kept of a walk by a method

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
    ) -> Start:
        """Train, continuing from the state `training`.

        Where `weights` are given, those that training ended with before are kept.
        """
        ...
