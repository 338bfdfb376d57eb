"""What a walk is given, looked at before the first evaluation: what is wrong gets one sentence."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from isoloss.errors import InputError
from isoloss.path import Record, Stop
from isoloss.problem import Problem
from isoloss.snapshot import Keeper

KINDS: dict[str, tuple[Any, str]] = {
    "problem": (Problem, "an isoloss.Problem, made of a model, a loss and data"),
    "stop": (Stop, "an object such as isoloss.Stop(steps=500)"),
    "record": (Record, "an object such as isoloss.Record(points_every=10)"),
    "probes": (Mapping, "a dict of problems by name, as probes={'test': test_problem}"),
    "callback": (Callable, "a function of the row just recorded"),
    "checkpoint": (Keeper, "an isoloss.Checkpoint(folder)"),
}
"""What an argument has to be, and how that is said."""

TAKEN = {"level", "step", "arc", "kkt", "angle"}
"""No names of probes: their columns would be the walk's own."""


def check_kinds(**given: Any) -> None:
    """Insist that arguments are of the kind that their names stand for.

    Args:
        given: Arguments by name; what is None, the problem apart, is left to its default.

    Raises:
        InputError: One is something else.
    """
    for name, value in given.items():
        kind, wanted = KINDS[name]
        left_out = value is None and name != "problem"
        if not left_out and not isinstance(value, kind):
            raise InputError(f"{name} is of type {type(value).__name__}; give {wanted}")


def level_of(level: Any) -> float | None:
    """The loss to hold, positive and finite; None for the start's."""
    if level is None:
        return None
    number = _number("level", level)
    if not 0 < number < math.inf:
        raise InputError(f"level={number} is not possible; give a positive, finite loss to hold")
    return number


def rtol_of(rtol: Any) -> float:
    """The relative tolerance of the level, in (0, 1)."""
    number = _number("rtol", rtol)
    if not 0 < number < 1:
        raise InputError(f"rtol={number} is not possible; give a relative tolerance in (0, 1)")
    return number


def start_of(problem: Problem, start: Any) -> Tensor:
    """Where the walk starts.

    Args:
        problem: The problem.
        start: Shape (problem.size,); None for the model's present weights.

    Returns:
        A copy, of the problem's type on its device.

    Raises:
        InputError: It is no such tensor, or is not finite.
    """
    if start is None:
        theta, what = problem.current(), "the model"
    elif not isinstance(start, Tensor):
        raise InputError(f"start is a {type(start).__name__}; give a tensor, as torch.from_numpy")
    elif start.shape != (problem.size,):
        raise InputError(
            f"start has shape {tuple(start.shape)}, the problem has {problem.size} parameters; "
            f"give a flat vector in the order of model.named_parameters()"
        )
    else:
        theta, what = start.detach().to(problem.device, problem.dtype, copy=True), "start"
    if not torch.isfinite(theta).all():
        bad = int((~torch.isfinite(theta)).sum())
        raise InputError(f"{what} has {bad} entries that are NaN or infinite; give finite weights")
    return theta


def check_probes(probes: Mapping[str, Any], problem: Problem) -> None:
    """Insist that probes are problems of the same parameters under names that can be columns."""
    for name, probe in probes.items():
        if not isinstance(probe, Problem):
            raise InputError(
                f"probe {name!r} is of type {type(probe).__name__}; give an isoloss.Problem, made "
                f"from the same model"
            )
        if probe.size != problem.size:
            raise InputError(
                f"probe {name!r} has {probe.size} parameters, the problem has {problem.size}; make "
                f"it from the same model"
            )
        if not str(name).isidentifier() or name in TAKEN:
            raise InputError(
                f"probe name {name!r} is not possible; give a plain name such as 'test', not one "
                f"of {', '.join(sorted(TAKEN))}"
            )


def _number(name: str, value: Any) -> float:
    single = isinstance(value, Tensor) and value.numel() == 1
    if not single and not isinstance(value, Real):
        raise InputError(f"{name}={value!r} is of type {type(value).__name__}; give a number")
    return float(value)
