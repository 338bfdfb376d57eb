"""What a problem gives in float64, for all checks that tell rounding from mistakes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from isoloss.problem import Problem

Found = TypeVar("Found")


def in_float64(
    problem: Problem, theta: Tensor, measure: Callable[[Problem, Tensor], Found]
) -> Found | None:
    """A measurement in float64; None where the problem is in it already, or cannot be."""
    if problem.dtype == torch.float64:
        return None
    try:
        return measure(problem.with_dtype(torch.float64), theta.double())
    except Exception:  # whatever a model raises that holds float32 tensors of its own
        return None
