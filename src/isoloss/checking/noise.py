"""How exactly a loss is known: its floating-point noise, measured rather than assumed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from isoloss.errors import InputError
from isoloss.problem import Problem


def relative_noise(problem: Problem, theta: Tensor) -> float:
    """Relative rounding error of the loss at a point, in the problem's own type.

    In float32: the loss of every example is computed in float64 too. Were the differences d
    independent, their sum would be off by the root of the sum of d squared; what they share shows
    in the sum itself; the larger of the two counts. In float64, and where the model computes
    in nothing but its own type: the losses summed in their order and in reverse, and no less than
    the machine epsilon.

    Args:
        problem: The problem.
        theta: Shape (problem.size,).

    Returns:
        The noise over the loss; infinite where the loss is zero.
    """
    losses = _weighted(problem, theta)
    total = losses.sum().abs().item()
    if total == 0:
        return math.inf
    eps = torch.finfo(problem.dtype).eps
    if problem.dtype == torch.float32:
        try:
            exact = _weighted(problem.with_dtype(torch.float64), theta.double())
        except RuntimeError:  # the model holds float32 tensors of its own
            return eps
        differences = losses - exact
        error = max(differences.sum().abs().item(), differences.square().sum().sqrt().item())
        return error / total
    forth, back = losses.cumsum(0)[-1], losses.flip(0).cumsum(0)[-1]
    return max(eps, (forth - back).abs().item() / total)


def _weighted(problem: Problem, theta: Tensor) -> Tensor:
    losses, weights = problem.example_losses(theta), problem.chunks.weights
    return losses if weights is None else losses * weights


def check_tolerance(problem: Problem, theta: Tensor, tolerance: float) -> None:
    """Insist that a tolerance of the level means something at a point.

    Args:
        problem: The problem.
        theta: Shape (problem.size,).
        tolerance: Relative tolerance of the loss.

    Raises:
        InputError: The loss is not known that exactly; the figure is given.
    """
    noise = relative_noise(problem, theta)
    if tolerance < noise:
        better = " or use dtype=torch.float64" if problem.dtype == torch.float32 else ""
        raise InputError(
            f"a relative tolerance of {tolerance:.3g} is below the noise of the loss, {noise:.2g} "
            f"in {str(problem.dtype).removeprefix('torch.')}; allow more than that{better}"
        )
