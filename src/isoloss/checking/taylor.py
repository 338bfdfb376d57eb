"""Whether a gradient belongs to its function: the remainder of Taylor's first order falls as h^2.

For a step h along v, |f(x + h v) - f(x) - h <g, v>| falls as h^2 where g is the gradient, and as h
where it is not; the order is read off where the steps are smallest and rounding does not yet count.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import torch
from torch import Tensor

STEPS = tuple(10 ** (-k / 2) for k in range(2, 15))
"""Lengths of the steps, as shares of |x|."""

ENOUGH = 1.5
"""Least order of a right gradient: between the first and the second."""

ROUNDINGS = 100.0
JUDGED = 4


@dataclass(frozen=True)
class Taylor:
    """What a Taylor check found.

    Attributes:
        order: Order at which the remainder falls; NaN where it is all rounding.
        error: Central difference along v less <g, v>, over |g|.
        right: Whether the gradient belongs to the function.
    """

    order: float
    error: float
    right: bool

    def __str__(self) -> str:
        """For a table."""
        order = "exact to rounding" if math.isnan(self.order) else f"order {self.order:.2f}"
        return f"{order}, relative error along a direction {self.error:.1e}"


def direction(grad: Tensor, seed: int) -> Tensor:
    """A unit vector to check along: half the gradient's, half random, float64.

    Args:
        grad: Shape (n,).
        seed: Of the random half.

    Returns:
        Shape (n,), on the gradient's device.
    """
    source = torch.Generator().manual_seed(seed)
    random = torch.randn(len(grad), generator=source, dtype=torch.float64).to(grad.device)
    v = random / random.norm()
    if grad.norm() > 0:
        v += grad.double() / grad.double().norm()
    return v / v.norm()


def taylor(
    value: Callable[[Tensor], float], x: Tensor, grad: Tensor, *, noise: float, seed: int = 0
) -> Taylor:
    """Check a gradient along one direction.

    Args:
        value: The function.
        x: Where, shape (n,).
        grad: What should be its gradient there, shape (n,).
        noise: Relative rounding error of the function.
        seed: Of the direction.

    Returns:
        What was found.
    """
    v = direction(grad, seed)
    slope = grad.double().dot(v).item()
    size, here = x.double().norm().item() or 1.0, value(x)
    length = max(grad.double().norm().item(), 1e-300)

    def along(h: float) -> float:
        return value((x.double() + h * v).to(x.dtype))

    h = size * max(noise, 1e-16) ** (1 / 3)
    error = abs((along(h) - along(-h)) / (2 * h) - slope) / length
    remainders: list[tuple[float, float]] = []
    for share in STEPS:
        h = share * size
        there = along(h)
        remainder = abs(there - here - h * slope)
        if remainder > ROUNDINGS * noise * max(abs(here), abs(there)):
            remainders.append((h, remainder))
    if not math.isfinite(here + slope):
        return Taylor(math.nan, math.nan, False)
    if len(remainders) < 3:
        return Taylor(math.nan, error, True)
    orders = [math.log(a / b) / math.log(h / k) for (h, a), (k, b) in pairwise(remainders)]
    order = median(orders[-JUDGED:])
    return Taylor(order, error, order >= ENOUGH)


def wrong_pieces(
    value: Callable[[Tensor], float], x: Tensor, grad: Tensor, shapes: dict[str, tuple[int, ...]]
) -> list[str]:
    """The parameters whose part of the gradient is not that of the function.

    Args:
        value: The function.
        x: Where, shape (n,), float64.
        grad: What should be its gradient there, shape (n,).
        shapes: Shapes of the parameters by name, in order.

    Returns:
        Their names; two values a parameter are computed.
    """
    wrong: list[str] = []
    start = 0
    h = 1e-5 * (x.norm().item() or 1.0)
    for name, shape in shapes.items():
        piece = slice(start, start + math.prod(shape))
        start = piece.stop
        v = torch.zeros_like(x)
        v[piece] = direction(grad[piece], 1).to(x.dtype)
        slope = (value(x + h * v) - value(x - h * v)) / (2 * h)
        claimed = grad.dot(v).item()
        if abs(slope - claimed) > 1e-3 * (abs(slope) + abs(claimed)) + 1e-8 * grad.norm().item():
            wrong.append(name)
    return wrong
