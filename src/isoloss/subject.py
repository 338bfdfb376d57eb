"""What a run of an experiment or of a user's project begins with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from isoloss.problem import Problem


@dataclass(frozen=True)
class Start:
    """A trained network, ready to walk."""

    problem: Problem  # its training loss
    probes: Mapping[str, Problem]  # what is measured along the walk
    model: nn.Module | None = None  # None where only the user's function knows it
    # tensors that a run keeps beside its points
    extra: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
