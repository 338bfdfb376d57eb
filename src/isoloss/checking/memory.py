"""Whether a walk's vectors fit into the memory of their device."""

from __future__ import annotations

import math
import os

import torch

from isoloss.errors import DeviceError
from isoloss.methods import SQP, Method
from isoloss.methods.sqp import LEAST_MEMORY
from isoloss.problem import Problem, inside

EXCHANGED = 2
"""Vectors that a rank sends and receives at once."""


def vectors_at_most(problem: Problem, method: Method, exact: bool, held: int = 0) -> int:
    """Vectors that a method holds at once; of those that sqp remembers, each rank has a part."""
    ranks = inside(problem).ranks.count
    if not isinstance(method, SQP):
        return getattr(method, "vectors", 0) + EXCHANGED * (ranks > 1)
    most = method.vectors(problem.size, exact, held, problem.light)
    if ranks == 1:
        return most
    shared = 2 * method.directions(problem.size, exact, held, problem.light)
    return most - shared + math.ceil(shared / ranks) + EXCHANGED


def check_memory(problem: Problem, method: Method, exact: bool, held: int = 0) -> None:
    """Insist on memory for the vectors that a method holds at once, with so many constraints beside
    the level; `exact` says that the regularizer's Hessian is known."""
    most = vectors_at_most(problem, method, exact, held)
    each = problem.size * problem.dtype.itemsize
    left = _left(problem.device)
    if left is None or most * each <= left:
        return
    remedy = "use a device with more"
    if isinstance(method, SQP) and not held:
        ranks = inside(problem).ranks.count
        usual = method.directions(problem.size, exact, light=problem.light)
        fits = usual - math.ceil((most - left // each) / 2 * ranks)
        if fits >= LEAST_MEMORY:
            remedy = f"give method=isoloss.SQP(memory={fits}), or {remedy}"
    raise DeviceError(
        f"a walk by {method.name} holds up to {most} vectors of {problem.size:,} parameters, "
        f"{most * each / 1e9:.3g} GB, and {problem.device} has {left / 1e9:.3g} GB; {remedy}"
    )


def _left(device: torch.device) -> int | None:
    """Bytes that are free on a GPU, or that a computer has in all; None where nothing tells."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    if device.type == "cpu" and hasattr(os, "sysconf"):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None
